"""Target attention: every candidate item weighs the clicks of a session for itself, without a vector per candidate.

The score of candidate v is ``sum_i beta_i(v) (u_i . v)``, with ``beta(v) = softmax_i(k_i . v + log c_i)`` over the
slots i of the session. Read literally (TAGNN), one makes the vector ``sum_i beta_i(v) u_i`` of every session and
candidate and multiplies it by v: a (B, V, D) tensor, gigabytes. But the product may go inside the sum. Then a slot and
a candidate need two numbers, ``k_i . v`` and ``u_i . v``, and one matrix product gives both. The sums over all items
run in blocks of C items that stay in the processor's cache. The backward pass makes a block anew; only where two
numbers for every slot and every item take little memory, the loss keeps them and saves a quarter of the products.

Shapes: B sessions, L slots of a session, D width, V items, K candidates, C items of a block, R slots of all sessions.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sbr_core.table import Buffers, lookup, open_gradient

BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**28}  # of one block of products: what the caches of a core hold, or much more
KEPT_BYTES = 2**28  # of the products of all blocks, as long as the loss keeps them for its backward pass
GRAIN = 32  # on a CPU, slots come in such portions, the last ones zero: a bf16 product of a new size is compiled anew
NARROWEST = 256  # items of a block, however many slots there are: thinner products are slow


class Slots(NamedTuple):
    """What the candidates of a session attend over.

    Args:
        keys: k, compared with the candidate.
        values: u, multiplied with the candidate.
        log_weight: log c, how often a slot counts: 0 for a click, log 3 for an item clicked three times, -inf for an
            empty slot. Every session has one slot that is not empty.
    """

    keys: Float[Tensor, "B L D"]
    values: Float[Tensor, "B L D"]
    log_weight: Float[Tensor, "B L"]


def weights(slots: Slots, candidates: Float[Tensor, "*own K D"]) -> Float[Tensor, "B L K"]:
    """beta: how each candidate shares its attention between the slots; sums to 1 over the slots, 0 on empty ones."""
    logits = slots.keys @ candidates.mT + slots.log_weight[..., None]
    return logits.softmax(1)


def score_some(slots: Slots, table: Float[Tensor, "rows D"], ids: Tensor) -> Float[Tensor, "B K"]:
    """Scores of K shared candidates (ids (K,)) or of K candidates each (ids (B, K)), by ordinary autograd."""
    candidates = lookup(table, ids)  # (K, D) or (B, K, D)
    return (weights(slots, candidates) * (slots.values @ candidates.mT)).sum(1)


def score_all(slots: Slots, table: Float[Tensor, "rows D"]) -> Float[Tensor, "B V"]:
    """Scores of all items; the last row of the table is no item."""
    packed = _pack(slots)
    scores = _Scores.apply(packed.rows, table[:-1], packed)
    return scores[packed.order.argsort()]


def softmax_loss(
    slots: Slots,
    table: Float[Tensor, "rows D"],
    target: Int[Tensor, "B"],
    dtype: torch.dtype | None = None,
    buffers: Buffers | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of `score_all`; the table's gradient is written as `sbr_core.table` says.

    Args:
        dtype: of the four large products and the softmax over slots (None: the table's).
        buffers: kept from step to step. As with `table.LinearSoftmax`, the value saturates at 87 nats, and one set of
            buffers serves one forward and backward pass at a time.
    """
    packed = _pack(slots)
    dtype, buffers = dtype or table.dtype, buffers or Buffers()
    return _Softmax.apply(packed.rows, table, target[packed.order], packed, dtype, buffers)


class _Packed(NamedTuple):
    """The slots that are not empty, those of sessions with equally many slots together.

    Within such a group, the first slots of all its sessions come first, then the second slots, and so on: as a tensor,
    a group of b sessions with n slots is (n, b), and the softmax over slots runs over its first axis.
    """

    rows: Float[Tensor, "R2 D"]  # the keys of all slots, then the values of all slots; each ends in zero rows
    log_weight: Float[Tensor, "R 1"]
    groups: list[tuple[int, int]]  # n slots, b sessions
    order: Int[Tensor, "B"]  # which session is where


