"""What the data decide: ties and orders, counted again by obvious loops, and what the book reads of them."""

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import random_clicks, random_sessions

from sbr_core import cli, data_studies, datasets, readers
from sbr_core.batches import Batch
from sbr_core.datasets import Dataset
from sbr_core.models import build
from sbr_core.pickles import DataError
from sbr_core.sessions import Sessions

STUDIES = Path(__file__).resolve().parent.parent / "book" / "results" / "studies"
V = 12
SMALL = Dataset(
    "small", random_sessions(80, V, 7, seed=1), random_sessions(25, V, 7, seed=2), np.arange(V), "f" * 64, "test"
)


def counted(sessions: list[list[int]]) -> dict[str, int]:
    """`order_counts` by loops over sessions and pairs."""
    found, order = Counter(sessions=len(sessions)), {}
    for session in sessions:
        if len(set(session)) < len(session):
            found["with repeats"] += 1
            changes = sum(a != b for a, b in zip(session, session[1:], strict=False))
            found["adjacent"] += changes + 1 == len(set(session))
        for a, b in combinations(dict.fromkeys(session), 2):
            if frozenset((a, b)) in order:
                met = order[frozenset((a, b))]
                met[1] += 1
                met[2] += met[0] != (a, b)
            else:
                order[frozenset((a, b))] = [(a, b), 0, 0]
    found["pairs met again"] = sum(met[1] > 0 for met in order.values())
    found["meetings again"] = sum(met[1] for met in order.values())
    found["reversed"] = sum(met[2] for met in order.values())
    names = ("sessions", "with repeats", "adjacent", "pairs met again", "meetings again", "reversed")
    return {name: found[name] for name in names}


@pytest.mark.parametrize("seed, items, longest", [(0, 30, 9), (1, 5, 6), (2, 200, 3), (3, 3, 12), (4, 40, 1)])
def test_the_counts_of_an_order_are_those_of_a_loop(seed, items, longest):
    clicks = random_clicks(90, items, longest, seed)
    assert data_studies.order_counts(Sessions.from_lists(clicks, items)) == counted(clicks)


def test_the_counts_of_a_part_of_a_log_are_its_own():
    part = random_sessions(90, 8).select(30, 70)
    found = data_studies.order_counts(part)
    assert found == counted([part[number] for number in range(40)]) and found["sessions"] == 40
    assert 0 < found["adjacent"] < found["with repeats"] and 0 < found["reversed"] < found["meetings again"]


def test_a_hidden_order_sorts_every_session_and_leaves_its_traces():
    sessions = random_sessions(90, 8).select(20, 90)
    rank = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    filed = data_studies.in_order_of(sessions, rank)
    assert [filed[n] for n in range(70)] == [sorted(sessions[n], key=lambda item: rank[item]) for n in range(70)]
    found, before = data_studies.order_counts(filed), data_studies.order_counts(sessions)
    assert found["adjacent"] == found["with repeats"] == before["with repeats"] and found["reversed"] == 0
    assert found["meetings again"] == before["meetings again"]  # the same items, so the same meetings


def test_the_chance_of_a_label_is_that_of_all_orders_of_its_equals():
    for above, beside, k in [(0, 0, 1), (0, 3, 2), (1, 2, 3), (2, 3, 4), (4, 1, 3), (1, 4, 20)]:
        orders = list(permutations(range(beside + 1)))  # 0 is the label
        expected = sum(above + order.index(0) + 1 <= k for order in orders) / len(orders)
        found = data_studies.shown_at_random(torch.tensor([1.0 + above]), torch.tensor([1.0 + above + beside]), k)
        assert found.item() == pytest.approx(expected)


def rank_bounds(model, session: list[int], label: int) -> tuple[int, int]:
    """Ranks of a label that wins every tie and that loses every tie, counted score by score."""
    scores = model.score(model.encode(Batch.of([session], V)))[0].tolist()
    return 1 + sum(s > scores[label] for s in scores), sum(s >= scores[label] for s in scores)


