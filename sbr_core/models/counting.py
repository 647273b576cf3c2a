"""Counting: popularity, and tables of what goes together with the last click. No gradient, the same `score`.

Every score is a count, a similarity or a sum of such, and 0 where nothing was counted. Ties are broken by exact keys
where a system says how, so that an item is never found by luck.

Shapes: B sessions, V items, N clicks, P pairs of items.
"""
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sbr_core.batches import Batch
from sbr_core.models.base import CountingModel
from sbr_core.sessions import Sessions

FILLS = ("none", "unseen", "below")


def pick(values: Shaped[Tensor, "R"], index: Int[Tensor, "N"]) -> Shaped[Tensor, "N"]:
    """``values[index]``, two to three times as fast on a CPU."""
    return values.index_select(0, index)


def expand(begin: Int[Tensor, "R"], count: Int[Tensor, "R"]) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Positions begin[r], ..., begin[r] + count[r] - 1 for every r in turn, behind the r that each belongs to."""
    owner = torch.arange(len(count), device=count.device).repeat_interleave(count)
    shift = begin - (count.cumsum(0) - count)
    return owner, torch.arange(len(owner), device=count.device) + pick(shift, owner)


def runs(key: Int[Tensor, "N"]) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Place (from 0) of every element in its run of equal neighbours, and the size of that run."""
    _, run, size = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    return torch.arange(len(key), device=key.device) - pick(size.cumsum(0) - size, run), pick(size, run)


def lexsort(*keys: Tensor) -> Int[Tensor, "N"]:
    """The order that sorts by the first key, then by the second, and so on; smallest first."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].sort(stable=True).indices]
    return order


def pieces(cost: Int[Tensor, "R"], budget: int) -> Iterator[slice]:
    """Slices of rows that cost less than `budget` beyond their first row: bounds the memory of what follows."""
    if len(cost) == 0:
        return
    number = cost.cumsum(0) // budget
    sizes = torch.unique_consecutive(number, return_counts=True)[1].tolist()
    begin = 0
    for size in sizes:
        yield slice(begin, begin + size)
        begin += size


def positions(train: Sessions) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Session number and position (from 0) of every click of `train.clicks`."""
    begin = train.offsets[:-1]
    session, index = expand(begin, train.lengths)
    return session, index - begin[session]


def popularity(train: Sessions) -> Float[Tensor, "V"]:
    """Clicks of every item; of equally many, the smaller id counts a fraction of a click more. 0 if never clicked."""
    clicks = torch.bincount(train.clicks.long(), minlength=train.num_items)
    order = clicks.sort(stable=True, descending=True).indices
    place, size = runs(clicks[order])
    score = torch.empty(len(clicks), device=clicks.device)
    score[order] = clicks[order] - place / size
    return score * (clicks > 0)


class Popularity(CountingModel):
    """POP: the most clicked items, whatever the session.

    Ties go to the smaller id. Click events are counted, not sessions and not expanded prefixes.

    Args:
        num_items: V.

    Shapes:
        batch.items (B, L) -> scores (B, V), one row for all
    """

    def count(self, train: Sessions) -> dict[str, Tensor]:
        """`popularity` (V,): see the function of that name."""
        return {"popularity": popularity(train)}

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """Clicks of every item; a view, not to be written to."""
        return self.popularity.expand(len(batch), -1)


class SessionPopularity(CountingModel):
    """S-POP: the items clicked most often in this session, the more popular first, then all others by popularity.

    The key (count in the session, clicks in training, -id) is exact: scores are float64, the popularity is scaled below
    1. The public baseline keeps the popularity of its 100 most clicked items only and breaks ties by random noise.

    Args:
        num_items: V.

    Shapes:
        batch.items (B, L) -> scores (B, V), float64
    """

    def count(self, train: Sessions) -> dict[str, Tensor]:
        """`popularity` (V,), float64, scaled below 1."""
        score = popularity(train).double()
        return {"popularity": score / (score.max() + 1)}

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """Clicks in the session plus the popularity's fraction."""
        count = self.popularity.new_zeros(len(batch), self.num_items + 1)
        count.scatter_add_(1, batch.items, torch.ones_like(batch.items, dtype=count.dtype))
        return count[:, :-1].add_(self.popularity)


class _LastClick(CountingModel):
    """Scores are a row of a sparse table, chosen by the last click.

    Tables: row i is ``items[offsets[i]:offsets[i + 1]]`` (P,) with `values` (P,); row V, of the padding, is empty.
    """

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """The last click's row, 0 for items that are not in it."""
        last = batch.items.gather(1, batch.lengths[:, None] - 1).squeeze(1)
        begin = self.offsets[last]
        owner, place = expand(begin, self.offsets[last + 1] - begin)
        scores = self.values.new_zeros(len(batch), self.num_items)
        scores[owner, self.items[place].long()] = self.values[place]
        return scores

    def _table(self, row: Int[Tensor, "P"], items: Int[Tensor, "P"], values: Float[Tensor, "P"]) -> dict[str, Tensor]:
        """The tables, from pairs in order of their row."""
        count = torch.bincount(row, minlength=self.num_items + 1)
        offsets = torch.nn.functional.pad(count.cumsum(0), (1, 0))
        return {"offsets": offsets, "items": items.int(), "values": values.float()}


