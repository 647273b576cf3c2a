"""SR-GNN (Wu et al., AAAI 2019, arXiv:1811.00855).

Shapes: B sessions, L positions (= node slots), D width, V items.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sbr_core.batches import Batch
from sbr_core.graphs import session_graph
from sbr_core.layers import last, masked_mean, take, uniform_
from sbr_core.models.base import SessionModel

READOUTS = ("attention", "last", "mean")


class GatedGraph(nn.Module):
    """Gated propagation on a session graph, `steps` rounds with shared weights (equations 1 to 5 of the paper).

    .. math::
        a &= [A_{in} (H W_{in} + b_{in}) + c_{in} \\;;\\; A_{out} (H W_{out} + b_{out}) + c_{out}] \\\\
        r, z &= \\sigma(W a + U h), \\quad n = \\tanh(W_n a + r \\odot U_n h), \\quad h' = (1 - z) \\odot n + z \\odot h

    Args:
        dim: D.
        steps: rounds; 0 leaves the nodes as they are, and has nothing to learn.

    Shapes:
        nodes (B, L, D), A_in and A_out (B, L, L) -> (B, L, D)

    Differs: the gates are those of the public code (reset after the linear map, z keeps the old state); the paper
        prints them the other way round. The public code owns a third edge map that it never uses; this has none.
    """

    def __init__(self, dim: int, steps: int = 1):
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps must be 0 or more, got {steps}")
        self.steps = steps
        if steps == 0:
            return
        self.edges = nn.Linear(dim, 2 * dim)  # W_in, W_out and b_in, b_out side by side
        self.edge_bias = nn.Parameter(torch.empty(2 * dim))  # c_in, c_out
        self.input = nn.Linear(2 * dim, 3 * dim)  # gate blocks in the order r, z, n
        self.hidden = nn.Linear(dim, 3 * dim)

    def forward(
        self, nodes: Float[Tensor, "B L D"], A_in: Float[Tensor, "B L L"], A_out: Float[Tensor, "B L L"]
    ) -> Float[Tensor, "B L D"]:
        """Node vectors after `steps` rounds.

        Both maps of an edge are linear, W (A (H W_in)) = A (H (W_in W)), so they are multiplied first: they are
        smaller than a batch, and more than half of the work of a round is saved.
        """
        if self.steps == 0:
            return nodes
        B, L, D = nodes.shape
        A = torch.stack([A_in, A_out], dim=-1).view(B, L, 2 * L).to(nodes.dtype)
        weights = self.input.weight.view(3 * D, 2, D).transpose(0, 1)  # (2, 3D, D): what follows A_in, A_out
        maps = (weights @ self.edges.weight.view(2, D, D)).view(6 * D, D)
        biases = (weights @ self.edges.bias.view(2, D, 1)).view(6 * D)
        constant = self.input(self.edge_bias)  # (3D,)
        for _ in range(self.steps):
            messages = F.linear(nodes, maps, biases).view(B, 2 * L, 3 * D)
            i_rz, i_n = torch.baddbmm(constant, A, messages).split([2 * D, D], dim=-1)  # W a + b, equations 1-3
            h_rz, h_n = self.hidden(nodes).split([2 * D, D], dim=-1)
            r, z = torch.sigmoid(i_rz + h_rz).chunk(2, dim=-1)
            n = torch.tanh(i_n + r * h_n)
            nodes = torch.lerp(n, nodes, z)  # (1 - z) n + z nodes, (B, L, D)
        return nodes


class SoftAttention(nn.Module):
    """``alpha_i = q . sigmoid(W1 h_last + W2 h_i + c)``, not normalised; returns the weighted sum (equation 6).

    Args:
        dim: D.

    Shapes:
        h (B, L, D), h_last (B, D), mask (B, L) -> (B, D)
    """

    def __init__(self, dim: int):
        super().__init__()
        self.W1, self.W2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.q = nn.Linear(dim, 1, bias=False)

    def weights(self, h: Float[Tensor, "B L D"], h_last: Float[Tensor, "B D"], mask: Tensor) -> Float[Tensor, "B L"]:
        """The attention of every position, 0 on padding."""
        alpha = self.q(torch.sigmoid(self.W1(h_last)[:, None] + self.W2(h))).squeeze(-1)
        return alpha * mask

    def forward(self, h: Float[Tensor, "B L D"], h_last: Float[Tensor, "B D"], mask: Tensor) -> Float[Tensor, "B D"]:
        """The attention-weighted sum of the positions."""
        return (self.weights(h, h_last, mask)[:, None] @ h).squeeze(1)


class SRGNN(SessionModel):
    """A session is a graph; its vector joins the last click and an attention over all clicks (equations 6 and 7).

    Args:
        num_items: V.
        dim: D (paper: 100).
        steps: rounds of propagation, >= 0; 0 is the model without its graph (paper: 1).
        readout: "attention" (paper), "last" (SR-GNN-L) or "mean" (SR-GNN-Avg).
        hybrid: False leaves out the last click beside the attention (`nonhybrid` in the public code).
        edge_weight: "binary" (public code) or "count" (paper's text).

    Shapes:
        batch.items (B, L) -> query (B, D)

    Source: paper section 3; CRIPAC-DIG/SR-GNN, pytorch_code/model.py (read, not copied).
    Example:
        >>> from sbr_core.batches import Batch
        >>> SRGNN(num_items=9, dim=4).encode(Batch.of([[1, 2, 1, 3]], num_items=9)).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        steps: int = 1,
        readout: str = "attention",
        hybrid: bool = True,
        edge_weight: str = "binary",
    ):
        super().__init__(num_items, dim)
        if readout not in READOUTS:
            raise ValueError(f"readout is one of {', '.join(READOUTS)}, got {readout!r}")
        self.readout, self.hybrid, self.edge_weight = readout, hybrid, edge_weight
        self.graph = GatedGraph(dim, steps)
        if readout == "attention":
            self.attention = SoftAttention(dim)
            self.W3 = nn.Linear(2 * dim, dim) if hybrid else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform(-1/sqrt(D), 1/sqrt(D)) everywhere, as the public code does."""
        uniform_(self, self.dim**-0.5)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        alias, A_in, A_out = session_graph(batch.items, batch.mask, self.edge_weight)
        h = take(self.graph(self.embed(batch.items), A_in, A_out), alias)  # (B, L, D), equations 1-5
        h_last = last(h, batch.lengths)  # (B, D)
        if self.readout == "last":
            return h_last
        if self.readout == "mean":
            return masked_mean(h, batch.mask)
        s_global = self.attention(h, h_last, batch.mask)  # (B, D), equation 6
        return self.W3(torch.cat([s_global, h_last], dim=-1)) if self.hybrid else s_global  # equation 7
