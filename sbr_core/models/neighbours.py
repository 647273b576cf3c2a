"""Nearest-neighbour systems: what did those do next whose sessions look like this one?

V-SKNN (Ludewig & Jannach, UMUAI 2018) and STAN (Garg et al., SIGIR 2019). Whole training sessions are indexed, never their
prefixes. For one session: the *candidates* are the training sessions that share an item with it; of these the `sample_size`
most recent are kept, of these the `k` most similar are the neighbours, and every neighbour votes for its items. Of equally
similar candidates the more recent one is nearer.

All sessions of a batch are served at once: flat lists of (row, training session), sorted and summed by segments, in pieces of
bounded memory. Similarities are float64, scores float32.

Shapes: B sessions, L positions, Q distinct clicks of the batch, C candidates, V items, S training sessions, P distinct
(session, item) pairs of the training log.
"""
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sbr_core.batches import Batch
from sbr_core.models.base import CountingModel
from sbr_core.models.counting import expand, pieces, positions, runs
from sbr_core.sessions import Sessions

# Weight w of the click at position p of L.
POSITION_WEIGHTS = {
    "div": lambda p, length: p / length,
    "linear": lambda p, length: (1 - 0.1 * (length - p)) * (p <= 10),
    "same": lambda p, length: torch.ones_like(p),
    "log": lambda p, length: 1 / torch.log10(length - p + 1.7),
    "quadratic": lambda p, length: (p / length) ** 2,
}
# Weight g of a neighbour whose most recent common click is `step` clicks from the end; the last click has step 1.
STEP_WEIGHTS = {
    "div": lambda step: 1 / step,
    "linear": lambda step: (1 - 0.1 * step) * (step <= 100),
    "same": lambda step: torch.ones_like(step),
    "log": lambda step: 1 / torch.log10(step + 1.7),
    "quadratic": lambda step: 1 / step**2,
}
SIMILARITIES = ("vec", "cosine", "jaccard")

# Settings tuned on each dataset by rn5l/session-rec (its committed parameter files), by name of the system; "-hr": tuned for
# the hit rate, else for MRR@20. `span_days` is ours: the shared files carry no times.
PRESETS: dict[str, dict[str, dict]] = {
    "yoochoose1_64": {
        "v-sknn": {"k": 1000, "sample_size": 5000, "weighting": "log", "decay": "quadratic", "idf": 2.0, "span_days": 3.0},
        "stan": {"k": 1500, "sample_size": 10000, "lambda1": 1e-5, "lambda2": 2.5, "lambda3": 4.0, "span_days": 3.0},
        "stan-hr": {"k": 500, "sample_size": 5000, "lambda1": 1.0, "lambda2": 10.0, "lambda3": 1.0, "span_days": 3.0},
    },
    "diginetica": {
        "v-sknn": {
            "k": 1500, "sample_size": 10000, "weighting": "quadratic", "decay": "linear", "idf": 10.0, "span_days": 150.0
        },
        "stan": {"k": 500, "sample_size": 5000, "lambda1": 1.25, "lambda2": 80.0, "lambda3": 5.0, "span_days": 150.0},
        "stan-hr": {"k": 500, "sample_size": 2500, "lambda1": 2.5, "lambda2": 80.0, "lambda3": 5.0, "span_days": 150.0},
    },
}


