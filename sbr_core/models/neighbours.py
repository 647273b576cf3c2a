"""Nearest-neighbour systems: what did those do next whose sessions look like this one?

V-SKNN (Ludewig & Jannach, UMUAI 2018) and STAN (Garg et al., SIGIR 2019). Whole training sessions are indexed, never
their prefixes. How neighbours are found and how they vote is in `sbr_core.models.neighbour_index`.

Shapes: B sessions, L positions, Q distinct clicks of the batch, C candidates, V items.
"""
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sbr_core.batches import Batch
from sbr_core.models.counting import pick
from sbr_core.models.neighbour_index import Candidates, NeighbourModel, Query

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

# Settings tuned on each dataset by rn5l/session-rec (its committed parameter files), by name of the system; "-hr" is
# tuned for the hit rate, else for MRR@20. `span_days` is ours: the shared files carry no times.
PRESETS: dict[str, dict[str, dict]] = {
    "yoochoose1_64": {
        "v-sknn": {"k": 1000, "sample_size": 5000, "weighting": "log", "decay": "quadratic", "idf": 2.0},
        "stan": {"k": 1500, "sample_size": 10000, "lambda1": 1e-5, "lambda2": 2.5, "lambda3": 4.0, "span_days": 3.0},
        "stan-hr": {"k": 500, "sample_size": 5000, "lambda1": 1.0, "lambda2": 10.0, "lambda3": 1.0, "span_days": 3.0},
    },
    "diginetica": {
        "v-sknn": {"k": 1500, "sample_size": 10000, "weighting": "quadratic", "decay": "linear", "idf": 10.0},
        "stan": {"k": 500, "sample_size": 5000, "lambda1": 1.25, "lambda2": 80.0, "lambda3": 5.0, "span_days": 150.0},
        "stan-hr": {"k": 500, "sample_size": 2500, "lambda1": 2.5, "lambda2": 80.0, "lambda3": 5.0, "span_days": 150.0},
    },
}


class VSKNN(NeighbourModel):
    """V-SKNN: later clicks of the current session weigh more, in the similarity and in the votes.

    .. math::
        sim(s, q) &= \\sum_{i \\in s \\cap q} w(i) / |s|
            \\quad\\text{or}\\quad \\sum_{i \\in s \\cap q} w(i) / (\\|w\\| \\sqrt{|q|}) \\\\
        score(i) &= \\sum_{q \\in N_k(s)} sim(s, q) \\, g(step(q)) \\, (1 + \\lambda \\, idf(i)) \\, 1[i \\in q]

    Sizes ``|s|`` and ``|q|`` count distinct items. With weighting and decay "same" and similarity "cosine" or
    "jaccard" it is the plain SKNN.

    Args:
        num_items: V.
        k: neighbours.
        sample_size: candidates kept, the most recent.
        similarity: "vec" (the first form above), "cosine" (the second), or "jaccard" (shared by all items, no weights).
        weighting: w of a click by its position p of L: "div" p/L, "linear", "same", "log" or "quadratic" (p/L)^2.
        decay: g of a neighbour by the step, 1 if it has the last click: "div" 1/step, "linear", "same", "log" or
            "quadratic" 1/step^2.
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
        idf: int | float = 0.0,
        idf_session: bool = False,
        time_decay: bool = False,
        remind: bool = True,
        normalise: bool = True,
        span_days: int | float = 150.0,
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

    def weights(
        self, position: Float[Tensor, "Q"], length: Float[Tensor, "Q"], item: Int[Tensor, "Q"]
    ) -> Float[Tensor, "Q"]:
        """w of every click."""
        return self.idf[item] if self.idf_session else POSITION_WEIGHTS[self.weighting](position, length)

    def similarity(self, query: Query, found: Candidates) -> Float[Tensor, "C"]:
        """sim(s, q) of every candidate."""
        size = self.session_offsets.diff()[found.session]
        if self.kind == "vec":
            value = found.weight / pick(query.distinct, found.row)
        elif self.kind == "cosine":
            value = found.weight / (query.norm[found.row] * size.sqrt())
        else:
            value = found.overlap / (query.distinct[found.row] + size - found.overlap)
        return value * (7 / 8) ** -self.days[found.session] if self.time_decay else value

    def votes(self, found: Candidates, similarity: Tensor, number: Tensor, item: Tensor, place: Tensor) -> Tensor:
        """The vote of neighbour `number` for each of its items."""
        votes = pick(similarity * STEP_WEIGHTS[self.decay](found.step), number)
        return votes * pick(1 + self.idf_weight * self.idf, item) if self.idf_weight else votes

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """Sum of the votes, divided by the largest where there is any."""
        scores = super().scores(batch)
        if not self.normalise:
            return scores
        largest = scores.amax(1, keepdim=True)
        return scores.div_(torch.where(largest > 0, largest, 1.0))


class STAN(NeighbourModel):
    """STAN: exponential decay over the current session, over time, and over the clicks of a neighbour.

    .. math::
        w(i) &= e^{(p(i) - L) / \\lambda_1}, \\quad
        sim(s, q) = \\frac{\\sum_{i \\in s \\cap q} w(i)}{\\|w\\| \\sqrt{|q|}} \\, e^{-(t - t_q) / \\lambda_2} \\\\
        score(i) &= \\sum_{q \\in N_k(s)} sim(s, q) \\, e^{-|pos_q(i) - pos_q(i^*)| / \\lambda_3} \\, 1[i \\in q]

    pos_q is the last position in q, i* the shared item with the largest one. The time t of the current session scales
    all scores alike and so never changes the order: t is the time of the session's most recent candidate here.

    Args:
        num_items: V.
        k: neighbours.
        sample_size: candidates kept, the most recent.
        lambda1: decay over the clicks of the current session; 1e-5 leaves the last click only, math.inf weighs all
            alike (as it does for the others).
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
        lambda1: int | float = 1.02,
        lambda2: int | float = 5.0,
        lambda3: int | float = 2.05,
        remind: bool = True,
        span_days: int | float = 150.0,
    ):
        super().__init__(num_items, k, sample_size, remind, span_days)
        if min(lambda1, lambda2, lambda3) <= 0:
            raise ValueError(f"the lambdas must be positive, got {lambda1}, {lambda2}, {lambda3}")
        self.lambda1, self.lambda2, self.lambda3 = lambda1, lambda2, lambda3

    def weights(
        self, position: Float[Tensor, "Q"], length: Float[Tensor, "Q"], item: Int[Tensor, "Q"]
    ) -> Float[Tensor, "Q"]:
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
        return pick(similarity, number) * torch.exp(-(place - pick(found.place, number)).abs() / self.lambda3)
