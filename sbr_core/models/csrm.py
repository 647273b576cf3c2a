"""CSRM (Wang et al., SIGIR 2019).

Shapes: B sessions, L positions, D width of items, H width of states, M rows of the memory, K neighbours, V items.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sbr_core.batches import Batch, by_length
from sbr_core.layers import last
from sbr_core.models.base import SessionModel

COSINE_EPS, NORM_EPS = 1e-8, 1e-10  # of the public code


class SessionMemory(nn.Module):
    """The vectors of the latest M sessions, read by likeness and written in a ring: first in, first out.

    Rows and their count are buffers: they are saved with the model, and no gradient reaches them.

    Args:
        capacity: M.
        hidden: H.
    """

    def __init__(self, capacity: int, hidden: int):
        super().__init__()
        self.register_buffer("rows", torch.zeros(capacity, hidden))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))  # vectors ever written

    def nearest(
        self, query: Float[Tensor, "B H"], neighbours: int
    ) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"], Float[Tensor, "M H"]]:
        """Cosine and row number of the most similar rows, in no order, and all rows at length 1.

        While the memory holds fewer than K vectors, empty rows are among them: cosine -inf.
        """
        unit = F.normalize(self.rows, dim=1, eps=COSINE_EPS)
        empty = torch.arange(len(unit), device=unit.device) >= self.written
        nothing = torch.zeros_like(unit[:, 0]).masked_fill(empty, -torch.inf)  # (M,)
        cosine = (F.normalize(query, dim=1, eps=COSINE_EPS) @ unit.T).add_(nothing)  # (B, M)
        return *cosine.topk(min(neighbours, len(unit)), sorted=False), unit

    def read(self, query: Float[Tensor, "B H"], neighbours: int, strength: float = 1.0) -> Float[Tensor, "B H"]:
        """Mean of the `neighbours` most similar rows, weighted by ``softmax(strength * cosine)``.

        An empty memory gives the query itself. The weights are spread over all M rows for one dense product: that is
        several times faster than gathering K rows for each session.
        """
        cosine, index, unit = self.nearest(query, neighbours)
        energy = (strength * cosine).masked_fill(index >= self.written, torch.finfo(cosine.dtype).min)
        weights = energy.softmax(1) * self.rows.norm(dim=1)[index]  # (B, K), for rows of length 1
        spread = torch.zeros(len(query), len(unit), dtype=unit.dtype, device=unit.device).scatter_(1, index, weights)
        return torch.where(self.written > 0, spread @ unit, query)

    @torch.no_grad()
    def write(self, vectors: Float[Tensor, "B H"]) -> None:
        """Put vectors in, in their order, over the oldest ones."""
        number = self.written + torch.arange(len(vectors), device=vectors.device)
        number, kept = number[-len(self.rows) :], vectors[-len(self.rows) :]
        self.rows.index_copy_(0, number % len(self.rows), kept.to(self.rows.dtype))
        self.written += len(vectors)


class CSRM(SessionModel):
    """NARM's two halves, and beside them what the latest sessions of others were like, mixed in by a gate.

    .. math::
        c^g &= \\mathrm{GRU}_g(x)_L, \\quad h = \\mathrm{GRU}_l(x), \\quad
        \\alpha_i = \\mathrm{softmax}_i(v \\cdot \\sigma(W_{enc} h_i + W_{dec} h_L)), \\quad
        c^l = \\sum_i \\alpha_i h_i \\\\
        w_p &= \\mathrm{softmax}_{p \\in top\\,k}(\\beta \\cos(c^l, M_p)), \\quad c^o = \\sum_p w_p M_p \\\\
        f &= \\sigma(w_l \\cdot c^l + w_o \\cdot c^o + w_g \\cdot c^g), \\quad
        c = f [c^l ; c^g] + (1 - f) [c^o ; c^o], \\quad score_j = y_j \\cdot B c

    After every read in training, the batch's c^l go into the memory M, over the oldest ones.

    Args:
        num_items: V.
        dim: D.
        hidden: H; None for D.
        neighbours: k, rows read for a session (public code: 512).
        capacity: M (paper and public code: 10,000).
        strength: beta, > 0 (the paper prints it without a value; public code: 1).
        layer_norm: bring c^l, c^g and c^o to mean 0 and variance 1 before the gate, which the public code does and the
            paper does not print.
        memory_at_test: "off": evaluation reads what training left. "streaming": it also writes, as the public code
            does, so that a test session may find its neighbours of the same day, and itself. The stream begins when
            the model is put into evaluation mode; training goes on with its own memory.
        input_dropout, dropout: shares dropped of the item vectors and of c (public code: 0.25, 0.5).

    Shapes:
        batch.items (B, L) -> query B c (B, D)

    Raises:
        ValueError: on an argument out of range.

    Source: wmeirui/CSRM_SIGIR2019 (read, not copied).
    Differs: the recurrent cell resets after the linear map and has two biases a gate, as torch's own (the public code's
        resets before it; its gate biases of 1 are kept). The public code empties the memory before every epoch; here
        an epoch goes on with the memory of the one before. "streaming" writes in the order in which it is asked, and
        reads what is there, rows of the very session too: short prefixes before long ones is the caller's order
        (`leaks.ask`), and no row knows whose it is. That is the public code's behaviour, kept to measure its leak;
        "off" is the form without one.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        hidden: int | None = None,
        neighbours: int = 512,
        capacity: int = 10_000,
        strength: float = 1.0,
        layer_norm: bool = False,
        memory_at_test: str = "off",
        input_dropout: float = 0.25,
        dropout: float = 0.5,
    ):
        super().__init__(num_items, dim)
        _check(hidden, neighbours, capacity, strength, memory_at_test, input_dropout, dropout)
        H = dim if hidden is None else hidden
        self.neighbours, self.strength, self.layer_norm = neighbours, strength, layer_norm
        self.memory_at_test, self.input_dropout, self.dropout = (
            memory_at_test,
            nn.Dropout(input_dropout),
            nn.Dropout(dropout),
        )
        self.gru_g, self.gru_l = nn.GRU(dim, H, batch_first=True), nn.GRU(dim, H, batch_first=True)
        self.W_enc, self.W_dec = nn.Linear(H, H, bias=False), nn.Linear(H, H, bias=False)
        self.v = nn.Linear(H, 1, bias=False)
        self.gate = nn.Linear(3 * H, 1, bias=False)  # w_l, w_o, w_g
        self.B = nn.Linear(2 * H, dim, bias=False)
        self.memory = SessionMemory(capacity, H)
        self._of_training: dict[str, Tensor] | None = None  # the memory that training will go on with
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 2 / rows) for table and matrices; the recurrent layers as the public code's library has them."""
        for name, parameter in self.named_parameters():
            if name.startswith("gru"):
                continue
            rows = parameter.shape[1] // 3 if name == "gate.weight" else len(parameter)
            nn.init.normal_(parameter, std=(2 / rows) ** 0.5)
        for gru in (self.gru_g, self.gru_l):
            _glorot(gru)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        c_g, c_l = by_length(self.inner, batch)  # examples in the order of the log are of all lengths
        c_o = self.memory.read(c_l, self.neighbours, self.strength)
        if self.training or self.memory_at_test == "streaming":
            self.memory.write(c_l)
        return self.B(self.dropout(self.fuse(c_l, c_g, c_o)))

    def inner(self, batch: Batch) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
        """c^g and c^l: what the sessions say themselves."""
        x = self.input_dropout(self.embed(batch.items))  # (B, L, D)
        c_g = last(self.gru_g(x)[0], batch.lengths)
        h, _ = self.gru_l(x)  # (B, L, H)
        return c_g, (self.attention(h, batch)[:, None] @ h).squeeze(1)

    def attention(self, h: Float[Tensor, "B L H"], batch: Batch) -> Float[Tensor, "B L"]:
        """The attention of every position; sums to 1, 0 on padding."""
        energy = self.v(torch.sigmoid(self.W_enc(h) + self.W_dec(last(h, batch.lengths))[:, None])).squeeze(-1)
        return energy.masked_fill(~batch.mask, -torch.inf).softmax(-1)

    def fuse(
        self, c_l: Float[Tensor, "B H"], c_g: Float[Tensor, "B H"], c_o: Float[Tensor, "B H"]
    ) -> Float[Tensor, "B H2"]:
        """What the gate makes of the three vectors: (B, 2H)."""
        if self.layer_norm:
            c_l, c_g, c_o = (F.layer_norm(c, c.shape[1:], eps=NORM_EPS) for c in (c_l, c_g, c_o))
        f = torch.sigmoid(self.gate(torch.cat([c_l, c_o, c_g], dim=-1)))  # (B, 1)
        return torch.lerp(torch.cat([c_o, c_o], dim=-1), torch.cat([c_l, c_g], dim=-1), f)

    def train(self, mode: bool = True) -> "CSRM":
        """Into training mode, or into evaluation mode; what evaluation has streamed is forgotten by training."""
        if self.memory_at_test == "streaming" and mode != self.training:
            if mode and self._of_training:
                self.memory.load_state_dict(self._of_training)
            self._of_training = None if mode else {k: b.clone() for k, b in self.memory.named_buffers()}
        return super().train(mode)


