"""Random walks: along edges only, as often as the transitions are frequent, against a walker in a plain loop."""

import random

import networkx as nx
import pytest
import torch
from toys import random_clicks

from sbr_core.graphs import global_graph
from sbr_core.sessions import Sessions
from sbr_core.walks import by_degree, edges, random_walks

V = 12
CLICKS = [[0, 1, 0, 2], [0, 1], [0, 0, 1], [2, 3, 3], [3, 3], [4, 5, 6], [6, 4], [7, 8], [9, 9, 9], [10]]


def graph_of(clicks, num_items=V):
    return global_graph(Sessions.from_lists(clicks, num_items))


def counted(clicks):
    """{(u, v): how often v came right after u}, u != v, by a double loop."""
    found = {}
    for session in clicks:
        for pair in zip(session, session[1:], strict=False):
            if pair[0] != pair[1]:
                found[pair] = found.get(pair, 0) + 1
    return found


def walk_loop(clicks, rounds, length, seed, num_items):
    """One walker after another, with the random numbers that all of them draw together at each step."""
    found = counted(clicks)
    departures = {u: [v for (w, v), count in sorted(found.items()) if w == u for _ in range(count)] for u, _ in found}
    starts = by_degree(graph_of(clicks, num_items)).tolist() * rounds
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.rand(len(starts), dtype=torch.float64, generator=generator).tolist() for _ in range(length)]
    walks = []
    for number, node in enumerate(starts):
        walk = [node]
        for step in range(length - 1):
            if node not in departures:
                break
            node = departures[node][int(draws[step][number] * len(departures[node]))]
            walk.append(node)
        walks.append(walk + [num_items] * (length - len(walk)))
    return walks


def test_edges_are_the_transitions_without_those_from_an_item_to_itself():
    for clicks in (CLICKS, random_clicks(200, V, seed=3)):
        source, destination, count = edges(graph_of(clicks))
        listed = zip(source.tolist(), destination.tolist(), strict=True)
        assert dict(zip(listed, count.tolist(), strict=True)) == counted(clicks)
        assert source.diff().ge(0).all()


def test_items_stand_in_the_order_of_their_degree():
    graph = nx.DiGraph(list(counted(CLICKS)))
    expected = sorted(graph, key=lambda item: (-graph.degree(item), item))
    assert by_degree(graph_of(CLICKS)).tolist() == expected == [0, 1, 2, 4, 5, 6, 3, 7, 8]
    assert by_degree(graph_of([[9, 9, 9], [10]])).tolist() == []


@pytest.mark.parametrize("rounds, length", [(1, 1), (3, 2), (2, 7), (13, 50)])
def test_walks_are_those_of_a_loop(rounds, length):
    for clicks in (CLICKS, random_clicks(60, V, seed=4)):
        walks = random_walks(graph_of(clicks), rounds, length, seed=5)
        assert walks.dtype == torch.int32 and walks.tolist() == walk_loop(clicks, rounds, length, 5, V)


def test_walks_use_edges_only_and_end_where_there_is_none():
    found = counted(CLICKS)
    walks = random_walks(graph_of(CLICKS), 20, 30).tolist()
    assert len(walks) == 20 * 9
    for item in {item for pair in found for item in pair}:
        assert sum(walk[0] == item for walk in walks) == 20
    for walk in walks:
        size = walk.index(V) if V in walk else len(walk)
        assert set(walk[size:]) <= {V} and V not in walk[:size]
        assert all(pair in found for pair in zip(walk[:size], walk[1:size], strict=False))
        assert size == 30 or walk[size - 1] in (3, 8)  # the two items that nothing follows


def test_a_step_is_as_likely_as_its_transition_is_frequent():
    clicks = [[0, 1]] * 6 + [[0, 2]] * 3 + [[0, 3]] * 1 + [[1, 0], [2, 0], [3, 0]]
    walks = random_walks(graph_of(clicks, 4), rounds=500, length=40)
    after = walks[:, 1:][walks[:, :-1] == 0].long().bincount(minlength=4)
    assert after[0] == 0 and int(after.sum()) > 30_000
    torch.testing.assert_close(after[1:] / after.sum(), torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=0.01)


def test_a_seed_gives_the_same_walks_and_another_one_others(device):
    graph = graph_of(random_clicks(60, V, seed=4))
    one = random_walks(graph, seed=1)
    assert torch.equal(one, random_walks(graph.to(device), seed=1).cpu())
    assert not torch.equal(one, random_walks(graph, seed=2))


def test_the_global_random_numbers_are_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    random_walks(graph_of(CLICKS))
    assert torch.equal(torch.rand(3), expected)


def test_without_an_edge_there_is_no_walk():
    for clicks in ([[3, 3, 3]], [[1], [2]], []):
        assert random_walks(graph_of(clicks), 2, 5).shape == (0, 5)


def test_a_frequent_transition_is_never_overshot():
    """Draws close to 1 pick the last departure, also where there are very many."""
    clicks = [[0, 1]] * 40_000 + [[1, 0]] * random.Random(0).randrange(1, 9)
    walks = random_walks(graph_of(clicks, 2), rounds=2000, length=20)
    assert torch.equal(walks[:, 0::2], walks[:, :1].expand(-1, 10)) and int(walks.max()) == 1


@pytest.mark.parametrize("arguments", [(0, 5), (5, 0), (-1, 5)])
def test_walks_that_cannot_be_walked_are_refused(arguments):
    with pytest.raises(ValueError, match=f"got rounds={arguments[0]} and length={arguments[1]}"):
        random_walks(graph_of(CLICKS), *arguments)
