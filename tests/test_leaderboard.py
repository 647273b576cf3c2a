"""The leaderboard's directives: rows and links from records, what is missing, pictures only of what is known."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from toys import put, record

from sbr_core import costs, plan, records

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    """A module of the book's extensions."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


leaderboard = load("leaderboard")


@pytest.fixture
def folder(tmp_path):
    results = tmp_path / "results"
    for found in (
        record("sr-gnn", "diginetica", mrr=17.0),
        record("tagnn", "diginetica", mrr=18.0),
        record("tagnn++", "diginetica", variant="without-agc", mrr=19.0),
        record("stamp", "demo", seed=3),
    ):
        put(results, found)
    speeds = [{"model": "tagnn", "dataset": "diginetica", "examples_per_second": 500.0}]
    (results / "studies").mkdir()
    (results / "studies" / "speed.json").write_text(json.dumps(speeds))
    plan = '[[rows]]\nsystems = ["stamp"]\ndatasets = ["demo"]\nseeds = [0, 3]\n'
    variant = '[[rows]]\nsystems = ["tagnn++"]\ndatasets = ["diginetica"]\nvariant = "without-agc"\n'
    (tmp_path / "plan.toml").write_text(plan + variant)
    return results


def test_a_row_a_record_the_best_first(folder):
    board = leaderboard.board(folder)
    assert board.system.tolist() == ["tagnn++ (without-agc)", "tagnn", "sr-gnn", "stamp"]
    row = board.iloc[1]
    assert (row["HR@20"], row["± HR"], row["best HR@20"], row["MRR@20"], row["best MRR@20"]) == (49, 1, 50, 17, 18)
    assert row["repeat"] == "<code>sbr replicate --models tagnn --datasets diginetica --seeds 0</code>"
    assert row.minutes == pytest.approx(40 / 60) and row["examples/s"] == 6.0
    for line in board.record:
        assert (folder.parent / line.split('"')[1]).exists()


def test_a_model_that_the_package_does_not_know_has_a_row(folder):
    put(folder, record("mine", "demo", mrr=1.0))
    row = leaderboard.board(folder).iloc[-1]
    assert (row.system, row.epochs, row["repeat"]) == ("mine", "2", "a model of its maker's own")
    assert row["epoch picked by"] == "held-out sessions"


def test_a_row_says_how_many_epochs_of_how_many_and_what_picked_the_honest_one(folder):
    short, fixed = record("tagnn", "diginetica", mrr=18.0), record("sr-gnn", "diginetica", mrr=17.0)
    short["recipe"]["config"] |= {"epochs": 2}
    del fixed["runs"]["select"]
    put(folder, short)
    put(folder, fixed | records.both_columns(fixed["runs"]))
    put(folder, record("pop", "diginetica", mrr=5.0))
    board = leaderboard.board(folder).set_index("system")[["epoch picked by", "epochs"]]
    assert board.loc["tagnn"].tolist() == ["held-out sessions", "2 of 6"]
    assert board.loc["sr-gnn"].tolist() == ["the last one, fixed before", "2"]
    assert board.loc["pop"].tolist() == ["none: fitted once", ""]


def test_the_labels_of_the_axis_of_costs_leave_room_for_each_other():
    drawn = leaderboard.drawn({"tagnn": (1.2, 31.0), "gru4rec-2016": (0.05, 15.0)})
    assert sum(f"<!-- {number} -->" in drawn for number in ("0.05", "0.1", "0.2", "0.5", "1")) == 5
    assert not any(f"<!-- {number} -->" in drawn for number in ("0.3", "0.4", "0.6", "0.7", "0.8", "0.9"))


def test_the_command_of_a_row_repeats_what_it_holds(folder):
    found = record("tagnn", "diginetica", mrr=18.0)
    found["recipe"]["config"] |= {"epochs": 4, "precision": "bf16"}
    put(folder, found)
    assert leaderboard.board(folder).repeat[1] == (
        "<code>sbr replicate --models tagnn --datasets diginetica --seeds 0 --epochs 4 --precision bf16</code>"
    )


def test_only_systems_with_a_price_are_drawn(folder):
    assert leaderboard.points(folder, "diginetica") == {"tagnn": (2.0, 17.0)}
    assert leaderboard.points(folder, "demo") == {}
    assert leaderboard.drawn({"tagnn": (2.0, 17.0), "sr-gnn": (1.0, 16.0)}).startswith('<svg style="max-width: 100%"')