@dataclass(frozen=True)
class Query:
    """Sessions to be answered, as flat lists of their distinct clicks; an item clicked twice counts at its last position.

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

    def keep(self, chosen: Bool[Tensor, "C"]) -> "Candidates":
        """Some of them."""
        return Candidates(*(value[chosen] for value in vars(self).values()))


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


class _Neighbours(CountingModel):
    """What V-SKNN and STAN share: the index, the candidates, the votes.

    Subclasses define ``weights(position, length, item)``, ``similarity(query, candidates)`` and
    ``votes(candidates, similarity, number, item, place)``.
    """

    budget = 1 << 20  # pairs of a click and a training session looked at a time

    def __init__(self, num_items: int, k: int, sample_size: int, remind: bool, span_days: float):
        super().__init__(num_items)
        if k < 1 or sample_size < 1 or span_days <= 0:
            raise ValueError(f"k and sample_size must be at least 1, span_days positive; got {k}, {sample_size}, {span_days}")
        self.k, self.sample_size, self.remind, self.span_days = k, sample_size, remind, span_days

    def count(self, train: Sessions) -> dict[str, Tensor]:
        """The index: sessions of every item, items of every session, both with the last position (from 1) of the item there.

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
        positive = similarity > 0
        found, similarity = found.keep(positive), similarity[positive]
        near = nearest(similarity, found.row, self.k)
        found, similarity = found.keep(near), similarity[near]
        begin = self.session_offsets[found.session]
        number, place = expand(begin, self.session_offsets[found.session + 1] - begin)
        item = self.session_items[place].long()
        votes = self.votes(found, similarity, number, item, self.session_places[place])
        scores.view(-1).index_add_(0, found.row[number] * self.num_items + item, votes.float())

    def _candidates(self, query: Query) -> Candidates:
        """The `sample_size` most recent training sessions that share an item, for every row.

        A session among the most recent of the union is among the most recent of every item that it has, so that older
        sessions of an item need not be looked at.
        """
        end = self.item_offsets[query.item + 1]
        count = (end - self.item_offsets[query.item]).clamp(max=self.sample_size)
        click, at = expand(end - count, count)
        total = len(self.days)
        key, order = (query.row[click] * total + self.item_sessions[at]).sort(stable=True)
        key, match, overlap = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
        click, at, row = click[order], at[order], key // total
        final = click[overlap.cumsum(0) - 1]  # the clicks of a run are in order: its last one is the most recent
        found = Candidates(
            row,
            key % total,
            overlap,
            query.weight.new_zeros(len(key)).index_add_(0, match, query.weight[click]),
            query.length[row] - query.position[final] + 1,
            overlap.new_zeros(len(key)).scatter_reduce_(0, match, self.item_places[at].long(), "amax"),
        )
        place, size = runs(row)
        return found.keep(size - place <= self.sample_size)


def _offsets(group: Int[Tensor, "P"], groups: int) -> Int[Tensor, "G1"]:
    """Where each group begins in a list that is sorted by group."""
    return torch.nn.functional.pad(torch.bincount(group, minlength=groups).cumsum(0), (1, 0))


class VSKNN(_Neighbours):
    """V-SKNN: later clicks of the current session weigh more, in the similarity and in the votes.

    .. math::
        sim(s, q) &= \\sum_{i \\in s \\cap q} w(i) / |s|
            \\quad\\text{or}\\quad \\sum_{i \\in s \\cap q} w(i) / (\\|w\\| \\sqrt{|q|}) \\\\
        score(i) &= \\sum_{q \\in N_k(s)} sim(s, q) \\, g(step(q)) \\, (1 + \\lambda \\, idf(i)) \\, 1[i \\in q]

    |s| and |q| count distinct items. With weighting and decay "same" and similarity "cosine" or "jaccard" it is the plain
    SKNN.

    Args:
        num_items: V.
        k: neighbours.
        sample_size: candidates kept, the most recent.
        similarity: "vec" (the first form above), "cosine" (the second), or "jaccard" (shared by all items, no weights).
        weighting: w of a click by its position p of L: "div" p/L, "linear", "same", "log" or "quadratic" (p/L)^2.
        decay: g of a neighbour by the step, 1 if it has the last click: "div" 1/step, "linear", "same", "log", "quadratic".
        idf: lambda, the weight of rare items in the votes; 0 for none. idf(i) = ln(sessions / clicks of i).
        idf_session: w(i) = idf(i) instead of a weight by position.
        time_decay: multiply the similarity by 7/8 for every day that the neighbour lies back.
        remind: items of the current session may be recommended.
        normalise: divide by the largest score, so that the best item has 1.
        span_days: days that the training log spans, for logs without times (sessions are then placed evenly).

    Shapes:
        batch.items (B, L) -> scores (B, V)

    Source: rn5l/session-rec, VMContextKNN (read, not copied).
    """

    def __init__(
        self,
        num_items: int,
        k: int = 500,
        sample_size: int = 1000,
        similarity: str = "vec",
        weighting: str = "div",
        decay: str = "div",
        idf: float = 0.0,
        idf_session: bool = False,
        time_decay: bool = False,
        remind: bool = True,
        normalise: bool = True,
        span_days: float = 150.0,
    ):
        super().__init__(num_items, k, sample_size, remind, span_days)
        for name, value, known in (
            ("similarity", similarity, SIMILARITIES),
            ("weighting", weighting, POSITION_WEIGHTS),
            ("decay", decay, STEP_WEIGHTS),
        ):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {value!r}")
        self.kind, self.weighting, self.decay, self.idf_weight = similarity, weighting, decay, idf
        self.idf_session, self.time_decay, self.normalise = idf_session, time_decay, normalise

    def weights(self, position: Float[Tensor, "Q"], length: Float[Tensor, "Q"], item: Int[Tensor, "Q"]) -> Float[Tensor, "Q"]:
        """w of every click."""
        return self.idf[item] if self.idf_session else POSITION_WEIGHTS[self.weighting](position, length)

    def similarity(self, query: Query, found: Candidates) -> Float[Tensor, "C"]:
        """sim(s, q) of every candidate."""
        size = self.session_offsets.diff()[found.session]
        if self.kind == "vec":
            value = found.weight / query.distinct[found.row]
        elif self.kind == "cosine":
            value = found.weight / (query.norm[found.row] * size.sqrt())
        else:
            value = found.overlap / (query.distinct[found.row] + size - found.overlap)
        return value * (7 / 8) ** -self.days[found.session] if self.time_decay else value

    def votes(self, found: Candidates, similarity: Tensor, number: Tensor, item: Tensor, place: Tensor) -> Tensor:
        """The vote of neighbour `number` for each of its items."""
        votes = (similarity * STEP_WEIGHTS[self.decay](found.step))[number]
        return votes * (1 + self.idf_weight * self.idf[item]) if self.idf_weight else votes

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """Sum of the votes, divided by the largest where there is any."""
        scores = super().scores(batch)
        if not self.normalise:
            return scores
        largest = scores.amax(1, keepdim=True)
        return scores.div_(torch.where(largest > 0, largest, 1.0))


