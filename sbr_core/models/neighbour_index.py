"""Neighbours of sessions: the index of a training log, candidates for a batch, the nearest of them, and their votes.

For one session: the *candidates* are the training sessions that share an item with it; of these the `sample_size` most
recent are kept, of these the `k` most similar are the neighbours, and every neighbour votes for its items. Of equally
similar candidates the more recent one is nearer.

All sessions of a batch are served at once: flat lists of (row, training session), sorted and summed by segments, in
pieces of bounded memory. Similarities are float64, scores float32.

Shapes: B sessions, L positions, Q distinct clicks of the batch, C candidates, V items, S training sessions, P distinct
(session, item) pairs of the training log.
"""
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sbr_core.batches import Batch
from sbr_core.models.base import CountingModel
from sbr_core.models.counting import expand, pick, pieces, positions, runs
from sbr_core.sessions import Sessions


@dataclass(frozen=True)
class Query:
    """Sessions to be answered, as flat lists of their distinct clicks; a repeated item counts at its last position.

    Args:
        row, item, position: (Q,) session of the batch, item, and position 1..L, sorted by row and position.
        weight: (Q,) w of each click.
        length: (B,) clicks of each session.
        distinct: (B,) distinct items of each session.
        norm: (B,) root of the sum of the squared weights.
    """

    row: Int[Tensor, "Q"]
    item: Int[Tensor, "Q"]
    position: Float[Tensor, "Q"]
    weight: Float[Tensor, "Q"]
    length: Float[Tensor, "B"]
    distinct: Float[Tensor, "B"]
    norm: Float[Tensor, "B"]


@dataclass(frozen=True)
class Candidates:
    """Training sessions that share an item with a session of the batch, sorted by row, oldest first.

    Args:
        row, session: (C,) session of the batch, and training session.
        overlap: (C,) distinct items they share.
        weight: (C,) sum of w over the shared items.
        step: (C,) 1 + clicks of the current session after the most recent shared one.
        place: (C,) the last position, in the training session, of a shared item.
    """

    row: Int[Tensor, "C"]
    session: Int[Tensor, "C"]
    overlap: Int[Tensor, "C"]
    weight: Float[Tensor, "C"]
    step: Float[Tensor, "C"]
    place: Int[Tensor, "C"]

    def keep(self, chosen: Int[Tensor, "K"]) -> "Candidates":
        """Some of them, by their place in the lists."""
        return Candidates(*(pick(value, chosen) for value in vars(self).values()))


