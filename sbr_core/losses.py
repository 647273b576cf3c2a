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

from sbr_core.blocked_softmax import blocked_softmax
from sbr_core.config import TrainConfig, fits
from sbr_core.ranking_losses import BPR, TOP1, XE, BPRMax, TOP1Max
from sbr_core.sampled_losses import GBCE, InBatchSoftmax, NegativeSampling, SampledSoftmax, Triplet
from sbr_core.samplers import click_counts, target_counts
from sbr_core.sessions import Windows
from sbr_core.similarity import unit
from sbr_core.table import Buffers, LinearSoftmax

KEPT_BYTES = 2**27  # size of (B, V) float32 scores up to which they are held whole: a cap on memory
CHUNKS = torch.nn.LinearCrossEntropyOptions()
FORMS = ("auto", "kept", "blocked", "chunked", "plain")


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

    def directions(self) -> tuple[Tensor, Tensor] | None:
        """(query (B, D), table (V+1, D)) where the scores are their product with the rows scaled to length 1."""
        return self.model.directions(self.query)

    def softmax_loss(self, target: Tensor, dtype: torch.dtype | None, buffers: Buffers) -> Tensor | None:
        """The model's own fused full softmax where it has one, else None."""
        return self.model.softmax_loss(self.query, target, dtype, buffers)


class FullSoftmax:
    """Cross-entropy over the whole catalogue, mean over the batch: ``-log softmax(scores)[target]``.

    Where the scores are a product of queries with the rows of the table, or with the rows scaled to length 1, value and
    gradient come from one fused operation that writes the table's gradient where the optimizer reads it. So they do
    where the model has a fused operation of its own (`softmax_loss`: target attention). Elsewhere it is
    `torch.nn.functional.cross_entropy`.

    Args:
        precision: "fp32", or "bf16": the large products in bfloat16, parameters and sums in float32.
        form: "kept" (`table.LinearSoftmax`: (B, V) probabilities once), "blocked" (`blocked_softmax`, which never holds
            (B, V) scores), "chunked" (`torch.nn.functional.linear_cross_entropy`, which does not either), "plain"
            (`torch.nn.functional.cross_entropy`), or "auto": "kept" up to `KEPT_BYTES` of scores, "blocked" beyond, see
            `form_for`.

    Raises:
        ValueError: on an unknown precision or form, or bf16 in another form than "kept" and "blocked".

    Source: specs of SR-GNN and of every full-softmax system; the papers' binary cross-entropy is used by no public
        code.
    """

    full_catalogue = True

    def __init__(self, precision: str = "fp32", form: str = "auto"):
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is 'fp32' or 'bf16', got {precision!r}")
        if form not in FORMS:
            raise ValueError(f"form is 'auto', 'kept', 'blocked', 'chunked' or 'plain', got {form!r}")
        if precision == "bf16" and form in ("chunked", "plain"):
            raise ValueError(f"precision='bf16' is written for form='kept' and 'blocked', not for form={form!r}")
        self.dtype = torch.bfloat16 if precision == "bf16" else None
        self.form, self.linear_softmax = form, LinearSoftmax()

    def __call__(self, scores: Scores, target: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Mean loss of the batch."""
        if self.form == "plain":
            return F.cross_entropy(scores(), target)
        for pair, on_sphere in (scores.linear(), False), (scores.directions(), True):
            if pair is not None:
                return self.product(*pair, target, on_sphere)
        own = scores.softmax_loss(target, self.dtype, self.linear_softmax.buffers)
        if own is None and self.dtype is not None:
            raise ValueError(
                "precision='bf16' wants a model whose scores are a plain product, or with a softmax of its own; "
                "use 'fp32'"
            )
        return F.cross_entropy(scores(), target) if own is None else own

    def product(
        self, query: Float[Tensor, "B D"], table: Float[Tensor, "rows D"], target: Int[Tensor, "B"], on_sphere: bool
    ) -> Float[Tensor, ""]:
        """Mean loss of a product with the rows of the table, or with these scaled to length 1."""
        form = form_for(len(query), len(table) - 1) if self.form == "auto" else self.form
        if form == "chunked":
            items = unit(table[:-1]) if on_sphere else table[:-1]
            return F.linear_cross_entropy(query, items, target, options=CHUNKS)
        if form == "blocked":
            return blocked_softmax(query, table, target, self.dtype, self.linear_softmax.buffers, on_sphere)
        return self.linear_softmax(query, table, target, self.dtype, on_sphere)


def form_for(batch_size: int, num_items: int) -> str:
    """The form that "auto" takes for a plain product: "kept" up to `KEPT_BYTES` of scores, else "blocked".

    Measured by `sbr study softmax-grid` on two cores, for 32 to 512 rows, widths 64 to 256 and 10^3 to 10^6 items:
    "kept" overtakes "plain" between 10^3 and 10^4 items, and "blocked", which computes the scores twice, overtakes it
    nowhere. So neither batch nor width moves a crossover, and memory decides. On a GPU nobody has measured it:
    `sbr bench --softmax 10000,1000000 --device cuda` does.
    """
    return "blocked" if 4 * batch_size * num_items > KEPT_BYTES else "kept"


LOSSES: dict[str, type] = {
    "full": FullSoftmax,
    "xe": XE,
    "bpr": BPR,
    "top1": TOP1,
    "top1-max": TOP1Max,
    "bpr-max": BPRMax,
    "negative-sampling": NegativeSampling,
    "triplet": Triplet,
    "sampled-softmax": SampledSoftmax,
    "in-batch": InBatchSoftmax,
    "gbce": GBCE,
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
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{type(model).__name__} counts instead of training by a loss: call its fit(sessions)")
    if model.needs_all_items and not LOSSES[config.loss].full_catalogue:
        raise ValueError(
            f"loss={config.loss!r} asks for the scores of some items, but {type(model).__name__} normalises its scores "
            "over all of them: use loss='full'"
        )
    loss = LOSSES[config.loss]
    taken = inspect.signature(loss).parameters
    known = [name for name in taken if name not in GIVEN]
    for name in config.loss_arguments:
        if name not in known:
            raise ValueError(f"loss={config.loss!r} has no argument {name!r}; it has {', '.join(known)}")
        kind, value = taken[name].annotation, config.loss_arguments[name]
        if not fits(value, kind) and not (type(value) is int and isinstance(1.0, kind)):
            raise ValueError(f"loss={config.loss!r}: {name} is {getattr(kind, '__name__', kind)}, got {value!r}")
    given = {"precision": config.precision}
    if not loss.full_catalogue:
        counts = (target_counts if getattr(loss, "counts_targets", False) else click_counts)(train)
        given |= {"counts": counts, "seed": config.seed, "batch_size": config.batch_size}
    return loss(**{name: value for name, value in given.items() if name in taken}, **config.loss_arguments)


def least_rows(loss: object) -> int:
    """Fewest rows of a batch that the loss can use: 2 where the other rows' targets are all its negatives."""
    return getattr(loss, "least_rows", 1)


def seek(loss: object, epoch: int, step: int) -> None:
    """Tell a loss that draws items which step is next, so that every step has its own draws, resumed or not."""
    if hasattr(loss, "seek"):
        loss.seek(epoch, step)
