"""Ordered multigraphs: the fixture of the specs, independent slow loops, and what the paper calls lossless."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbr_core import multigraph
from sbr_core.batches import Batch
from sbr_core.graphs import to_multigraph
from sbr_core.multigraph import Multigraph

V = 9
sessions_of_few_items = st.lists(st.integers(0, 4), min_size=1, max_size=9)
batches_of_few_items = st.lists(sessions_of_few_items, min_size=1, max_size=5)


def graph_of(*sessions) -> Multigraph:
    batch = Batch.of([list(session) for session in sessions], V)
    return Multigraph(batch.items, batch.mask)


def edges_of(matrix, row: int, session) -> set[tuple[int, int]]:
    """(u, v) of every edge u -> v of a session, by item."""
    return {(session[u], session[v]) for v, u in matrix[row].nonzero().tolist()}


def lists_of(graph: Multigraph, row: int, session) -> dict[int, list[int]]:
    """The in-neighbours of every item of a session, read step by step as a recurrent network would."""
    B, L = graph.items.shape
    lists, found = graph.in_lists, {}
    begins = [0]
    for width in lists.widths:
        begins.append(begins[-1] + width)
    for item in dict.fromkeys(session):
        final = int(lists.final[row * L + session.index(item)])
        found[item] = []
        if final == begins[-1]:
            continue
        steps = max(step for step, begin in enumerate(begins) if begin <= final)
        place = final - begins[steps]  # the same row of every step
        for begin in begins[: steps + 1]:
            slot = int(lists.source[begin + place])
            assert slot // L == row
            found[item].append(session[slot % L])
    return found


def test_the_fixture_of_the_specs():
    session = [1, 2, 1, 3]
    graph = graph_of(session)
    assert lists_of(graph, 0, session) == {1: [2], 2: [1], 3: [1]}
    assert edges_of(graph.shortcuts, 0, session) == {(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 3)}
    assert edges_of(graph.counts, 0, session) == {(1, 2), (2, 1), (1, 3)}


@settings(max_examples=60)
@given(batches_of_few_items)
def test_shortcuts_and_counts_equal_a_loop(sessions):
    graph = graph_of(*sessions)
    for row, session in enumerate(sessions):
        drawn = to_multigraph(session, shortcuts=True)
        pairs = {(u, v) for u, v, kind in drawn.edges(data="kind") if kind == "shortcut"}
        assert edges_of(graph.shortcuts, row, session) == pairs
        steps = [(u, v) for u, v, kind in drawn.edges(data="kind") if kind == "step"]
        for u in set(session):
            for v in set(session):
                count = graph.counts[row, session.index(v), session.index(u)].item()
                assert count == steps.count((u, v))
                assert graph.steps[row, session.index(v), session.index(u)] == (count > 0 or u == v)
        assert graph.counts[row].sum() == len(steps)
        assert graph.nodes[row].nonzero().flatten().tolist() == [session.index(i) for i in dict.fromkeys(session)]


@pytest.mark.parametrize("places", ["_counted", "_bounded"])
def test_in_lists_hold_the_predecessors_in_order_of_time(places):
    @settings(max_examples=100)
    @given(batches_of_few_items)
    def lists_equal_a_loop(sessions):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(multigraph, "_counted", getattr(multigraph, places))
            found = graph_of(*sessions)
            for row, session in enumerate(sessions):
                expected = {item: [] for item in session}
                for u, v in zip(session, session[1:], strict=False):
                    expected[v].append(u)
                assert lists_of(found, row, session) == expected

    lists_equal_a_loop()


@settings(max_examples=100)
@given(sessions_of_few_items)
def test_lists_and_last_item_give_the_session_back(session):
    """Walk backwards: the latest edge into the present item is the one it was entered by."""
    lists, found = lists_of(graph_of(session), 0, session), [session[-1]]
    while lists[found[0]]:
        found.insert(0, lists[found[0]].pop())
    assert found == session


@pytest.mark.parametrize("L", [1, 2, 3, 7, 20])
def test_without_a_count_step_k_has_room_for_every_node_with_more_than_k_in_edges_and_no_more(L, monkeypatch):
    monkeypatch.setattr(multigraph, "_counted", multigraph._bounded)
    widths = graph_of([0] * L, [0]).in_lists.widths
    assert widths == [2 * ((L - 1) // (k + 1)) for k in range(L - 1)]


@settings(max_examples=60)
@given(batches_of_few_items)
def test_with_a_count_every_row_reads_an_edge(sessions):
    lists = graph_of(*sessions).in_lists
    assert sum(lists.widths) == len(lists.source) == sum(len(session) - 1 for session in sessions)


def test_padding_belongs_to_nothing():
    graph = graph_of([1, 2, 1], [3, 4, 3, 5, 5, 6])
    assert not graph.nodes[0, 2:].any() and graph.counts[0].sum() == 2
    assert not graph.shortcuts[0, 3:].any() and not graph.shortcuts[0, :, 3:].any()
    assert graph.steps[0, 3:, 3:].equal(torch.eye(3, dtype=torch.bool))
