"""Session graphs: matrices worked out by hand, invariants, and independent slow loops."""
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbr_core.batches import Batch
from sbr_core.graphs import global_graph, session_graph, to_multigraph, to_networkx
from sbr_core.sessions import Sessions

V = 9
sessions_of_few_items = st.lists(st.integers(0, 4), min_size=1, max_size=9)


def graph_of(session, edge_weight="binary", width=None):
    """Alias, A_in, A_out of one session; padded on the right to `width`."""
    batch = Batch.of([session] if width is None else [session, [0] * width], V)
    alias, A_in, A_out = session_graph(batch.items, batch.mask, edge_weight)
    return alias[0], A_in[0], A_out[0]


def by_item(session, matrix):
    """Rows and columns of distinct items in ascending order, instead of slots of first positions."""
    slots = [session.index(item) for item in sorted(set(session))]
    return matrix[slots][:, slots]


half, third = 1 / 2, 1 / 3
HAND_MADE = [  # session, edge weight, A_in, A_out: rows are the current node, items ascending
    ([1, 2, 1, 3], "binary", [[0, 1, 0], [1, 0, 0], [1, 0, 0]], [[0, half, half], [1, 0, 0], [0, 0, 0]]),
    (
        [1, 2, 3, 2, 4],
        "binary",
        [[0, 0, 0, 0], [half, 0, half, 0], [0, 1, 0, 0], [0, 1, 0, 0]],
        [[0, 1, 0, 0], [0, 0, half, half], [0, 1, 0, 0], [0, 0, 0, 0]],
    ),
    ([1, 1, 2], "binary", [[1, 0], [1, 0]], [[half, half], [0, 0]]),
    ([1, 2, 1, 2, 1, 3], "binary", [[0, 1, 0], [1, 0, 0], [1, 0, 0]], [[0, half, half], [1, 0, 0], [0, 0, 0]]),
    ([1, 2, 1, 2, 1, 3], "count", [[0, 1, 0], [1, 0, 0], [1, 0, 0]], [[0, 2 * third, third], [1, 0, 0], [0, 0, 0]]),
    ([7], "binary", [[0]], [[0]]),
    ([3, 3, 3, 3], "count", [[1]], [[1]]),
]


@pytest.mark.parametrize("session, edge_weight, A_in, A_out", HAND_MADE, ids=str)
def test_matrices_worked_out_by_hand(session, edge_weight, A_in, A_out):
    _, found_in, found_out = graph_of(session, edge_weight)
    torch.testing.assert_close(by_item(session, found_in), torch.tensor(A_in, dtype=torch.float32))
    torch.testing.assert_close(by_item(session, found_out), torch.tensor(A_out, dtype=torch.float32))


def test_alias_is_the_first_position_of_the_same_item():
    assert graph_of([1, 2, 1, 3])[0].tolist() == [0, 1, 0, 3]
    assert graph_of([5, 5, 2, 5, 2])[0].tolist() == [0, 0, 2, 0, 2]


def loop_matrices(session, edge_weight):
    """A_in, A_out over ascending distinct items, one transition at a time."""
    nodes = sorted(set(session))
    A = np.zeros((len(nodes), len(nodes)))
    for u, v in zip(session, session[1:], strict=False):
        i, j = nodes.index(u), nodes.index(v)
        A[i, j] = A[i, j] + 1 if edge_weight == "count" else 1
    A_in, A_out = np.zeros_like(A), np.zeros_like(A)
    for i in range(len(nodes)):
        for j in range(len(nodes)):
            A_out[i, j] = A[i, j] / max(A[i].sum(), 1)
            A_in[j, i] = A[i, j] / max(A[:, j].sum(), 1)
    return A_in, A_out


@settings(max_examples=60, deadline=None)
@given(st.lists(sessions_of_few_items, min_size=1, max_size=5), st.sampled_from(["binary", "count"]))
def test_batches_equal_the_loop(sessions, edge_weight):
    batch = Batch.of(sessions, V)
    _, A_in, A_out = session_graph(batch.items, batch.mask, edge_weight)
    for row, session in enumerate(sessions):
        wanted_in, wanted_out = loop_matrices(session, edge_weight)
        np.testing.assert_allclose(by_item(session, A_in[row]), wanted_in, atol=1e-6)
        np.testing.assert_allclose(by_item(session, A_out[row]), wanted_out, atol=1e-6)
        empty = [i for i in range(batch.items.shape[1]) if i >= len(session) or session.index(session[i]) != i]
        assert not A_in[row][empty].any() and not A_in[row][:, empty].any()
        assert not A_out[row][empty].any() and not A_out[row][:, empty].any()


@settings(max_examples=60, deadline=None)
@given(sessions_of_few_items, st.sampled_from(["binary", "count"]))
def test_invariants(session, edge_weight):
    _, A_in, A_out = graph_of(session, edge_weight)
    sums = torch.cat([A_in.sum(1), A_out.sum(1)])
    assert bool(((sums - 1).abs() < 1e-6).logical_or(sums == 0).all())
    reverse = session[::-1]  # reversing a session swaps the matrices
    _, reverse_in, reverse_out = graph_of(reverse, edge_weight)
    torch.testing.assert_close(by_item(reverse, reverse_in), by_item(session, A_out))
    torch.testing.assert_close(by_item(reverse, reverse_out), by_item(session, A_in))
    relabelled = [8 - item for item in session]  # slots depend on order, not on ids
    for a, b in zip(graph_of(relabelled, edge_weight), graph_of(session, edge_weight), strict=True):
        assert torch.equal(a, b)


