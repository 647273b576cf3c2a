"""Records of runs: which epoch each protocol picks, what is written, what is refused."""

import hashlib
import json
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import put, random_sessions
from toys import record as toys_record

from sbr_core import record_check, records
from sbr_core.datasets import Dataset
from sbr_core.recipes import Recipe
from sbr_core.train import TrainConfig


def epoch(number, hr, mrr, part="test"):
    intervals = {"HR@20 interval": [hr - 1, hr + 1], "MRR@20 interval": [mrr - 1, mrr + 1]}
    return {"epoch": number, "loss": 1.0, part: {"HR@20": hr, "MRR@20": mrr} | intervals}


FINAL = [epoch(1, 50.0, 20.0), epoch(2, 52.0, 19.0), epoch(3, 51.0, 21.0), epoch(4, 40.0, 18.0)]
SELECT = [epoch(1, 60.0, 22.0, "validation"), epoch(2, 61.0, 24.0, "validation"), epoch(3, 62.0, 23.0, "validation")]
EPOCHS = {"select": SELECT, "final": FINAL}


def test_as_published_takes_the_best_test_value_of_every_metric_for_itself():
    best = records.both_columns(EPOCHS)["as_published"]
    assert best == {"HR@20": 52.0, "HR@20 epoch": 2, "MRR@20": 21.0, "MRR@20 epoch": 3}


def test_honest_takes_all_metrics_at_the_epoch_that_the_held_out_sessions_pick():
    honest = records.both_columns(EPOCHS)["honest"]
    assert honest == {
        "HR@20": 52.0, "HR@20 interval": [51, 53], "MRR@20": 19.0, "MRR@20 interval": [18, 20], "epoch": 2,
    }  # fmt: skip


def test_of_equal_epochs_the_first_is_taken():
    twice = {
        "select": [epoch(n, 1.0, 5.0, "validation") for n in (1, 2)],
        "final": [epoch(n, 3.0, 3.0) for n in (1, 2)],
    }
    columns = records.both_columns(twice)
    assert columns["honest"]["epoch"] == 1 and columns["as_published"]["HR@20 epoch"] == 1


def test_a_system_that_only_counts_has_one_epoch():
    columns = records.both_columns({"final": FINAL[:1]})
    assert columns["honest"]["epoch"] == 1 and columns["as_published"]["MRR@20"] == columns["honest"]["MRR@20"] == 20.0


def test_without_a_select_run_the_last_epoch_is_the_honest_one():
    columns = records.both_columns({"final": FINAL})
    assert columns["honest"]["epoch"] == len(FINAL) > 1
    assert columns["honest"]["HR@20"] == FINAL[-1]["test"]["HR@20"]


def test_a_final_run_that_stopped_before_the_picked_epoch_answers_with_its_last():
    columns = records.both_columns({"select": [epoch(9, 1.0, 9.0, "validation")], "final": FINAL[:2]})
    assert columns["honest"]["epoch"] == 2


@pytest.fixture
def record(tmp_path):
    sessions = random_sessions(10)
    dataset = Dataset("toy", sessions, sessions, np.arange(30), "f" * 64, "test")
    recipe = Recipe("sr-gnn", {"dim": 4}, TrainConfig(seed=5), "made up")
    watch = records.Watch()
    time.sleep(0.01)
    path = tmp_path / "new" / records.file_name("sr-gnn", "toy", 5)
    return records.write(path, recipe, recipe.config, dataset, EPOCHS, watch)


def test_a_record_says_what_ran_and_what_came_of_it(record):
    assert record.name == "sr-gnn--toy--seed5.json"
    (found,) = records.load(record.parent)
    assert found == json.loads(record.read_text(encoding="utf-8"))
    assert (found["schema"], found["system"], found["dataset"], found["seed"]) == (
        record_check.SCHEMA,
        "sr-gnn",
        "toy",
        5,
    )
    assert (found["protocol"], found["fingerprint"]) == ("test", "f" * 64)
    assert found["recipe"]["arguments"] == {"dim": 4} and found["recipe"]["config"]["batch_size"] == 100
    assert found["recipe"]["source"] == "made up" and found["runs"] == EPOCHS
    assert {"as_published", "honest"} < found.keys() and found["honest"]["epoch"] == 2
    assert found["versions"]["torch"] == torch.__version__ and "python" in found["versions"]
    assert found["seconds"] >= 0.01 and found["peak_rss_mb"] > 50 and found["device"].startswith("CPU, ")
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", found["commit"])
    assert [path.name for path in record.parent.iterdir()] == [record.name]


