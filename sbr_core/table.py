"""The two ways of using an item table, look-up and full softmax, with a gradient that is written once and in place.

The table's gradient is as large as the table. Left to autograd, a step would allocate it twice (one dense gradient
from the softmax, one from the look-up) and add the two: more time than the mathematics. Here the softmax writes its
gradient into a buffer that outlives the step, and the look-up adds its few rows to that buffer. So
``loss.backward()`` leaves the sum in ``table.grad`` as always, and repeated calls accumulate; `torch.autograd.grad`
with respect to the table is not supported beside a full softmax. Without a full softmax, the look-up's gradient is an
ordinary sparse one, as SparseAdam wants it.

Shapes: B sessions, D width, V items; a table is (V + 1, D), its last row the padding.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbr_core.similarity import inverse_length, tangent

NARROW_VECTORS = torch.backends.cpu.get_cpu_capability() == "AVX2"
CACHE_LINE = 64  # bytes
BLOCK_ITEMS = 2048  # there, a step of SR-GNN takes 0.96 of its time on two threads and 0.89 on one; elsewhere, more


@torch.compiler.disable  # writes gradients in place: the compiler is not to trace it
def lookup(table: Float[Tensor, "rows D"], ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
    """Rows of the table."""
    return _Lookup.apply(table, ids)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, ids: Tensor) -> Tensor:
        ctx.table = table
        ctx.save_for_backward(ids)
        return torch.nn.functional.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """The looked-up rows' gradient: added to the dense one in place, or sparse."""
        (ids,) = ctx.saved_tensors
        table, rows = ctx.table, grad.reshape(-1, grad.shape[-1])
        if table.grad is not None and not table.grad.is_sparse:
            table.grad.index_add_(0, ids.flatten(), rows)
            return None, None
        return torch.sparse_coo_tensor(ids.reshape(1, -1), rows, table.shape, check_invariants=False), None


class Buffers:
    """Large matrices that are used again at the next step instead of being allocated (and paged in) anew."""

    def __init__(self):
        self.held: dict[str, Tensor] = {}

    def matrix(self, name: str, rows: int, columns: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised (rows, columns) matrix on the device of `like`: the last one of this name, if it fits."""
        dtype = dtype or like.dtype
        held = self.held.get(name)
        fits = held is not None and (held.dtype, held.device, held.shape[1]) == (dtype, like.device, columns)
        if not fits or len(held) < rows:
            held = self.held[name] = torch.empty(rows, columns, dtype=dtype, device=like.device)
        return held[:rows]


class LinearSoftmax:
    """Mean cross-entropy of ``query @ table[:-1].T``, or of the product with rows scaled to length 1, in kept buffers.

    With P = softmax(logits) and Y the one-hot targets: d query = (P - Y) table / B, d table = (P - Y)^T query / B. The
    one-hot part is a handful of rows, so P is used as it is and these rows are added afterwards. The value is read
    off P at the target; it saturates at 87 nats, where P underflows (the gradient does not).

    One object serves one forward and backward pass at a time: a second forward pass reuses P, and a backward pass
    of the first would then raise.
    """

    def __init__(self):
        self.buffers = Buffers()

    def __call__(
        self,
        query: Float[Tensor, "B D"],
        table: Float[Tensor, "rows D"],
        target: Int[Tensor, "B"],
        dtype: torch.dtype | None = None,
        unit: bool = False,
    ) -> Float[Tensor, ""]:
        """Mean loss.

        Args:
            dtype: of the three large products and of P (None: the query's).
            unit: scale the rows of the table to length 1, see `similarity.unit`; takes a copy of the table.
        """
        return _LinearSoftmax.apply(query, table, target, dtype or query.dtype, self.buffers, unit)


class _LinearSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, table: Tensor, target: Tensor, dtype, buffers: Buffers, unit: bool) -> Tensor:
        items = table.detach()[:-1]
        inverse = inverse_length(items) if unit else None  # (V,)
        if dtype != table.dtype or unit:
            copy = buffers.matrix("items", *items.shape, table, dtype)
            items = torch.mul(items, inverse[:, None], out=copy) if unit else copy.copy_(items)
        queries, wide = query.to(dtype), _wide(buffers, len(query), len(items), table, dtype)
        probs = wide[:, : len(items)]  # (B, V): the logits first, and P in their place: half the memory traffic
        for some in blocks(items):
            torch.mm(queries, items[some].T, out=probs[:, some])
        torch.softmax(wide, dim=1, out=wide)
        ctx.buffers, ctx.table = buffers, table
        ctx.save_for_backward(query, items, target, probs, inverse)
        chosen = probs.gather(1, target[:, None]).to(query.dtype)
        return -chosen.clamp(min=torch.finfo(query.dtype).tiny).log().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradient of the queries; that of the table goes straight into ``table.grad``."""
        query, items, target, probs, inverse = ctx.saved_tensors
        scale = grad / len(target)
        scaled, chosen = query.detach() * scale, ctx.table.detach()[target]  # (B, D)
        minus, right = -scaled, scaled.to(probs.dtype)
        if inverse is not None:
            lengths = inverse[target]
            chosen = chosen * lengths[:, None]
            minus = tangent(minus, chosen, lengths)
        into, fresh = open_gradient(ctx.table, ctx.buffers)
        for some in blocks(items):
            if inverse is None:
                _write(into[some], fresh, probs[:, some].T, right, ctx.buffers)
                continue
            block = torch.mm(probs[:, some].T, right).to(into.dtype)
            block = tangent(block, items[some].to(into.dtype), inverse[some])
            into[some] = block if fresh else into[some] + block
        into.index_add_(0, target, minus)
        return ((probs @ items).to(query.dtype) - chosen) * scale, None, None, None, None, None


def _wide(buffers: Buffers, rows: int, items: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A kept matrix for logits, with a few columns of -inf behind them where that makes its rows begin on cache lines.

    That is on a CPU: the float32 products that write or read such rows take 0.83 to 0.98 of their time, and a step of
    SR-GNN 0.95 (measured with `BLOCK_ITEMS`). In bfloat16 and on a GPU it was not measured, and is not done.
    """
    spare = 0 if like.is_cuda or dtype == torch.bfloat16 else -items % (CACHE_LINE // dtype.itemsize)
    wide = buffers.matrix("probs", rows, items + spare, like, dtype)
    wide[:, items:] = -torch.inf
    return wide


def open_gradient(table: Tensor, buffers: Buffers) -> tuple[Tensor, bool]:
    """The items' rows of ``table.grad``, and whether they are fresh: in the kept buffer, waiting to be overwritten."""
    fresh = table.grad is None
    if fresh:
        table.grad = buffers.matrix("grad", *table.shape, table)
        table.grad[-1] = 0
    return table.grad[:-1], fresh


def _write(into: Tensor, fresh: bool, left: Tensor, right: Tensor, buffers: Buffers) -> None:
    """``into += left @ right``, or ``=`` if it is fresh: what it holds then is not looked at."""
    if not fresh:
        into.add_(torch.mm(left, right))
    elif left.dtype == into.dtype:
        torch.mm(left, right, out=into)
    else:
        into.copy_(torch.mm(left, right, out=buffers.matrix("half", *into.shape, into, left.dtype)))


def blocks(items: Tensor) -> Iterator[slice]:
    """The items in blocks for the large products: all at once, but on a processor with narrow vectors."""
    whole = items.is_cuda or items.dtype == torch.bfloat16 or not NARROW_VECTORS
    size = len(items) if whole else BLOCK_ITEMS
    return (slice(begin, begin + size) for begin in range(0, len(items), size))