@settings(max_examples=40, deadline=None)
@given(sessions_of_few_items, st.integers(0, 4))
def test_padding_changes_nothing(session, extra):
    alias, A_in, A_out = graph_of(session)
    n = len(session)
    padded_alias, padded_in, padded_out = graph_of(session, width=n + extra)
    assert torch.equal(padded_alias[:n], alias)
    assert torch.equal(padded_in[:n, :n], A_in) and torch.equal(padded_out[:n, :n], A_out)
    assert not padded_in[n:].any() and not padded_out[n:].any() and not padded_in[:, n:].any()


def test_what_the_binary_graph_loses():
    """A repeated transition leaves no trace in the binary graph, its count does; other repeats show in both."""
    short, long = [1, 2, 1, 3], [1, 2, 1, 2, 1, 3]
    for side in (1, 2):
        assert torch.equal(by_item(short, graph_of(short)[side]), by_item(long, graph_of(long)[side]))
    assert not torch.equal(by_item(short, graph_of(short, "count")[2]), by_item(long, graph_of(long, "count")[2]))
    a, b = [1, 2, 1, 2, 3], [1, 2, 3]
    assert not torch.equal(by_item(a, graph_of(a)[2]), by_item(b, graph_of(b)[2]))


def test_unknown_edge_weight_is_refused():
    for refuse in (lambda: graph_of([1, 2], "log"), lambda: to_networkx([1, 2], "log")):
        with pytest.raises(ValueError, match="'binary' or 'count', got 'log'"):
            refuse()


def test_networkx_graph_by_hand():
    graph = to_networkx([4, 7, 4, 7, 4, 4, 2])
    assert list(graph.nodes(data="clicks")) == [(4, 4), (7, 2), (2, 1)]
    assert graph.nodes[4]["positions"] == [0, 2, 4, 5]
    assert {(u, v): order for u, v, order in graph.edges(data="order")} == {
        (4, 7): [1, 3], (7, 4): [2, 4], (4, 4): [5], (4, 2): [6],
    }  # fmt: skip
    assert {(u, v): w for u, v, w in graph.edges(data="weight")} == {(4, 7): 2, (7, 4): 2, (4, 4): 1, (4, 2): 1}
    assert {w for _, _, w in to_networkx([4, 7, 4, 7], "binary").edges(data="weight")} == {1}
    assert list(to_networkx([3]).nodes) == [3] and to_networkx([3]).number_of_edges() == 0


@settings(max_examples=40, deadline=None)
@given(sessions_of_few_items, st.sampled_from(["binary", "count"]))
def test_networkx_weights_are_those_of_the_matrices(session, edge_weight):
    graph = to_networkx(session, edge_weight)
    _, A_in, A_out = graph_of(session, edge_weight)
    for u, v, weight in graph.edges(data="weight"):
        i, j = session.index(u), session.index(v)
        assert float(A_out[i, j]) == pytest.approx(weight / graph.out_degree(u, "weight"))
        assert float(A_in[j, i]) == pytest.approx(weight / graph.in_degree(v, "weight"))
    assert graph.number_of_edges() == int((A_out > 0).sum()) == int((A_in > 0).sum())


def test_multigraph_with_shortcuts_by_hand():
    graph = to_multigraph([1, 2, 1, 3], shortcuts=True)
    steps = [(u, v, d["order"]) for u, v, d in graph.edges(data=True) if d["kind"] == "step"]
    shortcuts = [(u, v) for u, v, d in graph.edges(data=True) if d["kind"] == "shortcut"]
    assert sorted(steps, key=lambda e: e[2]) == [(1, 2, 1), (2, 1, 2), (1, 3, 3)]
    assert sorted(shortcuts) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 3)]
    assert to_multigraph([1, 2, 1, 2]).number_of_edges(1, 2) == 2


def test_empty_sessions_have_no_graph():
    for refuse in (to_networkx, to_multigraph):
        with pytest.raises(ValueError, match="empty session"):
            refuse([])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, V - 1), max_size=7), max_size=6))
def test_global_graph_equals_the_loop(lists):
    graph = global_graph(Sessions.from_lists(lists, V))
    counts = Counter((u, v) for session in lists for u, v in zip(session, session[1:], strict=False))
    wanted = torch.zeros(V, V)
    for (u, v), count in counts.items():
        wanted[u, v] = count
    assert graph.layout == torch.sparse_csr and graph.shape == (V, V)
    assert torch.equal(graph.to_dense(), wanted) and len(graph.values()) == len(counts)


def test_global_graph_of_a_part_of_a_log():
    log = Sessions.from_lists([[0, 1, 2], [2, 0], [0, 1, 1], [3, 4]], V)
    part = global_graph(log.select(1, 3)).to_dense()
    assert {tuple(edge) for edge in part.nonzero().tolist()} == {(2, 0), (0, 1), (1, 1)} and float(part.sum()) == 3
