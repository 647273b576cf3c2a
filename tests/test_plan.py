"""The plan of the replications: what a row means, what is refused, what is missing and what it costs."""

import hashlib
import json
import re

import numpy as np
import pytest
from toys import chain, put, record

from sbr_core import costs, plan, published, records, replicate, run_state
from sbr_core.cli_options import parse_budget, render
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
        ('systems = ["stamp"]\ndatasets = ["demo"]\nvariant = "x"\nconfig = {rate = 3}', "config has no field 'rate'"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nvariant = "x"\nconfig = {epochs = 0}', "epochs must be at least 1"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nconfig = {epochs = 2}', "are changed .epochs.: name the variant"),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nselect = false', "are changed .select.: name the variant"),
        ('systems = "stamp"\ndatasets = ["demo"]', "row 1: systems is a list, got 'stamp'"),
        ('systems = []\ndatasets = ["demo"]', "row 1: systems lists names"),
        ('systems = ["stamp"]\ndatasets = [3]', "row 1: datasets lists names, at least one, got .3."),
        (
            'systems = ["stamp"]\ndatasets = ["yoochoose"]',
            "no dataset 'yoochoose'; the datasets are demo",
        ),
        (
            'systems = ["stamp"]\ndatasets = ["demo"]\nseeds = ["a", -1, 1.5]',
            "seeds lists whole numbers from 0 on",
        ),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nseeds = [true]', "seeds lists whole numbers from 0 on"),
        (
            'systems = ["stamp"]\ndatasets = ["demo"]\nvariant = "../../x"',
            "a variant is named with a-z, 0-9 and -",
        ),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nvariant = 3', "row 1: variant is a text, got 3"),
        (
            'systems = ["stamp"]\ndatasets = ["demo"]\nvariant = "x"\nselect = 0',
            "select is true or false, got 0",
        ),
        ('systems = ["stamp"]\ndatasets = ["demo"]\nvariant = "x"\nconfig = 3', "row 1: config is a table, got 3"),
        ("systems = [", "is not a plan"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_before_anything_runs(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        plan.read(written(tmp_path, f"[[rows]]\n{row}\n"))


@pytest.mark.parametrize(
    "system, config, message",
    [
        ("stamp", 'loss = "nope"', "there is no loss 'nope'; the losses are full"),
        ("stamp", 'loss = "triplet"\nconfig.l2 = 0.0\nconfig.loss_arguments = {nope = 3}', "has no argument 'nope'"),
        ("stamp", 'loss = "bpr-max"\nconfig.l2 = 0.0\nconfig.loss_arguments = {negatives = "x"}', "negatives is int"),
        ("stamp", "lr = -1.0", "lr must be positive and l2 not negative, got lr=-1.0"),
        ("stamp", "lr = nan", "config lr is float, got nan"),
        ("stamp", 'precision = "bf17"', "precision is 'fp32' or 'bf16', got 'bf17'"),
        ("stamp", 'l2 = "x"', "config l2 is float, got 'x'"),
        ("stamp", 'max_len = "x"', "config max_len is int | None, got 'x'"),
        ("stamp", 'epochs = "four"', "config epochs is int, got 'four'"),
        ("stamp", "epochs = true", "config epochs is int, got True"),
        ("stamp", 'batches = "session-parallel"', "wants a model that carries a state"),
        ("pop", 'epochs = "four"', "config epochs is int, got 'four'"),
    ],
)
def test_a_setting_that_training_would_refuse_is_refused_before_anything_runs(tmp_path, system, config, message):
    good = '[[rows]]\nsystems = ["pop"]\ndatasets = ["demo"]\n'
    row = f'[[rows]]\nsystems = ["{system}"]\ndatasets = ["demo"]\nvariant = "x"\nconfig.{config}\n'
    with pytest.raises(ValueError, match=re.escape("plan.toml, row 2: ") + ".*" + re.escape(message)):
        plan.read(written(tmp_path, good + row))


def test_negatives_are_fewer_than_the_items_of_the_dataset_and_a_whole_number_will_do_for_a_rate():
    config = {"loss": "sampled-softmax", "l2": 0, "loss_arguments": {"negatives": 20_000}}
    found = plan.varied("stamp", "diginetica", "x", config=config).config
    assert type(found.l2) is float and plan.varied("stamp", "large:9", "x", config=config)
    with pytest.raises(ValueError, match="negatives must lie in"):
        plan.varied("stamp", "yoochoose1_64_dgtn", "x", config=config)


@pytest.mark.parametrize(
    "text, message",
    [
        ("rows = 3", "it holds ..rows.. and nothing else, got rows"),
        ('rows = ["stamp"]', "row 1: a row is a table under ..rows.., got 'stamp'"),
        ('[rows]\nsystems = ["pop"]', "it holds ..rows.. and nothing else"),
        ('[[row]]\nsystems = ["pop"]\ndatasets = ["demo"]', "it holds ..rows.. and nothing else, got row"),
        ('title = "x"\n[[rows]]\nsystems = ["pop"]\ndatasets = ["demo"]', "nothing else, got title, rows"),
        ("", "it holds ..rows.. and nothing else, got nothing"),
    ],
)
def test_a_file_that_is_no_list_of_rows_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        plan.read(written(tmp_path, text))


def test_a_log_of_one_s_own_is_a_dataset_by_its_path(tmp_path):
    (tmp_path / "clicks.csv").write_text("session,item,time")
    text = f'[[rows]]\nsystems = ["pop"]\ndatasets = ["{tmp_path}/clicks.csv"]\n'
    (found,) = plan.read(written(tmp_path, text))
    assert found.file == "pop--clicks.csv--seed0.json"


def test_a_plan_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="nothing.toml is not a plan"):
        plan.read(tmp_path / "nothing.toml")


@pytest.fixture
def folder(tmp_path):
    """The record of a run of ten minutes with ranks beside it, and a benchmark of another system."""
    put_with_ranks(tmp_path, of(record("stamp", "yoochoose1_64"), 600.0))
    (tmp_path / "studies").mkdir()
    rows = [{"model": "sr-gnn", "dataset": "yoochoose1_64", "examples_per_second": 4000.0}]
    (tmp_path / "studies" / "speed.json").write_text(json.dumps(rows))
    return tmp_path


def put_with_ranks(folder, found):
    """The record with a file of ranks that it names by its sha256; what is in it is not read here."""
    path = put(folder, found | {"ranks_sha256": hashlib.sha256(b"ranks").hexdigest()})
    records.ranks_path(path).parent.mkdir(exist_ok=True)
    records.ranks_path(path).write_bytes(b"ranks")
    return path


def of(found, seconds, epochs=None):
    """The record with the settings of `epochs` epochs (default: as planned), and so many seconds in all."""
    planned = recipe(found["system"], found["dataset"]).config.epochs
    held = epochs or planned
    for part, key in (("select", "validation"), ("final", "test")):
        measured = found["runs"][part][0][key]
        each = [{"epoch": number + 1, key: measured, "seconds": seconds / 2 / held} for number in range(held)]
        found["runs"][part] = each
    found["recipe"]["config"] |= {"epochs": held}
    return found | records.both_columns(found["runs"]) | {"seconds": seconds}


def job(system, dataset="yoochoose1_64", seed=0):
    return plan.Job(recipe(system, dataset), dataset, seed)


def names(found):
    return [(job.recipe.model, job.seed) for job in found]


def test_the_listing_says_what_is_recorded_and_what_is_missing(folder):
    rows = plan.listing([job("stamp"), job("gru4rec"), job("stamp", seed=1)], folder)
    assert [row["state"] for row in rows] == ["recorded", "missing", "missing"]
    assert [row["time"] for row in rows] == ["measured", "unknown", "measured"]
    text = render(rows).splitlines()
    assert text[0].startswith("recorded          10.0 min measured") and "?" in text[1]
    assert text[-2] == "1 recorded, 2 missing: 0.2 hours, 0.0 of them estimated, and 1 runs of unknown length"
    assert text[-1] == "all 3 from nothing: 0.3 hours, 0.0 of them estimated, and 1 runs of unknown length"
    assert (
        render(rows, workers=4)
        .splitlines()[-1]
        .startswith("all 3 from nothing: 0.3 hours, 0.0 of them estimated, 0.1 with 4 workers")
    )


def test_on_a_card_every_time_is_said_to_be_estimated(folder):
    rows = plan.listing([job("stamp"), job("sr-gnn"), job("gru4rec")], folder, "cuda")
    assert [row["time"] for row in rows] == ["estimated", "estimated", "unknown"]
    assert rows[0]["state"] == "recorded"


def test_a_record_of_fewer_epochs_is_listed_as_such_and_missing_only_to_those_who_renew(folder):
    put(folder, of(record("sr-gnn", "yoochoose1_64"), 400.0, epochs=4))
    jobs = [job("sr-gnn"), job("pop")]
    rows = plan.listing(jobs, folder)
    assert [row["state"] for row in rows] == ["4 of 6 epochs", "missing"] and rows[0]["seconds"] == 600.0
    assert render(rows).splitlines()[-2].startswith("0 recorded, 1 shorter, 1 missing")
    assert names(plan.affordable(jobs, folder, None)) == [("pop", 0)]
    assert names(plan.affordable(jobs, folder, None, renew=True)) == [("sr-gnn", 0), ("pop", 0)]
    assert names(plan.affordable(jobs, folder, 100.0, renew=True)) == [("pop", 0)]


def test_a_record_without_its_select_run_is_listed_as_such_and_missing_only_to_those_who_renew(folder):
    found = of(record("sr-gnn", "yoochoose1_64"), 600.0)
    del found["runs"]["select"]
    put_with_ranks(folder, found | records.both_columns(found["runs"]))
    rows = plan.listing([job("sr-gnn")], folder)
    assert rows[0]["state"] == "final run only"
    assert render(rows).splitlines()[-2].startswith("0 recorded, 1 shorter, 0 missing")
    assert plan.missing([job("sr-gnn")], folder) == plan.without_select([]) == []
    (only,) = plan.without_select([job("sr-gnn")])
    assert plan.listing([only], folder)[0]["state"] == "recorded"
    assert plan.listing([only], folder)[0]["seconds"] == 600.0 < 0.6 * rows[0]["seconds"]
    assert names(plan.missing([job("sr-gnn")], folder, renew=True)) == [("sr-gnn", 0)]


@pytest.mark.parametrize("fault, state", [("no ranks", "no ranks"), ("truncated", "damaged ranks")])
def test_a_record_whose_ranks_are_not_its_own_is_listed_as_such_and_missing_only_to_those_who_renew(
    folder, fault, state
):
    path, jobs = folder / job("stamp").file, [job("stamp")]
    kept = records.ranks_path(path)
    kept.unlink() if fault == "no ranks" else kept.write_bytes(b"rank")
    rows = plan.listing(jobs, folder)
    assert rows[0]["state"] == state and rows[0]["problem"] == ""
    assert render(rows).splitlines()[-2].startswith("0 recorded, 1 shorter, 0 missing")
    assert records.lacks(path, jobs[0].recipe) == [state]
    assert plan.missing(jobs, folder) == [] and plan.missing(jobs, folder, renew=True) == jobs
    put(folder, of(record("stamp", "yoochoose1_64"), 600.0))  # of an earlier record without a sha256: does it give them
    assert plan.state(jobs[0], folder) == (state, "")


def test_a_record_that_cannot_be_read_is_neither_recorded_nor_missing_and_stops_the_plan(folder):
    path = put(folder, of(record("sr-gnn", "yoochoose1_64"), 600.0))
    path.write_text(path.read_text().replace("600.0", "601.0"))
    row = plan.listing([job("sr-gnn")], folder)[0]
    assert row["state"] == "unreadable" and f"{path} is not a record: it was changed after" in row["problem"]
    text = render([row])
    assert row["problem"] in text and "0 recorded, 1 unreadable, 0 missing" in text
    with pytest.raises(ValueError, match="sr-gnn--yoochoose1_64--seed0.json is not a record: .*; move it away"):
        plan.affordable([job("pop"), job("sr-gnn")], folder, 3600.0)


def test_a_budget_takes_the_most_valuable_missing_runs_that_fit(folder):
    jobs = [job("stamp"), job("gru4rec"), job("sr-gnn"), job("stamp", seed=1), job("pop")]
    assert names(plan.affordable(jobs, folder, None)) == [("gru4rec", 0), ("sr-gnn", 0), ("stamp", 1), ("pop", 0)]
    assert names(plan.affordable(jobs, folder, 700.0)) == [("stamp", 1), ("pop", 0)]
    assert names(plan.affordable(jobs, folder, 620.0)) == [("stamp", 1)]
    assert names(plan.affordable(jobs, folder, 5000.0)) == [("sr-gnn", 0), ("stamp", 1), ("pop", 0)]


def test_every_worker_has_the_budget_for_itself_and_a_run_must_fit_into_one(folder):
    jobs = [job("sr-gnn"), job("stamp", seed=1), job("stamp", seed=2), job("pop")]
    assert names(plan.affordable(jobs, folder, 620.0, workers=2)) == [("stamp", 1), ("stamp", 2)]
    assert names(plan.affordable(jobs, folder, 700.0, workers=2)) == [("stamp", 1), ("stamp", 2), ("pop", 0)]
    assert names(plan.affordable(jobs, folder, 620.0, workers=4)) == [("stamp", 1), ("stamp", 2), ("pop", 0)]


def test_a_budget_on_a_card_goes_by_the_card(folder):
    (took, _), (on_card, _) = (costs.Costs(folder, kind).seconds(job("sr-gnn")) for kind in ("cpu", "cuda"))
    assert on_card < took / 2
    jobs = [job("sr-gnn"), job("pop")]
    assert names(plan.affordable(jobs, folder, on_card + 60)) == [("pop", 0)]
    assert names(plan.affordable(jobs, folder, on_card + 60, device="cuda")) == [("sr-gnn", 0), ("pop", 0)]


def test_workers_on_one_card_are_slower_each_by_its_arithmetic(folder):
    jobs, card = [job("sr-gnn", seed=seed) for seed in range(4)], costs.Costs(folder, "cuda")
    alone, arithmetic = card.seconds(jobs[0])[0], card.undivided(jobs[0])
    assert 0 < arithmetic < alone
    for budget, count in ((alone, 0), (alone + arithmetic, 2), (2 * (alone + arithmetic), 4)):
        fitting = plan.affordable([*jobs, job("pop")], folder, max(budget + 1, 61), device="cuda", workers=2)
        assert names(fitting)[:count] == [("sr-gnn", seed) for seed in range(count)], budget
        assert ("sr-gnn", count) not in names(fitting)
    assert names(plan.affordable(jobs[:1], folder, alone + 1, device="cuda", workers=2)) == [("sr-gnn", 0)]
    rows = [row for row in plan.listing(jobs, folder, "cuda") for _ in range(300)]
    hours = [1200 * each / 3600 for each in (alone, (alone - arithmetic) / 4 + arithmetic, arithmetic)]
    said = "{0:.1f} hours, {0:.1f} of them estimated, {1:.1f} with 4 workers, {2:.1f} of them the card's own"
    assert render(rows, workers=4).endswith(said.format(*hours))


def test_where_nothing_fits_the_first_run_with_checkpoints_is_begun_and_the_rest_is_told(folder, capsys):
    jobs = [job("pop"), job("gru4rec"), job("sr-gnn"), job("stamp", seed=1)]
    assert names(plan.affordable(jobs, folder, 10.0)) == [("gru4rec", 0)]
    assert capsys.readouterr().err == (
        "of 4 missing runs none fits into the budget, the shortest takes 1.0 min: begins "
        "gru4rec--yoochoose1_64--seed0.json all the same, for the same command continues\n"
    )
    assert names(plan.affordable(jobs, folder, 10.0, workers=2)) == [("gru4rec", 0), ("sr-gnn", 0)]
    assert names(plan.affordable(jobs[1:2], folder, 10.0)) == [("gru4rec", 0)]
    assert "of 1 missing runs none fits into the budget, all are of unknown length" in capsys.readouterr().err
    assert plan.affordable(jobs[:1], folder, 10.0) == []
    assert capsys.readouterr().err == (
        "of 1 missing runs none fits into the budget, the shortest takes 1.0 min: begins none\n"
    )
    assert plan.affordable([job("stamp")], folder, 10.0) == [] and capsys.readouterr().err == ""


def test_a_plan_is_cut_to_datasets_and_seeds_that_it_has(tmp_path):
    jobs = plan.read(written(tmp_path, ROWS))
    assert plan.only(jobs) == jobs
    assert {found.dataset for found in plan.only(jobs, ["diginetica"])} == {"diginetica"}
    assert [(found.dataset, found.seed) for found in plan.only(jobs, ["diginetica"], [1])] == [("diginetica", 1)]
    with pytest.raises(ValueError, match="no run with dataset demo; it has diginetica, yoochoose1_64"):
        plan.only(jobs, ["demo"])
    with pytest.raises(ValueError, match="no run with seed 5, 7; it has 0, 1"):
        plan.only(jobs, [], [1, 5, 7])


@pytest.mark.parametrize("text, seconds", [("90s", 90), ("20m", 1200), ("1.5h", 5400), ("120", 120)])
def test_a_budget_is_a_time(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "m", "-5m", "0"])
def test_a_budget_that_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="a budget"):
        parse_budget(text)


