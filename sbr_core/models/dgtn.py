"""DGTN (Zheng et al., ICDM workshops 2020).

Shapes: B sessions, L positions (= node slots), D width, V items, S training sessions.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sbr_core.batches import Batch
from sbr_core.layers import last, take, uniform_
from sbr_core.models.base import SessionModel
from sbr_core.models.retrieval import MergedGraph, Neighbours, SessionIndex, index_sessions, merge, propagate, retrieve
from sbr_core.models.srgnn import SoftAttention
from sbr_core.multigraph import Multigraph
from sbr_core.sessions import Sessions

FUSIONS = ("affine", "max", "mean", "gate", "gru", "concat", "intra", "inter")
TABLES = ("neighbour_clicks", "neighbour_offsets", "neighbour_distinct", "neighbour_postings")


class Fusion(nn.Module):
    """One vector per item from its vectors in the two channels.

    Args:
        dim: D.
        kind: "affine" (``w1 intra + w2 inter + c`` with three numbers: the public code's convolution without a
            non-linearity), "max", "mean", "gate", "gru" (intra is the input, inter the state), "concat", or "intra" or
            "inter" alone.

    Shapes:
        intra (B, L, D), inter (B, L, D) -> (B, L, D)
    """

    def __init__(self, dim: int, kind: str = "affine"):
        super().__init__()
        if kind not in FUSIONS:
            raise ValueError(f"fusion is one of {', '.join(FUSIONS)}, got {kind!r}")
        self.kind = kind
        if kind == "gru":
            self.map = nn.GRUCell(dim, dim)
        elif kind in ("affine", "gate", "concat"):
            self.map = nn.Linear(2, 1) if kind == "affine" else nn.Linear(2 * dim, dim, bias=kind == "gate")

    def forward(self, intra: Float[Tensor, "B L D"], inter: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The fused vectors."""
        if self.kind in ("intra", "inter"):
            return intra if self.kind == "intra" else inter
        if self.kind == "max":
            return torch.maximum(intra, inter)
        if self.kind == "mean":
            return (intra + inter) / 2
        if self.kind == "gru":
            return self.map(intra.flatten(0, 1), inter.flatten(0, 1)).view_as(intra)
        if self.kind == "affine":
            w1, w2 = self.map.weight[0]
            return w1 * intra + w2 * inter + self.map.bias
        mixed = self.map(torch.cat([intra, inter], dim=-1))
        return mixed if self.kind == "concat" else torch.lerp(inter, intra, torch.sigmoid(mixed))


