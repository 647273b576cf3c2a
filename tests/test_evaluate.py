"""Ranks against a sort, metrics by hand, breakdowns that add up, intervals that know about sessions."""

import math
from bisect import bisect_left, bisect_right

import pytest
import torch
from toys import as_lists, chain, random_sessions

from sbr_core.evaluate import TIES, Evaluation, evaluate, ranks_from_scores
from sbr_core.models.base import CountingModel, SessionModel

V = 30


def rank_loop(scores: list[float], target: int, ties: str) -> float:
    """Rank of a target from a sorted list."""
    ordered = sorted(-score for score in scores)
    first, last = bisect_left(ordered, -scores[target]) + 1, bisect_right(ordered, -scores[target])
    return {"standard": first, "conservative": last, "median": (first + last) / 2}[ties]


class Fixed(CountingModel):
    """Scores are a function of the last click: row of a matrix."""

    def __init__(self, matrix):
        super().__init__(matrix.shape[1])
        self.register_buffer("matrix", matrix)

    def scores(self, batch):
        return self.matrix[batch.items.gather(1, batch.lengths[:, None] - 1).squeeze(1)]


class Linear(SessionModel):
    """A neural model in the smallest: the query is the last click's row, halved in training."""

    def __init__(self, num_items, dim=4):
        super().__init__(num_items, dim)
        torch.nn.init.normal_(self.table)

    def encode(self, batch):
        query = self.embed(batch.items.gather(1, batch.lengths[:, None] - 1).squeeze(1))
        return query * (0.5 if self.training else 1.0)


@pytest.mark.parametrize("ties, expected", [("standard", 2), ("conservative", 4), ("median", 3)])
def test_the_ranks_of_the_specs(ties, expected):
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1]])
    assert ranks_from_scores(scores, torch.tensor([2]), ties).tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ties", TIES)
def test_ranks_equal_a_sort(ties, dtype):
    scores = torch.randint(-4, 5, (50, 17)).to(dtype) / 4  # many ties
    target = torch.randint(17, (50,))
    expected = [rank_loop(row, t, ties) for row, t in zip(scores.tolist(), target.tolist(), strict=True)]
    assert ranks_from_scores(scores, target, ties).tolist() == expected


def test_the_policies_bracket_each_other_and_agree_without_ties():
    scores, target = torch.randint(3, (40, 9)).float(), torch.randint(9, (40,))
    low, middle, high = (ranks_from_scores(scores, target, ties) for ties in ("standard", "median", "conservative"))
    assert (low <= middle).all() and (middle <= high).all() and torch.equal(middle * 2, low + high)
    scores = torch.rand(40, 9)
    assert torch.equal(*(ranks_from_scores(scores, target, ties) for ties in ("standard", "conservative")))


@pytest.mark.parametrize("ties, rank", [("standard", 1), ("conservative", 11), ("median", 6)])
@pytest.mark.parametrize("value", [0.0, -1.5, math.inf, -math.inf])
def test_a_model_that_cannot_tell_items_apart(ties, rank, value):
    ranks = ranks_from_scores(torch.full((3, 11), value), torch.tensor([0, 5, 10]), ties)
    assert ranks.tolist() == [rank] * 3


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (1, 3)])
def test_a_score_that_is_not_a_number_raises(place):
    scores = torch.rand(2, 4)
    scores[place] = math.nan
    for ties in TIES:
        with pytest.raises(ValueError, match="a score is NaN: the model has diverged"):
            ranks_from_scores(scores, torch.tensor([0, 1]), ties)


def test_an_evaluation_waits_for_the_device_once_however_many_chunks_it_has(monkeypatch):
    windows, asked, ask = random_sessions(12).prefixes(), [], torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: asked.append(self) or ask(self))
    counts = []
    for chunk in (1, 7, 10_000):
        asked.clear()
        evaluate(Fixed(torch.rand(V + 1, V)), windows, chunk=chunk)
        counts.append(len(asked))
    assert len(set(counts)) == 1 and counts[0] >= 1


def test_an_evaluation_with_one_score_that_is_not_a_number_raises():
    matrix = torch.rand(V + 1, V)
    matrix[3, 5] = math.nan
    with pytest.raises(ValueError, match="a score is NaN: the model has diverged"):
        evaluate(Fixed(matrix), random_sessions(12).prefixes(), chunk=7)