def test_the_plan_of_the_book_can_be_read(request):
    jobs = plan.read(request.config.rootpath / "book" / "plan.toml")
    assert len(jobs) > 10 and {j.dataset for j in jobs} >= {"yoochoose1_64", "diginetica"}


NOT_PLANNED = {}  # (dataset, system, variant) -> why no run of the plan is to fill that printed cell


def test_every_printed_row_has_its_run_in_the_plan_or_a_reason_why_not(request):
    there = {
        (j.dataset, j.recipe.model, j.recipe.variant) for j in plan.read(request.config.rootpath / "book" / "plan.toml")
    }
    printed = published.table("accuracy")[["source", "method", "dataset"]].drop_duplicates()
    lacking = {}
    for row in printed.itertuples():
        system, _, without = row.method.lower().partition(" - ")
        cell = (row.dataset, system, f"without-{without}" if without else "")
        # the authors' Yoochoose of TAGNN++ is the cut of DGTN's code
        cut = (row.dataset + "_dgtn", *cell[1:]) if row.source.startswith("tagnnpp") else cell
        if not {cell, cut} & there:
            lacking[cell] = row.source
    assert lacking.keys() == NOT_PLANNED.keys(), lacking
    readouts = {("diginetica", "tagnn", name) for name in ("last", "average", "attention", "last-and-attention")}
    assert readouts | {("diginetica", "lgsr", name) for name in "cah"} <= there


