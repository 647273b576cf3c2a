"""Claims are judged by the runs that both systems have: paired where ranks are kept, empty where a run is missing."""

import numpy as np
import pytest
import torch
import toys

from sbr_core import claims, records, tables
from sbr_core.claims import HELD, MISSING, NOT_HELD, OPEN, Claim

SESSION = torch.arange(600) // 3


def put(folder, system, ranks=None, seed=0, dataset="demo", mrr=20.0, half=0.5):
    """A record in the folder, with its ranks if given; the metrics are then those of the ranks."""
    hr = mrr
    if ranks is not None:
        inside = (ranks <= 20).double()
        hr, mrr = (100 * values.mean().item() for values in (inside, inside / ranks))
    name, _, variant = system.partition("--")
    path = toys.put(folder, toys.record(name, dataset, seed, variant, hr + 1, mrr + 1, half))
    if ranks is not None:
        records.write_ranks(records.ranks_path(path), ranks, SESSION)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    base = torch.randint(1, 60, (600,)).float()
    put(tmp_path, "sr-gnn", base)
    put(tmp_path, "tagnn", torch.where(torch.rand(600) < 0.3, (base / 2).ceil(), base))
    put(tmp_path, "narm", base[torch.randperm(600)])
    put(tmp_path, "tagnn--average", base + 30)
    put(tmp_path, "stamp", mrr=30.0, dataset="diginetica")
    put(tmp_path, "gru4rec", mrr=31.0, dataset="diginetica")
    put(tmp_path, "pop", mrr=5.0, dataset="diginetica")
    return tmp_path


def said(claim, folder, dataset="demo"):
    return claims.judge(claim, tables.load(folder), dataset, "MRR@20")


def test_a_claim_is_judged_by_the_paired_difference(folder):
    row = said(Claim("better than SR-GNN", "tagnn", "sr-gnn"), folder)
    ranks = {name: records.read_ranks(folder / f"{name}--demo--seed0.json")[0] for name in ("tagnn", "sr-gnn")}
    paired = tables.compare(ranks["tagnn"], ranks["sr-gnn"], SESSION, resamples=500)
    assert (row["verdict"], row["basis"], row["against"]) == (HELD, "paired", "sr-gnn")
    assert [row["difference"], row["low"], row["high"]] == pytest.approx([paired.difference, paired.low, paired.high])
    assert said(Claim("the reverse", "sr-gnn", "tagnn"), folder)["verdict"] == NOT_HELD
    assert said(Claim("as good as a shuffle", "sr-gnn", "narm"), folder)["verdict"] == OPEN


def test_variants_are_named_as_their_records_are(folder):
    assert said(Claim("the full model beats the mean", "tagnn", "tagnn--average"), folder)["verdict"] == HELD
    assert claims.runs_of(tables.load(folder), "tagnn", "demo").variant.tolist() == [""]


def test_a_claim_against_several_wants_all_of_them(folder):
    both = said(Claim("c", "tagnn", ("sr-gnn", "tagnn--average")), folder)
    assert both["verdict"] == HELD and both["against"] == "sr-gnn"
    lost = said(Claim("c", "sr-gnn", ("tagnn--average", "tagnn", "lgsr")), folder)
    assert lost["verdict"] == NOT_HELD and lost["against"] == "tagnn" and lost["missing"] == ("lgsr",)
    short = said(Claim("c", "tagnn", ("sr-gnn", "lgsr")), folder)
    assert short["verdict"] == MISSING and short["missing"] == ("lgsr",) and short["difference"] > 0
    absent = said(Claim("c", "lgsr", ("sr-gnn", "tagnn")), folder)
    assert absent["verdict"] == MISSING and absent["missing"] == ("lgsr",) and np.isnan(absent["difference"])


def test_without_ranks_the_intervals_of_both_are_added(folder):
    row = said(Claim("c", "gru4rec", "stamp"), folder, "diginetica")
    assert row["basis"] == "intervals" and row["verdict"] == HELD
    assert [row["low"], row["high"]] == pytest.approx([1 - np.hypot(0.5, 0.5), 1 + np.hypot(0.5, 0.5)])
    put(folder, "gru4rec", mrr=30.6, dataset="diginetica")
    assert said(Claim("c", "gru4rec", "stamp"), folder, "diginetica")["verdict"] == OPEN


@pytest.mark.parametrize("better,worse", [("gru4rec", "stamp"), ("stamp", "gru4rec")])
def test_a_claim_of_no_difference_wants_the_whole_interval_within_its_points(folder, better, worse):
    low, high = 1 - np.hypot(0.5, 0.5), 1 + np.hypot(0.5, 0.5)
    for within, expected in ((high + 0.01, HELD), (high - 0.01, OPEN), (low + 0.01, OPEN), (low - 0.01, NOT_HELD)):
        assert said(Claim("c", better, worse, within), folder, "diginetica")["verdict"] == expected
    row = said(Claim("c", better, (worse, "pop"), 2.0), folder, "diginetica")
    assert row["verdict"] == NOT_HELD and row["against"] == "pop"
    assert said(Claim("c", better, (worse, "lgsr"), 2.0), folder, "diginetica")["verdict"] == MISSING


