"""Sampled negatives: drawn in large blocks on the device, a pure function of seed, epoch and step.

Shapes: B sessions, V items, N samples of a step, K candidates.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sbr_core.sessions import Windows

BLOCK = 2**20  # ids drawn at a time
MOST_ALPHA = 1e6  # long before, the item with the most clicks is all that is drawn


class Negatives:
    """N items a step, with replacement, :math:`P(i) \\propto c_i^\\alpha` over the items that occur in training.

    The draws of a step depend on seed, epoch and step alone, so a run that is resumed sees the same ones (on the same
    kind of device).

    Args:
        counts: (V,) training clicks of every item; an item without any is never drawn.
        size: N.
        alpha: 0 is uniform, 1 is popularity.
        seed: of the draws.

    Source: specs of GRU4Rec, section 4.2.
    """

    def __init__(self, counts: Int[Tensor, "V"], size: int, alpha: float = 0.0, seed: int = 0):
        if size < 1:
            raise ValueError(f"a step draws at least one negative, got {size}")
        _check_alpha(alpha)
        if not bool((counts > 0).any()):
            raise ValueError("there is nothing to draw from: no item has a click")
        self.size, self.seed, self.steps = size, seed, max(1, BLOCK // size)
        power = alpha * counts.clamp(min=1).double().log()  # in logarithms: the power itself may overflow
        log_q = torch.where(counts > 0, power, float("-inf")).log_softmax(0)
        cumulative = log_q.exp().cumsum(0)
        self.cumulative = cumulative / cumulative[-1]
        self.log_q = log_q.float()  # (V,) log P(i)
        self.drawn: tuple[int, Tensor] | None = None
        self.seek(0, 0)

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch; the next `draw` is that step's."""
        self.epoch, self.step, self.drawn = epoch, step, None

    def draw(self) -> Int[Tensor, "N"]:
        """The negatives of this step; the next call gives those of the next one."""
        block, row = divmod(self.step, self.steps)
        if self.drawn is None or self.drawn[0] != block:
            self.drawn = block, self._block(block)
        self.step += 1
        return self.drawn[1][row]

    def _block(self, number: int) -> Int[Tensor, "steps N"]:
        device = self.cumulative.device
        generator = torch.Generator(device).manual_seed(mixed(self.seed, self.epoch, number))
        uniform = torch.rand(self.steps, self.size, generator=generator, device=device, dtype=torch.float64)
        return torch.searchsorted(self.cumulative, uniform, right=True)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= MOST_ALPHA:
        raise ValueError(f"alpha must be 0 (uniform) or more (1 is popularity), at most {MOST_ALPHA:g}, got {alpha}")


def mixed(*parts: int) -> int:
    """One seed for a generator from several numbers."""
    total = 0
    for part in parts:
        total = (total * 1_000_003 + part + 1) % 2**63
    return total


class Noise:
    """Items drawn with replacement, in any shape: uniform over the catalogue, or :math:`P(i) \\propto c_i^\\alpha`.

    The draws of a step depend on seed, epoch and step alone. Uniform noise reaches every item, also those that nobody
    has clicked, and keeps nothing that is as long as the catalogue.

    Args:
        counts: (V,) training clicks of every item; with alpha > 0, an item without any is never drawn.
        alpha: 0 is uniform, 1 is popularity.
        seed: of the draws.

    Raises:
        ValueError: if alpha is negative or no number or above `MOST_ALPHA`, or there is nothing to draw from.

    Source: specs of the scalable losses, section 10.4; word2vec's alpha is 0.75.
    """

    def __init__(self, counts: Int[Tensor, "V"], alpha: float = 0.0, seed: int = 0):
        self.num_items, self.device, self.seed, self.negatives = len(counts), counts.device, seed, None
        _check_alpha(alpha)
        if alpha:
            self.negatives = Negatives(counts, 1, alpha, seed)
        self.seek(0, 0)

    def seek(self, epoch: int, step: int) -> None:
        """Go to a step of an epoch; the next `draw` is that step's."""
        self.epoch, self.step = epoch, step

    def draw(self, *shape: int) -> Int[Tensor, "*shape"]:
        """The items of this step; the next call gives those of the next one."""
        generator = torch.Generator(self.device).manual_seed(mixed(self.seed, self.epoch, self.step))
        self.step += 1
        if self.negatives is None:
            return torch.randint(self.num_items, shape, generator=generator, device=self.device)
        uniform = torch.rand(shape, generator=generator, device=self.device, dtype=torch.float64)
        return torch.searchsorted(self.negatives.cumulative, uniform, right=True)

    def log_q(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """log P of these items."""
        if self.negatives is None:
            return torch.full(ids.shape, -math.log(self.num_items), device=self.device)
        return self.negatives.log_q[ids]


def click_counts(windows: Windows) -> Int[Tensor, "V"]:
    """How often every item is clicked in the examples, each click of the log counted once."""
    edges = torch.zeros(len(windows.items) + 1, dtype=torch.long, device=windows.device)
    edges.index_add_(0, windows.start.long(), torch.ones_like(windows.start, dtype=torch.long))
    edges.index_add_(0, windows.target.long() + 1, -torch.ones_like(windows.start, dtype=torch.long))
    read = (edges.cumsum(0)[:-1] > 0).long()
    return torch.zeros(windows.num_items, dtype=torch.long, device=windows.device).index_add_(
        0, windows.items.long(), read
    )


def target_counts(windows: Windows) -> Int[Tensor, "V"]:
    """How often every item is the target of an example: what the other rows of a batch are drawn from."""
    return torch.bincount(windows.labels.long(), minlength=windows.num_items)


def accidental_hits(ids: Int[Tensor, "*shape"], target: Int[Tensor, "B"]) -> Bool[Tensor, "B K"]:
    """True where a candidate, shared (K,) or of each row (B, K), is the row's own target."""
    return ids == target[:, None]
