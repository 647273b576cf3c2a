"""Published numbers beside ours: the right run in the right cell, empty cells where there is none, honest intervals."""

import numpy as np
import pytest
import torch
from toys import put, record

from sbr_core import published, tables


@pytest.fixture
def folder(tmp_path):
    for found in (
        record("tagnn", "diginetica", hr=51.0, mrr=18.0),
        record("sr-gnn", "diginetica", seed=0, hr=50.0),
        record("sr-gnn", "diginetica", seed=1, hr=52.0),
        record("tagnn++", "yoochoose1_64", variant="without-agc", hr=71.0),
    ):
        put(tmp_path, found)
    return tmp_path


def cell(table, method, dataset, metric="HR@20"):
    (row,) = table[(table.method == method) & (table.dataset == dataset) & (table.metric == metric)].to_dict("records")
    return row


def test_records_become_rows_those_of_variants_too(folder):
    found = tables.load(folder)
    assert found.system.tolist() == ["sr-gnn", "sr-gnn", "tagnn", "tagnn++"] and found.variant.iloc[-1] == "without-agc"
    assert found.seconds.tolist() == [40.0] * 4 and found.examples_per_second.tolist() == [6.0] * 4
    assert found["honest HR@20"].tolist() == [49.0, 51.0, 50.0, 70.0]
    assert tables.load(folder / "nothing").empty


def test_ours_stand_beside_what_is_printed(folder):
    table = tables.published_table("tagnn", tables.load(folder))
    tagnn = cell(table, "TAGNN", "diginetica")
    assert tagnn["published"] == published.value("tagnn", "diginetica", "HR@20", "tagnn")
    assert (tagnn["as published"], tagnn["honest"], tagnn["low"], tagnn["high"]) == (51.0, 50.0, 49.0, 51.0)
    assert tagnn["difference"] == pytest.approx(51.0 - tagnn["published"]) and tagnn["seeds"] == 1
    rows = published.table("accuracy")
    assert len(table) == (rows.source == "tagnn").sum()
    assert table.published.tolist() == rows[rows.source == "tagnn"].value.tolist()


def test_a_missing_run_is_an_empty_cell(folder):
    table = tables.published_table("tagnn", tables.load(folder))
    narm = cell(table, "NARM", "diginetica")
    assert np.isnan([narm[name] for name in ("as published", "honest", "low", "difference")]).all()
    assert narm["seeds"] == 0
    shown = tables.styled(table, "diginetica", "t1").data
    assert shown.loc["NARM", ("HR@20", "honest")] == shown.loc["NARM", ("HR@20", "Δ")] == ""
    assert shown.loc["TAGNN", ("HR@20", "honest")] == "50.00 ± 1.00"
    assert shown.loc["TAGNN", ("MRR@20", "as published")] == "18.00"
    empty = tables.published_table("lgsr", tables.load(folder / "nothing"))
    assert empty.seeds.eq(0).all() and empty.published.notna().all()


def test_seeds_are_averaged_with_an_interval_of_the_seeds_and_of_the_sessions(folder):
    row = cell(tables.published_table("tagnn", tables.load(folder)), "SR-GNN", "diginetica")
    half = np.hypot(12.706 * np.std([49, 51], ddof=1) / np.sqrt(2), 1.0)  # each run's own: 49 +- 1, 51 +- 1
    assert row["honest"] == 50.0 and row["as published"] == 51.0 and row["seeds"] == 2
    assert (row["low"], row["high"]) == (pytest.approx(50 - half), pytest.approx(50 + half))


def test_an_ablation_is_found_by_its_variant(folder):
    table = tables.published_table("tagnnpp_v3", tables.load(folder), "Table II")
    assert cell(table, "TAGNN++ - AGC", "yoochoose1_64")["as published"] == 71.0
    assert cell(table, "TAGNN++", "yoochoose1_64")["seeds"] == 0


@pytest.mark.parametrize("source, table", [("srgnn", None), ("tagnn", "Table 9")])
def test_a_work_or_table_that_is_not_there_is_refused(source, table):
    with pytest.raises(ValueError, match="nothing is printed in .*; the works are lgsr, scalable_losses, tagnn,"):
        tables.published_table(source, tables.load("nothing"), table)


def ranks_of(values):
    return torch.tensor(values, dtype=torch.float32)


