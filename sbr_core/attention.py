"""Self-attention over the clicks of a session, and tables of their positions.

Shapes: B sessions, L positions, Q queries of a session, H heads, D width.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sbr_core.batches import Batch


def visible(mask: Bool[Tensor, "B L"], causal: bool = False) -> Bool[Tensor, "B rows L"]:
    """Which positions each position may look at: the real ones, and if `causal` none that comes later.

    Returns:
        (B, 1, L), the same for all, or (B, L, L) if `causal`. Every row has a True, those of padding too.
    """
    if not causal:
        return mask[:, None]
    order = torch.arange(mask.shape[1], device=mask.device)
    return mask[:, None] & (order <= order[:, None])


class SelfAttention(nn.Module):
    """Masked scaled dot-product self-attention, ``softmax(Q K^T / sqrt(D / H)) V`` in each of H heads.

    Args:
        dim: D.
        heads: H; divides D.
        bias: biases on all its linear maps.
        dropout: share of the attention weights dropped in training.
        project: a last linear map over the joined heads, as a Transformer has.

    Shapes:
        x (B, L, D), mask (B, L) -> (B, L, D); with query (B, Q, D) -> (B, Q, D). Rows of padding mean nothing.

    Source: Vaswani et al., NeurIPS 2017, section 3.2.
    Example:
        >>> SelfAttention(6, heads=2)(torch.ones(1, 3, 6), torch.tensor([[True, True, False]])).shape
        torch.Size([1, 3, 6])
    """

    def __init__(self, dim: int, heads: int = 1, bias: bool = False, dropout: float = 0.0, project: bool = False):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"heads must divide dim, got heads={heads} and dim={dim}")
        self.heads, self.dropout = heads, dropout
        self.Q, self.KV = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, 2 * dim, bias=bias)
        self.O = nn.Linear(dim, dim, bias=bias) if project else nn.Identity()

    def forward(
        self, x: Float[Tensor, "B L D"], mask: Tensor, causal: bool = False, query: Tensor | None = None
    ) -> Float[Tensor, "B Q D"]:
        """What every position gathers from the positions that it sees.

        Args:
            mask: (B, L), True on real clicks.
            causal: a position sees none that comes later.
            query: (B, Q, D), the vectors that ask; None for x itself. A session's last click sees all clicks, causal
                or not: asking with it alone, ``query=last(x, lengths)[:, None]``, saves the work of all other rows.

        Raises:
            ValueError: if queries of their own are to be causal: their positions are not known.
        """
        q, (k, v), seen = self._parts(x, mask, causal, query)
        y = F.scaled_dot_product_attention(q, k, v, seen[:, None], self.dropout if self.training else 0.0)
        return self.O(y.transpose(1, 2).flatten(2))

    def weights(
        self, x: Float[Tensor, "B L D"], mask: Tensor, causal: bool = False, query: Tensor | None = None
    ) -> Float[Tensor, "B H Q L"]:
        """The attention weights of `forward`, to look at: each row sums to 1 over the positions that it sees."""
        q, (k, _), seen = self._parts(x, mask, causal, query)
        logits = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5  # (B, H, Q, L)
        return logits.masked_fill(~seen[:, None], -torch.inf).softmax(-1)

    def _parts(self, x: Tensor, mask: Tensor, causal: bool, query: Tensor | None):
        """Queries (B, H, Q, D/H), keys and values (B, H, L, D/H), and what is seen."""
        if causal and query is not None:
            raise ValueError("queries of their own have no place in the order of the clicks: use causal=False")
        q, *kv = self.Q(x if query is None else query), *self.KV(x).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, *kv))
        return q, (k, v), visible(mask, causal)


def positions_from_end(lengths: Int[Tensor, "B"], L: int) -> Int[Tensor, "B L"]:
    """How many clicks come after each click: 0 for a session's last one (and on padding)."""
    return (lengths[:, None] - 1 - torch.arange(L, device=lengths.device)).clamp(min=0)


class Positions(nn.Module):
    """A learned vector for every position, counted from the session's end (0 is its last click) or its start.

    Args:
        dim: D.
        count: positions in the table; longer sessions must be cut before (`latest`).
        counted_from: "end" or "start".

    Shapes:
        lengths (B,), L -> (B, L, D)
    """

    def __init__(self, dim: int, count: int, counted_from: str = "end"):
        super().__init__()
        if counted_from not in ("end", "start"):
            raise ValueError(f"positions are counted from the 'end' or the 'start', got {counted_from!r}")
        if count < 1:
            raise ValueError(f"a table of positions needs at least one row, got {count}")
        self.counted_from = counted_from
        self.table = nn.Parameter(torch.empty(count, dim))

    def forward(self, lengths: Int[Tensor, "B"], L: int) -> Float[Tensor, "B L D"]:
        """The vectors of the positions of every session; those on padding mean nothing."""
        if L > len(self.table):
            raise ValueError(f"there are {len(self.table)} positions, the sessions have up to {L}: cut them first")
        if self.counted_from == "start":
            return self.table[:L].expand(len(lengths), -1, -1)
        return F.embedding(positions_from_end(lengths, L), self.table)


def latest(batch: Batch, count: int) -> Batch:
    """The last `count` clicks of every session; shorter sessions stay as they are."""
    if batch.items.shape[1] <= count:
        return batch
    start = (batch.lengths - count).clamp(min=0)
    items = batch.items.gather(1, start[:, None] + torch.arange(count, device=start.device))
    return replace(batch, items=items, lengths=batch.lengths.clamp(max=count))
