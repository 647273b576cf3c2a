"""The plan of the replications: what a row means, what is refused, what is missing and what it costs."""

import json

import numpy as np
import pytest
from toys import chain

from sbr_core import plan, records, replicate
from sbr_core.datasets import Dataset
from sbr_core.recipes import recipe


def written(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


ROWS = """
[[rows]]
why = "first"
systems = ["pop", "stamp"]
datasets = ["yoochoose1_64"]

[[rows]]
systems = ["stamp"]
datasets = ["yoochoose1_64", "diginetica"]
seeds = [0, 1]

[[rows]]
systems = ["stamp"]
datasets = ["diginetica"]
variant = "no-mean"
arguments = {add_mean = false}
config = {epochs = 2}
"""


def test_rows_multiply_and_a_run_is_wanted_once(tmp_path):
    jobs = plan.read(written(tmp_path, ROWS))
    assert [job.file for job in jobs] == [
        "pop--yoochoose1_64--seed0.json",
        "stamp--yoochoose1_64--seed0.json",
        "stamp--yoochoose1_64--seed1.json",
        "stamp--diginetica--seed0.json",
        "stamp--diginetica--seed1.json",
        "variants/stamp--no-mean--diginetica--seed0.json",
    ]
    assert jobs[1].why == "first" and jobs[1].recipe == recipe("stamp", "yoochoose1_64")
    varied = jobs[-1].recipe
    assert varied.arguments == recipe("stamp", "diginetica").arguments | {"add_mean": False}
    assert (varied.config.epochs, varied.variant) == (2, "no-mean")


@pytest.mark.parametrize(
    "row, message",
    [
        ('systems = ["srgnn"]\ndatasets = ["demo"]', "row 1: there is no model 'srgnn'"),
        ('systems = ["stamp"]', "row 1: a row has systems, datasets and of arguments, config"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nseed = [1]', "row 1: a row has systems"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nvariant = "x"\narguments = {hops = 3}', "no argument 'hops'"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nvariant = "x"\nconfig = {rate = 3}', "no field .*: rate"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nvariant = "x"\nconfig = {epochs = 0}', "epochs must be at least 1"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nconfig = {epochs = 2}', "are changed .epochs.: name the variant"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nselect = false', "are changed .select.: name the variant"),
        ("systems = [", "is not a plan"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_before_anything_runs(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        plan.read(written(tmp_path, f"[[rows]]\n{row}\n"))


def test_a_plan_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nothing.toml is not a plan"):
        plan.read(tmp_path / "nothing.toml")


@pytest.fixture
def folder(tmp_path):
    """Records of one run of ten minutes, and a benchmark of two systems."""
    runs = {part: [{"seconds": 100.0}, {"seconds": 200.0}] for part in ("select", "final")}
    (tmp_path / "stamp--yoochoose1_64--seed0.json").write_text(json.dumps({"schema": records.SCHEMA, "runs": runs}))
    rows = [{"model": "sr-gnn", "dataset": "yoochoose1_64", "examples_per_second": 4000.0}]
    rows += [{"model": "lgsr", "dataset": "demo", "examples_per_second": 500.0, "task_ms_per_example": 0.5}]
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "speed.json").write_text(json.dumps(rows))
    return tmp_path


def job(system, dataset="yoochoose1_64", seed=0):
    return plan.Job(recipe(system, dataset), dataset, seed)


def test_the_price_of_an_example_holds_its_auxiliary_tasks(folder):
    assert plan.speeds(folder) == {("sr-gnn", "yoochoose1_64"): 0.25, ("lgsr", "demo"): 2.5}


def test_time_is_measured_where_there_is_a_record_estimated_from_the_benchmark_elsewhere_or_unknown(folder):
    assert plan.seconds(job("stamp"), folder) == (600.0, "measured")
    assert plan.seconds(job("stamp", seed=3), folder) == (600.0, "measured")
    epochs = recipe("sr-gnn", "yoochoose1_64").config.epochs
    estimate = 1.9 * epochs * 369_859 / 4000
    assert plan.seconds(job("sr-gnn"), folder) == (pytest.approx(estimate), "estimated")
    digi = 1.9 * recipe("sr-gnn", "diginetica").config.epochs * 719_470 / 4000
    assert plan.seconds(job("sr-gnn", "diginetica"), folder) == (pytest.approx(digi), "estimated")
    once = plan.Job(plan.varied("sr-gnn", "yoochoose1_64", "once", select=False), "yoochoose1_64", 0)
    assert plan.seconds(once, folder) == (pytest.approx(estimate / 1.9), "estimated")
    assert plan.seconds(job("gru4rec"), folder) == (None, "unknown")
    assert plan.seconds(job("pop"), folder) == (60.0, "estimated")


def test_the_listing_says_what_is_recorded_and_what_is_missing(folder):
    rows = plan.listing([job("stamp"), job("gru4rec"), job("stamp", seed=1)], folder)
    assert [row["state"] for row in rows] == ["recorded", "missing", "missing"]
    text = plan.render(rows).splitlines()
    assert text[0].startswith("recorded    10.0 min measured") and "?" in text[1]
    assert text[-1] == "1 recorded, 2 missing: 0.2 hours and 1 runs of unknown length"


def test_a_budget_takes_the_most_valuable_missing_runs_that_fit(folder):
    jobs = [job("stamp"), job("gru4rec"), job("sr-gnn"), job("stamp", seed=1), job("pop")]
    names = lambda found: [(j.recipe.model, j.seed) for j in found]  # noqa: E731
    assert names(plan.affordable(jobs, folder, None)) == [("gru4rec", 0), ("sr-gnn", 0), ("stamp", 1), ("pop", 0)]
    assert names(plan.affordable(jobs, folder, 700.0)) == [("stamp", 1), ("pop", 0)]
    assert names(plan.affordable(jobs, folder, 620.0)) == [("stamp", 1)]
    assert names(plan.affordable(jobs, folder, 5000.0)) == [("sr-gnn", 0), ("stamp", 1), ("pop", 0)]


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("120", 120)])
def test_a_budget_is_a_time(text, seconds):
    assert plan.parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "m", "-5m", "0"])