def test_a_comparison_is_paired():
    torch.manual_seed(0)
    session = torch.arange(400) // 2
    other = torch.randint(1, 40, (400,)).float()
    better = torch.where(torch.rand(400) < 0.2, (other - 1).clamp(min=1), other)  # a little better, everywhere
    found = tables.compare(better, other, session)
    assert found.verdict == "better" and 0 < found.low < found.difference < found.high
    assert tables.compare(other, better, session).verdict == "worse"
    same = tables.compare(other, other, session)
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "cannot be told apart")
    shuffled = other[torch.randperm(400)]
    assert tables.compare(shuffled, other, session).verdict == "cannot be told apart"


def test_a_comparison_equals_a_loop_over_resamples():
    session = torch.tensor([0, 0, 0, 1, 2, 2])
    first, second = ranks_of([1, 5, 30, 2, 9, 21]), ranks_of([2, 1, 20, 2, 50, 3])
    hits = lambda ranks: [float(rank <= 20) for rank in ranks]  # noqa: E731
    generator, means = torch.Generator().manual_seed(4), []
    for row in torch.randint(3, (50, 3), generator=generator).tolist():
        picked = [i for number in row for i in range(6) if session[i] == number]
        means.append(100 * np.mean([hits(first)[i] - hits(second)[i] for i in picked]))
    found = tables.compare(first, second, session, "HR@20", resamples=50, seed=4)
    assert found.difference == pytest.approx(100 * np.mean(np.array(hits(first)) - hits(second)))
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_a_comparison_of_other_examples_is_refused():
    with pytest.raises(ValueError, match="the same examples, got 2 and 3"):
        tables.compare(ranks_of([1, 2]), ranks_of([1, 2, 3]), torch.arange(2))


def test_the_interval_of_a_mean_is_that_of_student():
    draws = np.random.default_rng(0).normal(10, 2, (4000, 5))
    inside = [low <= 10 <= high for low, high in map(tables.mean_interval, draws)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_more_seeds_than_the_table_of_student_has_get_the_factor_of_its_last():
    eleven = np.arange(11.0)
    low, high = tables.mean_interval(eleven)
    assert low + high == pytest.approx(10)
    assert high - 5 == pytest.approx(2.262 * eleven.std(ddof=1) / 11**0.5, abs=1e-3)
    with pytest.raises(ValueError, match="at least 2 runs, got 1"):
        tables.mean_interval(eleven[:1])


def test_a_work_that_ran_on_another_preparation_is_shown_beside_that(folder):
    put(folder, record("tagnn++", "yoochoose1_64_dgtn", hr=72.0))
    found = tables.load(folder)
    table = tables.published_table("tagnnpp_v3", found, "Table II", {"yoochoose1_64": "yoochoose1_64_dgtn"})
    assert cell(table, "TAGNN++", "yoochoose1_64")["as published"] == 72.0
    assert cell(table, "TAGNN++ - AGC", "yoochoose1_64")["seeds"] == 0
    shown = tables.styled(table, "yoochoose1_64", "t2").data
    assert shown["", "seeds"].tolist() == ["1", "", "", "", ""]


def test_the_cost_of_the_runs_is_told_by_dataset(tmp_path):
    counted = record("pop", "diginetica")
    for epoch in counted["runs"]["final"]:
        epoch["seconds"] = 0.0
    slow = record("tagnn", "yoochoose1_64", seed=1)
    slow["runs"]["final"][0]["seconds"] = 3600.0
    for run in (counted, slow, *(record("stamp", key) for key in ("diginetica", "demo", "yoochoose1_64"))):
        put(tmp_path, run)
    found, titles = tables.load(tmp_path), {"diginetica": "Diginetica", "yoochoose1_64": "Yoochoose"}
    told = tables.training_told(found, titles)
    assert told.startswith("0.0 hours on Diginetica (1 run), 1.0 hours on Yoochoose (2 runs): training alone")
    assert tables.training_told(found, {"meli2020": "MeLi"}) == ""


def test_ranks_that_no_record_keeps_decide_no_comparison():
    kept, exact = torch.tensor([3.0, 255.0]), torch.tensor([3.0, 400.0])
    assert tables.compare(exact, exact, torch.arange(2), "HR@300").difference == 0
    with pytest.raises(ValueError, match="HR@255: ranks that are kept beside a record end at 255; cut off before it"):
        tables.compare(kept, exact, torch.arange(2), "HR@255")
    assert tables.compare(kept, exact, torch.arange(2), "HR@254").difference == 0
