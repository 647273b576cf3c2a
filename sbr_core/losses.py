"""Losses: functions of scores and targets, blind to models and item tables.

A loss is called with a `Scores` object and the targets. It asks for the scores it wants: of all items, or of some.

Shapes: B sessions, D width, V items, K candidates.
"""

import inspect
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sbr_core.config import TrainConfig
from sbr_core.ranking_losses import BPR, TOP1, XE, BPRMax, TOP1Max
from sbr_core.samplers import click_counts
from sbr_core.sessions import Windows
from sbr_core.table import Buffers, LinearSoftmax

KEPT_BYTES = 2**30  # size of (B, V) float32 scores up to which they are held whole
CHUNKS = torch.nn.LinearCrossEntropyOptions()


@dataclass(frozen=True)
class Scores:
    """The scoring function of one batch: ``scores()`` is (B, V), ``scores(ids)`` is (B, K).

    Args:
        model: anything with ``score(query, ids)``.
        query: what ``model.encode`` returned for the batch.
    """

    model: torch.nn.Module
    query: object

    def __call__(self, ids: Tensor | None = None) -> Tensor:
        return self.model.score(self.query, ids)

    def linear(self) -> tuple[Tensor, Tensor] | None:
        """(query (B, D), table (V+1, D)) where the scores are their plain product, else None."""
        return self.model.linear(self.query)

    def softmax_loss(self, target: Tensor, dtype: torch.dtype | None, buffers: Buffers) -> Tensor | None:
        """The model's own fused full softmax where it has one, else None."""
        return self.model.softmax_loss(self.query, target, dtype, buffers)


class FullSoftmax:
    """Cross-entropy over the whole catalogue, mean over the batch: ``-log softmax(scores)[target]``.

    Where the scores are a plain product of queries and table, value and gradient come from one fused operation that
    holds the (B, V) probabilities once and writes the table's gradient where the optimizer reads it. So it is where the
    model has a fused operation of its own (`softmax_loss`: target attention). Elsewhere it is
    `torch.nn.functional.cross_entropy`.

    Args:
        precision: "fp32", or "bf16": the three large products and the softmax in bfloat16, parameters and sums in
            float32.
        form: "kept" (`table.LinearSoftmax`), "chunked" (`torch.nn.functional.linear_cross_entropy`, which never holds
            (B, V) scores), "plain" (`torch.nn.functional.cross_entropy`), or "auto": "kept" up to `KEPT_BYTES` of
            scores and "chunked" beyond, as measured by `sbr bench --softmax`.

    Raises:
        ValueError: on an unknown precision or form, or bf16 in another form than "kept".

    Source: specs of SR-GNN and of every full-softmax system; the papers' binary cross-entropy is used by no public
        code.
    """

    full_catalogue = True

    def __init__(self, precision: str = "fp32", form: str = "auto"):
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is 'fp32' or 'bf16', got {precision!r}")
        if form not in ("auto", "kept", "chunked", "plain"):
            raise ValueError(f"form is 'auto', 'kept', 'chunked' or 'plain', got {form!r}")
        if precision == "bf16" and form in ("chunked", "plain"):
            raise ValueError(f"precision='bf16' is written for form='kept', not for form={form!r}")
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self.form, self.linear_softmax = form, LinearSoftmax()

    def __call__(self, scores: Scores, target: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Mean loss of the batch."""
        pair = None if self.form == "plain" else scores.linear()
        if pair is None:
            own = None if self.form == "plain" else scores.softmax_loss(target, self.dtype, self.linear_softmax.buffers)
            if own is None and self.dtype is not None:
                raise ValueError(
                    "precision='bf16' wants a model whose scores are a plain product, or with a softmax of its own; "
                    "use 'fp32'"
                )
            return F.cross_entropy(scores(), target) if own is None else own
        query, table = pair
        large = len(query) * len(table) * 4 > KEPT_BYTES
        if self.form == "chunked" or (self.form == "auto" and large and self.dtype is None):
            return F.linear_cross_entropy(query, table[:-1], target, options=CHUNKS)
        return self.linear_softmax(query, table, target, self.dtype)


LOSSES: dict[str, type] = {
    "full": FullSoftmax,
    "xe": XE,
    "bpr": BPR,
    "top1": TOP1,
    "top1-max": TOP1Max,
    "bpr-max": BPRMax,
}
GIVEN = ("precision", "counts", "seed", "batch_size")  # what a loss gets from the run, not from loss_arguments


def make_loss(model: torch.nn.Module, config: TrainConfig, train: Windows):
    """The loss that a configuration names.

    Args:
        train: the examples; a loss that draws items is told how often each is clicked in them.

    Raises:
        ValueError: if there is no such loss, or it has no such argument, or the model refuses it.
    """
    if config.loss not in LOSSES:
        raise ValueError(f"there is no loss {config.loss!r}; the losses are {', '.join(LOSSES)}")
    if model.needs_all_items and not LOSSES[config.loss].full_catalogue:
        raise ValueError(
            f"loss={config.loss!r} asks for the scores of some items, but {type(model).__name__} normalises its scores "
            "over all of them: use loss='full'"
        )
    loss = LOSSES[config.loss]
    known = [name for name in inspect.signature(loss).parameters if name not in GIVEN]
    for name in config.loss_arguments:
        if name not in known:
            raise ValueError(f"loss={config.loss!r} has no argument {name!r}; it has {', '.join(known)}")
    given = {"precision": config.precision}
    if not loss.full_catalogue:
        given |= {"counts": click_counts(train), "seed": config.seed, "batch_size": config.batch_size}
    return loss(**given, **config.loss_arguments)


def least_rows(loss: object) -> int:
    """Fewest rows of a batch that the loss can use: 2 where the other rows' targets are all its negatives."""
    return getattr(loss, "least_rows", 1)


def seek(loss: object, epoch: int, step: int) -> None:
    """Tell a loss that draws items which step is next, so that every step has its own draws, resumed or not."""
    if hasattr(loss, "seek"):
        loss.seek(epoch, step)