def last_occurrences(items: Int[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
    """True where the same item does not occur again further right in the row."""
    ordered, place = items.sort(dim=1, stable=True)
    final = torch.ones_like(items, dtype=torch.bool)
    final[:, :-1] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(final).scatter_(1, place, final)


def nearest(similarity: Float[Tensor, "C"], row: Int[Tensor, "C"], k: int) -> Bool[Tensor, "C"]:
    """The k most similar of every row (`row` is sorted); of equally similar ones those further down the list."""
    place, size = runs(row)
    crowded = size > k
    if not crowded.any():
        return torch.ones_like(crowded)
    block = torch.unique_consecutive(row[crowded], return_inverse=True)[1]
    values = similarity[crowded]
    table = values.new_full((int(block[-1]) + 1, int(size.max())), -torch.inf)
    table[block, place[crowded]] = values
    limit = table.topk(k, dim=1, sorted=False).values.amin(1)[block]  # the k-th best of each crowded row
    above, tied = values > limit, values == limit
    free = k - torch.zeros_like(table[:, 0]).index_add_(0, block, above.to(table.dtype))
    from_end = _sums_from_the_end(tied, block)
    chosen = ~crowded
    chosen[crowded] = above | (tied & (from_end <= free[block]))
    return chosen


def _sums_from_the_end(flag: Bool[Tensor, "C"], block: Int[Tensor, "C"]) -> Int[Tensor, "C"]:
    """How many flags are set from here to the end of the block."""
    total = flag.long().cumsum(0)
    at_end = total[torch.bincount(block).cumsum(0) - 1]
    return at_end[block] - total + flag


class NeighbourModel(CountingModel):
    """What V-SKNN and STAN share: the index, the candidates, the votes.

    Subclasses define ``weights(position, length, item)``, ``similarity(query, candidates)`` and
    ``votes(candidates, similarity, number, item, place)``.
    """

    budget = 1 << 20  # pairs of a click and a training session looked at a time

    def __init__(self, num_items: int, k: int, sample_size: int, remind: bool, span_days: int | float):
        super().__init__(num_items)
        if k < 1 or sample_size < 1 or span_days <= 0:
            raise ValueError(
                f"k and sample_size must be at least 1, span_days positive; got {k}, {sample_size}, {span_days}"
            )
        self.k, self.sample_size, self.remind, self.span_days = k, sample_size, remind, span_days

    def count(self, train: Sessions) -> dict[str, Tensor]:
        """The index: sessions of every item, items of every session, both with the item's last position (from 1) there.

        Row V of the items, the padding, is empty. `days` (S,) is the time before the last session, `idf` (V,) is
        ln(sessions / clicks).
        """
        clicks, (session, position) = train.clicks.long(), positions(train)
        pair, order = (session * self.num_items + clicks).sort(stable=True)
        place, size = runs(pair)
        last = place == size - 1
        session, member, position = session[order][last], clicks[order][last], position[order][last] + 1
        by_item = member.sort(stable=True).indices
        count = torch.bincount(clicks, minlength=self.num_items)
        return {
            "item_offsets": _offsets(member, self.num_items + 1),
            "item_sessions": session[by_item].int(),
            "item_places": position[by_item].int(),
            "session_offsets": _offsets(session, len(train)),
            "session_items": member.int(),
            "session_places": position.int(),
            "days": self._days(train),
            "idf": torch.log(len(train) / count.double()).nan_to_num(posinf=0.0),
        }

    def _days(self, train: Sessions) -> Float[Tensor, "S"]:
        """Days of every session before the last one, <= 0."""
        if train.times is None:
            return torch.linspace(-self.span_days, 0, len(train), dtype=torch.float64, device=train.offsets.device)
        return (train.times - train.times.max()).double() / 86400

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """Sum of the neighbours' votes for every item; 0 without any."""
        final = last_occurrences(batch.items) & batch.mask
        held = self.item_offsets.diff().clamp(max=self.sample_size)  # (V + 1,)
        scores = self.idf.new_zeros(len(batch), self.num_items, dtype=torch.float32)
        for rows in pieces((held[batch.items] * final).sum(1), self.budget):
            query = self._query(batch.items[rows], final[rows], batch.lengths[rows])
            self._vote(query, scores[rows])
            if not self.remind:
                scores[rows][query.row, query.item] = 0.0
        return scores

    def _query(self, items: Int[Tensor, "B L"], final: Bool[Tensor, "B L"], lengths: Int[Tensor, "B"]) -> Query:
        """The distinct clicks of some sessions and their weights."""
        row, column = final.nonzero(as_tuple=True)
        item, position, length = items[row, column], (column + 1).double(), lengths.double()
        weight = self.weights(position, length[row], item)
        squares = torch.zeros_like(length).index_add_(0, row, weight**2)
        return Query(row, item, position, weight, length, final.sum(1).double(), squares.sqrt())

    def _vote(self, query: Query, scores: Float[Tensor, "B V"]) -> None:
        """Find the neighbours and add up their votes in `scores`."""
        found = self._candidates(query)
        similarity = self.similarity(query, found)
        near = nearest(similarity, found.row, self.k).logical_and_(similarity > 0).nonzero().squeeze(1)
        found, similarity = found.keep(near), pick(similarity, near)
        begin = pick(self.session_offsets, found.session)
        number, place = expand(begin, pick(self.session_offsets, found.session + 1) - begin)
        item = pick(self.session_items, place).long()
        votes = self.votes(found, similarity, number, item, pick(self.session_places, place))
        scores.view(-1).index_add_(0, pick(found.row * self.num_items, number) + item, votes.float())

    def _candidates(self, query: Query) -> Candidates:
        """The `sample_size` most recent training sessions that share an item, for every row.

        A session among the most recent of the union is among the most recent of every item that it has, so that older
        sessions of an item need not be looked at.
        """
        end = self.item_offsets[query.item + 1]
        count = (end - self.item_offsets[query.item]).clamp(max=self.sample_size)
        click, at = expand(end - count, count)
        total = len(self.days)
        key, order = (pick(query.row * total, click) + pick(self.item_sessions, at)).sort(stable=True)
        key, match, overlap = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
        click, at, row = pick(click, order), pick(at, order), key // total
        final = pick(click, overlap.cumsum(0) - 1)  # the clicks of a run are in order: its last one is the most recent
        found = Candidates(
            row,
            key % total,
            overlap,
            query.weight.new_zeros(len(key)).index_add_(0, match, pick(query.weight, click)),
            pick(query.length, row) - pick(query.position, final) + 1,
            overlap.new_zeros(len(key)).scatter_reduce_(0, match, pick(self.item_places, at).long(), "amax"),
        )
        place, size = runs(row)
        recent = size - place <= self.sample_size
        return found if recent.all() else found.keep(recent.nonzero().squeeze(1))


def _offsets(group: Int[Tensor, "P"], groups: int) -> Int[Tensor, "G1"]:
    """Where each group begins in a list that is sorted by group."""
    return torch.nn.functional.pad(torch.bincount(group, minlength=groups).cumsum(0), (1, 0))
