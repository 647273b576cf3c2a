"""One item table over several processes: each holds a share of its rows, of their optimizer state and of the softmax.

The encoder is small and stands whole on every rank; a rank encodes its share of every batch. The table is large and
stands nowhere whole: rank r of R holds the items ``[r V / R, (r + 1) V / R)``. Three things cross the wire:

* look-up: every rank hears the ids of all, gives the rows it owns and zeros for the others, and the sum goes round;
* softmax: every rank hears the queries of all, scores them against its own rows, and the ranks add up three numbers a
  session: the largest score, the sum of exponentials, and the target's score (only one rank has it);
* update: the gradients of the encoder are added up; those of the table stay where the rows are.

Shapes: R ranks, b sessions of this rank's share, B = R b of the batch, L positions, D width, V items, n items of this
rank.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sbr_core.batches import Batch
from sbr_core.models.base import SessionModel
from sbr_core.similarity import compare
from sbr_core.table import Buffers, lookup, open_gradient


def rows_of(rank: int, ranks: int, num_items: int) -> tuple[int, int]:
    """First item of a rank, and the one after its last: shares that differ by one item at most."""
    return rank * num_items // ranks, (rank + 1) * num_items // ranks


class ShardedTable(SessionModel):
    """What `shard` puts before the class of a model: look-ups and softmax of a table of which a rank has n rows.

    The local table is (n + 1, D); its last row stands for all items of other ranks and for padding, and is never read.
    So ``score(query, ids)`` fetches the rows of its candidates, and ``score(query)`` is (b, n), of the own items only.
    """

    @property
    def own_rows(self) -> tuple[int, int]:
        """First own item and the one after the last."""
        return rows_of(dist.get_rank(), dist.get_world_size(), self.num_items)

    def localised(self, ids: Int[Tensor, "*shape"]) -> tuple[Tensor, Tensor]:
        """Local row of every item (n where another rank has it, and for padding), and whether it is here."""
        begin, end = self.own_rows
        here = (ids >= begin) & (ids < end)
        return torch.where(here, ids - begin, end - begin), here

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Rows of the whole table, zeros for padding; a collective: all ranks call it with ids of one shape."""
        local, here = self.localised(gathered(ids))  # (R, *shape)
        rows = lookup(self.table, local) * here[..., None]  # (R, *shape, D), zeros for what others have
        return _SumOfMine.apply(rows)

    def score_rows(self, query: Float[Tensor, "b D"], local: Tensor) -> Float[Tensor, "b K"]:
        """Scores of local rows, K shared ones (K,) or K for each query (b, K); nothing crosses the wire."""
        rows = self._side(lookup(self.table, local))
        return self.scale * compare(self._side(query), rows, self.similarity)

    def linear(self, query: Float[Tensor, "b D"]) -> None:
        """None: no rank has the table."""
        return None

    def directions(self, query: Float[Tensor, "b D"]) -> None:
        """None: no rank has the table."""
        return None

    def search_items(self) -> None:
        """None: no rank has all items."""
        return None

    def softmax_loss(
        self, query: Float[Tensor, "b D"], target: Int[Tensor, "b"], dtype: torch.dtype | None, buffers: Buffers
    ) -> Float[Tensor, ""] | None:
        """Mean cross-entropy over all items and over the sessions of all ranks: the same number on every rank.

        Its backward pass gives a rank the gradient of its own queries and of its own rows. Scores that are no plain
        product are left to autograd, which holds several (B, n) matrices of them; in bf16 that is None: not written.
        """
        plain = self.similarity == "dot" and not self.normalise
        if dtype is not None and not plain:
            return None
        queries, targets = gather_queries(query), gathered(target).flatten()
        local, here = self.localised(targets)
        if plain:
            queries = queries if self.scale == 1 else queries * self.scale
            return _ShardedSoftmax.apply(queries, self.table, local, here, dtype or query.dtype, buffers)
        scores = self.score(queries)  # (B, n)
        truth = scores.gather(1, local.clamp(max=scores.shape[1] - 1)[:, None])[:, 0]
        return cross_entropy(scores, torch.where(here, truth, 0.0))