@pytest.mark.parametrize("system", data_studies.COUNTING)
@pytest.mark.parametrize("k", [3, 20])
def test_ties_are_those_of_ranks_counted_score_by_score(system, k, monkeypatch):
    monkeypatch.setattr(data_studies, "METRICS", (f"HR@{k}", "HR@20", f"MRR@{k}"))
    found = data_studies.ties(SMALL, (system,))[system]
    model, expected = build(system, V).fit(SMALL.train), Counter()
    examples = [(s[:t], s[t]) for s in map(SMALL.test.__getitem__, range(25)) for t in range(1, len(s))]
    for session, label in examples:
        low, high = rank_bounds(model, session, label)
        for policy, rank in {"standard": low, "median": (low + high) / 2, "conservative": high}.items():
            expected["HR", policy] += rank <= k
            expected["MRR", policy] += (rank <= k) / rank
        expected["chance"] += sum(place <= 20 for place in range(low, high + 1)) / (high - low + 1)
    for policy in ("standard", "median", "conservative"):
        for metric in ("HR", "MRR"):
            mean = 100 * expected[metric, policy] / len(examples)
            assert found[f"{metric}@{k}"][policy] == pytest.approx(mean, abs=1e-4)
    assert found["HR@20"]["at random"] == pytest.approx(100 * expected["chance"] / len(examples), abs=1e-4)


def test_no_session_is_asked_by_counts_of_its_own():
    clicks = random_clicks(43, 9, 5, seed=5, shortest=2)
    found = data_studies.held_out(Sessions.from_lists(clicks, 9), folds=4)
    expected = {}
    for number, session in enumerate(clicks):
        others = [clicks[other] for other in range(len(clicks)) if other % 4 != number % 4]
        model = build("markov", 9).fit(Sessions.from_lists(others, 9))
        for t in range(1, len(session)):
            scores = model.score(model.encode(Batch.of([session[:t]], 9)))[0].tolist()
            expected[number, t] = sum(s >= scores[session[t]] for s in scores)
    owner = found.session // 4 * 4 + found.session % 4  # n-th session of its fold * folds + fold
    rows = zip(owner.tolist(), found.lengths.tolist(), found.ranks.tolist(), strict=True)
    assert {(session, length): rank for session, length, rank in rows} == expected


def test_markov_gains_from_a_hidden_order_what_its_metrics_say():
    found = data_studies.hidden_order(SMALL, draws=3)
    clicked, filed = found["as clicked"], found["as filed"]
    assert clicked["HR@20"] == data_studies.ties(SMALL, ("markov",))["markov"]["HR@20"]["conservative"]
    assert clicked["train"] == data_studies.order_counts(SMALL.train) and clicked["train"]["reversed"] > 0
    assert filed["train"]["reversed"] == 0 and filed["draws"] == 3
    values = []
    for draw in range(3):
        rank = torch.randperm(V, generator=torch.Generator().manual_seed(draw))
        parts = {part: data_studies.in_order_of(getattr(SMALL, part), rank) for part in ("train", "test")}
        values.append(data_studies.ties(replace(SMALL, **parts), ("markov",))["markov"]["MRR@20"]["conservative"])
    assert filed["MRR@20"] == pytest.approx(sum(values) / 3) and filed["MRR@20"] > clicked["MRR@20"]
    assert filed["MRR@20 range"] == pytest.approx([min(values), max(values)])


ROWS = """sessionId;userId;itemId;timeframe;eventdate
7;NA;5;300;2016-05-09
7;NA;5;100;2016-05-09
7;NA;6;200;2016-05-09
3;NA;6;20;2016-05-09
3;NA;5;10;2016-05-09
3;NA;8;30;2016-05-09
9;NA;8;5;2016-05-10
"""


