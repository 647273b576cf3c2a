"""NARM (Li et al., CIKM 2017, arXiv:1711.04725).

Shapes: B sessions, L positions, D width, H width of the states, V items.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from sbr_core.batches import Batch
from sbr_core.layers import last
from sbr_core.models.base import SessionModel

ATTENTIONS, CELLS = ("plain", "softmax"), ("library", "code")


class GRUCell(nn.Module):
    """The recurrent layer of the public code: the reset gate acts before the linear map, z admits the new state.

    .. math::
        r, z = \\hat\\sigma(W e_t + U h_{t-1} + b), \\quad
        c = \\tanh(W_c e_t + U_c (r \\odot h_{t-1}) + b_c), \\quad h_t = (1 - z) \\odot h_{t-1} + z \\odot c

    with the hard sigmoid ``clip(0.2 x + 0.5, 0, 1)`` where `hard`. It steps through the positions one by one: no
    library has this cell, and its recurrence leaves no other way.

    Args:
        dim: D.
        hidden: H.
        hard: False: the logistic function instead.

    Shapes:
        x (B, L, D) -> states (B, L, H)
    """

    def __init__(self, dim: int, hidden: int, hard: bool):
        super().__init__()
        self.hard = hard
        self.input = nn.Linear(dim, 3 * hidden)  # gate blocks in the order r, z, c
        self.gates = nn.Linear(hidden, 2 * hidden, bias=False)
        self.candidate = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L H"]:
        """The state after every position."""
        H = self.candidate.in_features
        h, states = x.new_zeros(len(x), H), []
        for i in self.input(x).unbind(1):
            r, z = sigmoid(i[:, : 2 * H] + self.gates(h), self.hard).chunk(2, dim=1)
            c = torch.tanh(i[:, 2 * H :] + self.candidate(r * h))
            h = torch.lerp(h, c, z)  # (1 - z) h + z c, (B, H)
            states.append(h)
        return torch.stack(states, dim=1)


def sigmoid(x: Tensor, hard: bool) -> Tensor:
    """The logistic function, or the hard sigmoid ``clip(0.2 x + 0.5, 0, 1)`` of Theano."""
    return (0.2 * x + 0.5).clamp(0, 1) if hard else torch.sigmoid(x)


class NARM(SessionModel):
    """A recurrent network's last state beside an attention over all its states, matched to the items bilinearly.

    .. math::
        h_1, \\dots, h_L &= \\mathrm{GRU}(e_1, \\dots, e_L), \\quad
        \\alpha_j = v \\cdot \\sigma(A_1 h_L + A_2 h_j), \\\\
        c &= \\bigl[\\textstyle\\sum_j \\alpha_j h_j \\;;\\; h_L\\bigr], \\quad score_i = e_i^\\top B c

    Args:
        num_items: V.
        dim: D (paper: 50).
        hidden: H (paper: 100).
        dropout: share of the input vectors' entries dropped in training (paper: 0.25).
        dropout_context: share of c's entries dropped in training (paper: 0.5).
        attention: "plain" uses the weights as they come (paper), "softmax" normalises them over the real positions
            (public code).
        cell: "library" resets after the linear map, in one call; "code" is `GRUCell`, as in paper and public code.
        hard: gates and attention with the hard sigmoid of the public code; it wants cell="code".

    Shapes:
        batch.items (B, L) -> query B c (B, D)

    Source: paper section 3; lijingsdu/sessionRec_NARM (read, not copied).
    Differs: inputs are not cut to their first 19 clicks here: say so in `TrainConfig` (max_len, keep). Dropout rescales
        in training; the public code does so when it tests. The padding is no candidate. The public code draws v from
        N(0, 2), because its shape (1, H) has one row; so do we with its attention, "softmax". Weights that are not
        normalised would be too large at first, so for them v has the variance of the matrices, 2 / H.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 50,
        hidden: int = 100,
        dropout: float = 0.25,
        dropout_context: float = 0.5,
        attention: str = "plain",
        cell: str = "library",
        hard: bool = False,
    ):
        super().__init__(num_items, dim)
        for name, value, allowed in (("attention", attention, ATTENTIONS), ("cell", cell, CELLS)):
            if value not in allowed:
                raise ValueError(f"{name} is one of {', '.join(allowed)}, got {value!r}")
        if hidden < 1 or not (0 <= dropout < 1 and 0 <= dropout_context < 1):
            raise ValueError(
                "hidden must be at least 1, dropout and dropout_context lie in 0 <= value < 1; "
                f"got {hidden}, {dropout}, {dropout_context}"
            )
        if hard and cell == "library":
            raise ValueError("hard=True has no meaning with cell='library', whose gates are fixed: set cell='code'")
        self.attention, self.hard = attention, hard
        self.dropout, self.dropout_context = nn.Dropout(dropout), nn.Dropout(dropout_context)
        self.gru = nn.GRU(dim, hidden, batch_first=True) if cell == "library" else GRUCell(dim, hidden, hard)
        self.A1, self.A2 = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.v = nn.Linear(hidden, 1, bias=False)
        self.B = nn.Linear(2 * hidden, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal of variance 2 / rows, with the rows of the public code's matrices; recurrent blocks orthogonal."""
        hidden = self.v.in_features
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            elif name in ("gru.weight_hh_l0", "gru.gates.weight", "gru.candidate.weight"):
                for block in parameter.split(hidden):
                    nn.init.orthogonal_(block)
            else:
                rows = len(parameter) if name in ("table", "B.weight") else parameter.shape[1]
                nn.init.normal_(parameter, std=(2 / rows) ** 0.5)
        if self.attention == "softmax":
            nn.init.normal_(self.v.weight, std=2**0.5)

    def weights(self, h: Float[Tensor, "B L H"], h_last: Float[Tensor, "B H"], mask: Bool[Tensor, "B L"]):
        """The attention of every position (B, L), 0 on padding."""
        epsilon = self.v(sigmoid(self.A1(h_last)[:, None] + self.A2(h), self.hard)).squeeze(-1)
        if self.attention == "plain":
            return epsilon * mask
        return F.softmax(epsilon.masked_fill(~mask, -torch.inf), dim=1)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        states = self.gru(self.dropout(self.embed(batch.items)))
        h = states[0] if isinstance(states, tuple) else states  # (B, L, H)
        h_last = last(h, batch.lengths)  # (B, H), the global half of c
        local = (self.weights(h, h_last, batch.mask)[:, None] @ h).squeeze(1)
        return self.B(self.dropout_context(torch.cat([local, h_last], dim=1)))
