"""What ``sbr data`` says of a log: what every step of its preparation left, and which of its rows are there twice."""
import pandas as pd
import pytest

STEPS = ["log", "sessions of 2 clicks or more", "items of 5 clicks or more", "still sessions of 2 clicks or more",
         "training: before the cut", "test: after the cut", "test: items known from training"]


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A CSV of sixty sessions of three clicks, one an hour, and one of a single click."""
    monkeypatch.setenv("SBR_CACHE", str(tmp_path / "cache"))
    rows = [(s, "abcdef"[(s + n) % 6], 3600 * s + n) for s in range(60) for n in range(3)] + [(60, "a", 216_000)]
    pd.DataFrame(rows, columns=["session", "item", "time"]).to_csv(tmp_path / "log.csv", index=False)
    return tmp_path / "log.csv"


@pytest.mark.parametrize("command", ["stats", "prepare"])
def test_the_funnel_is_told(command, log, sbr, sbr_json):
    data = ["--dataset", log, "--log", "test_seconds=36000"]
    found = sbr_json("data", command, *data)
    assert [step["step"] for step in found["funnel"]] == STEPS
    assert found["funnel"][0] == {"step": "log", "sessions": 61, "clicks": 181, "items": 6}
    assert found["funnel"][1]["sessions"] == 60 and found["repeated_rows"] == 0
    code, out, err = sbr("data", command, *data)
    lines = {" ".join(line.split()) for line in out.splitlines()}
    assert (code, err) == (0, "") and "repeated_rows 0" in lines
    assert "log 61 sessions 181 clicks 6 items" in lines
    assert "sessions of 2 clicks or more 60 sessions 180 clicks 6 items" in lines
    assert [line.strip() for line in out.splitlines()][-len(STEPS)].startswith("log ")


@pytest.mark.parametrize("command", ["stats", "prepare"])
def test_clicks_that_are_there_twice_are_told(command, log, sbr):
    rows = pd.read_csv(log)
    pd.concat([rows, rows]).to_csv(log, index=False)
    _, out, err = sbr("data", command, "--dataset", log, "--log", "test_seconds=36000")
    assert "repeated_rows            181" in out
    assert err == ("warning: log.csv: 181 of its 362 rows repeat another (the same session, item and time), as if "
                   "every click were there twice; delete the repeated rows\n")
    pd.concat([rows, rows[:100]]).to_csv(log, index=False)
    _, out, err = sbr("data", command, "--dataset", log, "--log", "test_seconds=36000")
    assert "repeated_rows            100" in out and err == ""


def test_a_dataset_that_is_no_log_has_no_funnel(sbr_json):
    assert not {"funnel", "repeated_rows"} & sbr_json("data", "stats", "--dataset", "demo").keys()