def test_a_budget_that_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="a budget"):
        plan.parse_budget(text)


def test_the_plan_of_the_book_can_be_read(request):
    jobs = plan.read(request.config.rootpath / "book" / "plan.toml")
    assert len(jobs) > 10 and {j.dataset for j in jobs} >= {"yoochoose1_64", "diginetica"}


@pytest.fixture
def chains(monkeypatch):
    """Every dataset is the chain."""
    data = Dataset("chain", chain(20, 60, seed=0), chain(20, 10, seed=1), np.arange(20), "f" * 64, "test")
    monkeypatch.setattr(replicate.datasets, "load", lambda name: data)


def counting(system):
    return plan.Job(recipe(system, "chain"), "chain", 0)


def test_a_run_that_another_process_holds_is_passed_over(tmp_path, chains, capsys):
    with replicate._locked(tmp_path / "work" / "markov--chain--seed0-final" / "lock"):
        paths = replicate.run_all([counting("markov"), counting("pop")], tmp_path / "work", tmp_path)
    assert [path.name for path in paths] == ["pop--chain--seed0.json"]
    assert "passed over: another process is at work on markov--chain--seed0" in capsys.readouterr().err
    paths = replicate.run_all([counting("markov"), counting("pop")], tmp_path / "work", tmp_path)
    assert [path.name for path in paths] == ["markov--chain--seed0.json", "pop--chain--seed0.json"]


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, chains, capsys):
    bad = plan.Job(recipe("markov", "chain"), "chain", 0)
    object.__setattr__(bad, "recipe", plan.Recipe("markov", {"nonsense": 1}))
    with pytest.raises(RuntimeError, match="1 of 2 runs failed: markov--chain--seed0.json"):
        replicate.run_all([bad, counting("pop")], tmp_path / "work", tmp_path)
    assert (tmp_path / "pop--chain--seed0.json").exists()
    assert "failed: markov--chain--seed0.json: markov has no argument 'nonsense'" in capsys.readouterr().err


def test_the_ranks_of_the_honest_epoch_are_kept_beside_the_record(tmp_path, chains):
    (path,) = replicate.run_all([counting("pop")], tmp_path / "work", tmp_path)
    (ranks, session), record = records.read_ranks(path), records.read(path)
    assert len(ranks) == record["runs"]["final"][0]["test"]["examples"] == 50
    assert session.tolist() == [number for number in range(10) for _ in range(5)]
    assert 100 * (ranks <= 20).float().mean().item() == pytest.approx(record["honest"]["HR@20"])
    assert records.read_ranks(tmp_path / "nothing--there.json") is None


def test_workers_share_the_runs(tmp_path):
    jobs = [plan.Job(recipe(system, "demo"), "demo", 0) for system in ("pop", "s-pop", "markov")]
    paths = replicate.run_with_workers(jobs, 2, tmp_path / "work", tmp_path)
    assert [path.name for path in paths] == [job.file for job in jobs]
    assert len(records.load(tmp_path)) == 3