class DGTN(SessionModel):
    """An item is seen in its session's graph and in a graph merged with similar earlier sessions; both are fused.

    .. math::
        X'_v = \\sum_{u \\to v \\text{ or } u = v} \\frac{X_u}{\\sqrt{\\delta_u \\delta_v}} \\text{ (twice)}, \\quad
        v = X'' \\Theta + b, \\quad v^*_i = fuse(v^{intra}_i, v^{inter}_i)

    and SR-GNN's readout (equations 6 and 7 there) of the v*. Degrees delta count the edge of a node to itself.

    Args:
        num_items: V.
        dim: D (public code: 100).
        inter: "sgc" (paper), or "none": the item's own vector in place of the inter channel. This is what the public
            code computes: it discards the convolution's result, so that neighbours never reach a score.
        fusion: see `Fusion` (the paper: "affine", by a third party's summary; the public code runs "max").
        norm: the degrees are of edges "out" of a node (PyTorch Geometric of that time) or "in" (later versions).
        k: neighbours (public code: 120).
        threshold: least similarity of a neighbour, in 0..1.
        sample_size: candidates, the most recent.
        transductive: at evaluation, earlier *test* sessions are neighbours too, as in the public code: `prepare` wants
            them then. `sbr train` gives them; with --validate, and in `sbr replicate`, which picks its epoch on other
            sessions than those of the test, the switch is refused.

    Shapes:
        batch.items (B, L) -> query (B, D)

    Source: kunwuz/DGTN, model/ and neigh_retrieval/ (read, not copied); the paper's text only at second hand.
    Differs: neighbours are found in `encode`, for each batch anew, instead of being computed once for all examples: in
        training among sessions with a smaller number than the example's own, which is never its neighbour; in
        evaluation among all training sessions. So `encode` waits for the device. A model without training sessions
        (`prepare`) finds no neighbours, and its inter channel sees the session's own graph.
    Example:
        >>> from sbr_core.batches import Batch
        >>> model = DGTN(num_items=9, dim=4).eval()
        >>> model.prepare(Sessions.from_lists([[1, 2, 5], [1, 2, 1, 6]], num_items=9))
        >>> model.neighbours(Batch.of([[2, 1]], num_items=9)).session.tolist()
        [0, 1]
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        inter: str = "sgc",
        fusion: str = "affine",
        norm: str = "out",
        k: int = 120,
        threshold: float = 0.5,
        sample_size: int = 1000,
        transductive: bool = False,
    ):
        super().__init__(num_items, dim)
        for name, value, allowed in (("inter", inter, ("sgc", "none")), ("norm", norm, ("out", "in"))):
            if value not in allowed:
                raise ValueError(f"{name} is {' or '.join(map(repr, allowed))}, got {value!r}")
        if k < 1 or sample_size < 1 or not 0 <= threshold <= 1:
            raise ValueError(
                "k and sample_size must be at least 1 and threshold lie in 0..1, "
                f"got {k}, {sample_size} and {threshold}"
            )
        if transductive and (inter == "none" or fusion == "intra"):
            silent, other = ("inter='none'", "inter='sgc'") if inter == "none" else ("fusion='intra'", "another fusion")
            raise ValueError(
                f"transductive=True makes neighbours of test sessions, and with {silent} no neighbour reaches a score: "
                f"leave transductive out, or set {other}"
            )
        self.inter, self.fusion, self.norm, self.transductive = inter, Fusion(dim, fusion), norm, transductive
        self.k, self.threshold, self.sample_size = k, threshold, sample_size
        self.theta_intra = nn.Linear(dim, dim) if fusion != "inter" else None
        self.theta_inter = nn.Linear(dim, dim) if inter == "sgc" and fusion != "intra" else None
        self.attention = SoftAttention(dim)
        self.attention.q = nn.Linear(dim, 1)  # with a bias, as the public code has it
        self.W3 = nn.Linear(2 * dim, dim)
        uniform_(self, dim**-0.5)
        self._keep(index_sessions(Sessions.from_lists([], num_items)), 0)

    def prepare(self, train: Sessions, test: Sessions | None = None) -> None:
        """Index the training sessions, among which neighbours are found.

        Args:
            test: sessions of the test, in order of time; wanted by ``transductive=True``, and by it alone.

        Raises:
            ValueError: if the sessions are of another catalogue, or `test` is given or missing against `transductive`.
        """
        if train.num_items != self.num_items:
            raise ValueError(f"the model is for {self.num_items} items, the sessions have {train.num_items}")
        if self.transductive != (test is not None):
            raise ValueError(
                "transductive=True finds neighbours among earlier test sessions: prepare(train, test); "
                "with transductive=False give prepare the training sessions only"
            )
        self._keep(index_sessions(train if test is None else _joined(train, test)), len(train))

    def _keep(self, index: SessionIndex, training: int) -> None:
        for name, table in zip(TABLES, index[:4], strict=True):
            self.register_buffer(name, table.to(self.table.device))
        self.register_buffer("neighbour_training", torch.tensor(training, device=self.table.device))

    @property
    def index(self) -> SessionIndex:
        """The sessions among which neighbours are found."""
        return SessionIndex(*(getattr(self, name) for name in TABLES), self.num_items)

    def neighbours(self, batch: Batch) -> Neighbours:
        """The neighbours of every session of the batch.

        Raises:
            ValueError: in training, for a batch that does not say which training sessions its examples are of.
        """
        limit = self._limit(batch)
        return retrieve(self.index, batch.items, batch.mask, limit, self.k, self.threshold, self.sample_size)

    def _limit(self, batch: Batch) -> Tensor:
        """Of every row, the number before which sessions are earlier."""
        S = len(self.neighbour_distinct)
        if self.training and S > 0:
            if batch.session is None:
                raise ValueError(
                    "in training, a session must not be its own neighbour, and this batch does not say of which "
                    "training sessions its rows are: gather it from windows, or call model.eval() first"
                )
            return batch.session
        if self.transductive and batch.session is not None:
            return self.neighbour_training + batch.session
        return torch.full_like(batch.lengths, S)

    def merged(self, batch: Batch) -> MergedGraph:
        """The graph of every session merged with its neighbours."""
        return merge(self.index, self.neighbours(batch), batch.items, batch.mask, self.norm)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        h = self.items_of(batch)  # (B, L, D)
        h_last = last(h, batch.lengths)
        s_global = self.attention(h, h_last, batch.mask)  # (B, D)
        return self.W3(torch.cat([h_last, s_global], dim=-1))

    def items_of(self, batch: Batch) -> Float[Tensor, "B L D"]:
        """The fused vector v* of every click."""
        x = self.embed(batch.items)
        intra = x if self.theta_intra is None else self._intra(x, Multigraph(batch.items, batch.mask))
        inter = x if self.theta_inter is None else self._inter(self.merged(batch))
        return self.fusion(intra, inter)

    def _intra(self, x: Float[Tensor, "B L D"], graph: Multigraph) -> Float[Tensor, "B L D"]:
        """Two hops on the session's own graph, in padded slots."""
        A = graph.steps.to(x.dtype)  # (B, L, L), [v, u] for u -> v
        scale = A.sum(1 if self.norm == "out" else 2).rsqrt()[..., None]  # (B, L, 1)
        for _ in range(2):
            x = scale * (A @ (scale * x))
        return take(self.theta_intra(x), graph.alias)

    def _inter(self, graph: MergedGraph) -> Float[Tensor, "B L D"]:
        """Two hops on the merged graph; of its nodes the session's own are kept."""
        x = propagate(graph, propagate(graph, self.embed(graph.item)))
        return self.theta_inter(x.index_select(0, graph.own.flatten())).unflatten(0, graph.own.shape)


def _joined(train: Sessions, test: Sessions) -> Sessions:
    """The sessions of both, in this order."""
    offsets = torch.cat([train.lengths, test.lengths]).cumsum(0)
    offsets = torch.nn.functional.pad(offsets, (1, 0))
    return Sessions(torch.cat([train.clicks, test.clicks]), offsets, train.num_items)
