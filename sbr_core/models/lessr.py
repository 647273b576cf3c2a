"""LESSR (Chen and Wong, KDD 2020).

Shapes: B sessions, L positions (= node slots), W width of the node vectors in a layer, D width of the item vectors.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sbr_core.additive import additive_energy, masked_softmax
from sbr_core.batches import Batch
from sbr_core.models.base import SessionModel
from sbr_core.multigraph import InLists, Multigraph
from sbr_core.norms import NodeNorm

AGGREGATORS = ("gru", "mean", "sum")
SGAT_GRAPHS = ("shortcut", "ordinary", "off")
CLIPS = ("table", "forward", "off")


class PReLU(nn.PReLU):
    """One slope for every entry of the last dimension (`torch.nn.PReLU` has them for the second).

    Shapes:
        x (..., D) -> (..., D)
    """

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """x where it is positive, slope times x elsewhere."""
        return F.prelu(x.flatten(0, -2), self.weight).view_as(x)


class ListGRU(nn.Module):
    """A GRU over the in-neighbours of every node, oldest edge first; its last state, 0 without in-neighbours.

    Args:
        width: W, of the input and of the state.

    Shapes:
        x (B, L, W) -> (B, L, W)
    """

    def __init__(self, width: int):
        super().__init__()
        self.input, self.hidden = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)  # gates in the order r, z, n

    def forward(self, x: Float[Tensor, "B L W"], lists: InLists) -> Float[Tensor, "B L W"]:
        """The last state of each node's list."""
        gates = self.input(x).flatten(0, 1).index_select(0, lists.source)  # (cells, 3 W)
        states, h = [], None
        for gate in gates.split(lists.widths):  # one step of all lists that may be as long
            h = self._step(gate, None if h is None else h[: len(gate)])
            states.append(h)
        states.append(x.new_zeros(1, x.shape[-1]))
        return torch.cat(states).index_select(0, lists.final).view_as(x)

    def _step(self, gate: Float[Tensor, "rows W3"], h: Float[Tensor, "rows W"] | None) -> Float[Tensor, "rows W"]:
        """One update; h is None before the first, where it is zero and the largest product is saved."""
        W = gate.shape[-1] // 3
        i_rz, i_n = gate.split([2 * W, W], dim=-1)
        h_rz, h_n = (self.hidden.bias if h is None else self.hidden(h)).split([2 * W, W], dim=-1)
        r, z = torch.sigmoid(i_rz + h_rz).chunk(2, dim=-1)
        n = torch.tanh(torch.addcmul(i_n, r, h_n))
        return n - z * n if h is None else torch.lerp(n, h, z)