def test_an_unknown_tie_policy_is_refused():
    with pytest.raises(ValueError, match="conservative, standard, median, got 'random'"):
        ranks_from_scores(torch.rand(2, 4), torch.tensor([0, 1]), "random")


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_evaluation_ranks_every_example_in_its_own_place(chunk, ties):
    windows = random_sessions(12).prefixes()
    matrix = torch.randint(6, (V + 1, V)).float()
    result = evaluate(Fixed(matrix), windows, ties, chunk=chunk)
    rows = as_lists(windows)
    assert result.ranks.tolist() == [rank_loop(matrix[prefix[-1]].tolist(), label, ties) for prefix, label in rows]
    assert result.lengths.tolist() == [len(prefix) for prefix, _ in rows]
    assert result.labels.tolist() == [label for _, label in rows]
    assert torch.equal(result.session, windows.session) and result.ties == ties


def test_a_neural_model_is_ranked_in_evaluation_mode_and_given_back_as_it_was():
    windows, model = random_sessions(60).prefixes(), Linear(V).train()
    result = evaluate(model, windows)
    assert model.training
    scores = model.table @ model.table[:-1].T
    rows = [rank_loop(scores[prefix[-1]].tolist(), label, "conservative") for prefix, label in as_lists(windows)]
    assert result.ranks.tolist() == rows
    evaluate(model.eval(), windows)
    assert not model.training and model.table.grad is None


def test_nothing_to_evaluate_is_an_error():
    from sbr_core.sessions import Sessions

    with pytest.raises(ValueError, match="no example to evaluate"):
        evaluate(Linear(V), Sessions.from_lists([[1], [2]], V).prefixes())


def of_ranks(ranks, session=None, lengths=None, labels=None):
    count = len(ranks)
    numbers = [torch.arange(count) if x is None else torch.tensor(x) for x in (session, lengths, labels)]
    return Evaluation(torch.tensor(ranks, dtype=torch.float32), *numbers, "conservative")


def test_metrics_by_hand():
    result = of_ranks([1, 2, 5, 6, 20, 21])
    expected = {
        "HR@5": 3 / 6, "HR@10": 4 / 6, "HR@20": 5 / 6,
        "MRR@5": (1 + 1 / 2 + 1 / 5) / 6, "MRR@10": (1 + 1 / 2 + 1 / 5 + 1 / 6) / 6,
        "MRR@20": (1 + 1 / 2 + 1 / 5 + 1 / 6 + 1 / 20) / 6,
        "NDCG@5": (1 + 1 / math.log2(3) + 1 / math.log2(6)) / 6,
        "NDCG@10": (1 + 1 / math.log2(3) + 1 / math.log2(6) + 1 / math.log2(7)) / 6,
        "NDCG@20": (1 + 1 / math.log2(3) + 1 / math.log2(6) + 1 / math.log2(7) + 1 / math.log2(21)) / 6,
    }  # fmt: skip
    assert result.metrics == pytest.approx({name: 100 * value for name, value in expected.items()}, rel=1e-6)
    assert result.metric("HR@1") == pytest.approx(100 / 6, rel=1e-6)


def test_half_ranks_count_by_their_value():
    assert of_ranks([20.5, 1.5]).metric("HR@20") == 50
    assert of_ranks([20.5, 1.5]).metric("MRR@20") == pytest.approx(100 / 1.5 / 2)


@pytest.mark.parametrize("name", ["HR", "HR@", "HR@0", "HR@x", "hr@20", "P@20", "MRR@-1", "NDCG@2.5", ""])
def test_a_metric_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match=f"HR@K, MRR@K or NDCG@K with K >= 1, got '{name}'"):
        of_ranks([1, 2]).metric(name)


def test_metrics_by_length_are_those_of_the_groups_and_add_up():
    windows = random_sessions(60, longest=25).prefixes()
    result = evaluate(Linear(V), windows)
    table = result.by_length()
    assert [(row["from"], row["to"]) for row in table] == [(1, 1), (2, 2), (3, 4), (5, 9), (10, 19), (20, None)]
    assert sum(row["examples"] for row in table) == len(windows)
    for row in table:
        inside = [
            r
            for r, n in zip(result.ranks.tolist(), result.lengths.tolist(), strict=True)
            if row["from"] <= n <= (row["to"] or 99)
        ]
        assert row["examples"] == len(inside) > 0
        assert row["HR@20"] == pytest.approx(100 * sum(r <= 20 for r in inside) / len(inside), rel=1e-5)
        assert row["MRR@20"] == pytest.approx(100 * sum((r <= 20) / r for r in inside) / len(inside), rel=1e-5)