def _pack(slots: Slots) -> _Packed:
    """Leave out empty slots on a CPU. A GPU would have to wait for their number: there, all slots are one group."""
    take, groups, order = (_all_slots if slots.keys.is_cuda else _sorted_slots)(slots.log_weight)
    keys, values = slots.keys.flatten(0, 1)[take], slots.values.flatten(0, 1)[take]
    idle = 0 if slots.keys.is_cuda else -len(take) % GRAIN
    rows = torch.cat([F.pad(part, (0, 0, 0, idle)) for part in (keys, values)])
    return _Packed(rows, F.pad(slots.log_weight.flatten()[take], (0, idle))[:, None], groups, order)


def _all_slots(log_weight: Float[Tensor, "B L"]) -> tuple[Tensor, list[tuple[int, int]], Tensor]:
    """Which slots are taken, in which groups, and which session is where: the rectangle as it is."""
    B, L = log_weight.shape
    numbers = torch.arange(B * L, device=log_weight.device)
    return numbers.view(B, L).T.flatten(), [(L, B)], numbers[:B]


def _sorted_slots(log_weight: Float[Tensor, "B L"]) -> tuple[Tensor, list[tuple[int, int]], Tensor]:
    """The same for the slots that are not empty, sorted by slots of the session, slot, session."""
    B, L = log_weight.shape
    held = log_weight > -torch.inf
    count, rank = held.sum(1), held.cumsum(1) - 1  # slots of a session, number of a slot in it
    place = (count[:, None] * L + rank) * B + torch.arange(B)[:, None]
    groups = [(n, b) for n, b in enumerate(torch.bincount(count).tolist()) if b]
    take = place.masked_fill(~held, (L + 1) * L * B).flatten().argsort()[: sum(n * b for n, b in groups)]
    return take, groups, count.argsort(stable=True)


