"""Losses against sampled items, for any encoder: what a step costs does not depend on the catalogue.

Each is a function of the truth's score and of its negatives', and a class that draws the negatives and is what
`losses.LOSSES` names. A negative that is the row's own target by accident is left out (`samplers.accidental_hits`), and
means are over the others: the law of drawing until it is another item.

Shapes: B rows, V items, K negatives of a row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sbr_core.samplers import Noise, accidental_hits

CORRECTIONS = ("corrected", "standard", "none")


class Drawn(NamedTuple):
    """The candidates of a batch.

    Args:
        positive: (B,) scores of the targets.
        negative: (B, K) scores of the negatives.
        kept: (B, K) False where a negative does not count.
        ids: (K,) shared, or (B, K), the negatives.
    """

    positive: Float[Tensor, "B"]
    negative: Float[Tensor, "B K"]
    kept: Bool[Tensor, "B K"]
    ids: Int[Tensor, "*shape"]


def kept_mean(values: Float[Tensor, "B K"], kept: Bool[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Mean over what is kept of a row; 0 where nothing is."""
    return torch.where(kept, values, 0.0).sum(1) / kept.sum(1).clamp(min=1)


def negative_sampling(drawn: Drawn, reduction: str = "mean") -> Float[Tensor, "B"]:
    """:math:`-\\ln\\sigma(s_y) - \\frac1k \\sum_j \\ln\\sigma(-s_j)` ("mean", equation 10.1), or without 1/k ("sum",
    word2vec's).

    The mean is least where :math:`s_t = \\ln p(t|s) - \\ln P_n(t)` for every k; the sum where it is less by ln k.
    """
    noise = kept_mean(F.softplus(drawn.negative), drawn.kept)
    return F.softplus(-drawn.positive) + (noise if reduction == "mean" else noise * drawn.negative.shape[1])


def triplet(drawn: Drawn, margin: float, hardest: bool = False) -> Float[Tensor, "B"]:
    """:math:`\\max(0, m - s_y + s_n)`, mean over the negatives or that of the hardest one (equation 10.3 with scores
    that are minus distances)."""
    violation = F.relu(margin - drawn.positive[:, None] + drawn.negative)
    if hardest:
        return torch.where(drawn.kept, violation, 0.0).amax(1)
    return kept_mean(violation, drawn.kept)


def gbce(drawn: Drawn, beta: float) -> Float[Tensor, "B"]:
    """:math:`-\\frac1{k+1} (\\beta \\ln\\sigma(s_y) + \\sum_j \\ln(1 - \\sigma(s_j)))`.

    The power of the probability is taken as a factor of its logarithm, so nothing overflows: the public code raises
    sigma to -beta, in float64.
    """
    k = drawn.negative.shape[1]
    return (beta * F.softplus(-drawn.positive) + k * kept_mean(F.softplus(drawn.negative), drawn.kept)) / (k + 1)


def sampled_cross_entropy(
    drawn: Drawn,
    log_q: Float[Tensor, "*shape"],
    log_q_target: Float[Tensor, "B"],
    correction: str = "corrected",
    masked: bool = True,
) -> Float[Tensor, "B"]:
    """Cross-entropy with the truth and the negatives in the place of all items.

    "corrected" estimates the softmax's denominator without bias: the truth is in it once, and the others are a mean of
    :math:`e^{s_j} / P(j)`, the law being that of the items other than the truth where hits are masked. Its gradient is
    that of the corrected logQ of 2025: the logQ loss without the truth in the denominator, weighted by 1 - p(y).
    "standard" takes ln P from all scores, the truth's too, as if it had been drawn. "none" takes nothing.

    Args:
        log_q: ln P of the negatives, in the shape of ``drawn.ids``.
        log_q_target: ln P of the targets.
        masked: the truth is no negative of its own row.
    """
    positive, negative = drawn.positive, drawn.negative
    log_q, log_q_target = log_q.to(negative.dtype), log_q_target.to(negative.dtype)
    if correction == "standard":
        positive, negative = positive - log_q_target, negative - log_q
    elif correction == "corrected":
        count = drawn.kept.sum(1).clamp(min=1).to(negative.dtype)
        rest = -log_q_target.exp() if masked else torch.zeros_like(log_q_target)
        negative = negative - log_q + (rest.log1p() - count.log())[:, None]
    negative = negative.masked_fill(~drawn.kept, float("-inf"))
    return torch.cat([positive[:, None], negative], 1).logsumexp(1) - positive