class STAN(_Neighbours):
    """STAN: exponential decay with the position in the current session, with time, and with the distance in the neighbour.

    .. math::
        w(i) &= e^{(p(i) - L) / \\lambda_1}, \\quad
        sim(s, q) = \\frac{\\sum_{i \\in s \\cap q} w(i)}{\\|w\\| \\sqrt{|q|}} \\, e^{-(t - t_q) / \\lambda_2} \\\\
        score(i) &= \\sum_{q \\in N_k(s)} sim(s, q) \\, e^{-|pos_q(i) - pos_q(i^*)| / \\lambda_3} \\, 1[i \\in q]

    pos_q is the last position in q, i* the shared item with the largest one. The time t of the current session scales all
    scores alike and so never changes the order: t is the time of the session's most recent candidate here.

    Args:
        num_items: V.
        k: neighbours.
        sample_size: candidates kept, the most recent.
        lambda1: decay over the clicks of the current session; 1e-5 leaves the last click only, math.inf weighs all alike.
        lambda2: decay over time, in days.
        lambda3: decay over the clicks of a neighbour.
        remind: items of the current session may be recommended.
        span_days: days that the training log spans, for logs without times: sessions are then placed evenly on it.
            Diginetica's training log spans about five months, Yoochoose 1/64 about three days.

    Shapes:
        batch.items (B, L) -> scores (B, V)

    Source: rn5l/session-rec, STAN (read, not copied).
    """

    def __init__(
        self,
        num_items: int,
        k: int = 500,
        sample_size: int = 5000,
        lambda1: float = 1.02,
        lambda2: float = 5.0,
        lambda3: float = 2.05,
        remind: bool = True,
        span_days: float = 150.0,
    ):
        super().__init__(num_items, k, sample_size, remind, span_days)
        if min(lambda1, lambda2, lambda3) <= 0:
            raise ValueError(f"the lambdas must be positive, got {lambda1}, {lambda2}, {lambda3}")
        self.lambda1, self.lambda2, self.lambda3 = lambda1, lambda2, lambda3

    def weights(self, position: Float[Tensor, "Q"], length: Float[Tensor, "Q"], item: Int[Tensor, "Q"]) -> Float[Tensor, "Q"]:
        """w of every click."""
        return torch.exp((position - length) / self.lambda1)

    def similarity(self, query: Query, found: Candidates) -> Float[Tensor, "C"]:
        """sim(s, q) of every candidate."""
        size, days = self.session_offsets.diff()[found.session], self.days[found.session]
        now = days.new_full((len(query.length),), -torch.inf).scatter_reduce_(0, found.row, days, "amax")
        decay = torch.exp((days - now[found.row]) / self.lambda2)
        return found.weight / (query.norm[found.row] * size.sqrt()) * decay

    def votes(self, found: Candidates, similarity: Tensor, number: Tensor, item: Tensor, place: Tensor) -> Tensor:
        """The vote of neighbour `number` for each of its items."""
        return similarity[number] * torch.exp(-(place - found.place[number]).abs() / self.lambda3)