def shard(model: nn.Module) -> SessionModel:
    """Keep this rank's rows of the item table, in place; every rank calls it with the same model.

    The model's class becomes one of its own with `ShardedTable` before it, as `torch.distributed.fsdp.fully_shard` does
    it; parameters keep their names.

    Raises:
        ValueError: if the scores are more than a comparison of one query with the rows, or the model keeps a state of
            its own: naming what stands in the way.
        RuntimeError: if no process group has been made.
    """
    refused = _obstacle(model)
    if refused:
        raise ValueError(f"the table of {type(model).__name__} cannot be shared out over ranks: {refused}")
    begin, end = rows_of(dist.get_rank(), dist.get_world_size(), model.num_items)
    kept = torch.zeros(end - begin + 1, model.dim, dtype=model.table.dtype, device=model.table.device)
    kept[:-1] = model.table.detach()[begin:end]
    model.table = nn.Parameter(kept)
    model.__class__ = type(f"Sharded{type(model).__name__}", (ShardedTable, type(model)), {})
    return model


def _obstacle(model: nn.Module) -> str:
    """What stands in the way of sharing out the table of this model; empty if nothing does."""
    kind = type(model)
    if not isinstance(model, SessionModel):
        return "it has none, it counts instead of training by a loss"
    if kind.score is not SessionModel.score or kind.linear is not SessionModel.linear or not model.plain_product:
        return "its scores do not compare one query vector with the rows of the item table"
    if kind.embed is not SessionModel.embed or model.looked_up or model.carries_state:
        return "it has further tables, or a state that goes from batch to batch"
    if kind.prepare is not SessionModel.prepare or list(model.buffers()):
        return "it keeps sessions or states of its own, which each rank would fill differently"
    if any(getattr(kind, name) is not getattr(SessionModel, name) for name in ("extra_loss", "auxiliary_tasks")):
        return "it has training terms beside the loss"
    return ""


def share(batch: Batch) -> Batch | None:
    """This rank's part of a batch; the last rows that do not fill all ranks are left out (None if none is left)."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    size = len(batch) // ranks
    if size == 0:
        return None
    mine = slice(rank * size, (rank + 1) * size)
    return Batch(batch.items[mine], batch.lengths[mine], batch.target[mine])


def add_up_gradients(model: SessionModel) -> None:
    """Add up the encoder's gradients over the ranks, in one message; those of the table are complete where they are."""
    grads = [p.grad for p in model.parameters() if p.grad is not None and p is not model.table]
    if not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


@torch.no_grad()
def rank_targets(model: SessionModel, batch: Batch) -> Float[Tensor, "B"]:
    """Rank of every target among all V items, ties counted before it; every rank gives the same batch and gets all.

    A rank counts the items that it owns; the counts add up, so the ranks are exact.

    Raises:
        ValueError: on every rank, if a score is NaN on one of them.
    """
    query = model.encode(batch)
    mine = model.score(query, batch.target[:, None])  # (B, 1)
    scores = model.score(query)  # (B, n)
    local, here = model.localised(batch.target)
    column = local.clamp(max=scores.shape[1] - 1)[:, None]
    scores.scatter_(1, column, torch.where(here[:, None], mine, scores.gather(1, column)))  # the same sum, bit for bit
    count = torch.stack([(scores >= mine).sum(1), scores.amax(1).isnan()])  # (2, B)
    dist.all_reduce(count)
    if bool(count[1].any()):
        raise ValueError("a score is NaN: the model has diverged, its ranks mean nothing")
    return count[0].float()


def gathered(mine: Int[Tensor, "*shape"]) -> Int[Tensor, "R *shape"]:
    """The tensors of all ranks, one after another."""
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mine.contiguous())
    return torch.stack(parts)