def test_a_claim_with_slack_is_lost_only_by_more_than_its_points(folder):
    low, high = -1 - np.hypot(0.5, 0.5), -1 + np.hypot(0.5, 0.5)  # of STAMP minus GRU4Rec
    for slack, expected in ((-low + 0.01, HELD), (-low - 0.01, OPEN), (-high + 0.01, OPEN), (-high - 0.01, NOT_HELD)):
        assert said(Claim("c", "stamp", "gru4rec", slack=slack), folder, "diginetica")["verdict"] == expected
    row = said(Claim("c", "stamp", ("gru4rec", "pop"), slack=2.0), folder, "diginetica")
    assert row["verdict"] == HELD and row["against"] == "gru4rec"
    assert said(Claim("c", "pop", ("gru4rec", "stamp"), slack=2.0), folder, "diginetica")["verdict"] == NOT_HELD


def test_several_seeds_widen_the_interval_by_their_own(folder):
    for seed, (a, b) in enumerate([(31.0, 30.0), (31.4, 30.0), (30.6, 30.0)]):
        put(folder, "gru4rec", mrr=a, dataset="diginetica", seed=seed)
        put(folder, "stamp", mrr=b, dataset="diginetica", seed=seed)
    found = claims.difference(tables.load(folder), "gru4rec", "stamp", "diginetica")
    of_seeds = 4.303 * np.std([1.0, 1.4, 0.6], ddof=1) / np.sqrt(3)
    assert found.difference == pytest.approx(1.0) and found.basis == "intervals, 3 seeds"
    assert found.high - found.difference == pytest.approx(np.hypot(np.hypot(0.5, 0.5), of_seeds))
    put(folder, "narm", mrr=1.0, dataset="diginetica", seed=7)
    assert claims.difference(tables.load(folder), "gru4rec", "narm", "diginetica") is None


def test_the_interval_is_that_of_a_seed_that_both_systems_have(tmp_path):
    put(tmp_path, "gru4rec", mrr=40.0, seed=0, half=9.0)
    put(tmp_path, "gru4rec", mrr=31.0, seed=1)
    put(tmp_path, "stamp", mrr=30.0, seed=1)
    for first, second, mean in (("gru4rec", "stamp", 1.0), ("stamp", "gru4rec", -1.0)):
        found = claims.difference(tables.load(tmp_path), first, second, "demo")
        half = np.hypot(0.5, 0.5)
        assert [found.low, found.difference, found.high] == pytest.approx([mean - half, mean, mean + half])


def test_the_table_of_verdicts(folder):
    asked = [Claim("first", "tagnn", "sr-gnn"), Claim("second", "stamp", "pop")]
    table = claims.judged(asked, tables.load(folder), ["demo", "diginetica"], ["MRR@20"])
    assert table.verdict.tolist() == [HELD, MISSING, MISSING, HELD]
    assert claims.tally(table) == {HELD: 2, NOT_HELD: 0, OPEN: 0, MISSING: 2}
    shown = claims.styled(table, "t1", {"demo": "Demo"})
    assert shown.data.columns.tolist() == [("Demo", "MRR@20"), ("diginetica", "MRR@20")]
    assert shown.data.loc["second"].tolist() == [MISSING, "held<br>+25.00"]
    assert shown.data.index.tolist() == ["first", "second"]
    assert claims.COLOURS[HELD] in shown.to_html()


def test_decided_cells_are_weighed_against_another_start(folder):
    asked = [Claim("+1", "gru4rec", "stamp"), Claim("+25", "stamp", "pop"), Claim("-26", "pop", "gru4rec")]
    asked += [Claim("none", "lgsr", "pop"), Claim("open", "stamp", "stamp")]
    found = tables.load(folder)
    table = claims.judged(asked, found, ["diginetica"], ["MRR@20"])
    assert table.verdict.tolist() == [HELD, HELD, NOT_HELD, MISSING, OPEN]
    assert claims.beyond_starts(table, 0.312, 10) == (3, 3)  # 2.262 * sqrt(2) * 0.312 = 0.998
    assert claims.beyond_starts(table, 0.313, 10) == (2, 3)
    for system, mrr in (("gru4rec", 31.0), ("stamp", 30.0)):
        put(folder, system, mrr=mrr, dataset="diginetica", seed=1)
    table = claims.judged(asked, tables.load(folder), ["diginetica"], ["MRR@20"])
    assert "seeds" in table.basis[0] and claims.beyond_starts(table, 0.313, 10) == (3, 3)