class _Scores(torch.autograd.Function):
    """Scores of all items for packed slots, with a closed-form gradient of rows and items."""

    @staticmethod
    def forward(ctx, rows: Tensor, items: Tensor, packed: _Packed) -> Tensor:
        ctx.packed = packed
        scores = rows.new_empty(len(packed.order), len(items))
        _scores(rows, items, packed, scores)
        ctx.save_for_backward(rows, items, scores)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradients of rows and items."""
        rows, items, scores = ctx.saved_tensors
        grad_items = torch.empty_like(items)
        return _gradients(rows, items, ctx.packed, scores, grad, 1.0, grad_items, fresh=True), grad_items, None


class _Softmax(torch.autograd.Function):
    """Mean cross-entropy of these scores; what is kept of them is (B, V): the scores and P - Y.

    If they take at most `KEPT_BYTES`, the products are kept as well, for one backward pass; another makes them anew.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, table: Tensor, target: Tensor, packed: _Packed, dtype, buffers: Buffers) -> Tensor:
        items = table.detach()[:-1]
        if dtype != table.dtype:
            rows, items = rows.to(dtype), buffers.matrix("items", *items.shape, table, dtype).copy_(items)
        scores, probs = (buffers.matrix(name, len(target), len(items), table) for name in ("scores", "probs"))
        few = len(rows) * len(items) * items.element_size() <= KEPT_BYTES
        ctx.kept = buffers.matrix("products", len(rows), len(items), table, dtype).flatten() if few else None
        _scores(rows, items, packed, scores, ctx.kept)
        torch.softmax(scores, dim=1, out=probs)
        chosen = probs.gather(1, target[:, None])
        probs.scatter_(1, target[:, None], chosen - 1)
        ctx.packed, ctx.table, ctx.buffers = packed, table, buffers
        ctx.save_for_backward(rows, items, scores, probs)
        return -chosen.clamp(min=torch.finfo(chosen.dtype).tiny).log().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Gradient of the rows; that of the table goes straight into ``table.grad``."""
        rows, items, scores, residual = ctx.saved_tensors
        into, fresh = open_gradient(ctx.table, ctx.buffers)
        scale, kept, ctx.kept = grad / len(residual), ctx.kept, None
        return _gradients(rows, items, ctx.packed, scores, residual, scale, into, fresh, kept), *[None] * 5


def _blocks(rows: Tensor, items: Tensor, packed: _Packed, kept: Tensor | None = None, ready: bool = False):
    """For each block of items: its range, the products (2R, C), and per group its sessions, beta and u . v (n, b, C).

    Args:
        kept: room for the products of all blocks, one block after the other; None: all blocks use that of one.
        ready: `kept` is filled.
    """
    size = BLOCK_BYTES["cuda" if rows.is_cuda else "cpu"] // (len(rows) * rows.element_size())
    width = min(max(NARROWEST, size // 64 * 64), len(items))
    room = rows.new_empty(len(rows) * width) if kept is None else kept
    for begin in range(0, len(items), width):
        block = items[begin : begin + width]
        start = len(rows) * (0 if kept is None else begin)
        products = room[start : start + len(rows) * len(block)].view(len(rows), -1)
        groups = _groups(products, packed)
        if not ready:
            _fill(products, rows, block, packed.log_weight, groups)
        yield slice(begin, begin + len(block)), products, groups


def _groups(products: Float[Tensor, "R2 C"], packed: _Packed) -> list[tuple[slice, Tensor, Tensor]]:
    """Per group, its sessions and its part of the products: the upper rows are of the keys, the lower of the values."""
    groups, slot, session, R = [], 0, 0, len(products) // 2
    for n, b in packed.groups:
        beta, value = (part[slot : slot + n * b].view(n, b, -1) for part in (products[:R], products[R:]))
        groups.append((slice(session, session + b), beta, value))
        slot, session = slot + n * b, session + b
    return groups


def _fill(products: Tensor, rows: Tensor, block: Tensor, log_weight: Tensor, groups: list) -> None:
    """Write beta to the upper half of the products of a block, u . v to the lower."""
    torch.mm(rows, block.T, out=products)
    products[: len(rows) // 2] += log_weight.to(rows.dtype)
    for _, beta, _ in groups:
        torch.softmax(beta, dim=0, out=beta)


def _scores(rows: Tensor, items: Tensor, packed: _Packed, out: Tensor, kept: Tensor | None = None) -> None:
    """Write the scores of all items to `out` (B, V)."""
    for where, _, groups in _blocks(rows, items, packed, kept):
        for sessions, beta, value in groups:
            torch.sum(beta * value, 0, dtype=out.dtype, out=out[sessions, where])


def _gradients(
    rows: Tensor,
    items: Tensor,
    packed: _Packed,
    scores: Tensor,
    upstream: Tensor,
    scale: Tensor | float,
    into: Tensor,
    fresh: bool,
    kept: Tensor | None = None,
) -> Tensor:
    """Gradient of the rows, for `scale * upstream` (B, V) at the scores; that of the items goes `into` (V, D).

    With s = sum_i beta_i (u_i . v): d(u_i . v) = g beta_i and d(k_i . v) = g beta_i (u_i . v - s). The two overwrite
    beta and u . v, hence they lie in the order values, keys.
    """
    R, other = len(rows) // 2, torch.empty_like(rows)
    torch.mul(rows[R:], scale, out=other[:R])
    torch.mul(rows[:R], scale, out=other[R:])
    grad = torch.empty(rows.shape, dtype=into.dtype, device=rows.device)
    for where, products, groups in _blocks(rows, items, packed, kept, ready=kept is not None):
        s, g = (whole[:, where].to(rows.dtype) for whole in (scores, upstream))
        for sessions, beta, value in groups:
            beta.mul_(g[sessions])
            value.sub_(s[sessions]).mul_(beta)
        _accumulate(grad, products, items[where], fresh=where.start == 0)
        _accumulate(into[where], products.T, other, fresh)
    return torch.cat([grad[R:], grad[:R]]) * scale


def _accumulate(into: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """``into += left @ right``, or ``=`` if it is fresh: what it holds then is not looked at."""
    if into.dtype == left.dtype:
        into.addmm_(left, right, beta=0 if fresh else 1)
    elif fresh:
        into.copy_(left @ right)
    else:
        into.add_(left @ right)
