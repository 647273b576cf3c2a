"""Sampled softmax over a table whose rows are shared out: every rank draws negatives among its own rows.

No vector of an item crosses the wire: the queries go round, as for the full softmax, and two numbers a session are
added up.

Shapes: R ranks, B sessions of the batch (of all ranks), D width, V items, k negatives of a rank.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from sbr_core.losses import Scores
from sbr_core.samplers import Noise, mixed
from sbr_core.sharded import cross_entropy, gather_queries, gathered, rows_of


@dataclass
class LocalSampledSoftmax:
    """Cross-entropy of the target against itself and, on every rank, k items of that rank.

    A rank's negatives estimate the sum of exponentials over its own rows, each weighted by 1 / (k q) where q is the law
    on that rank; the estimates add up to one of the whole denominator, without bias. The target is in it once, exactly,
    on the rank that owns it, and is no negative of itself there. As the logarithm of an unbiased estimate is biased, it
    wants many negatives: with a few it is least elsewhere than the full softmax (see `row_losses`).

    Args:
        negatives: of all ranks together, at least one on each.
        alpha: noise within a rank is uniform (0), or in proportion to (training clicks) ** alpha.
        counts: (V,) training clicks of all items.
        seed: of the draws.

    Raises:
        ValueError: if a rank would draw nothing, or more than the items it has.

    Source: specs of the scalable losses, section 10.4, with strata; the correction is that of
        `sampled_losses.sampled_cross_entropy`, "corrected".
    """

    negatives: int
    counts: Int[Tensor, "V"]
    alpha: float = 0.5
    seed: int = 0
    full_catalogue: ClassVar[bool] = False
    collective: ClassVar[bool] = True  # the value is that of the whole batch, the same on every rank

    def __post_init__(self):
        rank, ranks = dist.get_rank(), dist.get_world_size()
        begin, end = rows_of(rank, ranks, len(self.counts))
        self.k = self.negatives // ranks
        fewest = len(self.counts) // ranks  # items of a rank: the same number, and the same answer, on all of them
        if not 1 <= self.k < fewest:
            raise ValueError(
                f"{self.negatives} negatives on {ranks} ranks are {self.k} of the {fewest} items of a rank: at least 1 "
                "and fewer than all of them can be drawn"
            )
        self.noise = Noise(self.counts[begin:end], self.alpha, mixed(self.seed, rank))

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch: its negatives are always the same."""
        self.noise.seek(epoch, step)

    def __call__(self, scores: Scores, target: Int[Tensor, "b"]) -> Float[Tensor, ""]:
        """Mean loss of the batch of all ranks; the same number on every rank."""
        model, queries = scores.model, gather_queries(scores.query)  # (B, D)
        local, here = model.localised(gathered(target).flatten())  # (B,), (B,)
        ids = self.noise.draw(self.k)  # (k,), counted from this rank's first item
        truth = torch.where(here, model.score_rows(queries, local[:, None])[:, 0], 0.0)  # (B,)
        negative = model.score_rows(queries, ids)  # (B, k)
        kept = ~(here[:, None] & (ids == local[:, None]))
        own = torch.where(here, self.noise.log_q(local.clamp(max=len(self.counts) - 1) * here).exp(), 0.0)
        law = self.noise.log_q(ids) - torch.log1p(-own)[:, None]  # ln q of the items other than the truth
        negative = negative - law - kept.sum(1, keepdim=True).clamp(min=1).log()
        negative = negative.masked_fill(~kept, -torch.inf)
        first = truth.masked_fill(~here, -torch.inf)[:, None]
        return cross_entropy(torch.cat([first, negative], 1), truth)