class EOPA(nn.Module):
    """Edge-order preserving aggregation: what came before a node, in the order in which it came.

    .. math::
        c_i = GRU(\\hat x_{j_1}, \\dots, \\hat x_{j_k}), \\quad
        o_i = PReLU(W_{self} \\hat x_i + W_{nb} c_i), \\quad \\hat x = BN(x)

    Args:
        width: W.
        dim: D.
        dropout: share of the neighbours' entries dropped in training.
        aggregator: "gru", or "mean" or "sum" over the in-edges, which lose the order.

    Shapes:
        x (B, L, W) -> (B, L, D)
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.0, aggregator: str = "gru"):
        super().__init__()
        self.norm, self.dropout, self.aggregator = NodeNorm(width), nn.Dropout(dropout), aggregator
        self.gru = ListGRU(width) if aggregator == "gru" else None
        self.W_self, self.W_nb = nn.Linear(width, dim, bias=False), nn.Linear(width, dim, bias=False)
        self.prelu = PReLU(dim)

    def forward(self, x: Float[Tensor, "B L W"], graph: Multigraph) -> Float[Tensor, "B L D"]:
        """Node vectors; slots without a node mean nothing."""
        x = self.norm(x, graph.nodes)
        return self.prelu(self.W_self(x) + self.W_nb(self._aggregate(self.dropout(x), graph)))

    def _aggregate(self, x: Tensor, graph: Multigraph) -> Float[Tensor, "B L W"]:
        if self.gru is not None:
            return self.gru(x, graph.in_lists)
        counts = graph.counts.to(x.dtype)
        total = counts @ x
        return total if self.aggregator == "sum" else total / counts.sum(-1, keepdim=True).clamp(min=1)


class SGAT(nn.Module):
    """Attention of every node over all nodes that have a shortcut to it.

    .. math::
        e_{j \\to i} = p \\cdot \\sigma(W_q \\hat x_j + b_q + W_k \\hat x_i), \\quad
        o_i = PReLU\\big(\\sum_j softmax_j(e_{j \\to i}) W_v \\hat x_j\\big), \\quad \\hat x = Drop(BN(x))

    As in the public code, the "query" map acts on the source of an edge and the "key" map on its receiver.

    Args:
        width: W.
        dim: D.
        dropout: share of the entries dropped in training.
        graph: "shortcut", or "ordinary": edges are the steps of the session, and one from every node to itself.

    Shapes:
        x (B, L, W) -> (B, L, D)
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.0, graph: str = "shortcut"):
        super().__init__()
        self.norm, self.dropout, self.graph = NodeNorm(width), nn.Dropout(dropout), graph
        self.W_q, self.W_k = nn.Linear(width, dim), nn.Linear(width, dim, bias=False)
        self.p, self.W_v = nn.Linear(dim, 1, bias=False), nn.Linear(width, dim, bias=False)
        self.prelu = PReLU(dim)

    def forward(self, x: Float[Tensor, "B L W"], graph: Multigraph) -> Float[Tensor, "B L D"]:
        """Node vectors; slots without a node mean nothing."""
        x = self.dropout(self.norm(x, graph.nodes))
        return self.prelu(self.weights(x, graph) @ self.W_v(x))

    def weights(self, x: Float[Tensor, "B L W"], graph: Multigraph) -> Float[Tensor, "B L L"]:
        """How much node i takes from node j, at [i, j], for normalised vectors x; 0 where there is no edge."""
        edges = graph.shortcuts if self.graph == "shortcut" else graph.steps
        return masked_softmax(additive_energy(self.W_q(x), self.W_k(x), self.p.weight[0]), edges)