def test_a_raw_log_is_read_in_the_order_of_its_file_and_in_that_of_time(tmp_path):
    (tmp_path / "views.csv").write_text(ROWS)
    clicks = readers.read_diginetica(tmp_path / "views.csv")
    orders = {by_time: data_studies.as_sessions(clicks, by_time) for by_time in (False, True)}
    raw = {key: [clicks.item_ids[s[n]].tolist() for n in range(3)] for key, s in orders.items()}
    assert raw == {False: [[5, 5, 6], [6, 5, 8], [8]], True: [[5, 6, 5], [5, 6, 8], [8]]}
    found = data_studies.file_order(clicks)
    assert found["clicks"] == 7 and found["examples"] == 4
    assert [found[name]["adjacent"] for name in ("as filed", "as clicked")] == [1, 0]
    assert [found[name]["reversed"] for name in ("as filed", "as clicked")] == [1, 0]


def test_the_studies_hold_what_the_book_reads(tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / f"diginetica_{data_studies.SAMPLE}").write_text(ROWS)
    monkeypatch.setenv("SBR_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "load", lambda name: replace(SMALL, name=name))
    found = json.loads(json.dumps(data_studies.click_order_study(["small"])))
    kept = json.loads((STUDIES / "click_order.json").read_text())
    assert found.keys() == kept.keys() and found["printed"] == kept["printed"]
    assert found["raw sample"].keys() == kept["raw sample"].keys()
    for name in ("as clicked", "as filed"):
        assert found["datasets"]["small"][name].keys() == kept["datasets"]["diginetica"][name].keys()
        assert found["raw sample"][name].keys() == kept["raw sample"][name].keys()
    found, kept = data_studies.ties_study(["small"]), json.loads((STUDIES / "ties.json").read_text())
    assert found["datasets"]["small"].keys() == kept["datasets"]["diginetica"].keys()
    assert found["datasets"]["small"]["systems"].keys() == kept["datasets"]["diginetica"]["systems"].keys()


def test_the_command_writes_a_study(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: replace(SMALL, name=name))
    cli.study("ties", datasets_="small,other", models=None, work=tmp_path, output=tmp_path / "ties.json")
    written = json.loads((tmp_path / "ties.json").read_text())
    assert written == data_studies.ties_study(["small", "other"]) and list(written["datasets"]) == ["small", "other"]
    monkeypatch.setattr(data_studies, "click_order_study", lambda names: {"click order": names})
    cli.study("click-order", datasets_="small", models=None, work=tmp_path, output=tmp_path / "order.json")
    assert json.loads((tmp_path / "order.json").read_text()) == {"click order": ["small"]}


def test_without_the_sample_the_study_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("SBR_DATA", str(tmp_path))
    monkeypatch.setattr(data_studies.cache, "folder", lambda: tmp_path / "cache")
    with pytest.raises(DataError, match=f"no sample_train-item-views.csv in {tmp_path} or .*CRIPAC-DIG/SR-GNN"):
        data_studies.click_order_study(["demo"])


def test_the_committed_studies_are_of_the_data_at_hand(real_data):
    kept = json.loads((STUDIES / "click_order.json").read_text())
    clicks = readers.read_diginetica(data_studies.sample_path())
    for name, by_time in (("as clicked", True), ("as filed", False)):
        counts = data_studies.order_counts(data_studies.as_sessions(clicks, by_time))
        assert counts == {key: kept["raw sample"][name][key] for key in counts}
    data = datasets.load("diginetica", real_data)
    ties = json.loads((STUDIES / "ties.json").read_text())["datasets"]["diginetica"]
    found = kept["datasets"]["diginetica"]
    assert data.fingerprint == found["fingerprint"] == ties["fingerprint"]
    assert data_studies.order_counts(data.train) == found["as clicked"]["train"]
    assert found["as clicked"]["HR@20"] == ties["systems"]["markov"]["HR@20"]["conservative"]
