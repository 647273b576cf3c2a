"""What one row loses: functions of the truth's score and of its negatives' scores, which `sampled_losses` draws.

Negatives that do not count (`Drawn.kept`) are left out, and means are over the others.

Shapes: B rows, K negatives of a row.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

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

    The mean is least where :math:`s_t = \\ln p(t|s) - \\ln P_n(t)` for every k; the sum where it is less by ln k. Where
    a row's own target does not count as a negative, p(t|s) gives way to its odds: under uniform noise the mean is least
    where :math:`s_t = \\ln\\frac{p(t|s)}{1 - p(t|s)} + \\ln(V - 1)`, which ranks the items as before.
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
    correction: str = "standard",
    masked: bool = True,
) -> Float[Tensor, "B"]:
    """Cross-entropy with the truth and the negatives in the place of all items.

    "standard" takes ln P from all scores, the truth's too. Of K + 1 items, one real and the others noise, it is the
    logarithm of the probability that the truth is the real one, so it is least at :math:`s_t = \\ln p(t|s)` plus a
    constant (ranking form of noise-contrastive estimation): for every K if hits stay in; with hits left out, for
    K * P(y) << 1, where they are rare: what is missing points to the truth, and no score is asked about that.

    "corrected" estimates the softmax's denominator without bias where hits are left out: the truth is in it once, and
    the others are a mean of :math:`e^{s_j} / P(j)`, the law being that of the items other than the truth. Its gradient
    is that of the corrected logQ of 2025: the logQ loss without the truth in the denominator, weighted by 1 - p(y). As
    the logarithm of an unbiased estimate is biased, it is least at ln p(t|s) for many negatives only. Where hits stay
    in, the mean is the whole denominator, the truth is in it a second time, and it is not least there for any K.
    "none" takes nothing.

    Args:
        log_q: ln P of the negatives, in the shape of ``drawn.ids``.
        log_q_target: ln P of the targets.
        masked: hits are left out: the truth is no negative of its own row (``drawn.kept``).
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