class Markov(_LastClick):
    """First-order Markov chain: the most frequent successors of the last click.

    Of equally frequent successors, the one that followed first in the training log comes first. The score is the count
    plus a fraction in (0, 1] for that order.

    Args:
        num_items: V.
        fill: where popularity helps out, with scores below 1: nowhere ("none"), for a last click without any successor
            ("unseen"), or below the successors of every click ("below").

    Shapes:
        batch.items (B, L) -> scores (B, V)
    """

    def __init__(self, num_items: int, fill: str = "unseen"):
        super().__init__(num_items)
        if fill not in FILLS:
            raise ValueError(f"fill is one of {', '.join(FILLS)}, got {fill!r}")
        self.fill = fill

    def count(self, train: Sessions) -> dict[str, Tensor]:
        """The successors of every item, and the `popularity` (V,), scaled below 1."""
        clicks, (_, position) = train.clicks.long(), positions(train)
        later = position.nonzero().squeeze(1)
        pair, first = (clicks[later - 1] * self.num_items + clicks[later]).sort(stable=True)
        place, count = runs(pair)
        pair, first, count = pair[place == 0], first[place == 0], count[place == 0]
        row = pair // self.num_items
        order = lexsort(row, -count, first)
        row, items, count = row[order], pair[order] % self.num_items, count[order]
        place, size = runs(row * (len(clicks) + 1) + count)
        common = popularity(train)
        return self._table(row, items, count + 1 - place / size) | {"popularity": common / (common.max() + 1)}

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """Counts of the last click's successors, and the popularity where `fill` wants it."""
        scores = super().scores(batch)
        if self.fill == "none":
            return scores
        empty = scores == 0 if self.fill == "below" else ~scores.any(1, keepdim=True)
        return torch.where(empty, self.popularity, scores)


class ItemKNN(_LastClick):
    """Item-KNN: the items most similar to the last click by the sessions they share.

    .. math::
        sim(i, j) = \\frac{c(i, j)}{(n_i + \\lambda)^{\\alpha} (n_j + \\lambda)^{1 - \\alpha}}, \\quad
        c(i, j) = \\sum_{q \\ni j} n_i(q), \\quad c(i, i) = 0

    with n_i = sum_q n_i(q), where n_i(q) is 1 if session q has item i, or the number of its clicks on it. A repeat of
    the last click is never recommended. The defaults are the plain cosine that papers describe. The figures that they
    print come out, within 0.15, with the public code's form ``damping=20, distinct=False, max_length=None`` if only
    ranks *below* 20 count as hits, as in that code's evaluation.

    Args:
        num_items: V.
        damping: lambda; it pulls down pairs of rare items. Large values rank by co-occurrence.
        alpha: 0.5 is the cosine, 1 the confidence of an association rule.
        n_sims: neighbours kept per item; of equally similar ones the smaller ids.
        distinct: n_i(q) is 0 or 1; False: it counts clicks, and c(i, j) differs from c(j, i) where items repeat.
        max_length: sessions of more clicks are left out, None for none.

    Shapes:
        batch.items (B, L) -> scores (B, V)

    Source: hidasib/GRU4Rec, its baselines (read, not copied).
    """

    budget = 1 << 22  # pairs counted at a time

    def __init__(
        self,
        num_items: int,
        damping: int | float = 0.0,
        alpha: int | float = 0.5,
        n_sims: int = 100,
        distinct: bool = True,
        max_length: int | None = 40,
    ):
        super().__init__(num_items)
        if damping < 0 or not 0 <= alpha <= 1 or n_sims < 1:
            raise ValueError(
                f"damping must be at least 0, alpha lie in 0..1, n_sims be at least 1; got {damping}, {alpha}, {n_sims}"
            )
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1 or None, got {max_length}")
        self.damping, self.alpha, self.n_sims = damping, alpha, n_sims
        self.distinct, self.max_length = distinct, max_length

    def count(self, train: Sessions) -> dict[str, Tensor]:
        """The `n_sims` nearest items of every item, counted item by item in pieces of bounded memory."""
        session, item, member = self._events(train)
        size = torch.bincount(member // self.num_items, minlength=len(train))  # distinct items of every session
        begin = size.cumsum(0) - size
        support = torch.bincount(item, minlength=self.num_items)
        cost = torch.zeros_like(support).index_add_(0, item, size[session])
        ends, parts = support.cumsum(0), []
        for rows in pieces(cost, self.budget):
            events = slice(int(ends[rows.start] - support[rows.start]), int(ends[rows.stop - 1]))
            owner, place = expand(begin[session[events]], size[session[events]])
            pairs = item[events][owner] * self.num_items + member[place] % self.num_items
            pair, count = torch.unique(pairs, return_counts=True)
            parts.append(self._nearest(pair // self.num_items, pair % self.num_items, count, support))
        return self._table(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _events(self, train: Sessions) -> tuple[Tensor, Tensor, Tensor]:
        """Session and item of everything that counts, sorted by item, and the keys of the distinct (session, item)."""
        key = positions(train)[0] * self.num_items + train.clicks.long()
        if self.max_length is not None:
            key = key[(train.lengths <= self.max_length).repeat_interleave(train.lengths)]
        member = torch.unique(key)
        key = member if self.distinct else key
        key = key[(key % self.num_items).sort(stable=True).indices]
        return key // self.num_items, key % self.num_items, member

    def _nearest(self, row: Tensor, item: Tensor, count: Tensor, support: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs (i, j) of every row i, and their similarity, most similar first."""
        other = row != item
        row, item, count = row[other], item[other], count[other]
        damped = support.double() + self.damping
        similarity = count / (damped[row] ** self.alpha * damped[item] ** (1 - self.alpha))
        order = lexsort(row, -similarity, item)
        order = order[runs(row[order])[0] < self.n_sims]
        return row[order], item[order], similarity[order]