def _check(precision: str, counts: Tensor | None) -> None:
    if precision != "fp32":
        raise ValueError(
            f"precision={precision!r} is written for loss='full'; the logarithms of sampled losses want 'fp32'"
        )
    if counts is None:
        raise ValueError("a sampled loss wants the training clicks of the items (counts)")


@dataclass
class Sampled:
    """What these losses share: where negatives come from.

    Args:
        negatives: k of a row.
        shared: the whole batch has the same ones (one product for all), or every row draws its own.
        alpha: noise is uniform over the catalogue (0), or in proportion to (training clicks) ** alpha.
        mask_hits: a negative that is the row's own target does not count; False is the literal reading.
        counts: (V,) training clicks of the items.
        seed: of the draws.
        precision: "fp32".

    Raises:
        ValueError: naming the argument that is out of range.

    Source: specs of the scalable losses, sections 10.1 and 10.4.
    """

    negatives: int = 512
    shared: bool = True
    alpha: float = 0.0
    mask_hits: bool = True
    counts: Tensor | None = None
    seed: int = 0
    precision: str = "fp32"
    full_catalogue: ClassVar[bool] = False

    def __post_init__(self):
        _check(self.precision, self.counts)
        if not 1 <= self.negatives < len(self.counts):
            raise ValueError(
                f"negatives must lie in 1..{len(self.counts) - 1} (fewer than the {len(self.counts)} items), got "
                f"{self.negatives}; against all items use loss='full'"
            )
        self.noise = Noise(self.counts, self.alpha, self.seed)

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch: its negatives are always the same."""
        self.noise.seek(epoch, step)

    def draw(self, scores: Callable, target: Int[Tensor, "B"]) -> Drawn:
        """The candidates of this step; `scores` is a `losses.Scores`."""
        if self.shared:
            ids = self.noise.draw(self.negatives)
            positive, negative = scores(target[:, None])[:, 0], scores(ids)
        else:
            ids = self.noise.draw(len(target), self.negatives)
            found = scores(torch.cat([target[:, None], ids], 1))  # (B, 1 + K)
            positive, negative = found[:, 0], found[:, 1:]
        kept = ~accidental_hits(ids, target) if self.mask_hits else torch.ones_like(negative, dtype=torch.bool)
        return Drawn(positive, negative, kept, ids)

    def __call__(self, scores: Callable, target: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Mean loss of the batch."""
        return self.rows(self.draw(scores, target), target).mean()

    def rows(self, drawn: Drawn, target: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The loss of every row."""
        raise TypeError(f"{type(self).__name__} does not say what a row loses")


@dataclass
class NegativeSampling(Sampled):
    """`negative_sampling`.

    Args:
        reduction: "mean" (the dissertation) or "sum" (word2vec), over the negatives.
        logq: with alpha > 0, take :math:`\\ln(V P_n)` from the scores before the loss: they then rank by p(t|s), as
            under uniform noise, where this changes nothing. False: they rank by p(t|s) / P_n(t), the literal reading.
    """

    reduction: str = "mean"
    logq: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is 'mean' or 'sum', got {self.reduction!r}")

    def rows(self, drawn: Drawn, target: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """`negative_sampling` of every row."""
        if self.logq and self.alpha:
            against, truth = (self.noise.log_q(ids) + math.log(len(self.counts)) for ids in (drawn.ids, target))
            negative = drawn.negative - against.to(drawn.negative.dtype)
            drawn = drawn._replace(positive=drawn.positive - truth.to(drawn.positive.dtype), negative=negative)
        return negative_sampling(drawn, self.reduction)


@dataclass
class Triplet(Sampled):
    """`triplet`, against one random item by default.

    Which distance is the model's matter: ``similarity="distance"`` as the dissertation prints it, "squared-distance" as
    FaceNet has it, each with ``normalise``. With "dot" this is the hinge loss.

    Args:
        margin: m > 0; 0.5 suits the plain distance on the unit sphere, 0.2 the squared one.
        hardest: of the k negatives, only the one that violates most.
    """

    negatives: int = 1
    shared: bool = False
    margin: float = 0.5
    hardest: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.margin < float("inf"):
            raise ValueError(
                f"margin must be positive, got {self.margin}: without one, equal vectors for all items lose nothing"
            )

    def rows(self, drawn: Drawn, target: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """`triplet` of every row."""
        return triplet(drawn, self.margin, self.hardest)


@dataclass
class GBCE(Sampled):
    """`gbce`, with :math:`\\beta = 1 - t (1 - k / (V - 1))`.

    Args:
        t: calibration, 0 <= t <= 1; 0 is plain binary cross-entropy, 1 makes sigma(s) estimate the softmax.

    Source: Petrov and Macdonald, RecSys 2023 (gSASRec; 256 negatives of each row, t 0.75).
    """

    t: float = 0.75

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.t <= 1:
            raise ValueError(f"t must lie in 0 <= t <= 1, got {self.t}")

    def rows(self, drawn: Drawn, target: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """`gbce` of every row."""
        return gbce(drawn, 1 - self.t * (1 - self.negatives / (len(self.counts) - 1)))


def _check_correction(correction: str) -> None:
    if correction not in CORRECTIONS:
        raise ValueError(f"correction is one of {', '.join(CORRECTIONS)}, got {correction!r}")


@dataclass
class SampledSoftmax(Sampled):
    """`sampled_cross_entropy`.

    Args:
        correction: "corrected", "standard" or "none".

    Source: Bengio and Senecal, 2008; Khrylchenko et al., RecSys 2025 (arXiv:2507.09331).
    """

    alpha: float = 0.5
    correction: str = "corrected"

    def __post_init__(self):
        super().__post_init__()
        _check_correction(self.correction)

    def rows(self, drawn: Drawn, target: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """`sampled_cross_entropy` of every row."""
        log_q, truth = self.noise.log_q(drawn.ids), self.noise.log_q(target)
        return sampled_cross_entropy(drawn, log_q, truth, self.correction, self.mask_hits)


@dataclass
class InBatchSoftmax:
    """`sampled_cross_entropy` against the other rows' targets, which come by popularity.

    Args:
        correction: "corrected", "standard" or "none".
        mask_hits: another row with the same target is no negative.
        counts, precision: as in `Sampled`.
    """

    correction: str = "corrected"
    mask_hits: bool = True
    counts: Tensor | None = None
    precision: str = "fp32"
    full_catalogue: ClassVar[bool] = False
    negatives: ClassVar[int] = 0
    least_rows: ClassVar[int] = 2

    def __post_init__(self):
        _check(self.precision, self.counts)
        _check_correction(self.correction)
        self.noise = Noise(self.counts, 1.0)

    def __call__(self, scores: Callable, target: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Mean loss of the batch."""
        r, log_q = scores(target), self.noise.log_q(target)  # (B, B), (B,)
        own = torch.eye(len(target), dtype=torch.bool, device=target.device)
        kept = ~(accidental_hits(target, target) if self.mask_hits else own)
        drawn = Drawn(r.diagonal(), r, kept, target)
        return sampled_cross_entropy(drawn, log_q, log_q, self.correction, self.mask_hits).mean()
