"""The losses of GRU4Rec: the truth against the other rows' targets and samples that the whole batch shares.

A row's scores are one row of a matrix: the first B columns are the batch's targets, with the row's own on the diagonal;
the N columns behind them are sampled items. The functions turn such a matrix into one loss a row; the classes choose
the candidates and are what `losses.LOSSES` names.

Shapes: B rows, V items, N samples, K = B + N candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sbr_core.samplers import Negatives, accidental_hits

MOST_SAMPLES = 2048  # of a step, where no number is given
TINY = 1e-24  # inside the logarithms, as in the public code


def cross_entropy(r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """:math:`-\\ln(\\text{softmax}_j(r_b)_b + 10^{-24})` over all candidates (equation 4.7 of the specs)."""
    return -(r.softmax(1).diagonal() + TINY).log()


def bpr(r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Mean of :math:`-\\ln\\sigma(r_{bb} - r_{bj})` over all j, j = b included (equation 4.4)."""
    return -F.logsigmoid(r.diagonal()[:, None] - r).mean(1)


def top1(r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Mean of :math:`\\sigma(r_{bj} - r_{bb}) + \\sigma(r_{bj}^2)`, less the truth's own square (equation 4.5)."""
    truth = r.diagonal()[:, None]
    above = torch.sigmoid(r - truth) + torch.sigmoid(r.square())
    return above.mean(1) - torch.sigmoid(truth[:, 0].square()) / r.shape[1]


def top1_max(r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """TOP1 of every candidate but the truth, weighted by `hardness` (equation 4.8)."""
    return (hardness(r) * (torch.sigmoid(r - r.diagonal()[:, None]) + torch.sigmoid(r.square()))).sum(1)


def bpr_max(r: Float[Tensor, "B K"], penalty: float = 1.0) -> Float[Tensor, "B"]:
    """:math:`-\\ln(\\sum_{j \\ne b} s_{bj} \\sigma(r_{bb} - r_{bj}) + 10^{-24}) + \\lambda \\sum_{j \\ne b} s_{bj}
    r_{bj}^2` with s the `hardness` (equation 4.9)."""
    s = hardness(r)
    won = (s * torch.sigmoid(r.diagonal()[:, None] - r)).sum(1)
    finite = r.masked_fill(s == 0, 0.0)  # a candidate scored minus infinity weighs nothing
    return -(won + TINY).log() + penalty * (s * finite.square()).sum(1)


def hardness(r: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Softmax over the candidates that are not the truth; 0 for the truth, and for all where the truth is alone."""
    others = r.diagonal_scatter(r.new_full((len(r),), float("-inf")))
    alone = others.isneginf().all(1, keepdim=True)
    return others.masked_fill(alone, 0.0).softmax(1).masked_fill(alone, 0.0)


def activate(r: Float[Tensor, "B K"], name: str) -> Float[Tensor, "B K"]:
    """The final activation of the scores: "linear", "tanh", or "elu-a" with a > 0, such as "elu-0.5".

    Raises:
        ValueError: on another name.
    """
    return _activation(name)(r)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name in ("linear", "tanh"):
        return torch.tanh if name == "tanh" else lambda r: r
    kind, _, a = name.partition("-")
    if kind != "elu" or not a.replace(".", "", 1).isdigit() or float(a) == 0:
        raise ValueError(f"activation is 'linear', 'tanh' or 'elu-a' with a > 0 (such as 'elu-0.5'), got {name!r}")
    return partial(F.elu, alpha=float(a))


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be 0 (none) or more, and finite, got {value}")


@dataclass
class Ranking:
    """What these losses share: candidates, activation, and the sum over the rows divided by the batch's nominal size.

    Args:
        negatives: N, samples of a step, shared by all rows; None is 2048, or all other items of a smaller catalogue; 0
            for none, and then the other targets are all there is.
        alpha: samples are drawn in proportion to (training clicks) ** alpha.
        activation: of the scores, see `activate`.
        mask_hits: a candidate that is the row's own target, by accident, is left out. The public code leaves it in:
            it is its own negative then.
        counts: (V,) training clicks of the items.
        seed: of the samples.
        batch_size: what the sum is divided by, also where fewer rows are left; None for the number of rows.
        precision: "fp32".

    Raises:
        ValueError: naming the argument that is out of range, or that is missing.

    Source: specs of GRU4Rec, sections 4.1 and 4.2 (hidasib/GRU4Rec and its PyTorch form, read, not copied).
    """

    negatives: int | None = None
    alpha: float = 0.5
    activation: str = "linear"
    mask_hits: bool = False
    counts: Tensor | None = None
    seed: int = 0
    batch_size: int | None = None
    precision: str = "fp32"
    full_catalogue: ClassVar[bool] = False

    def __post_init__(self):
        _activation(self.activation)
        if self.precision != "fp32":
            raise ValueError(f"precision={self.precision!r} is written for loss='full'; sampled losses want 'fp32'")
        if self.negatives != 0:
            self._check_negatives()
        self.sampler = Negatives(self.counts, self.negatives, self.alpha, self.seed) if self.negatives else None

    def _check_negatives(self) -> None:
        if self.counts is None:
            raise ValueError(f"negatives={self.negatives} wants the training clicks of the items (counts)")
        most = len(self.counts) - 1
        if self.negatives is None:
            self.negatives = min(MOST_SAMPLES, most)
        if not 0 < self.negatives <= most:
            raise ValueError(
                f"negatives must lie in 0..{most} (fewer than the {most + 1} items), got {self.negatives}; "
                f"--config 'loss_arguments={{\"negatives\":{most}}}' draws as many as there are; against all items use "
                "loss='full' (--loss full)"
            )

    @property
    def least_rows(self) -> int:
        """Fewest rows of a batch that leave every row a negative."""
        return 1 if self.negatives else 2

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch: its samples are always the same."""
        if self.sampler:
            self.sampler.seek(epoch, step)

    def __call__(self, scores: Callable, target: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Loss of the batch; `scores` is a `losses.Scores`."""
        ids = torch.cat([target, self.sampler.draw()]) if self.sampler else target  # (K,)
        r = activate(self.corrected(scores(ids), ids), self.activation)  # (B, K)
        if self.mask_hits:
            r = r.masked_fill(accidental_hits(ids, target).fill_diagonal_(False), float("-inf"))
        return self.rows(r).sum() / (self.batch_size or len(target))

    def corrected(self, r: Float[Tensor, "B K"], ids: Int[Tensor, "K"]) -> Float[Tensor, "B K"]:
        """The scores as the loss takes them."""
        return r

    def rows(self, r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
        """The loss of every row."""
        raise TypeError(f"{type(self).__name__} does not say what a row loses")


@dataclass
class XE(Ranking):
    """`cross_entropy`, with the correction for how often an item is a candidate.

    Before the softmax, :math:`q \\ln c_j` is taken from the scores of the targets and :math:`q \\alpha \\ln c_j` from
    those of the samples, c being the training clicks (equation 4.10). Neither is normalised, as in the public code.

    Args:
        logq: q, 0 for no correction.
    """

    logq: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _check_weight("logq", self.logq)
        if self.logq and self.counts is None:
            raise ValueError(f"logq={self.logq} wants the training clicks of the items (counts); logq=0 does not")
        self.log_counts = self.counts.clamp(min=1).double().log() if self.logq else None

    def corrected(self, r: Float[Tensor, "B K"], ids: Int[Tensor, "K"]) -> Float[Tensor, "B K"]:
        """Less the logarithms of how often the candidates are met."""
        if not self.logq:
            return r
        correction = self.logq * self.log_counts[ids]
        correction[len(r) :] *= self.alpha
        return r - correction.to(r.dtype)

    def rows(self, r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
        """`cross_entropy` of every row."""
        return cross_entropy(r)


@dataclass
class BPR(Ranking):
    """`bpr`, the paper's of 2016: no samples, scores through tanh."""

    negatives: int = 0
    activation: str = "tanh"

    def rows(self, r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
        """`bpr` of every row."""
        return bpr(r)


@dataclass
class TOP1(Ranking):
    """`top1`, the paper's of 2016: no samples, scores through tanh."""

    negatives: int = 0
    activation: str = "tanh"

    def rows(self, r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
        """`top1` of every row."""
        return top1(r)


@dataclass
class TOP1Max(Ranking):
    """`top1_max`."""

    def rows(self, r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
        """`top1_max` of every row."""
        return top1_max(r)


@dataclass
class BPRMax(Ranking):
    """`bpr_max`.

    Args:
        penalty: lambda ("bpreg" of the public code), weight of the squared scores of the negatives.
    """

    penalty: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _check_weight("penalty", self.penalty)

    def rows(self, r: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
        """`bpr_max` of every row."""
        return bpr_max(r, self.penalty)
