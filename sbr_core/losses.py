"""Losses: functions of scores and targets, blind to models and item tables.

A loss is called with a `Scores` object and the targets. It asks for the scores it wants: of all items, or of some.

Shapes: B sessions, D width, V items, K candidates.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sbr_core.table import LinearSoftmax

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


class FullSoftmax:
    """Cross-entropy over the whole catalogue, mean over the batch: ``-log softmax(scores)[target]``.

    Where the scores are a plain product of queries and table, value and gradient come from one fused operation that
    holds the (B, V) probabilities once and writes the table's gradient where the optimizer reads it. Elsewhere it is
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
            if self.dtype is not None:
                raise ValueError("precision='bf16' wants a model whose scores are a plain product; use 'fp32'")
            return F.cross_entropy(scores(), target)
        query, table = pair
        large = len(query) * len(table) * 4 > KEPT_BYTES
        if self.form == "chunked" or (self.form == "auto" and large and self.dtype is None):
            return F.linear_cross_entropy(query, table[:-1], target, options=CHUNKS)
        return self.linear_softmax(query, table, target, self.dtype)
