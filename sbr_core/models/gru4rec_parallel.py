"""GRU4Rec as its authors train it: session-parallel, with a carried state (Hidasi et al., 2016; Hidasi and Karatzoglou,
2018).

Shapes: B sessions, L positions, H width of the state, D width of the input vectors, V items.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sbr_core.batches import Batch
from sbr_core.layers import last
from sbr_core.models.base import SessionModel
from sbr_core.session_parallel import ParallelBatch
from sbr_core.table import lookup

EMBEDDINGS = ("constrained", "separate", "none")
CELLS = ("reset-after", "reset-before")


class ResetBeforeGRU(nn.Module):
    """A gated recurrent layer whose reset gate acts before the product, with the interface of `torch.nn.GRU`.

    .. math::
        r, z &= \\sigma(W x + U h + b), \\quad c = \\tanh(W_c x + U_c (r \\odot h) + b_c) \\\\
        h' &= (1 - z) \\odot h + z \\odot c

    Args:
        inputs: width of x; None if x holds the three products W x already (3H wide): a row of a table for each item.
        hidden: H.

    Shapes:
        x (B, L, inputs), h (1, B, H) or None for zero -> states (B, L, H), last state (1, B, H)

    Source: specs of the baselines, section 0.3 (R1 + Z1: z is the new share).
    """

    def __init__(self, inputs: int | None, hidden: int):
        super().__init__()
        self.W = nn.Identity() if inputs is None else nn.Linear(inputs, 3 * hidden, bias=False)
        self.U = nn.Linear(hidden, 2 * hidden, bias=False)
        self.U_c = nn.Linear(hidden, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(3 * hidden))

    def forward(self, x: Float[Tensor, "B L X"], h: Float[Tensor, "1 B H"] | None = None) -> tuple[Tensor, Tensor]:
        x = self.W(x) + self.bias  # (B, L, 3H)
        h = x.new_zeros(len(x), self.U_c.in_features) if h is None else h[0]
        gates, candidates = x.split((2 * h.shape[1], h.shape[1]), dim=2)
        states = []
        for gate, candidate in zip(gates.unbind(1), candidates.unbind(1), strict=True):  # one click after another
            r, z = torch.sigmoid(gate + self.U(h)).chunk(2, dim=1)
            h = torch.lerp(h, torch.tanh(candidate + self.U_c(r * h)), z)
            states.append(h)
        return torch.stack(states, 1), h[None]


class GRU4Rec2018(SessionModel):
    """GRU4Rec+: a gated recurrent layer carries the state of every slot from click to click; each item has a bias.

    Trained on session-parallel batches a step reads one click, and the gradient stops at the state that it inherits:
    nothing is propagated back through time. On an ordinary batch (evaluation, or ``batches="examples"``) the whole
    prefix is read from a zero state.

    .. math::
        h_t = \\text{dropout}(\\text{GRU}(e_t, \\text{stop}(h_{t-1}))), \\quad score_j = h_t \\cdot y_j + b_j

    Args:
        num_items: V.
        dim: H, width of the state and of the scored item vectors; in "separate" that of the input vectors too.
        embedding: what is read. "constrained": the vectors that are scored. "separate": a table of their own. "none":
            one-hot items, so the three input products are rows of a table (3H wide); only with "reset-before".
        cell: "reset-after" (that of the library) or "reset-before".
        dropout_embed: share of the input's entries dropped in training.
        dropout_hidden: share of the state's entries dropped in training; session-parallel, the dropped state is also
            the one that is carried on.

    Shapes:
        batch.items (B, L) -> query (B, H + 1): the state, and a 1 that meets the bias in the last column of the table

    Raises:
        ValueError: naming the argument that is out of range, or the two that exclude each other.

    Source: specs of GRU4Rec, sections 4.1 and 4.2; hidasib/GRU4Rec and hidasib/GRU4Rec_PyTorch_Official (read, not
        copied).
    Differs: the bias is a column of the item table, so under momentum it coasts on with the row also where a step
        has read the item and not scored it. Scores are without the final activation, which is the loss's matter: it
        is monotone and changes no rank.
    """

    carries_state = True
    plain_product = False  # the last column of the table is a bias, no coordinate

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        embedding: str = "constrained",
        cell: str = "reset-after",
        dropout_embed: float = 0.0,
        dropout_hidden: float = 0.0,
    ):
        if dim < 1:
            raise ValueError(f"num_items and dim must be at least 1, got {num_items} and {dim}")
        super().__init__(num_items, dim + 1)
        self.dim, self.embedding = dim, embedding
        if embedding not in EMBEDDINGS or cell not in CELLS:
            raise ValueError(
                f"embedding is one of {', '.join(EMBEDDINGS)} and cell one of {', '.join(CELLS)}, "
                f"got {embedding!r} and {cell!r}"
            )
        if embedding == "none" and cell == "reset-after":
            raise ValueError("embedding='none' is written for cell='reset-before', not for cell='reset-after'")
        for name, share in (("dropout_embed", dropout_embed), ("dropout_hidden", dropout_hidden)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} must lie in 0 <= {name} < 1, got {share}")
        if embedding != "constrained":
            width = 3 * dim if embedding == "none" else dim
            self.inputs = nn.Parameter(torch.empty(num_items + 1, width))
            self.looked_up = ("inputs",)
        self.dropout_embed, self.dropout_hidden = nn.Dropout(dropout_embed), nn.Dropout(dropout_hidden)
        after = cell == "reset-after"
        self.gru = (
            nn.GRU(dim, dim, batch_first=True) if after else ResetBeforeGRU(None if embedding == "none" else dim, dim)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within the root of 6 / (rows + columns), gate by gate; biases 0."""
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
                continue
            rows = self.num_items if parameter is self.table or parameter is getattr(self, "inputs", None) else self.dim
            bound = (6 / (rows + self.dim)) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
        nn.init.zeros_(self.table[:, -1])

    def carry(self, slots: int) -> None:
        """Keep a state for so many slots, zero for now."""
        self.register_buffer("state", self.table.new_zeros(slots, self.dim))

    def read(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L X"]:
        """What the recurrent layer gets of every click."""
        if self.embedding == "constrained":
            return self.dropout_embed(self.embed(items)[..., :-1])
        return self.dropout_embed(lookup(self.inputs, items))

    def encode(self, batch: Batch) -> Float[Tensor, "B Q"]:
        before = self.inherited(batch)
        states, _ = self.gru(self.read(batch.items), before)  # (B, L, H)
        h = self.dropout_hidden(last(states, batch.lengths))
        if before is not None:
            self.state[batch.slot] = h.detach()
        return nn.functional.pad(h, (0, 1), value=1.0)

    def inherited(self, batch: Batch) -> Float[Tensor, "1 B H"] | None:
        """The state that each slot's session has left, zero where a session begins; None for an ordinary batch."""
        if not isinstance(batch, ParallelBatch):
            return None
        return self.state[batch.slot].masked_fill(batch.fresh[:, None], 0.0)[None]


class GRU4Rec2016(GRU4Rec2018):
    """GRU4Rec as first published: one-hot items, the reset gate before the product, dropout on the state.

    Args:
        num_items, dim, embedding, cell, dropout_embed, dropout_hidden: as in `GRU4Rec2018`.

    Source: specs of GRU4Rec, section 4.1.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        embedding: str = "none",
        cell: str = "reset-before",
        dropout_embed: float = 0.0,
        dropout_hidden: float = 0.5,
    ):
        super().__init__(num_items, dim, embedding, cell, dropout_embed, dropout_hidden)
