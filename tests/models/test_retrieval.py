"""Neighbours and merged graphs against slow loops over Python lists, and what the specs promise of them."""

import math

import pytest
import torch
from toys import random_clicks, random_sessions

from sbr_core.batches import Batch
from sbr_core.models.retrieval import index_sessions, merge, propagate, retrieve
from sbr_core.sessions import Sessions

V = 12
LOG = random_clicks(80, V, longest=7, seed=4)
QUERIES = [[3], [5, 5], [1, 2, 1, 3], [0, 1, 2, 0, 1, 2, 0, 8], *random_clicks(12, V, 6, seed=9)]


def slow_neighbours(log, session, limit, k, threshold, sample_size) -> list[tuple[int, float]]:
    """(number, similarity), oldest first."""
    mine = set(session)
    candidates = [s for s in range(limit) if mine & set(log[s][:-1])][-sample_size:]
    sims = [
        (s, round(len(mine & set(log[s][:-1])) / math.sqrt(len(mine) * len(set(log[s][:-1]))), 4)) for s in candidates
    ]
    near = sorted((pair for pair in sims if pair[1] >= threshold), key=lambda pair: -pair[1])[:k]  # stable: older first
    return sorted(near)


def found_of(log, queries, limits, num_items=V, **settings):
    """The same by the package."""
    index, batch = index_sessions(Sessions.from_lists(log, num_items)), Batch.of(queries, num_items)
    found = retrieve(index, batch.items, batch.mask, torch.tensor(limits), **settings)
    rows = [[] for _ in queries]
    for row, session, similarity in zip(*(value.tolist() for value in found), strict=True):
        rows[row].append((session, similarity))
    return rows


@pytest.mark.parametrize("k, threshold, sample_size", [(120, 0.5, 1000), (3, 0.0, 1000), (5, 0.3, 8), (1, 0.0, 1)])
def test_neighbours_equal_a_loop(k, threshold, sample_size):
    limits = [(17 * number) % (len(LOG) + 1) for number in range(len(QUERIES))]
    settings = {"k": k, "threshold": threshold, "sample_size": sample_size}
    found = found_of(LOG, QUERIES, limits, **settings)
    expected = [slow_neighbours(LOG, q, limit, **settings) for q, limit in zip(QUERIES, limits, strict=True)]
    assert found == expected and any(len(row) == k for row in found) == (k < 120)


def test_a_neighbour_is_always_earlier_and_shares_an_item():
    for limit in (0, 1, 40):
        for query, row in zip(QUERIES, found_of(LOG, QUERIES, [limit] * len(QUERIES), threshold=0.0), strict=True):
            assert all(session < limit and set(query) & set(LOG[session]) for session, _ in row)


def test_equal_sets_have_similarity_one_and_the_last_click_of_a_neighbour_does_not_count():
    log = [[1, 2, 1, 7], [2, 1, 2], [3, 1], [9, 8], [1, 2]]
    assert found_of(log, [[2, 1, 1]], [5]) == [[(0, 1.0), (1, 1.0), (4, 0.7071)]]  # [3, 1] has 3 alone
    assert found_of(log, [[8]], [5]) == [[]]
    assert found_of(log, [[9]], [5]) == [[(3, 1.0)]]


def test_of_equally_similar_sessions_the_older_are_taken_of_the_recent():
    log = [[1, 5], [1, 6], [1, 7], [1, 8]]
    assert found_of(log, [[1]], [4], k=2) == [[(0, 1.0), (1, 1.0)]]
    assert found_of(log, [[1]], [4], k=2, sample_size=3) == [[(1, 1.0), (2, 1.0)]]


def test_similarity_is_rounded_before_it_is_compared():
    log = [[*range(5), 9]]  # 3 of 5 shared, 3 / sqrt(5 x 8) = 0.474; rounded thresholds below
    row = found_of(log, [[0, 1, 2, 6, 7, 8, 10, 11]], [1], threshold=0.4743)
    assert row == [[(0, 0.4743)]] and 3 / math.sqrt(40) > 0.47434 and not found_of(log, [[0]], [1], threshold=0.4473)[0]