def page(cls, folder, **attributes):
    directive = cls.__new__(cls)
    noted = []
    environment = SimpleNamespace(srcdir=str(folder.parent), note_dependency=noted.append)
    settings = SimpleNamespace(env=environment)
    directive.state = SimpleNamespace(document=SimpleNamespace(settings=settings))
    for name, value in attributes.items():
        setattr(directive, name, value)
    (node,) = directive.run()
    return node.astext(), noted


def test_the_pages_hold_their_code_and_need_no_network(folder):
    text, noted = page(leaderboard.Leaderboard, folder)
    assert "4 records: 3 on diginetica, 1 on demo." in text and 'id="table-of-records"' in text
    assert "https://www.unpkg.com" not in text and text.count("injectModule(") == 2
    assert str(folder / "variants" / "tagnn++--without-agc--diginetica--seed0.json") in noted
    text, _ = page(leaderboard.MissingRuns, folder)
    assert "1 runs are missing" in text and "--models stamp --datasets demo --seeds 0" in text
    text, _ = page(leaderboard.ShortRuns, folder)
    assert "2 records hold less than the plan asks for" in text and "no ranks" in text and "--seeds 3 --renew" in text
    text, _ = page(leaderboard.GpuHours, folder, arguments=["4"])
    assert text.startswith("<p>Estimated, not measured; workers that share a card divide the part of its host and not")
    assert "the 0 published recipes" in text and "<li>the 1 runs that are missing take 0.0" in text
    text, _ = page(leaderboard.Pareto, folder, arguments=["diginetica"], content=["What to see."])
    assert "<svg" in text and "What to see." in text and "1 systems on diginetica" in text
    text, _ = page(leaderboard.Pareto, folder, arguments=["demo"], content=[])
    assert text == "<p>On demo nothing has both a record and a measured speed yet.</p>"


def test_the_hours_of_a_card_are_those_of_its_arithmetic_and_a_share_of_its_host_s(folder):
    rows = [{"model": system, "dataset": "yoochoose1_64", "examples_per_second": 10.0} for system in ("narm", "dgtn")]
    (folder / "studies" / "speed.json").write_text(json.dumps(rows))
    (folder.parent / "plan.toml").write_text('[[rows]]\nsystems = ["narm"]\ndatasets = ["yoochoose1_64"]\n')
    (job,) = plan.read(folder.parent / "plan.toml")
    card, text = costs.Costs(folder, "cuda"), page(leaderboard.GpuHours, folder, arguments=["4"])[0]
    for name, each in (("one seed", job), ("--final-only</code>)", plan.without_select([job])[0])):
        took, alone = card.seconds(each)[0] / 3600, card.undivided(each) / 3600
        assert took > (shared := (took - alone) / 4 + alone) > alone > 0
        said = f"take {took:.2f} hours in one process and {shared:.2f} with 4 workers, {alone:.2f} of them the card's"
        assert said in text.partition(name)[2].partition("</li>")[0]
    assert "<p>Under an hour with 4 workers: none of these.</p>" in text
    rows[0]["examples_per_second"] = 30.0
    (folder / "studies" / "speed.json").write_text(json.dumps(rows))
    text, _ = page(leaderboard.GpuHours, folder, arguments=["4"])
    under = "the final runs of these recipes alone (<code>--final-only</code>)"
    assert f"<p>Under an hour with 4 workers: {under}.</p>" in text
    (folder.parent / "plan.toml").write_text('[[rows]]\nsystems = ["gru4rec"]\ndatasets = ["yoochoose1_64"]\n')
    assert "; 1 of unknown length do not count" in page(leaderboard.GpuHours, folder, arguments=["4"])[0]


def test_records_lie_beside_the_page(folder, tmp_path):
    app = SimpleNamespace(
        srcdir=str(folder.parent), outdir=str(tmp_path / "out"), builder=SimpleNamespace(format="html")
    )
    leaderboard.copy_records(app, None)
    there = sorted(path.name for path in (tmp_path / "out" / "results").rglob("*.json"))
    assert there == sorted(path.name for path in folder.rglob("*.json") if path.parent.name != "studies")
