"""Losses against sampled items, for any encoder: what a step costs does not depend on the catalogue.

Each is a function of the truth's score and of its negatives' (`row_losses`), and a class that draws the negatives and
is what `losses.LOSSES` names. A negative that is the row's own target by accident is left out
(`samplers.accidental_hits`), and means are over the others: the law of drawing until it is another item.

Shapes: B rows, V items, K negatives of a row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sbr_core.row_losses import CORRECTIONS, Drawn, gbce, negative_sampling, sampled_cross_entropy, triplet
from sbr_core.samplers import Noise, accidental_hits


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
        negatives: k of a row; None is 512, or all other items of a smaller catalogue. The specs recommend 20 of each
            row as the literal reading; 512 of the batch are one product and cost less.
        shared: the whole batch has the same ones (one product for all), or every row draws its own.
        alpha: noise is uniform over the catalogue (0), or in proportion to (training clicks) ** alpha.
        mask_hits: a negative that is the row's own target does not count; False is the literal reading. The specs
            recommend to draw another item in its place; leaving it out follows the same law without a second draw,
            with fewer than k negatives in such a row. What it changes in the optimum is in `row_losses`.
        counts: (V,) training clicks of the items.
        seed: of the draws.
        precision: "fp32".

    Raises:
        ValueError: naming the argument that is out of range.

    Source: specs of the scalable losses, sections 10.1 and 10.4.
    """

    negatives: int | None = None
    shared: bool = True
    alpha: float = 0.0
    mask_hits: bool = True
    counts: Tensor | None = None
    seed: int = 0
    precision: str = "fp32"
    full_catalogue: ClassVar[bool] = False

    def __post_init__(self):
        _check(self.precision, self.counts)
        if self.negatives is None:
            self.negatives = min(512, len(self.counts) - 1)
        most = len(self.counts) - 1
        if not 1 <= self.negatives <= most:
            raise ValueError(
                f"negatives must lie in 1..{most} (fewer than the {most + 1} items), got {self.negatives}; --config "
                f"'loss_arguments={{\"negatives\":{most}}}' draws as many as there are; against all items use "
                "loss='full' (--loss full)"
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

    On the unit sphere the model's scale is 16 unless it is given, one default for all losses; the specs recommend 10
    here (``scale=10``).

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
        margin: gamma > 0; 0.5 suits the plain distance on the unit sphere. The specs recommend 0.2 for the squared one:
            set it, the loss does not know which similarity the model has.
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
        correction: "standard", "corrected" or "none". "standard" is least at ln p(t|s) for every k with
            ``mask_hits=False``, and with the default for k * P(y) << 1 (a large catalogue); "corrected" wants the
            default, and many negatives.

    Source: Bengio and Senecal, 2008; Ma and Collins, EMNLP 2018; Khrylchenko et al., RecSys 2025 (arXiv:2507.09331).
    """

    alpha: float = 0.5
    correction: str = "standard"

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
        correction: "standard", "corrected" or "none".
        mask_hits: another row with the same target is no negative.
        counts: (V,) how often every item is a target of the examples: the law of the negatives.
        precision: as in `Sampled`.
    """

    correction: str = "standard"
    mask_hits: bool = True
    counts: Tensor | None = None
    precision: str = "fp32"
    full_catalogue: ClassVar[bool] = False
    counts_targets: ClassVar[bool] = True
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
