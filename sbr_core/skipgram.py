"""Skip-gram on random walks: a training task that shares the item table with a recommender.

Shapes: V items, D width, W walks, L places of a walk, P pairs of a step, I distinct inputs, Y distinct labels, K
negatives, N items of the graph.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sbr_core.graphs import global_graph
from sbr_core.sessions import Sessions
from sbr_core.table import lookup
from sbr_core.walks import by_degree, random_walks

TOLERANCE = 0.0005  # a pass that changes the loss by no more is the last one


class Pairs:
    """The (input, label) pairs of stored walks, made at the moment when a step wants them.

    The label is the item at the centre of a window, the input any other item of that window. The pairs of a walk are
    listed by the later of their two places, so those of a shorter walk are the first ones of the same list, and the
    number of a pair says which it is. A pass goes through the walks in an order of its own, `size` pairs a step.

    Args:
        walks: (W, L), what comes after a walk's end is V.
        num_items: V.
        left, right: places of the window before and after its centre, >= 0.
        size: P.
        seed: of the orders of the walks.
    """

    def __init__(self, walks: Int[Tensor, "W L"], num_items: int, left: int, right: int, size: int, seed: int):
        self.walks, self.left, self.right, self.size, self.seed = walks, left, right, size, seed
        self.num_items = num_items
        place = torch.arange(walks.shape[1], device=walks.device)
        ahead = place - place[:, None]  # (L, L): row = centre
        centre, near = ((ahead >= -left) & (ahead <= right) & (ahead != 0)).nonzero(as_tuple=True)
        later, order = torch.maximum(centre, near).sort(stable=True)
        self.centre, self.near = centre[order], near[order]
        of_length = torch.searchsorted(later, torch.arange(walks.shape[1] + 1, device=walks.device))  # (L + 1,)
        self.counts = of_length[(walks != num_items).sum(1)]  # (W,)
        self.total = int(self.counts.sum())
        self.number = -1

    def __len__(self) -> int:
        """Pairs of a full pass."""
        return self.total

    def label_counts(self) -> Int[Tensor, "V"]:
        """Of how many pairs of a full pass every item is the label."""
        place = torch.arange(self.walks.shape[1], device=self.walks.device)
        real = self.walks != self.num_items
        after = real.sum(1, keepdim=True) - 1 - place
        near = (place.clamp(max=self.left) + after.clamp(max=self.right)) * real  # (W, L): inputs around each place
        counts = torch.zeros(self.num_items + 1, dtype=torch.int64, device=self.walks.device)
        return counts.index_add_(0, self.walks.flatten(), near.flatten())[:-1]

    def batch(self, number: int, step: int) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
        """Inputs and labels of step `step` of pass `number`; the same at every call."""
        if number != self.number:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self.order = torch.randperm(len(self.walks), generator=generator).to(self.walks.device)
            self.ends, self.number = self.counts[self.order].cumsum(0), number
        first, last = step * self.size, min((step + 1) * self.size, self.total)
        pair = torch.arange(first, last, device=self.walks.device)
        at = torch.searchsorted(self.ends, pair, right=True)
        walk = self.order[at]
        pair = pair - (self.ends[at] - self.counts[walk])  # its number within its walk
        return self.walks[walk, self.near[pair]].long(), self.walks[walk, self.centre[pair]].long()


class LogUniform:
    """Draws of K distinct labels from P(k) = log((k + 2) / (k + 1)) / log(N + 1), k = 0 the label of highest degree.

    Drawing one after another and leaving out those drawn before is the same as a race: label k arrives after an
    exponential time of rate P(k), the first K are taken. If the last of them arrived at time t, the expected number of
    label k in the sample is 1 - exp(-t P(k)).

    Args:
        labels: (N,) items by falling degree.
        num_items: V.
        count: K; at most N / 2 are drawn.
    """

    def __init__(self, labels: Int[Tensor, "N"], num_items: int, count: int):
        self.labels, self.count = labels, min(count, len(labels) // 2)
        rank = torch.arange(len(labels), dtype=torch.float64)
        self.law = torch.log1p(1 / (rank + 1)) / math.log(len(labels) + 1)  # (N,), on the host
        self.of_item = torch.zeros(num_items, dtype=torch.float64, device=labels.device)
        self.of_item[labels] = self.law.to(labels.device)

    def draw(self, seed: int) -> tuple[Int[Tensor, "K"], float]:
        """K distinct labels, and the time t at which the last of them arrived."""
        generator = torch.Generator().manual_seed(seed)
        arrival = torch.empty(len(self.law), dtype=torch.float64).exponential_(generator=generator) / self.law
        times, chosen = arrival.topk(self.count, largest=False)
        return self.labels[chosen.to(self.labels.device)], float(times[-1])

    def log_expected(self, ids: Int[Tensor, "K"], time: float) -> Float[Tensor, "K"]:
        """Logarithm of the expected number of each item in a sample that was complete at `time`."""
        return torch.log(-torch.expm1(-time * self.of_item[ids]))


class SkipGram(nn.Module):
    """An item's vector is to tell which items stand near it on walks through the graph of all sessions.

    .. math::
        \\ell(i, c) = -\\log\\sigma(s_{ic}) - \\sum_{k \\in N_s,\\, k \\ne c} \\log\\sigma(-s_{ik}), \\quad
        s_{ic} = v_i \\cdot \\theta_c \\quad\\text{or, with NCE,}\\quad s_{ic} = v_i \\cdot \\theta_c + b_c - \\log Q(c)

    All pairs of a step share the K negatives, so they are counted instead of listed: with M (I, Y) the number of pairs
    of every distinct input and label, a step is one product of I input vectors with Y + K output vectors. Finding the
    distinct ones waits for the device, once a step.

    Args:
        num_items: V.
        dim: D, width of the item vectors.
        nce: noise-contrastive form, with a bias per label and the logarithm of its expected count Q in a sample.
        rounds, length: of the walks, see `walks.random_walks`.
        window: places on either side of a label.
        off_by_one: one place less on the right.
        negatives: K, distinct labels shared by a step; at most half of the items of the graph.
        size: P, pairs of a step.
        seed: of the walks, of their order in each pass, and of the negatives.
        label_bias: the bias of a label starts at the logarithm of its share of the pairs instead of 0, so that the
            vectors have what remains to learn: how much likelier than usual it is near an input.

    Raises:
        ValueError: if a number is below 1, or for `label_bias` without `nce`, which has the biases.

    Source: paper equations 1 to 5; chenjh1988/LGSR (read, not copied).
    """

    def __init__(
        self,
        num_items: int,
        dim: int,
        nce: bool = False,
        rounds: int = 13,
        length: int = 50,
        window: int = 8,
        off_by_one: bool = False,
        negatives: int = 512,
        size: int = 8192,
        seed: int = 0,
        label_bias: bool = False,
    ):
        super().__init__()
        if label_bias and not nce:
            raise ValueError("label_bias=True starts the biases of nce=True, and with nce=False there are none")
        settings = {"rounds": rounds, "length": length, "window": window, "negatives": negatives, "pairs": size}
        if min(settings.values()) < 1:
            raise ValueError("all of these must be at least 1: " + ", ".join(f"{k}={v}" for k, v in settings.items()))
        self.num_items, self.rounds, self.length, self.seed = num_items, rounds, length, seed
        self.left, self.right, self.negatives, self.size = window, window - off_by_one, negatives, size
        self.theta = nn.Parameter(torch.empty(num_items, dim))
        self.bias = nn.Parameter(torch.empty(num_items, 1)) if nce else None
        self.pairs: Pairs | None = None
        self.label_bias = label_bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform(-1/sqrt(D), 1/sqrt(D)) for the output table, 0 for the biases."""
        bound = self.theta.shape[1] ** -0.5
        nn.init.uniform_(self.theta, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def prepare(self, train: Sessions) -> None:
        """Walk through the graph of these sessions; the walks take 4 L bytes each and are not saved with the model."""
        graph, device = global_graph(train), self.theta.device
        walks = random_walks(graph, self.rounds, self.length, self.seed).to(device)
        self.pairs = Pairs(walks, self.num_items, self.left, self.right, self.size, self.seed)
        self.noise = LogUniform(by_degree(graph).to(device), self.num_items, self.negatives)
        if self.label_bias:
            counts = self.pairs.label_counts().clamp(min=1).to(self.bias.dtype)
            self.bias.data.copy_((counts / counts.sum()).log()[:, None])

    def loss(self, embed: Callable[[Tensor], Tensor], number: int, step: int) -> Float[Tensor, ""]:
        """Mean loss of the pairs of step `step` of pass `number`; `embed` gives the input vectors."""
        inputs, labels = self.pairs.batch(number, step)
        negatives, time = self.noise.draw((self.seed * 1_000_003 + number) * 1_000_003 + step)
        return self.mean(embed, inputs, labels, negatives, time)

    def mean(
        self,
        embed: Callable[[Tensor], Tensor],
        inputs: Int[Tensor, "P"],
        labels: Int[Tensor, "P"],
        negatives: Int[Tensor, "K"],
        time: float,
    ) -> Float[Tensor, ""]:
        """Mean loss of these pairs; a negative that is a pair's own label is left out of that pair."""
        rows, row = inputs.unique(return_inverse=True)
        Y, column = labels.unique(return_inverse=True)
        M = torch.bincount(row * len(Y) + column, minlength=len(rows) * len(Y)).view(len(rows), len(Y))
        found = torch.searchsorted(Y, negatives).clamp(max=len(Y) - 1)
        hits = M[:, found] * (Y[found] == negatives)  # (I, K): pairs whose own label is the negative
        scores = self.scores(embed(rows), torch.cat([Y, negatives]), time)  # (I, Y + K)
        weight = torch.cat([M, M.sum(1, keepdim=True) - hits], dim=1).to(scores.dtype)
        signs = torch.ones_like(scores[0])
        signs[: len(Y)] = -1
        return (weight * F.softplus(scores * signs)).sum() / len(inputs)

    def scores(self, x: Float[Tensor, "I D"], ids: Int[Tensor, "out"], time: float) -> Float[Tensor, "I out"]:
        """Scores of the output items `ids` for these input vectors."""
        scores = x @ lookup(self.theta, ids).T
        if self.bias is None:
            return scores
        correction = self.noise.log_expected(ids, time).to(scores.dtype)
        return scores + lookup(self.bias, ids).squeeze(1) - correction


class SkipGramTask:
    """`g` passes of skip-gram before each epoch's pass over the examples, see `SessionModel.auxiliary_tasks`.

    It stops for good when a pass no longer changes the loss.

    Args:
        model: whose ``embed`` and ``table`` the inputs have; its ``skipgram`` has been prepared.
        g: passes an epoch.
        pairs_per_pass: share of all pairs that a pass goes through, 0 < share <= 1: those of the first walks of its
            own order, so that all are met in the end. `size` is the number of pairs of a step.
        lr: of SparseAdam, which moves the rows that a step has looked up and no others.
        decays: the rate falls with the recommender's (public code) instead of staying as it is.

    Differs: the public code compares the losses of any two passes; records hold one loss an epoch, so this compares
        two epochs and divides by `g`.
    """

    name = "skip-gram"

    def __init__(self, model: nn.Module, g: int, pairs_per_pass: float, lr: float, decays: bool = False):
        self.model, self.skipgram, self.g, self.lr, self.decays = model, model.skipgram, g, lr, decays
        if self.skipgram.pairs is None:
            raise ValueError("the walks go through the training sessions: call prepare(train) first, or set g=0")
        self.size = self.skipgram.size
        self.steps_of_pass = math.ceil(len(self.skipgram.pairs) * pairs_per_pass / self.size)

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """SparseAdam on the item table and the output table."""
        return [torch.optim.SparseAdam([self.model.table, *self.skipgram.parameters()], lr=self.lr)]

    def steps(self, epochs: list[dict]) -> int:
        """Steps before the coming epoch: those of `g` passes, or none once a pass has changed nothing."""
        losses = [epoch["auxiliary"][self.name] for epoch in epochs]
        changes = [abs(a - b) / self.g for a, b in zip(losses, losses[1:], strict=False)]
        stopped = any(change <= TOLERANCE for change in changes)
        return 0 if stopped else self.g * self.steps_of_pass

    def loss(self, epoch: int, step: int) -> Float[Tensor, ""]:
        """Mean loss of one step's pairs."""
        ahead, step = divmod(step, self.steps_of_pass)
        return self.skipgram.loss(self.model.embed, epoch * self.g + ahead, step)
