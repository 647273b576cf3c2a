"""GC-SAN (Xu et al., IJCAI 2019).

Shapes: B sessions, L positions (= node slots), D width, V items.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sbr_core.attention import SelfAttention
from sbr_core.batches import Batch
from sbr_core.graphs import session_graph
from sbr_core.layers import last, take, uniform_
from sbr_core.models.base import SessionModel
from sbr_core.models.srgnn import GatedGraph

OMEGA = 0.6


class Block(nn.Module):
    """Self-attention, then two linear maps with a ReLU between, the residual around these maps only.

    Args:
        dim: D.
        dropout: share of the second map's outputs dropped in training.
        layer_norm: a residual around the attention too, and a normalisation after each residual, as RecBole has
            (with maps of its own: GELU, 256 wide).

    Shapes:
        x (B, L, D), mask (B, L) -> (B, L, D); with lengths (B,) -> (B, 1, D), the last click's row only
    """

    def __init__(self, dim: int, dropout: float, layer_norm: bool):
        super().__init__()
        self.layer_norm, self.attention = layer_norm, SelfAttention(dim)
        self.W1, self.W2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layer_norm))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B L D"], mask: Tensor, causal: bool, lengths: Tensor | None = None
    ) -> Float[Tensor, "B rows D"]:
        """The next states, of every position or of the last ones."""
        asking = x if lengths is None else last(x, lengths)[:, None]
        y = self.attention(x, mask, causal) if lengths is None else self.attention(x, mask, query=asking)  # F
        if not self.layer_norm:
            return self._mapped(y) + y
        y = self.norms[0](y + asking)
        return self.norms[1](self._mapped(y) + y)

    def _mapped(self, y: Tensor) -> Tensor:
        return self.dropout(self.W2(torch.relu(self.W1(y))))


class GCSAN(SessionModel):
    """A session graph as in SR-GNN, then self-attention over its states; the last of both are mixed.

    .. math::
        F &= \\mathrm{softmax}\\big((E W_Q)(E W_K)^\\top / \\sqrt D\\big)\\, E W_V, \\quad
        E' = \\mathrm{ReLU}(F W_1 + b_1) W_2 + b_2 + F \\\\
        E^0 &= (h_1, \\dots, h_L), \\quad S = \\omega E^k_L + (1 - \\omega) h_L, \\quad score_j = S \\cdot y_j

    Args:
        num_items: V.
        dim: D (public code: 120).
        steps: rounds of propagation on the graph, >= 0; 0 is attention without a graph.
        blocks: k, blocks of self-attention, >= 0; 0 leaves the last state of the graph.
        omega: weight of the attention's last row, between 0 and 1; 0 is SR-GNN with its last state as the query.
        dropout: share of the outputs of each block's maps dropped in training.
        share_blocks: one block used k times (a public copy) instead of k blocks.
        causal: a click does not attend to later ones. The last click sees all: this changes only the blocks below the
            topmost.
        layer_norm: residual around the attention and normalisation after each residual, as RecBole has; its maps have
            a GELU and 256 inner units, these a ReLU and D.

    Shapes:
        batch.items (B, L) -> query S (B, D)

    Source: paper sections 3.2 to 3.5; johnny12150/GC-SAN and RecBole-GNN (read, not copied).
    Differs: padding is masked, in a public copy it attends and is attended. Gates as in `srgnn.GatedGraph`.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        steps: int = 1,
        blocks: int = 1,
        omega: float = OMEGA,
        dropout: float = 0.2,
        share_blocks: bool = False,
        causal: bool = False,
        layer_norm: bool = False,
    ):
        super().__init__(num_items, dim)
        if blocks < 0 or not 0 <= omega <= 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"blocks must be 0 or more, omega lie in 0 <= omega <= 1 and dropout in 0 <= dropout < 1, got "
                f"blocks={blocks}, omega={omega} and dropout={dropout}"
            )
        if blocks == 0 and (omega != OMEGA or share_blocks or layer_norm):
            raise ValueError(
                "blocks=0 has no attention that omega, share_blocks or layer_norm could change, got "
                f"omega={omega}, share_blocks={share_blocks} and layer_norm={layer_norm}: leave them out, or set "
                "blocks to 1 or more"
            )
        self.omega, self.causal, self.rounds = omega, causal, blocks
        self.graph = GatedGraph(dim, steps)
        owned = min(blocks, 1) if share_blocks else blocks
        self.blocks = nn.ModuleList(Block(dim, dropout, layer_norm) for _ in range(owned))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform(-1/sqrt(D), 1/sqrt(D)) everywhere but in the normalisations, which start as 1 and 0."""
        uniform_(self, self.dim**-0.5)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def graph_states(self, batch: Batch) -> Float[Tensor, "B L D"]:
        """The graph's states in the order of the clicks: E^0, which the attention reads."""
        alias, A_in, A_out = session_graph(batch.items, batch.mask)
        return take(self.graph(self.embed(batch.items), A_in, A_out), alias)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        x = self.graph_states(batch)
        h_last = last(x, batch.lengths)  # (B, D)
        if self.rounds == 0:
            return h_last
        for number in range(self.rounds - 1):
            x = self.blocks[number % len(self.blocks)](x, batch.mask, self.causal)
        x = self.blocks[-1](x, batch.mask, False, batch.lengths)  # only the last row of the topmost block is read
        return torch.lerp(h_last, x.squeeze(1), self.omega)
