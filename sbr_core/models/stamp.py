"""STAMP (Liu et al., KDD 2018).

Shapes: B sessions, L positions, D width, V items.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sbr_core.batches import Batch
from sbr_core.layers import last, masked_mean
from sbr_core.models.base import SessionModel


class STAMP(SessionModel):
    """No recurrence: the last click and an attention over all clicks, joined by a trilinear product.

    .. math::
        m_t &= x_L, \\quad m_s = \\tfrac1L \\sum_i x_i, \\quad
        \\alpha_i = w_0 \\cdot \\sigma(W_1 x_i + W_2 m_t + W_3 m_s + b_a) \\\\
        m_a &= \\sum_i \\alpha_i x_i \\,(+\\, m_s), \\quad h_s = \\tanh(W_s m_a + b_s), \\quad h_t = \\tanh(W_t m_t +
        b_t) \\\\ score_j &= (h_s \\odot h_t) \\cdot y_j

    Args:
        num_items: V.
        dim: D (paper: 100).
        add_mean: add m_s to m_a, which the paper does not print and the public code does.
        biases: have b_a, b_s, b_t, which the paper prints and the public code does not have.
        clip_norm: looked-up rows longer than this are scaled down in the forward pass (public code: 1 on Yoochoose,
            1.5 on Diginetica); None for no clipping. The table itself is never changed.

    Shapes:
        batch.items (B, L) -> query h_s * h_t (B, D)

    Source: paper section 3; uestcnlp/STAMP (read, not copied).
    Differs: plain softmax cross-entropy on the trilinear product, as the public code; with the sigmoid that the paper
        prints around it, no probability could exceed e/V.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        add_mean: bool = False,
        biases: bool = True,
        clip_norm: float | None = None,
    ):
        super().__init__(num_items, dim)
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
        self.add_mean, self.clip_norm = add_mean, clip_norm
        self.W1, self.W2, self.W3 = nn.Linear(dim, dim, bias=biases), *(nn.Linear(dim, dim, bias=False) for _ in "23")
        self.w0 = nn.Linear(dim, 1, bias=False)
        self.Ws, self.Wt = nn.Linear(dim, dim, bias=biases), nn.Linear(dim, dim, bias=biases)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.002) for the table, N(0, 0.05) for the matrices, 0 for the biases."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.002 if name == "table" else 0.05)

    def attention(self, x: Float[Tensor, "B L D"], batch: Batch) -> Float[Tensor, "B L"]:
        """The attention of every position (not normalised), 0 on padding."""
        m_t, m_s = last(x, batch.lengths), masked_mean(x, batch.mask)
        context = self.W2(m_t) + self.W3(m_s)  # (B, D)
        return self.w0(torch.sigmoid(self.W1(x) + context[:, None])).squeeze(-1) * batch.mask

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        x = self._clipped(self.embed(batch.items))  # (B, L, D)
        m_a = (self.attention(x, batch)[:, None] @ x).squeeze(1)  # (B, D)
        if self.add_mean:
            m_a = m_a + masked_mean(x, batch.mask)
        return torch.tanh(self.Ws(m_a)) * torch.tanh(self.Wt(last(x, batch.lengths)))

    def _clipped(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        if self.clip_norm is None:
            return x
        return x * (self.clip_norm / x.norm(dim=-1, keepdim=True).clamp(min=self.clip_norm))