@pytest.fixture
def chains(monkeypatch):
    """Every dataset is the chain."""
    data = Dataset("chain", chain(20, 60, seed=0), chain(20, 10, seed=1), np.arange(20), "f" * 64, "test")
    monkeypatch.setattr(replicate.datasets, "load", lambda name: data)


def counting(system):
    return plan.Job(recipe(system, "chain"), "chain", 0)


def test_a_run_that_another_process_holds_is_passed_over(tmp_path, chains, capsys):
    held = tmp_path / "work" / "markov--chain--seed0-final"
    held.mkdir(parents=True)
    with run_state.alone_in(held):
        paths = replicate.run_all([counting("markov"), counting("pop")], tmp_path / "work", tmp_path)
    assert [path.name for path in paths] == ["pop--chain--seed0.json"]
    assert f"passed over: another process is at work in {held}" in capsys.readouterr().err
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


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("fault", ["edited", "of another run", "half-written", "another file"])
def test_ranks_that_are_not_the_records_are_refused_by_name(tmp_path, chains, fault, sealed):
    path, other = replicate.run_all([counting("pop"), counting("markov")], tmp_path / "work", tmp_path)
    kept = records.ranks_path(path)
    if not sealed:
        put(tmp_path, without_seal(path))
    assert records.lacks(path, counting("pop").recipe) == []
    if fault == "edited":
        ranks, session = records.read_ranks(path)
        ranks[ranks > 1] -= 1  # HR@20 stays nearly, MRR@20 rises
        records.write_ranks(kept, ranks, session)
    elif fault == "of another run":
        kept.write_bytes(records.ranks_path(other).read_bytes())
    else:
        kept.write_bytes(kept.read_bytes()[:90] if fault == "half-written" else b"no archive")
    with pytest.raises(ValueError, match=f"{kept.name} does not (belong|hold).*: move it|; move it"):
        records.read_ranks(path)
    assert records.lacks(path, counting("pop").recipe) == ["damaged ranks"]