def _glorot(gru: nn.GRU) -> None:
    """Uniform within Glorot's bound of [input; state] -> both gates, and -> candidate; gate biases 1, all others 0."""
    for name, parameter in gru.named_parameters():
        gates, candidate = parameter.data.split([2 * gru.hidden_size, gru.hidden_size])
        if parameter.ndim == 1:
            nn.init.constant_(gates, float(name == "bias_ih_l0"))
            nn.init.zeros_(candidate)
        else:
            for block in (gates, candidate):
                bound = (6 / (gru.input_size + gru.hidden_size + len(block))) ** 0.5
                nn.init.uniform_(block, -bound, bound)


def _check(hidden, neighbours, capacity, strength, memory_at_test, input_dropout, dropout) -> None:
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden must be at least 1, or None for dim, got {hidden}")
    if not 1 <= neighbours <= capacity:
        raise ValueError(f"neighbours must lie in 1..capacity, got neighbours={neighbours} and capacity={capacity}")
    if strength <= 0:
        raise ValueError(f"strength must be positive, got {strength}")
    if memory_at_test not in ("off", "streaming"):
        raise ValueError(f"memory_at_test is 'off' or 'streaming', got {memory_at_test!r}")
    for name, value in (("input_dropout", input_dropout), ("dropout", dropout)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must lie in 0 <= {name} < 1, got {value}")
