"""TAGNN++ (Mitheran et al., arXiv:2107.01516, first and third version).

Shapes: B sessions, L positions (= node slots), N nodes with the one of the padding, D width, V items.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sbr_core.attention import Positions, SelfAttention, latest
from sbr_core.batches import Batch
from sbr_core.graphs import session_graph
from sbr_core.layers import take, uniform_
from sbr_core.models.srgnn import GatedGraph
from sbr_core.models.tagnn import TargetReadout
from sbr_core.models.target import TargetModel, click_counts
from sbr_core.target_attention import Slots

FORMS, POSITIONS = ("paper", "code"), ("start", "end", "none")
MAX_POSITIONS = 200


class Block(nn.Module):
    """Self-attention and two linear maps with a ReLU between, each with its residual, then a normalisation.

    Args:
        dim: D; the inner width is 4 D.
        heads: of the attention.
        dropout: share of the attention's weights dropped in training.

    Shapes:
        x (B, L, D), mask (B, L) -> (B, L, D)
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(dim, heads, bias=True, dropout=dropout, project=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.W1, self.W2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "B L D"], mask: Tensor, causal: bool) -> Float[Tensor, "B L D"]:
        """The next states."""
        x = self.norm1(x + self.attention(x, mask, causal))
        return self.norm2(x + self.W2(torch.relu(self.W1(x))))


class CodeBlock(nn.Module):
    """The public code's layer: attention plus the normalised input, over the nodes in the order of their item numbers.

    A node sees itself and the nodes of smaller item numbers; the node of the padding comes before all others.

    Args:
        dim, heads, dropout: as for `Block`.

    Shapes:
        nodes (B, N, D), rank (B, N), mask (B, N) -> (B, N, D)
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(dim, heads, bias=True, dropout=dropout, project=True)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, nodes: Float[Tensor, "B N D"], rank: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N D"]:
        """The next states; `rank` says which node comes before which."""
        order = rank.argsort(1)
        ordered = take(nodes, order)
        y = self.attention(ordered, mask.gather(1, order), causal=True) + self.norm(ordered)
        return take(y, order.argsort(1))


class TAGNNpp(TargetModel):
    """TAGNN with a Transformer between the graph and the target attention.

    .. math::
        X_i = h_i + p_i, \\quad Y = \\mathrm{LN}(X + \\mathrm{MHA}(X)), \\quad
        X' = \\mathrm{LN}(Y + W_2\\, \\mathrm{ReLU}(W_1 Y + b_1) + b_2)

    with the graph's states h in the order of the clicks; TAGNN reads X' in their place.

    Args:
        num_items: V.
        dim: D (paper: 100 on Yoochoose, 120 on Diginetica).
        steps: rounds of propagation on the graph, >= 0; 0 is the ablation without the graph (X = item vectors + p).
        blocks: layers of the Transformer; 0 is the ablation without it and its positions, which is TAGNN.
        heads: of the attention; divides `dim` (paper: 2 and 8).
        dropout: share of the attention's weights dropped in training, 0 <= dropout < 1 (paper: 0.1).
        positions: counted from the "start" or from the "end"; "none" is the ablation without them.
        max_positions: clicks of a session that are read, the last ones, where there are positions.
        causal: a click does not attend to later ones.
        form: "paper", or "code": one attention over the graph's nodes in the order of their item numbers, without
            positions and without W1 and W2 (`CodeBlock`), then TAGNN with combine="add", attention_softmax=True and
            hybrid=False.
        null_slots, pad_to_train, pad_to_test: of form="code", see `TAGNN`. There, the padding is also a node that all
            others attend to; null_slots="none" has no such node.

    Shapes:
        batch.items (B, L) -> query: `target_attention.Slots`

    Source: paper section III; The-Learning-Machines/SBR, model.py (read, not copied). Gradient clipping, the fourth
        ablation, is a setting of the training: `agc`.
    Differs: the papers print one equation (the attention) and no position of the normalisations, no width of W1 and no
        kind of positions; those here are the usual ones of 2017.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        steps: int = 1,
        blocks: int = 1,
        heads: int = 2,
        dropout: float = 0.1,
        positions: str = "start",
        max_positions: int = MAX_POSITIONS,
        causal: bool = False,
        form: str = "paper",
        null_slots: str | int = "none",
        pad_to_train: int | None = None,
        pad_to_test: int | None = None,
    ):
        super().__init__(num_items, dim, null_slots, pad_to_train, pad_to_test)
        _check(blocks, dropout, positions, max_positions, causal, form, null_slots)
        code = form == "code"
        self.form, self.max_positions, self.causal = form, max_positions, causal
        self.graph = GatedGraph(dim, steps) if steps else None
        self.blocks = nn.ModuleList((CodeBlock if code else Block)(dim, heads, dropout) for _ in range(blocks))
        placed = blocks > 0 and positions != "none" and not code
        self.positions = Positions(dim, max_positions, positions) if placed else None
        combine = "add" if code else "project"
        self.head = TargetReadout(dim, "full", combine, attention_softmax=code, hybrid=not code)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform(-1/sqrt(D), 1/sqrt(D)) everywhere; in the paper's form but for the normalisations: 1 and 0."""
        uniform_(self, self.dim**-0.5)
        for module in self.modules() if self.form == "paper" else ():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def encode(self, batch: Batch) -> Slots:
        if self.positions is not None:
            batch = latest(batch, self.max_positions)
        alias, A_in, A_out = session_graph(batch.items, batch.mask)
        nodes = self.node_states(batch.items, A_in, A_out)  # (B, L, D)
        if self.form == "code":
            return self._encode_nodes(batch, nodes, alias)
        x = take(nodes, alias)
        if self.positions is not None:
            x = x + self.positions(batch.lengths, batch.items.shape[1])
        for block in self.blocks:
            x = block(x, batch.mask, self.causal)
        return self.head(x, batch, x, batch.mask.long())

    def _encode_nodes(self, batch: Batch, nodes: Float[Tensor, "B L D"], alias: Int[Tensor, "B L"]) -> Slots:
        """The public code's form: the layer runs over the nodes, with the one of the padding (if any) before them."""
        clicks, empty, h_empty = click_counts(alias, batch), self.empty_slots(batch), None
        held, rank = clicks > 0, batch.items
        if empty is not None:
            nodes = torch.cat([self.padding_state(batch)[:, None], nodes], dim=1)
            held = torch.cat([empty[:, None] > 0, held], dim=1)
            rank = torch.nn.functional.pad(rank, (1, 0), value=-1)
        rank = rank.masked_fill(~held, self.num_items + 1)  # what is not there comes last
        for block in self.blocks:
            nodes = block(nodes, rank, held)
        if empty is not None:
            h_empty, nodes = nodes[:, 0], nodes[:, 1:]
        return self.head(take(nodes, alias), batch, nodes, clicks, empty, h_empty)