class Readout(nn.Module):
    """The session from its nodes: attention of the last click over the distinct items, and the last click itself.

    .. math::
        \\epsilon_i &= r \\cdot \\sigma(W_u \\hat x_i + W_\\nu \\hat x_{last} + b), \\quad
        s_g = PReLU\\big(W_o \\sum_i softmax_i(\\epsilon_i) \\hat x_i\\big), \\quad \\hat x = Drop(BN(x)) \\\\
        s &= W_h Drop(BN([x_{last} \\;;\\; s_g]))

    Args:
        width: W.
        dim: D.
        dropout: share of the entries dropped in training.

    Shapes:
        x (B, L, W), slot of the last click (B,) -> (B, D)
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.0):
        super().__init__()
        self.norm, self.dropout = NodeNorm(width), nn.Dropout(dropout)
        self.W_u, self.W_nu = nn.Linear(width, dim, bias=False), nn.Linear(width, dim)
        self.r, self.W_o = nn.Linear(dim, 1, bias=False), nn.Linear(width, dim, bias=False)
        self.prelu = PReLU(dim)
        self.out_norm, self.W_h = NodeNorm(width + dim), nn.Linear(width + dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "B L W"], graph: Multigraph, slot: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """The query of every session."""
        session = torch.arange(len(x), device=x.device)
        x_hat = self.dropout(self.norm(x, graph.nodes))
        energy = self.r(torch.sigmoid(self.W_u(x_hat) + self.W_nu(x_hat[session, slot])[:, None])).squeeze(-1)
        s_g = self.prelu(self.W_o((masked_softmax(energy, graph.nodes)[:, None] @ x_hat).squeeze(1)))
        s = torch.cat([x[session, slot], s_g], dim=-1)  # (B, W + D)
        return self.W_h(self.dropout(self.out_norm(s, torch.ones_like(slot, dtype=torch.bool))))


class LESSR(SessionModel):
    """Lossless edge-order preserving aggregation and shortcut attention, in turns, on the session's multigraph.

    .. math::
        o^{(l)} = EOPA(x^{(l)}) \\text{ or } SGAT(x^{(l)}), \\quad x^{(l+1)} = [o^{(l)} \\;;\\; x^{(l)}], \\quad
        score_j = s \\cdot v_j \\text{ with } \\|v_j\\| \\le 1

    The 1st, 3rd, ... layer is an `EOPA`, the 2nd, 4th, ... an `SGAT`; the `Readout` makes s.

    Args:
        num_items: V.
        dim: D (public code: 32 on Diginetica).
        layers: EOPA and SGAT together; 1 is EOPA alone (public code: 4).
        dropout: share dropped in training, 0 <= dropout < 1.
        aggregator: "gru"; "mean" or "sum" lose the order of the in-edges.
        sgat: attention on the "shortcut" graph or on the "ordinary" one; "off": every layer is an EOPA.
        dense: False: a layer sees the layer before it only, not all of them.
        clip: item vectors longer than 1 are scaled down in the "table" itself before every pass, as the public code
            does; in the "forward" pass only, and the gradient knows of it; or not at all ("off").

    Shapes:
        batch.items (B, L) -> query (B, D)

    Source: paper sections 4 and 5; twchen/lessr, lessr.py (read, not copied).
    Differs: no graph library: the in-neighbours are packed by step (`sbr_core.multigraph.InLists`), to the same sums.
        The public code drops an epoch's last batch if it is not full, here it trains too.
    Example:
        >>> from sbr_core.batches import Batch
        >>> LESSR(num_items=9, dim=4).eval().encode(Batch.of([[1, 2, 1, 3]], num_items=9)).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 32,
        layers: int = 4,
        dropout: float = 0.2,
        aggregator: str = "gru",
        sgat: str = "shortcut",
        dense: bool = True,
        clip: str = "table",
    ):
        super().__init__(num_items, dim)
        if layers < 1 or not 0 <= dropout < 1:
            raise ValueError(f"layers must be at least 1 and dropout lie in 0 <= dropout < 1, got {layers}, {dropout}")
        given = (("aggregator", aggregator, AGGREGATORS), ("sgat", sgat, SGAT_GRAPHS), ("clip", clip, CLIPS))
        for name, value, allowed in given:
            if value not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, got {value!r}")
        if layers == 1 and sgat == "ordinary":
            raise ValueError(
                "layers=1 has no SGAT that sgat='ordinary' could give another graph: leave sgat out, or set layers to "
                "2 or more"
            )
        self.dense, self.clip = dense, clip
        self.plain_product = clip != "forward"
        widths = [dim * (layer + 1) if dense else dim for layer in range(layers + 1)]
        self.layers = nn.ModuleList(
            EOPA(width, dim, dropout, aggregator)
            if number % 2 == 0 or sgat == "off"
            else SGAT(width, dim, dropout, sgat)
            for number, width in enumerate(widths[:-1])
        )
        self.readout = Readout(widths[-1], dim, dropout)
        nn.init.normal_(self.table)  # all else has the initialisation of torch, as in the public code

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        if self.clip == "table":
            self._clip_table()
        graph = Multigraph(batch.items, batch.mask)
        x = self.embed(batch.items)  # (B, L, D); a slot holds the vector of its own item
        for layer in self.layers:
            o = layer(x, graph)
            x = torch.cat([o, x], dim=-1) if self.dense else o
        return self.readout(x, graph, graph.alias.gather(1, batch.lengths[:, None] - 1).squeeze(1))

    def search_items(self) -> Float[Tensor, "V W"] | None:
        """As the base class, of vectors as long as `encode` leaves them."""
        if self.clip == "table":
            self._clip_table()
        return super().search_items()

    @torch.compiler.disable  # changes a parameter in place: the compiler is not to trace it
    def _clip_table(self) -> None:
        with torch.no_grad():
            self.table.renorm_(2, 0, 1.0)

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Rows of the item table, no longer than 1 (unless ``clip="off"``)."""
        return clipped(super().embed(ids)) if self.clip == "forward" else super().embed(ids)

    def score(self, query: Float[Tensor, "B D"], ids: Tensor | None = None) -> Float[Tensor, "B K"]:
        """Scores of all items (ids None), of K shared candidates (ids (K,)), or of K candidates each (ids (B, K))."""
        if self.clip == "forward" and ids is None:
            return query @ clipped(self.table[:-1]).T
        return super().score(query, ids)

    def linear(self, query: Float[Tensor, "B D"]) -> tuple[Tensor, Tensor] | None:
        """(query, table), or None with ``clip="forward"``, where the scores are products with other vectors."""
        return None if self.clip == "forward" else super().linear(query)


def clipped(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """The vectors, those longer than 1 scaled to length 1."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1)
