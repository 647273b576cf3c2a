"""Truncated random walks on the graph of all sessions, all walkers at once.

Shapes: V items, E edges, M transitions, W walks, L places of a walk.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def edges(graph: Tensor) -> tuple[Int[Tensor, "E"], Int[Tensor, "E"], Int[Tensor, "E"]]:
    """Source, destination and count of every edge of a (V, V) CSR tensor of counts, without the self-transitions."""
    rows, columns = graph.crow_indices(), graph.col_indices()
    source = torch.arange(len(rows) - 1, device=rows.device).repeat_interleave(rows.diff())
    kept = source != columns
    return source[kept], columns[kept], graph.values()[kept].long()


def by_degree(graph: Tensor) -> Int[Tensor, "nodes"]:
    """The items that have an edge, those with most neighbours first; items of equal degree in the order of their ids.

    The degree is the number of distinct items that came right before, and of those that came right after, added up;
    self-transitions are no edges.
    """
    source, destination, _ = edges(graph)
    degree = torch.bincount(torch.cat([source, destination]), minlength=graph.shape[0])
    return degree.argsort(descending=True, stable=True)[: (degree > 0).sum()]


def random_walks(graph: Tensor, rounds: int = 13, length: int = 50, seed: int = 0) -> Int[Tensor, "W L"]:
    """Walks along the edges, `rounds` from every item that has an edge.

    From an item a walk goes on to one of its successors, each as likely as that transition is frequent: it picks one
    of the recorded departures, so that a step of all W walkers is a few look-ups. It ends after `length` items, or at
    an item without successors.

    Args:
        graph: (V, V) CSR tensor of transition counts, see `graphs.global_graph`; its self-transitions are left out.
        rounds: walks from each item, >= 1.
        length: L, >= 1.
        seed: of the random numbers, which come from the host: the walks are the same on every device.

    Returns:
        (W, L) int32 on the graph's device; the places after a walk's end hold V.

    Raises:
        ValueError: if `rounds` or `length` is less than 1.

    Source: DeepWalk (Perozzi et al., KDD 2014); LGSR section 2.3 (T = 13 rounds, L = 50).
    """
    if rounds < 1 or length < 1:
        raise ValueError(f"rounds and length of the walks must be at least 1, got rounds={rounds} and length={length}")
    source, destination, count = edges(graph)
    V, device = graph.shape[0], graph.device
    end = torch.full((1,), V, device=device)
    departures = torch.cat([destination.repeat_interleave(count), end])  # (M + 1,): item by item, then a last stop
    leaving = torch.zeros(V + 1, dtype=torch.int64, device=device).index_add_(0, source, count)
    begin = leaving.cumsum(0) - leaving  # (V + 1,): where each item's departures begin; those of V are that last stop
    generator = torch.Generator().manual_seed(seed)
    node = by_degree(graph).repeat(rounds)
    walks = torch.empty(length, len(node), dtype=torch.int32, device=device)
    for step in range(length):
        walks[step] = node
        ways = leaving[node]
        draw = torch.rand(len(node), dtype=torch.float64, generator=generator).to(device)
        way = torch.minimum((draw * ways).long(), (ways - 1).clamp(min=0))
        node = torch.where(ways > 0, departures[begin[node] + way], V)
    return walks.T.contiguous()