def test_a_deviation_of_few_starts_reaches_further_than_one_of_many(folder):
    for starts, quantile in ((2, 12.706), (3, 4.303), (10, 2.262), (99, 2.262)):
        assert claims.starts_apart(0.5, starts) == pytest.approx(quantile * 2**0.5 * 0.5)
    table = claims.judged([Claim("+25", "stamp", "pop")], tables.load(folder), ["diginetica"], ["MRR@20"])
    assert claims.beyond_starts(table, 4.1, 3) == (1, 1)  # 4.303 * sqrt(2) * 4.1 = 24.95
    assert claims.beyond_starts(table, 4.12, 3) == (0, 1)
    for system, seeds in (("narm", (1.0, 2.0)), ("stamp", (30.0, 30.5, 31.0)), ("gru4rec", (1.0, 3.0, 5.0))):
        for seed, mrr in enumerate(seeds):
            put(folder, system, mrr=mrr, dataset="yoochoose1_64", seed=seed)
    assert claims.started(tables.load(folder), "yoochoose1_64")[0] == ("gru4rec", 3, pytest.approx(2.0))
    assert claims.started(tables.load(folder), "diginetica") == []


def test_the_deviation_of_a_start_is_told_with_the_verdicts(folder):
    asked = [Claim("+1", "gru4rec", "stamp"), Claim("+25", "stamp", "pop")]
    table = claims.judged(asked, tables.load(folder), ["diginetica"])
    assert claims.starts_told(table, tables.load(folder), "diginetica") == ""
    put(folder, "stamp", mrr=31.0, dataset="diginetica", seed=1)  # 30 and 31: a deviation of 0.71, 12.706 √2 of it
    told = claims.starts_told(table, tables.load(folder), "diginetica")
    assert "**1** rests on a difference of more than 12.7 points" in told and told.startswith("Of the 2 verdicts")
    assert "as `stamp` did: by 0.71 from start to start, a deviation that rests on 2 starts" in told
    for seed, mrr in ((0, 20.0), (1, 20.02), (2, 20.04)):
        put(folder, "pop", mrr=mrr, dataset="diginetica", seed=seed)
    told = claims.starts_told(table, tables.load(folder), "diginetica")
    assert "as `pop` did: by 0.02 from start to start" in told and "(Student's t); `stamp` did by 0.71 over 2." in told


def run_of(folder, system, mrr, picked, **config):
    """A record on Diginetica with these MRR@20 after each epoch; held-out sessions pick epoch `picked`, if any."""
    found = toys.record(system, "diginetica")
    shown = [{key: value for m in tables.METRICS for key, value in ((m, v), (f"{m} interval", [v, v]))} for v in mrr]
    runs = {"final": [{"epoch": at, "test": test} for at, test in enumerate(shown, 1)]}
    if picked:
        runs["select"] = [{"epoch": at, "validation": {"MRR@20": float(at == picked)}} for at in range(1, len(mrr) + 1)]
    found["recipe"]["config"] |= config
    toys.put(folder, found | {"runs": runs} | records.both_columns(runs))


def test_the_gaps_of_runs_cut_short_are_kept_apart_from_those_of_whole_recipes(tmp_path):
    run_of(tmp_path, "stamp", [20.0, 22.5, 21.0], picked=3)
    run_of(tmp_path, "sr-gnn", [10.0, 12.0], picked=2, epochs=2)  # ends while it rises
    run_of(tmp_path, "narm", [10.0, 12.0, 11.75], picked=1, epochs=3)
    run_of(tmp_path, "pop", [5.0], picked=None)
    run_of(tmp_path, "tagnn", [10.0], picked=1, epochs=1)
    gaps = claims.selection_gaps(tables.load(tmp_path)).set_index("system")
    assert sorted(gaps.index) == ["narm", "sr-gnn", "stamp", "tagnn"]
    assert gaps.epochs.to_dict() == {"narm": 3, "sr-gnn": 2, "stamp": 3, "tagnn": 1}
    assert gaps["of recipe's"].to_dict() == {"narm": 10, "sr-gnn": 6, "stamp": 3, "tagnn": 6}
    assert gaps["gain MRR@20"].to_dict() == {"narm": 2.0, "sr-gnn": 0.0, "stamp": 1.5, "tagnn": 0.0}
    assert gaps.loc["stamp", ["picked", "best HR@20", "best MRR@20", "last step"]].tolist() == [3, 2, 2, -1.5]
    assert np.isnan(gaps["last step"]["tagnn"])
    picks = "the test would have picked another epoch for one of the metrics, for up to"
    assert claims.gaps_told(gaps) == (
        f"1 of 4 runs went through all epochs of their recipe; in 1 of these {picks} 1.50 HR@20 and 1.50 MRR@20. "
        f"3 of 4 runs were stopped before their recipe's last epoch; in 1 of these {picks} 2.00 HR@20 and 2.00 MRR@20. "
        "In 1 of those stopped the last epoch that was run is the best by every measure, and MRR@20 on the test rose "
        "by 2.00 to 2.00 in it: the gap is 0 there because the run ended, and says nothing about the recipe."
    )
    assert "stopped" not in claims.gaps_told(gaps[gaps.index == "stamp"]) and claims.gaps_told(gaps[:0]) == ""
