"""The full softmax without the (B, V) scores: two passes over blocks of items that stay in the cache.

The first pass finds the logarithm of every row's denominator, the second one the gradients: the table's is written
block by block into ``table.grad``, as in `sbr_core.table`. The scores are computed twice, four large products instead
of three; memory is one block.

Shapes: B sessions, D width, V items, C items of a block.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbr_core.similarity import inverse_length, tangent
from sbr_core.table import Buffers, open_gradient

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**28}  # of the float32 scores of a block; the CPU's is a core's cache


def blocked_softmax(
    query: Float[Tensor, "B D"],
    table: Float[Tensor, "rows D"],
    target: Int[Tensor, "B"],
    dtype: torch.dtype | None = None,
    buffers: Buffers | None = None,
    unit: bool = False,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of ``query @ table[:-1].T``, or with `unit` of the product with the rows scaled to length 1.

    Args:
        dtype: of the large products (None: the query's); sums and exponentials are the query's.
        buffers: kept from step to step; the table's gradient is one of them.
        unit: see `similarity.unit`.
    """
    return _Blocked.apply(query, table, target, dtype or query.dtype, buffers or Buffers(), unit)


class _Blocks:
    """Scores of one block of items after the other, in one buffer."""

    def __init__(self, query: Tensor, table: Tensor, dtype: torch.dtype, buffers: Buffers, unit: bool):
        self.query, self.items, self.dtype, self.unit = query.to(dtype), table.detach()[:-1], dtype, unit
        limit = BLOCK_BYTES.get(query.device.type, 2**28)
        self.size = min(len(self.items), max(64, limit // (4 * len(query))))
        self.place = buffers.matrix("block", 1, len(query) * self.size, query)[0]

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor | None]]:
        """(first item, rows (C, D) as they are compared, scores (B, C), inverse lengths (C,) or None)."""
        for begin in range(0, len(self.items), self.size):
            rows, inverse = self.items[begin : begin + self.size], None
            if self.unit:
                inverse = inverse_length(rows)
                rows = rows * inverse[:, None]
            rows = rows.to(self.dtype)
            scores = self.place[: len(self.query) * len(rows)].view(len(self.query), len(rows))
            if scores.dtype == self.dtype:
                torch.mm(self.query, rows.T, out=scores)
            else:
                scores.copy_(self.query @ rows.T)
            yield begin, rows, scores, inverse


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, table: Tensor, target: Tensor, dtype, buffers: Buffers, unit: bool) -> Tensor:
        top = query.new_full((len(query),), float("-inf"))
        total = torch.zeros_like(top)  # sum of exp(score - top)
        for _, _, scores, _ in _Blocks(query, table, dtype, buffers, unit):
            higher = torch.maximum(top, scores.amax(1))
            total.mul_((top - higher).exp_()).add_(scores.sub_(higher[:, None]).exp_().sum(1))
            top = higher
        log_total = top + total.log()
        chosen = table.detach()[target]
        if unit:
            chosen = chosen * inverse_length(chosen)[:, None]
        ctx.buffers, ctx.table, ctx.dtype, ctx.unit = buffers, table, dtype, unit
        ctx.save_for_backward(query, table, target, log_total)
        return (log_total - (query * chosen).sum(1)).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradient of the queries; that of the table goes straight into ``table.grad``."""
        query, _, target, log_total = ctx.saved_tensors
        into, fresh = open_gradient(ctx.table, ctx.buffers)
        scaled = query * (grad / len(target))  # (B, D)
        weighted, grad_query = scaled.to(ctx.dtype), torch.zeros_like(query)
        for begin, rows, scores, inverse in _Blocks(query, ctx.table, ctx.dtype, ctx.buffers, ctx.unit):
            probs = scores.sub_(log_total[:, None]).exp_().to(ctx.dtype)  # (B, C)
            grad_query += probs @ rows
            place = into[begin : begin + len(rows)]
            if inverse is None and probs.dtype == place.dtype:
                torch.addmm(place, probs.T, weighted, beta=0 if fresh else 1, out=place)
                continue
            block = (probs.T @ weighted).to(place.dtype)
            block = block if inverse is None else tangent(block, rows.to(block.dtype), inverse)
            place.copy_(block) if fresh else place.add_(block)
        chosen, minus = ctx.table.detach()[target], -scaled
        if ctx.unit:
            inverse = inverse_length(chosen)
            chosen = chosen * inverse[:, None]
            minus = tangent(minus, chosen, inverse)
        into.index_add_(0, target, minus)
        return (grad_query - chosen) * (grad / len(target)), None, None, None, None, None
