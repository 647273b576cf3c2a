"""Similar earlier sessions of every session of a batch, and the one graph that all of them make together.

Everything is a flat list over the batch: its lengths follow from the data, so making it waits for the device, and no
gradient flows through it.

Shapes: B sessions of the batch, L positions, S sessions of the index, P distinct (item, session) pairs of the index, M
neighbours found, n nodes and E edges of all merged graphs together, V items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sbr_core.models.counting import expand, pick, positions, runs
from sbr_core.models.neighbour_index import last_occurrences, nearest
from sbr_core.sessions import Sessions


class SessionIndex(NamedTuple):
    """What is kept of the sessions among which neighbours are looked for; session number = place in time.

    Args:
        clicks: all their clicks; session s is ``clicks[offsets[s]:offsets[s + 1]]``.
        offsets: where sessions begin.
        distinct: distinct items of every session without its last click, the label of its longest example.
        postings: sorted keys ``item * S + session`` of these items.
        num_items: V.
    """

    clicks: Int[Tensor, "N"]
    offsets: Int[Tensor, "S1"]
    distinct: Int[Tensor, "S"]
    postings: Int[Tensor, "P"]
    num_items: int


class Neighbours(NamedTuple):
    """Neighbours found, sorted by row and then by session: row of the batch, number in the index, similarity."""

    row: Int[Tensor, "M"]
    session: Int[Tensor, "M"]
    similarity: Float[Tensor, "M"]


class MergedGraph(NamedTuple):
    """The graphs of all rows, each over the distinct items of a session and of its neighbours, side by side.

    Args:
        item: the item of every node; every node has an edge to itself.
        own: node of every position of the batch (B, L); padding has a node of its own, with no other edge.
        source: of every edge; the edges are sorted by target.
        begin: the edges into node v are begin[v]:begin[v + 1].
        weight: 1 / sqrt(degree of the source * degree of the target).
    """

    item: Int[Tensor, "n"]
    own: Int[Tensor, "B L"]
    source: Int[Tensor, "E"]
    begin: Int[Tensor, "n1"]
    weight: Float[Tensor, "E"]


def index_sessions(sessions: Sessions) -> SessionIndex:
    """Index sessions that are in order of time."""
    S, clicks = len(sessions), sessions.clicks
    session, position = positions(sessions)
    inner = position < sessions.lengths[session] - 1
    postings = torch.unique(clicks[inner].long() * S + session[inner])
    distinct = torch.bincount(postings % max(S, 1), minlength=S)
    return SessionIndex(clicks.int(), sessions.offsets - sessions.offsets[0], distinct, postings, sessions.num_items)


def retrieve(
    index: SessionIndex,
    items: Int[Tensor, "B L"],
    mask: Bool[Tensor, "B L"],
    limit: Int[Tensor, "B"],
    k: int = 120,
    threshold: float = 0.5,
    sample_size: int = 1000,
) -> Neighbours:
    """The sessions most similar to each row, among the earlier ones.

    Candidates are the `sample_size` most recent sessions before `limit` that share an item with the row. Similarity is
    the cosine of the sets of distinct items, rounded to 4 decimals; the last click of an indexed session does not
    count. Those of at least `threshold` are kept, of these the `k` most similar, of equally similar ones the older.

    Args:
        limit: of each row: only sessions with a smaller number are looked at.
    """
    row, column = (last_occurrences(items) & mask).nonzero(as_tuple=True)
    S, item = len(index.distinct), items[row, column]
    end = torch.searchsorted(index.postings, item * S + limit[row])
    count = (end - torch.searchsorted(index.postings, item * S)).clamp(max=sample_size)
    click, at = expand(end - count, count)
    key, overlap = torch.unique(pick(row * S, click) + pick(index.postings, at) % max(S, 1), return_counts=True)
    row_of, session = key // max(S, 1), key % max(S, 1)
    place, size = runs(row_of)
    own = torch.bincount(row, minlength=len(items))
    cosine = overlap / (pick(own, row_of) * pick(index.distinct, session)).double().sqrt()
    cosine = torch.round(cosine, decimals=4)
    kept = ((size - place <= sample_size) & (cosine >= threshold)).nonzero().squeeze(1)
    found = Neighbours(pick(row_of, kept), pick(session, kept), pick(cosine, kept))
    near = nearest(found.similarity.flip(0), found.row.flip(0), k).flip(0)  # it prefers what is further down the list
    return Neighbours(*(value[near] for value in found))


def merge(
    index: SessionIndex, found: Neighbours, items: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], norm: str = "out"
) -> MergedGraph:
    """One directed graph per row from the steps of its session and of its neighbours, whole with their last click.

    A step that occurs twice is one edge; every node has one edge to itself.

    Args:
        norm: whose degree: "out" (edges that leave a node, the one to itself counted) or "in".
    """
    (B, L), rows = items.shape, index.num_items + 1
    begin = pick(index.offsets, found.session)
    number, place = expand(begin, pick(index.offsets, found.session + 1) - begin)
    row = torch.arange(B, device=items.device)[:, None]
    keys = torch.cat([(row * rows + items).flatten(), pick(found.row * rows, number) + pick(index.clicks, place)])
    key, node = torch.unique(keys, return_inverse=True)
    own, other, n = node[: B * L].view(B, L), node[B * L :], len(key)
    steps = [own[:, 1:][mask[:, 1:]] * n + own[:, :-1][mask[:, 1:]]]  # target * n + source
    inside = number[1:] == number[:-1]
    steps.append(other[1:][inside] * n + other[:-1][inside])
    loops = torch.arange(n, device=key.device) * (n + 1)
    edge = torch.unique(torch.cat([*steps, loops]))
    target, source = edge // n, edge % n
    degree = torch.bincount(source if norm == "out" else target, minlength=n).double()
    weight = (pick(degree, source) * pick(degree, target)).rsqrt()
    begin = F.pad(torch.bincount(target, minlength=n).cumsum(0), (1, 0))
    return MergedGraph(key % rows, own, source, begin, weight)


def propagate(graph: MergedGraph, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    """The weighted sum over the edges into every node."""
    w = graph.weight.to(x.dtype)
    return F.embedding_bag(graph.source, x, graph.begin, mode="sum", per_sample_weights=w, include_last_offset=True)