def _check(
    blocks: int, dropout: float, positions: str, max_positions: int, causal: bool, form: str, null_slots: str | int
) -> None:
    """Refuse settings that do not exist, and pairs of them that mean nothing together."""
    if form not in FORMS:
        raise ValueError(f"form is 'paper' or 'code', got {form!r}")
    if blocks < 0 or not 0 <= dropout < 1:
        raise ValueError(
            f"blocks must be 0 or more and dropout lie in 0 <= dropout < 1, got blocks={blocks} and dropout={dropout}"
        )
    if positions not in POSITIONS:
        raise ValueError(f"positions is one of {', '.join(POSITIONS)}, got {positions!r}")
    if form == "paper" and null_slots != "none":
        raise ValueError(f"null_slots={null_slots!r} belong to form='code'; form='paper' has none")
    if form == "code" and (blocks > 1 or causal or positions == "end"):
        raise ValueError(
            "form='code' has one attention over nodes without positions: leave blocks at 0 or 1, causal and positions "
            f"as they are, got blocks={blocks}, causal={causal} and positions={positions!r}"
        )
    if blocks == 0 and (causal or positions == "end"):
        raise ValueError(
            "blocks=0 has neither an attention that causal nor a table of positions that positions could change, got "
            f"causal={causal} and positions={positions!r}: leave them out, or set blocks to 1 or more"
        )
    without = {"form='code'": form == "code", "blocks=0": blocks == 0, "positions='none'": positions == "none"}
    if max_positions != MAX_POSITIONS and any(without.values()):
        raise ValueError(
            f"max_positions={max_positions} is the length of a table of positions, and "
            f"{next(name for name, applies in without.items() if applies)} has none: leave it out"
        )
