"""GRU4Rec, sequence-to-one form (Hidasi et al., ICLR 2016; simplified as in the scalable-losses dissertation).

Shapes: B sessions, L positions, D width, V items.
"""

from jaxtyping import Float
from torch import Tensor, nn

from sbr_core.batches import Batch
from sbr_core.layers import last
from sbr_core.models.base import SessionModel


class GRU4Rec(SessionModel):
    """One gated recurrent layer reads the clicks in order; its last state is the query.

    .. math::
        r, z &= \\sigma(W e_t + U h_{t-1} + b), \\quad n = \\tanh(W_n e_t + b_n + r \\odot (U_n h_{t-1} + b'_n)) \\\\
        h_t &= (1 - z) \\odot n + z \\odot h_{t-1}, \\quad score_j = D h_L \\cdot y_j

    Args:
        num_items: V.
        dim: D, width of the item vectors.
        hidden: width of the recurrent state; None for D, and then the state itself is the query.
        dropout: share of the input vectors' entries dropped in training, 0 <= dropout < 1.

    Shapes:
        batch.items (B, L) -> query (B, D)

    Source: paper section 3.1, hidasib/GRU4Rec_PyTorch_Official (read, not copied).
    Differs: every prefix of a session is an example of its own and the gradient flows through all its clicks; the 2016
        model walks sessions side by side, carries the state and cuts the gradient at every click.
    """

    def __init__(self, num_items: int, dim: int = 100, hidden: int | None = None, dropout: float = 0.25):
        super().__init__(num_items, dim)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in 0 <= dropout < 1, got {dropout}")
        if hidden is not None and hidden < 1:
            raise ValueError(f"hidden must be at least 1, or None for dim, got {hidden}")
        hidden = dim if hidden is None else hidden
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, hidden, batch_first=True)
        self.out = nn.Identity() if hidden == dim else nn.Linear(hidden, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot: normal for the table, uniform for every gate block, 0 for the biases."""
        nn.init.xavier_normal_(self.table)
        for name, parameter in [*self.gru.named_parameters(), *self.out.named_parameters()]:
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                for block in parameter.chunk(3) if name != "weight" else [parameter]:
                    nn.init.xavier_uniform_(block)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        states, _ = self.gru(self.dropout(self.embed(batch.items)))  # (B, L, H)
        return self.out(last(states, batch.lengths))
