"""Evaluation: exact ranks over the whole catalogue, metrics, breakdowns and intervals.

Shapes: E examples, B examples of a chunk, V items, S sessions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from sbr_core.batches import length_order
from sbr_core.sessions import Windows
from sbr_core.table import Buffers

CUTOFFS = (5, 10, 20)
CHUNK_SCORES = 2**26  # held at a time
TIES = ("conservative", "standard", "median")


@dataclass(frozen=True)
class Evaluation:
    """Ranks of the targets of E examples and what follows from them. Metrics are in percent.

    Args:
        ranks: (E,) rank of the target among all items, 1 is best; halves occur under the tie policy "median".
        session: (E,) session of each example.
        lengths: (E,) input clicks of each example.
        labels: (E,) the targets.
        ties: the tie policy: an item that scores exactly as the target counts before it ("conservative"), after it
            ("standard"), or half and half ("median").
        unknown_targets, unknown_clicks: examples whose target never occurs in training, and examples with such a
            click in the input; None where the training items were not given. They are counted in every metric.
    """

    ranks: Float[Tensor, "E"]
    session: Int[Tensor, "E"]
    lengths: Int[Tensor, "E"]
    labels: Int[Tensor, "E"]
    ties: str
    unknown_targets: int | None = None
    unknown_clicks: int | None = None

    def values(self, metric: str) -> Float[Tensor, "E"]:
        """Each example's contribution to a metric named as "HR@20", "MRR@20" or "NDCG@20", between 0 and 1."""
        name, _, cutoff = metric.partition("@")
        formula = {"HR": torch.ones_like, "MRR": torch.reciprocal, "NDCG": lambda rank: 1 / torch.log2(rank + 1)}.get(
            name
        )
        if formula is None or not cutoff.isdigit() or int(cutoff) < 1:
            raise ValueError(f"a metric is HR@K, MRR@K or NDCG@K with K >= 1, got {metric!r}")
        return torch.where(self.ranks <= int(cutoff), formula(self.ranks), 0.0)

    def metric(self, name: str) -> float:
        """One metric in percent."""
        return 100 * self.values(name).mean().item()

    @property
    def metrics(self) -> dict[str, float]:
        """HR, MRR and NDCG at 5, 10 and 20, in percent."""
        return {f"{name}@{k}": self.metric(f"{name}@{k}") for name in ("HR", "MRR", "NDCG") for k in CUTOFFS}

    def interval(
        self, name: str = "MRR@20", resamples: int = 1000, seed: int = 0, by: str = "session"
    ) -> tuple[float, float]:
        """95 % bootstrap interval of a metric in percent.

        Args:
            by: "session" draws whole sessions, whose examples are not independent; "example" pretends that they are.
        """
        if by not in ("session", "example"):
            raise ValueError(f"resample by 'session' or by 'example', got {by!r}")
        groups = self.session.long() if by == "session" else torch.arange(len(self.session))
        _, groups = groups.unique(return_inverse=True)
        total = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(
            0, groups, self.values(name).double()
        )
        count = torch.zeros_like(total).index_add_(0, groups, torch.ones(len(groups), dtype=torch.float64))
        return bootstrap(total, count, resamples, seed)

    def by_length(self, edges: tuple[int, ...] = (1, 2, 3, 5, 10, 20), names=("HR@20", "MRR@20")) -> list[dict]:
        """Metrics of the examples whose input has edges[i] to edges[i+1]-1 clicks; the last group is open."""
        return self._breakdown(self.lengths, edges, names)

    def by_popularity(
        self, counts: Int[Tensor, "V"], edges: tuple[int, ...] = (0, 1, 10, 50, 200, 1000), names=("HR@20", "MRR@20")
    ) -> list[dict]:
        """Metrics by the number of training clicks of the target."""
        return self._breakdown(counts.cpu()[self.labels.long()], edges, names)

    def _breakdown(self, value: Tensor, edges: tuple[int, ...], names: tuple[str, ...]) -> list[dict]:
        rows = []
        for low, high in zip(edges, (*edges[1:], None), strict=True):
            inside = (value >= low) & (value < high) if high else value >= low
            row = {"from": low, "to": high and high - 1, "examples": int(inside.sum())}
            rows.append(row | {name: 100 * self.values(name)[inside].mean().item() for name in names if inside.any()})
        return rows