@pytest.mark.parametrize("text", ['{"schema": 1, "sys', "[1, 2]", "{}", "", "null", '{"schema": 1}'])
def test_a_file_that_is_not_a_record_is_refused_by_name(text, record):
    damaged = record.parent / "zz.json"
    damaged.write_text(text)
    with pytest.raises(ValueError, match=f"{damaged} is not a record: half-written or of another form"):
        records.load(record.parent)


EDITS = [
    (lambda r: r.update(schema=2), "it has schema 2, this package reads 1"),
    (lambda r: r["as_published"].update({"HR@20": 99.9}), "changed after it was written"),
    (lambda r: r["runs"]["final"][0].update(loss=0.5), "changed after it was written"),
    (lambda r: r.pop("honest"), r"half-written or of another form \(KeyError: 'honest'\)"),
    (lambda r: r.update(seed="5"), "its seed is '5', not a int"),
    (lambda r: r.update(seed=1), "its name would be sr-gnn--toy--seed1.json"),
    (lambda r: r.update(dataset="demo"), "its name would be sr-gnn--demo--seed5.json"),
]
RESEALED = [  # whoever makes the digest anew does not get through either
    (lambda r: r["as_published"].update({"HR@20": 99.9}), "its columns are not those of its runs"),
    (lambda r: r["honest"].update({"MRR@20": None}), "its columns are not those of its runs"),
    (lambda r: [e["test"].update({"HR@20": 1e3}) or r.update(records.both_columns(r["runs"]))
                for e in r["runs"]["final"]], "a metric is 1000.0, not within 0 and 100"),
    (lambda r: [e["test"].update({"HR@20": float("nan")}) or r.update(records.both_columns(r["runs"]))
                for e in r["runs"]["final"]], "a metric is nan, not within 0 and 100"),
]  # fmt: skip


@pytest.mark.parametrize("edit, reason, seal", [(*e, False) for e in EDITS] + [(*e, True) for e in RESEALED])
def test_a_record_edited_by_hand_is_refused_by_name(edit, reason, seal, record):
    held = json.loads(record.read_text())
    edit(held)
    record.write_text(json.dumps(record_check.sealed(held) if seal else held))
    with pytest.raises(ValueError, match=f"{record} is not a record: .*{reason}.*; move it away, or fetch"):
        records.read(record)


def test_a_record_names_the_ranks_beside_it_by_their_sha256(record):
    assert "ranks_sha256" not in records.read(record)  # there were none
    held = records.read(record)
    records.write_ranks(records.ranks_path(record), torch.ones(5), torch.arange(5))
    dataset = Dataset("toy", random_sessions(10), random_sessions(10), np.arange(30), "f" * 64, "test")
    recipe = Recipe("sr-gnn", {"dim": 4}, TrainConfig(seed=5), "made up")
    records.write(record, recipe, recipe.config, dataset, EPOCHS, records.Watch())
    found = records.read(record)
    assert found["ranks_sha256"] == hashlib.sha256(records.ranks_path(record).read_bytes()).hexdigest()
    assert found.keys() - {"ranks_sha256"} == held.keys()


def test_a_record_of_other_data_than_its_name_says_is_refused(tmp_path):
    path = put(tmp_path, held := toys_record("pop", "demo"))
    assert records.read(path) == record_check.sealed(held)
    put(tmp_path, held | {"fingerprint": "0" * 64})
    with pytest.raises(ValueError, match="its fingerprint 000000000000... is not that of demo: it ran on other data"):
        records.read(path)


def test_records_are_read_in_order_of_their_names(record):
    for name in ("a-", "zz"):
        put(record.parent, json.loads(record.read_text()) | {"system": name})
    assert [found["system"] for found in records.load(record.parent)] == ["a-", "sr-gnn", "zz"]
    assert records.load(record.parent / "nothing here") == []


def test_peak_memory_is_that_of_this_process():
    before = records.peak_rss_mb()
    block = bytearray(b"x" * 200_000_000)
    assert records.peak_rss_mb() >= before and records.peak_rss_mb() > len(block) / 1e6


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget a peak of memory")
def test_a_watch_forgets_the_memory_of_what_was_before():
    torch.ones(50_000_000)  # 200 MB
    before = records.peak_rss_mb()
    assert records.Watch().read()["peak_rss_mb"] < before - 150


def test_the_commit_says_if_the_code_was_changed_and_is_no_other_project_s(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=tmp_path, check=True)

    file = tmp_path / "records.py"
    file.write_text("1")
    monkeypatch.setattr(records, "__file__", str(file))
    git("init", "-q")
    assert records._commit() is None  # installed in somebody's repository
    git("add", ".")
    git("commit", "-qm", "one")
    assert re.fullmatch("[0-9a-f]{40}", records._commit())
    file.write_text("2")
    assert re.fullmatch("[0-9a-f]{40}-dirty", records._commit())
