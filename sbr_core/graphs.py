"""Session graphs: a session as a small directed graph over its distinct items.

Shapes: B sessions, L positions. A node lives in the slot of its item's *first* position, so there are L node slots; the
slots of later occurrences and of padding stay empty (all-zero rows and columns), and no slot depends on a sort.
"""
import warnings

import networkx as nx
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sbr_core.sessions import Sessions


def session_graph(
    items: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], edge_weight: str = "binary"
) -> tuple[Int[Tensor, "B L"], Float[Tensor, "B L L"], Float[Tensor, "B L L"]]:
    """Alias, incoming and outgoing transition matrices of every session of a batch.

    Row u of ``A_out`` averages over the successors of node u, row v of ``A_in`` over its predecessors; every row sums
    to 0 or 1. An immediate repeat is a self-loop. No Python loop, no host synchronisation.

    Args:
        items: right-padded item ids.
        mask: True on real clicks.
        edge_weight: "binary" (a repeated transition counts once: all public code) or "count" (the SR-GNN paper).

    Returns:
        alias (B, L): node slot of every position; A_in, A_out (B, L, L), rows = the receiving node.

    Raises:
        ValueError: if `edge_weight` is neither "binary" nor "count".

    Source: SR-GNN (Wu et al., 2019) section 3.2.
    """
    if edge_weight not in ("binary", "count"):
        raise ValueError(f"edge_weight is 'binary' or 'count', got {edge_weight!r}")
    B, L = items.shape
    alias = (items[:, :, None] == items[:, None, :]).to(torch.int8).argmax(-1)  # (B, L): first position of the item
    edge = alias[:, :-1] * L + alias[:, 1:]  # (B, L-1): edge from each click to the next, flattened
    counts = torch.zeros(B, L * L, device=items.device).scatter_add_(1, edge, mask[:, 1:].float()).view(B, L, L)
    A = counts.clamp(max=1) if edge_weight == "binary" else counts
    A_out = A / A.sum(2, keepdim=True).clamp(min=1)
    A_in = (A / A.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)
    return alias, A_in, A_out


def to_networkx(session: list[int], edge_weight: str = "count") -> nx.DiGraph:
    """One session as a networkx graph, to look at and to draw.

    Nodes are the distinct items in order of first click, with ``positions`` (from 0) and ``clicks`` (how many). Edges
    carry ``order`` (the numbers, from 1, of the steps along them), ``count`` and ``weight`` (count, or 1 if binary).

    Raises:
        ValueError: if the session is empty, or `edge_weight` is neither "binary" nor "count".
    """
    if edge_weight not in ("binary", "count"):
        raise ValueError(f"edge_weight is 'binary' or 'count', got {edge_weight!r}")
    graph = nx.DiGraph()
    _add_nodes(graph, session)
    for step, (u, v) in enumerate(zip(session, session[1:], strict=False), start=1):
        order = graph.edges[u, v]["order"] + [step] if graph.has_edge(u, v) else [step]
        graph.add_edge(u, v, order=order, count=len(order), weight=len(order) if edge_weight == "count" else 1)
    return graph


def to_multigraph(session: list[int], shortcuts: bool = False) -> nx.MultiDiGraph:
    """One session with every step an edge of its own, in order; `shortcuts` adds an edge to all that came later.

    Edges carry ``kind``: "step" (with its number ``order``, from 1; the edge key) or "shortcut" (order 0). There is one
    shortcut u -> v if some click on u is no later than some click on v, so every item has one to itself.

    Raises:
        ValueError: if the session is empty.
    Source: LESSR (Chen and Wong, KDD 2020) section 4: the edge-order preserving multigraph and the shortcut graph.
    """
    graph = nx.MultiDiGraph()
    _add_nodes(graph, session)
    for step, (u, v) in enumerate(zip(session, session[1:], strict=False), start=1):
        graph.add_edge(u, v, key=step, order=step, kind="step")
    if shortcuts:
        pairs = dict.fromkeys((u, v) for i, u in enumerate(session) for v in session[i:])
        graph.add_edges_from((u, v, 0, {"order": 0, "kind": "shortcut"}) for u, v in pairs)
    return graph


def _add_nodes(graph: nx.Graph, session: list[int]) -> None:
    if not session:
        raise ValueError("the graph of a session needs at least one click, got an empty session")
    for item in dict.fromkeys(session):
        positions = [i for i, clicked in enumerate(session) if clicked == item]
        graph.add_node(item, positions=positions, clicks=len(positions))


def global_graph(sessions: Sessions) -> Tensor:
    """Transition counts of all sessions: entry (u, v) is how often v was clicked right after u.

    Returns:
        (V, V) sparse CSR tensor, float32, columns sorted, on the sessions' device: memory follows distinct transitions.
    """
    clicks, V = sessions.clicks.long(), sessions.num_items
    begin = sessions.offsets[:-1] - sessions.offsets[0]
    follows = torch.ones(len(clicks), dtype=torch.bool, device=clicks.device)
    follows[begin[begin < len(clicks)]] = False  # the first click of a session; an empty session has none
    edge = clicks[:-1][follows[1:]] * V + clicks[1:][follows[1:]]
    edge, count = edge.unique(return_counts=True)
    rows = torch.searchsorted(edge, torch.arange(V + 1, device=edge.device) * V)  # (V + 1,): where each row begins
    with warnings.catch_warnings():  # torch announces once per process that its CSR tensors are young
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(rows, edge % V, count.float(), (V, V), check_invariants=True)