def slow_graph(log, neighbours, session, norm):
    """{(u, v): weight} by item."""
    edges = set()
    for clicks in [*(log[s] for s in neighbours), session]:
        edges |= {(u, v) for u, v in zip(clicks, clicks[1:], strict=False)} | {(u, u) for u in clicks}
    degree = {u: sum(edge[0 if norm == "out" else 1] == u for edge in edges) for edge in edges for u in edge}
    return {(u, v): 1 / math.sqrt(degree[u] * degree[v]) for u, v in edges}


@pytest.mark.parametrize("norm", ["out", "in"])
def test_merged_graphs_equal_a_loop(norm):
    index, batch = index_sessions(Sessions.from_lists(LOG, V)), Batch.of(QUERIES, V)
    found = retrieve(index, batch.items, batch.mask, torch.full((len(QUERIES),), len(LOG)), threshold=0.4)
    graph = merge(index, found, batch.items, batch.mask, norm)
    target = torch.arange(len(graph.item)).repeat_interleave(graph.begin.diff())
    edges, item = list(zip(graph.source.tolist(), target.tolist(), graph.weight.tolist(), strict=True)), graph.item
    for row, session in enumerate(QUERIES):
        expected = slow_graph(LOG, found.session[found.row == row].tolist(), session, norm)
        nodes = {int(node) for node in graph.own[row, : len(session)]}
        assert item[graph.own[row, : len(session)]].tolist() == session
        while True:  # everything that hangs together with the session's own nodes
            more = nodes | {v for u, v, _ in edges if u in nodes} | {u for u, v, _ in edges if v in nodes}
            if more == nodes:
                break
            nodes = more
        mine = {(int(item[u]), int(item[v])): w for u, v, w in edges if u in nodes}
        assert len(mine) == sum(u in nodes for u, _, _ in edges)  # no edge twice
        assert mine.keys() == expected.keys() and mine == pytest.approx(expected, abs=1e-12)
    padding = graph.own[~batch.mask]
    assert item[padding].eq(V).all() and graph.begin.diff()[padding].eq(1).all()


def test_a_hop_is_the_weighted_sum_over_the_edges():
    index, batch = index_sessions(Sessions.from_lists(LOG, V)), Batch.of(QUERIES, V)
    found = retrieve(index, batch.items, batch.mask, torch.full((len(QUERIES),), len(LOG)))
    graph = merge(index, found, batch.items, batch.mask)
    x = torch.randn(len(graph.item), 3, dtype=torch.double, requires_grad=True)
    S = torch.zeros(len(x), len(x), dtype=torch.double)
    for v in range(len(x)):
        for edge in range(int(graph.begin[v]), int(graph.begin[v + 1])):
            S[v, graph.source[edge]] += graph.weight[edge]
    torch.testing.assert_close(propagate(graph, x), S @ x, rtol=0, atol=1e-12)
    weight = torch.randn_like(x)
    (wanted,) = torch.autograd.grad((S @ x * weight).sum(), x)
    (found,) = torch.autograd.grad((propagate(graph, x) * weight).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_a_part_of_a_log_is_indexed_from_its_own_beginning():
    whole = random_sessions(30, V, seed=7)
    part, fresh = whole.select(10, 25), Sessions.from_lists([whole[s] for s in range(10, 25)], V)
    for mine, other in zip(index_sessions(part), index_sessions(fresh), strict=True):
        assert torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other


def test_without_sessions_nobody_is_found():
    assert found_of([], QUERIES, [0] * len(QUERIES)) == [[] for _ in QUERIES]
    assert found_of([[1], [2]], QUERIES, [2] * len(QUERIES)) == [[] for _ in QUERIES]  # a lone click is a label only
