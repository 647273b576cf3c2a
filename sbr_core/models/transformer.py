"""A plain Transformer encoder for sessions, in the manner of SASRec (Kang and McAuley, ICDM 2018).

Shapes: B sessions, L positions, D width, V items.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sbr_core.attention import Positions, SelfAttention, latest
from sbr_core.batches import Batch
from sbr_core.layers import last, uniform_
from sbr_core.models.base import SessionModel

POSITIONS = ("end", "start", "none")


class Block(nn.Module):
    """Pre-norm: each half reads a normalised input and adds what it finds.

    Args:
        dim: D; the inner width is 4 D.
        heads: of the attention.
        dropout: share of both halves' outputs, and of the inner layer, dropped in training.

    Shapes:
        x (B, L, D), mask (B, L) -> (B, L, D); with lengths (B,) -> (B, 1, D), the last click's row only
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention = SelfAttention(dim, heads, bias=True, project=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.W1, self.W2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B L D"], mask: Tensor, causal: bool, lengths: Tensor | None = None
    ) -> Float[Tensor, "B rows D"]:
        """The next states, of every position or of the last ones."""
        y, query = self.norm1(x), None
        if lengths is not None:
            x, query, causal = last(x, lengths)[:, None], last(y, lengths)[:, None], False
        x = x + self.dropout(self.attention(y, mask, causal, query))
        inner = self.dropout(torch.relu(self.W1(self.norm2(x))))
        return x + self.dropout(self.W2(inner))


class Transformer(SessionModel):
    """Self-attention over the clicks with learned positions; the last state is the query.

    .. math::
        X^0 = E[x_i] + P[L - i], \\quad Y = X + \\mathrm{MHA}(\\mathrm{LN}(X)), \\quad
        X' = Y + W_2\\, \\mathrm{ReLU}(W_1 \\mathrm{LN}(Y) + b_1) + b_2, \\quad score_j = \\mathrm{LN}(X)_L \\cdot y_j

    Args:
        num_items: V.
        dim: D.
        blocks: >= 0; 0 leaves the normalised sum of the last click's vector and position.
        heads: of the attention; divides `dim`.
        dropout: share of the entries dropped after each step in training, 0 <= dropout < 1.
        positions: counted from the "end" (0 is the last click), from the "start" (SASRec), or "none".
        max_positions: clicks of a session that are read, the last ones; rows of the table of positions.
        causal: a click does not attend to later ones.

    Shapes:
        batch.items (B, L) -> query (B, D)

    Source: Vaswani et al., NeurIPS 2017; kang205/SASRec and GalaxyCruiser/SR-SAN (read, not copied).
    Differs: SASRec scales the item vectors by sqrt(D), normalises the queries but not the keys, and learns from one
        sampled negative per position; this has pre-norm blocks and, by default, a full softmax.
    """

    has_states = True

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        blocks: int = 1,
        heads: int = 2,
        dropout: float = 0.2,
        positions: str = "end",
        max_positions: int = 50,
        causal: bool = True,
    ):
        super().__init__(num_items, dim)
        if blocks < 0 or max_positions < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "blocks must be 0 or more, max_positions 1 or more and dropout lie in 0 <= dropout < 1, got "
                f"blocks={blocks}, max_positions={max_positions} and dropout={dropout}"
            )
        if positions not in POSITIONS:
            raise ValueError(f"positions is one of {', '.join(POSITIONS)}, got {positions!r}")
        self.counted_from, self.max_positions, self.causal = positions, max_positions, causal
        self.positions = None if positions == "none" else Positions(dim, max_positions, positions)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(blocks))
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform(-1/sqrt(D), 1/sqrt(D)) everywhere but in the normalisations, which start as 1 and 0."""
        uniform_(self, self.dim**-0.5)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def inputs(self, batch: Batch) -> Float[Tensor, "B L D"]:
        """X^0: item vectors and positions."""
        x = self.embed(batch.items)
        if self.positions is not None:
            x = x + self.positions(batch.lengths, batch.items.shape[1])
        return self.dropout(x)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        batch = latest(batch, self.max_positions)
        x, lengths = self.inputs(batch), batch.lengths
        for block in self.blocks[:-1]:
            x = block(x, batch.mask, self.causal)
        for block in self.blocks[-1:]:  # only the last row of the topmost block is read
            x, lengths = block(x, batch.mask, self.causal, lengths), torch.ones_like(lengths)
        return self.norm(last(x, lengths))

    def states(self, batch: Batch) -> Float[Tensor, "B L D"]:
        """The query of every position, as if the session ended there: for training on all of them at once.

        Raises:
            ValueError: if a position's state would depend on what follows it, or a session is too long for this.
        """
        if not self.causal or self.counted_from == "end":
            raise ValueError(
                "a query for every position must not depend on what follows: this wants causal=True and "
                f"positions='start' (or 'none'), got causal={self.causal} and positions={self.counted_from!r}"
            )
        if batch.items.shape[1] > self.max_positions:
            raise ValueError(f"max_positions={self.max_positions} is less than a width of {batch.items.shape[1]}")
        x = self.inputs(batch)
        for block in self.blocks:
            x = block(x, batch.mask, True)
        return self.norm(x)