def test_metrics_by_popularity_are_those_of_the_groups_and_add_up():
    windows = random_sessions(60).prefixes()
    result = evaluate(Linear(V), windows)
    counts = torch.tensor([0, 1, 9, 10, 49, 50, 1000] + [3] * (V - 7))
    table = result.by_popularity(counts, names=("NDCG@5",))
    assert [row["from"] for row in table] == [0, 1, 10, 50, 200, 1000] and table[-1]["to"] is None
    assert sum(row["examples"] for row in table) == len(windows)
    of_label = [int(counts[label]) for label in result.labels.tolist()]
    for row in table:
        inside = [n for n in of_label if row["from"] <= n <= (10**9 if row["to"] is None else row["to"])]
        assert row["examples"] == len(inside)
        assert ("NDCG@5" in row) == bool(inside)
    total = sum(row["examples"] * row.get("NDCG@5", 0) for row in table)
    assert total / len(windows) == pytest.approx(result.metric("NDCG@5"), rel=1e-5)


def test_examples_with_unknown_items_are_counted_not_dropped():
    windows = random_sessions(60).prefixes()
    seen = torch.ones(V, dtype=torch.bool)
    seen[[3, 8]] = False
    result = evaluate(Linear(V), windows, seen=seen, chunk=16)
    rows = as_lists(windows)
    assert result.unknown_targets == sum(label in (3, 8) for _, label in rows) > 0
    assert result.unknown_clicks == sum(bool({3, 8} & set(prefix)) for prefix, _ in rows) > 0
    assert len(result.ranks) == len(rows)
    plain = evaluate(Linear(V), windows)
    assert plain.unknown_targets is None and plain.unknown_clicks is None


def test_an_interval_over_sessions_is_wider_where_a_session_hits_or_misses_as_a_whole():
    session = [number for number in range(100) for _ in range(10)]
    result = of_ranks([1.0 if number % 2 else 99.0 for number in session], session)
    wide, narrow = (result.interval("HR@20", by=by) for by in ("session", "example"))
    assert wide[0] < narrow[0] < 50 < narrow[1] < wide[1]
    ratio = (wide[1] - wide[0]) / (narrow[1] - narrow[0])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)
    assert wide[1] - wide[0] == pytest.approx(100 * 2 * 1.96 * 0.5 / math.sqrt(100), rel=0.15)


def test_an_interval_is_repeatable_and_holds_the_metric():
    result = evaluate(Linear(V), random_sessions(100).prefixes())
    low, high = result.interval("MRR@20", resamples=300, seed=1)
    assert (
        (low, high)
        == result.interval("MRR@20", resamples=300, seed=1)
        != result.interval("MRR@20", resamples=300, seed=2)
    )
    assert low < result.metric("MRR@20") < high


def test_an_interval_of_identical_examples_has_no_width():
    assert of_ranks([2.0] * 12, [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 4]).interval("MRR@20") == pytest.approx((50, 50))


def test_resampling_by_anything_else_is_refused():
    with pytest.raises(ValueError, match="'session' or by 'example', got 'item'"):
        of_ranks([1, 2]).interval(by="item")


def test_a_perfect_model_is_perfect():
    sessions = chain(V)
    matrix = torch.zeros(V + 1, V)
    matrix[torch.arange(V), (torch.arange(V) + 1) % V] = 1
    assert set(evaluate(Fixed(matrix), sessions.prefixes()).metrics.values()) == {100.0}


def test_evaluation_on_a_device_equals_that_on_the_host(device):
    windows, model = random_sessions(60).prefixes(), Linear(V)
    seen = torch.arange(V) % 5 > 0
    expected = evaluate(model, windows, seen=seen)
    result = evaluate(model.to(device), windows.to(device), seen=seen.to(device))
    assert result.ranks.device.type == "cpu" and torch.equal(result.ranks, expected.ranks)
    assert (result.unknown_targets, result.unknown_clicks) == (expected.unknown_targets, expected.unknown_clicks)


def test_a_model_that_fails_is_given_back_as_it_was():
    model = Linear(V)
    model.encode = None
    with pytest.raises(TypeError):
        evaluate(model.train(), random_sessions(5, V).prefixes())
    assert model.training