def without_seal(path):
    """The record as it was written before records named their ranks by a sha256."""
    return {key: value for key, value in records.read(path).items() if key != "ranks_sha256"}


def test_ranks_in_another_order_give_the_same_metrics_and_are_refused_all_the_same(tmp_path, chains, capsys):
    (path,) = replicate.run_all([counting("pop")], tmp_path / "work", tmp_path)
    whole, kept = records.ranks_path(path).read_bytes(), records.ranks_path(path)
    ranks, session = records.read_ranks(path)
    records.write_ranks(kept, ranks.flip(0), session)
    with pytest.raises(ValueError, match=f"{kept} does not belong to {path}, or was changed: it has another sha256"):
        records.read_ranks(path)
    replicate.run_all([counting("pop")], tmp_path / "work", tmp_path, renew=True)
    assert kept.read_bytes() == whole and records.read_ranks(path) is not None
    records.write_ranks(kept, ranks.flip(0), session)
    put(tmp_path, without_seal(path))
    assert records.read_ranks(path)[0].tolist() == ranks.flip(0).tolist()  # an earlier record cannot tell


def test_a_sha256_that_is_no_text_makes_no_record(tmp_path):
    path = put(tmp_path, record("pop", "demo") | {"ranks_sha256": 3})
    with pytest.raises(ValueError, match="its ranks_sha256 is 3, not a str; move it away, or fetch its original again"):
        records.read(path)


def test_workers_share_the_runs(tmp_path):
    jobs = [plan.Job(recipe(system, "demo"), "demo", 0) for system in ("pop", "s-pop", "markov")]
    paths = replicate.run_with_workers(jobs, 2, tmp_path / "work", tmp_path)
    assert [path.name for path in paths] == [job.file for job in jobs]
    assert len(records.load(tmp_path)) == 3