def bootstrap(
    total: Float[Tensor, "S"], count: Float[Tensor, "S"], resamples: int, seed: int = 0
) -> tuple[float, float]:
    """95 % interval, in percent, of a mean over examples, by drawing whole sessions.

    Args:
        total: (S,) sum over the examples of each session; float64.
        count: (S,) number of its examples.
    """
    generator, means = torch.Generator().manual_seed(seed), []
    for part in torch.arange(resamples).split(64):  # all at once would be resamples x S numbers
        drawn = torch.randint(len(total), (len(part), len(total)), generator=generator)
        means.append(total[drawn].sum(1) / count[drawn].sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return 100 * low, 100 * high


def ranks_from_scores(
    scores: Float[Tensor, "B V"], target: Int[Tensor, "B"], ties: str = "conservative", buffers: Buffers | None = None
) -> Float[Tensor, "B"]:
    """Rank of each row's target. Exact for fewer than 2^24 items.

    Raises:
        ValueError: on an unknown tie policy, or if a score is NaN (every comparison with NaN is false: a model that has
            diverged would seem perfect).
    """
    return refuse_diverged(_ranks(scores, target, ties, buffers or Buffers()))


def refuse_diverged(ranks: Float[Tensor, "E"]) -> Float[Tensor, "E"]:
    """The ranks, if all are numbers; waits for the device, so once an evaluation.

    Raises:
        ValueError: if one is NaN.
    """
    if bool(ranks.isnan().any()):
        raise ValueError("a score is NaN: the model has diverged, its ranks mean nothing")
    return ranks


def _ranks(scores: Tensor, target: Tensor, ties: str, buffers: Buffers) -> Tensor:
    """`ranks_from_scores` without waiting for the device: where a score of the row is NaN the rank is NaN."""
    if ties not in TIES:
        raise ValueError(f"ties is one of {', '.join(TIES)}, got {ties!r}")
    mine = scores.gather(1, target[:, None])  # (B, 1)
    flags = buffers.matrix("flags", *scores.shape, scores, torch.float32)  # counts 30 x faster than booleans
    above = torch.gt(scores, mine, out=flags).sum(1)
    at_least = above + 1 if ties == "standard" else torch.ge(scores, mine, out=flags).sum(1)
    ranks = {"standard": above + 1, "median": (above + 1 + at_least) / 2, "conservative": at_least}[ties]
    return torch.where(scores.amax(1).isnan(), torch.nan, ranks)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    windows: Windows,
    ties: str = "conservative",
    seen: Bool[Tensor, "V"] | None = None,
    chunk: int = 128,
    progress: bool = False,
) -> Evaluation:
    """Rank the target of every example among all items, exactly, in chunks of examples.

    Memory beyond the model: `chunk` rows of V scores, fewer where they would be more than `CHUNK_SCORES`. Scores are
    float32 whatever the training precision.

    Args:
        windows: the examples, on the model's device.
        seen: items that occur in training, for counting the examples that no model could know.
        chunk: examples ranked at a time.
        progress: show a bar on stderr.

    Raises:
        ValueError: if there is no example, no such rule of ties, or a score is not a number.
    """
    if len(windows) == 0:
        raise ValueError("there is no example to evaluate: every session has fewer than two clicks")
    training = model.training
    model.eval()
    chunk = max(1, min(chunk, CHUNK_SCORES // windows.num_items))
    order, buffers, parts, unknown = length_order(windows, chunk), Buffers(), [], 0
    bar = tqdm(order.batches(windows), total=len(order), disable=not progress, desc="evaluate", leave=False)
    try:
        scorer = _scorer(model, buffers)
        for batch in bar:
            scores = scorer(model.encode(batch))
            parts.append(_ranks(scores, batch.target, ties, buffers))
            if seen is not None:
                unknown += (~torch.nn.functional.pad(seen, (0, 1), value=True)[batch.items]).any(1).sum()
    finally:
        model.train(training)
    ranks = torch.empty(len(windows), device=windows.device)
    ranks[order.index] = refuse_diverged(torch.cat(parts))
    labels = windows.labels.cpu()
    return Evaluation(
        ranks.cpu(),
        windows.session.cpu(),
        windows.lengths.cpu(),
        labels,
        ties,
        None if seen is None else int((~seen.cpu()[labels.long()]).sum()),
        None if seen is None else int(unknown),
    )


def _scorer(model: nn.Module, buffers: Buffers) -> Callable[[object], Tensor]:
    """A function of the query: numbers (B, V) that rank as its scores do, in a kept buffer where they are a product.

    What does not depend on the query, such as the items on the unit sphere, is computed once.
    """
    items = model.search_items() if hasattr(model, "search_items") else None

    def scores(query) -> Tensor:
        if items is not None:
            pair = model.search_query(query), items
        elif hasattr(model, "linear") and (pair := model.linear(query)) is not None:
            pair = pair[0], pair[1][:-1]
        else:
            return model.score(query)
        return torch.mm(pair[0], pair[1].T, out=buffers.matrix("scores", len(pair[0]), len(pair[1]), pair[1]))

    return scores