def gather_queries(mine: Float[Tensor, "b D"]) -> Float[Tensor, "B D"]:
    """The queries of all ranks. Each rank's loss may use all of them against its own rows: gradients add up."""
    return _Gathered.apply(mine).flatten(0, 1)


def cross_entropy(scores: Float[Tensor, "B k"], truth: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """Mean of ln sum exp(scores), over the candidates of all ranks, less the truth's score; the same on every rank.

    Args:
        scores: of this rank's candidates.
        truth: the target's score on the rank that has its row, 0 elsewhere.
    """
    return (_LogSumExp.apply(scores.logsumexp(1)) - _Sum.apply(truth)).mean()


class _Gathered(torch.autograd.Function):
    """(b, D) of this rank -> (R, b, D) of all; backward: every rank has a part of the gradient of each, they add up."""

    @staticmethod
    def forward(ctx, mine: Tensor) -> Tensor:
        return gathered(mine)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """The own part of the sum."""
        total = grad.contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]


class _SumOfMine(torch.autograd.Function):
    """(R, *shape, D), a rank's contributions to what every rank asked for -> the sum of all to what this one asked for;
    backward: every rank hears the gradients of all."""

    @staticmethod
    def forward(ctx, contributions: Tensor) -> Tensor:
        total = contributions.clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """Those of all ranks, one after another."""
        return gathered(grad)


class _LogSumExp(torch.autograd.Function):
    """ln sum_r exp(x_r) over the ranks; every rank goes on with the same result, and gets its own gradient."""

    @staticmethod
    def forward(ctx, mine: Tensor) -> Tensor:
        largest = mine.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        total = (mine - largest).exp()
        dist.all_reduce(total)
        total = total.log() + largest
        ctx.save_for_backward(mine, total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """The rank's share of the sum."""
        mine, total = ctx.saved_tensors
        return grad * (mine - total).exp()


class _Sum(torch.autograd.Function):
    """The sum over the ranks; every rank goes on with the same result, and gets its own gradient."""

    @staticmethod
    def forward(ctx, mine: Tensor) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """That of the sum."""
        return grad


class _ShardedSoftmax(torch.autograd.Function):
    """Mean cross-entropy with the rows of the table shared out; the table's gradient is written as `table` says."""

    @staticmethod
    def forward(ctx, query: Tensor, table: Tensor, local: Tensor, here: Tensor, dtype, buffers: Buffers) -> Tensor:
        items = table.detach()[:-1].to(dtype)
        room = buffers.matrix("probs", len(query), len(items), table, dtype)
        probs = torch.mm(query.to(dtype), items.T, out=room).to(table.dtype)  # (B, n) scores
        column = local.clamp(max=max(len(items) - 1, 0))[:, None]
        truth = torch.where(here, probs.gather(1, column)[:, 0], 0.0)
        largest = probs.amax(1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        torch.exp(probs.sub_(largest[:, None]), out=probs)
        sums = torch.stack([probs.sum(1), truth])  # (2, B)
        dist.all_reduce(sums)
        probs /= sums[0][:, None]
        probs.scatter_add_(1, column, -here[:, None].to(probs.dtype))  # P - Y, all that the gradient wants
        ctx.table, ctx.buffers = table, buffers
        ctx.save_for_backward(query, items, probs)
        return (sums[0].log() + largest - sums[1]).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """This rank's part of the gradient of all queries; that of its rows goes straight into ``table.grad``."""
        query, items, residual = ctx.saved_tensors
        scale, residual = grad / len(query), residual.to(items.dtype)
        into, fresh = open_gradient(ctx.table, ctx.buffers)
        product = (residual.T @ (query * scale).to(items.dtype)).to(into.dtype)
        (into.copy_ if fresh else into.add_)(product)
        return (residual @ items).to(query.dtype) * scale, *[None] * 5
