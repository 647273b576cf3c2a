"""Sessions drawn from a known law: a small shop whose best possible recommender is computable, and huge catalogues.

The shop. A visitor comes with a hidden *intent*, a pair of categories, and keeps it for the whole session. The first
click is an item of the intent. After clicks ``.., h, i`` the next click is

* with probability ``revisit``: ``h`` again, the item before the last (to and fro, ``A B A``);
* else with probability ``follow``: a successor of ``i``, a best seller of the category that goes with ``i``'s;
* else: an item of the intent, by popularity (and now and then any item of the shop).

The last item shows one category of the pair; the other must be inferred from all clicks. As the law is known, so is
P(next | clicks), and with it the best values that any model can reach. When a session ends does not depend on its
items, so a label tells nothing but itself.

Shapes: V items, Z intents, C categories, B sessions, L positions, E examples.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sbr_core.batches import Batch, gather
from sbr_core.memory import refuse_beyond
from sbr_core.sessions import Sessions, Windows

CATEGORIES = (
    "teapots", "lamps", "boots", "novels", "guitars", "tents", "knives", "scarves", "puzzles", "bicycles",
    "cameras", "kettles", "rugs", "globes", "skates", "clocks", "drums", "vases", "maps", "kites",
)  # fmt: skip
MAX_LENGTH = 20  # clicks
MOST_ITEMS = 2**31 - 1  # ids are int32, that of the padding included
FIRST_DAY = 1_767_225_600  # 2026-01-01 00:00 UTC, in seconds since 1970


@dataclass(frozen=True)
class Shop:
    """The law that sessions are drawn from. All probabilities are float64; rows of tables sum to 1.

    Args:
        popularity: (V,) share of each item among clicks that follow neither an intent nor a transition.
        category: (V,) category of each item, 0..C-1.
        category_names: C names, for pictures.
        intent_pairs: (Z, 2) the two categories of each intent.
        intent_prior: (Z,) how often visitors come with each intent.
        intent_items: (Z, V) P(item | intent) of a click that is neither a return nor a successor.
        transition: (V, V) P(successor | item).
        revisit: probability of a return to the item before the last, from the third click on.
        follow: probability that a click that is no return is a successor of the last item.
        mean_length: mean clicks per session before the cut at 20; sessions have at least 2 clicks.
    """

    popularity: Float[Tensor, "V"]
    category: Int[Tensor, "V"]
    category_names: tuple[str, ...]
    intent_pairs: Int[Tensor, "Z 2"]
    intent_prior: Float[Tensor, "Z"]
    intent_items: Float[Tensor, "Z V"]
    transition: Float[Tensor, "V V"]
    revisit: float = 0.3
    follow: float = 0.15
    mean_length: float = 4.0

    @property
    def num_items(self) -> int:
        """V."""
        return len(self.popularity)

    def name(self, item: int) -> str:
        """A readable name: the category and the item's number in it, as in ``teapots 3``."""
        category = int(self.category[item])
        return f"{self.category_names[category]} {int((self.category[:item] == category).sum()) + 1}"

    def posterior(self, batch: Batch) -> Float[Tensor, "B Z"]:
        """P(intent | all clicks so far): Bayes' rule, one factor per click, summed as logarithms."""
        seen = torch.where(batch.mask, batch.items, 0).cpu()
        browse = self.intent_items.T[seen]  # (B, L, Z)
        likelihood = browse.clone()
        if seen.shape[1] > 1:
            successor = self.transition[seen[:, :-1], seen[:, 1:]][..., None]  # (B, L-1, 1)
            likelihood[:, 1:] = self.follow * successor + (1 - self.follow) * browse[:, 1:]
        if seen.shape[1] > 2:
            back = (seen[:, 2:] == seen[:, :-2]).double()[..., None]  # (B, L-2, 1)
            likelihood[:, 2:] = self.revisit * back + (1 - self.revisit) * likelihood[:, 2:]
        evidence = torch.where(batch.mask.cpu()[..., None], likelihood.log(), 0).sum(1)  # (B, Z)
        return torch.softmax(self.intent_prior.log() + evidence, -1)

    def next_probabilities(self, batch: Batch) -> Float[Tensor, "B V"]:
        """P(next item | all clicks so far), exact, in float64, on the batch's device.

        It is a mixture over intents, weighted with their posterior. No ranking does better than the one by these
        probabilities: an item at rank r adds P(item) * w(r) to the expected metric, with w = 1 (HR) or 1/r (MRR) up to
        rank K and 0 after; w never increases, so putting two items that are out of order in order can only gain.
        """
        items, lengths = batch.items.cpu(), batch.lengths.cpu()
        row = torch.arange(len(items))
        last = items[row, lengths - 1]
        browse = self.posterior(batch) @ self.intent_items  # (B, V)
        probability = self.follow * self.transition[last] + (1 - self.follow) * browse
        revisit = self.revisit * (lengths > 1).double()  # (B,): the second click has nowhere to return to
        probability *= (1 - revisit)[:, None]
        probability[row, items[row, (lengths - 2).clamp(min=0)]] += revisit
        return probability.to(batch.items.device)

    def simulate(self, num_sessions: int, rng: np.random.Generator) -> Sessions:
        """Draw sessions in order of time, over sixty days; a loop over positions, vectorised over sessions."""
        lengths = np.minimum(1 + rng.geometric(1 / (self.mean_length - 1), num_sessions), MAX_LENGTH)
        intent = rng.choice(len(self.intent_prior), num_sessions, p=self.intent_prior.numpy())
        by_intent, by_item = _stacked(self.intent_items), _stacked(self.transition)
        clicks = np.empty((num_sessions, MAX_LENGTH), np.int32)
        for t in range(MAX_LENGTH):
            u = rng.random((3, num_sessions))
            clicks[:, t] = _draw(by_intent, intent, u[0])
            if t > 0:
                clicks[:, t] = np.where(u[1] < self.follow, _draw(by_item, clicks[:, t - 1], u[0]), clicks[:, t])
            if t > 1:
                clicks[:, t] = np.where(u[2] < self.revisit, clicks[:, t - 2], clicks[:, t])
        times = np.sort(rng.integers(FIRST_DAY, FIRST_DAY + 60 * 86_400, num_sessions))
        return _sessions(clicks[np.arange(MAX_LENGTH) < lengths[:, None]], lengths, self.num_items, times)


def make_shop(
    rng: np.random.Generator,
    num_categories: int = 14,
    per_category: int = 20,
    num_intents: int = 14,
    skew: float = 1.1,
    stray: float = 0.05,
) -> Shop:
    """A shop with random popularities, intents and transitions.

    Args:
        num_categories: C, at most 20.
        per_category: items of each category.
        num_intents: Z, how many of the C (C - 1) / 2 pairs of categories anybody wants.
        skew: exponent of the Zipf law of popularity inside a category.
        stray: share of the clicks of an intent that go to any item of the shop.
    """
    C = num_categories
    category = np.repeat(np.arange(C), per_category)
    rank = np.concatenate([rng.permutation(per_category) for _ in range(C)])
    inside = (rank + 1.0) ** -skew
    inside /= inside[:per_category].sum()  # P(item | its category): the same weights in every category, permuted
    popularity = inside * rng.dirichlet(np.full(C, 5.0))[category]
    pairs = rng.permutation(np.stack(np.triu_indices(C, 1), 1))[:num_intents]
    in_pair = (pairs[:, :, None] == category).any(1)  # (Z, V)
    tables = {
        "popularity": popularity,
        "category": category,
        "intent_pairs": pairs,
        "intent_prior": rng.dirichlet(np.full(len(pairs), 5.0)),
        "intent_items": (1 - stray) * in_pair * inside / 2 + stray * popularity,
        "transition": _transition(rng, popularity.reshape(C, per_category)),
    }
    return Shop(category_names=CATEGORIES[:C], **{name: torch.from_numpy(table) for name, table in tables.items()})


def _transition(rng: np.random.Generator, popularity: np.ndarray) -> np.ndarray:
    """(V, V): every item leads to the best sellers of the category that goes with its own, whatever the intent.

    Which category goes with which is a random cycle through all of them. `popularity` is (C, items of a category).
    """
    C, per_category = popularity.shape
    cycle, goes_with = rng.permutation(C), np.empty(C, np.int64)
    goes_with[cycle] = np.roll(cycle, -1)
    weights = np.array([0.5, 0.3, 0.2])[:per_category]
    best = np.argsort(-popularity, 1)[:, : len(weights)] + per_category * np.arange(C)[:, None]
    table = np.zeros((C, popularity.size))
    np.put_along_axis(table, best[goes_with], weights[None] / weights.sum(), 1)
    return table.repeat(per_category, 0)


def demo(seed: int = 0, train_sessions: int = 18_000, test_sessions: int = 2_000) -> tuple[Shop, Sessions, Sessions]:
    """The book's default data: a shop of 280 items, its training sessions, and later test sessions of the same law."""
    rng = np.random.default_rng(seed)
    shop = make_shop(rng)
    sessions = shop.simulate(train_sessions + test_sessions, rng)
    return shop, sessions.select(0, train_sessions), sessions.select(train_sessions, len(sessions))


def ceiling(shop: Shop, windows: Windows, k: int = 20, batch_size: int = 1024) -> dict[str, float]:
    """Best possible HR@k and MRR@k, in percent, on these examples: items ranked by their true probability.

    Returns:
        ``HR@k`` and ``MRR@k``: expected values, by the law, given the inputs but not the labels; no model beats them
        but by luck. ``HR@k realised`` and ``MRR@k realised``: what the same ranking reaches on these labels; the
        difference is chance.

    Raises:
        ValueError: if there is no example, or the windows are not of this shop's items.
    """
    if not len(windows) or windows.num_items != shop.num_items:
        raise ValueError(
            f"a ceiling needs examples over the shop's {shop.num_items} items, "
            f"got {len(windows)} examples over {windows.num_items} items"
        )
    total = torch.zeros(4, dtype=torch.float64)
    discount = 1 / torch.arange(1, k + 1, dtype=torch.float64)
    for index in torch.arange(len(windows), device=windows.device).split(batch_size):
        batch = gather(windows, index)
        probability, item = torch.sort(shop.next_probabilities(batch).cpu(), dim=1, descending=True, stable=True)
        hit = (item[:, :k] == batch.target.cpu()[:, None]).double()  # (B, k)
        top = probability[:, :k]
        total += torch.stack([top.sum(), (top * discount).sum(), hit.sum(), (hit * discount).sum()])
    names = (f"HR@{k}", f"MRR@{k}", f"HR@{k} realised", f"MRR@{k} realised")
    return dict(zip(names, (100 * total / len(windows)).tolist(), strict=True))


def large_catalogue(
    num_items: int = 1_279_791,
    num_sessions: int = 247_834,
    mean_length: float = 21.74,
    seed: int = 0,
    local: float = 0.7,
    reach: int = 5,
) -> Sessions:
    """Sessions of the shape of MeLi2020 over a catalogue of any size, without a loop.

    A click is either a jump to an item drawn by popularity (a shifted Zipf law, its head scattered over all ids) or,
    with probability `local`, an item at most `reach` ids from the last one (ids wrap around): what a model can learn.

    Args:
        num_items: V < 2^31 (MeLi2020: 1,279,791).
        num_sessions: S (MeLi2020: 247,834).
        mean_length: mean clicks per session, > 2 (MeLi2020: 21.74); sessions have at least 2 clicks.
        local: probability that a click after the first stays near the last.
        reach: largest local step, in ids.

    Raises:
        ValueError: naming the argument that is out of range, or if raw ids and click counts of the items alone (16
            bytes an item) are more than this machine has memory.
    """
    if num_items < 2 or num_sessions < 1 or mean_length <= 2:
        raise ValueError(
            "a large catalogue needs num_items >= 2, num_sessions >= 1 and mean_length > 2, "
            f"got {num_items}, {num_sessions} and {mean_length}"
        )
    if num_items > MOST_ITEMS:
        raise ValueError(
            f"a large catalogue has at most {MOST_ITEMS:,} items, whose ids fit 32 bits, got {num_items:,}"
        )
    refuse_beyond(16 * num_items, f"a large catalogue of {num_items:,} items", "ask for fewer items")
    rng = np.random.default_rng(seed)
    lengths = 1 + rng.geometric(1 / (mean_length - 1), num_sessions)
    clicks = int(lengths.sum())
    jump = rng.random(clicks) >= local
    jump[np.cumsum(lengths) - lengths] = True
    step = rng.integers(1, reach + 1, clicks) * rng.choice((-1, 1), clicks)
    walked = np.cumsum(np.where(jump, 0, step))
    origin = np.maximum.accumulate(np.where(jump, np.arange(clicks), 0))  # the jump that each click hangs on
    start = _popular(rng, clicks, num_items)
    items = (start[origin] + walked - walked[origin]) % num_items
    times = np.sort(rng.integers(FIRST_DAY, FIRST_DAY + 60 * 86_400, num_sessions))
    return _sessions(items.astype(np.int32), lengths, num_items, times)


def _popular(rng: np.random.Generator, count: int, num_items: int, shift: float = 100.0) -> np.ndarray:
    """Items drawn with weight 1 / (rank + shift), by inverting the distribution; ranks are scattered over ids."""
    rank = shift * ((num_items + shift) / shift) ** rng.random(count) - shift
    stride = round(num_items * (math.sqrt(5) - 1) / 2)
    while math.gcd(stride, num_items) > 1:  # coprime: rank -> id is one to one
        stride += 1
    return np.minimum(rank.astype(np.int64), num_items - 1) * stride % num_items


def _stacked(table: Tensor) -> tuple[np.ndarray, int]:
    """Distribution functions of all rows in one increasing array, row r between r and r + 1, and the row length."""
    cumulative = np.cumsum(table.numpy(), 1)
    cumulative /= cumulative[:, -1:]
    return (cumulative + np.arange(len(cumulative))[:, None]).ravel(), cumulative.shape[1]


def _draw(stacked: tuple[np.ndarray, int], row: np.ndarray, u: np.ndarray) -> np.ndarray:
    """One column per row number, by its distribution: a single binary search for all of them."""
    flat, width = stacked
    return np.minimum(np.searchsorted(flat, row + u, side="right") - row * width, width - 1)


def _sessions(items: np.ndarray, lengths: np.ndarray, num_items: int, times: np.ndarray) -> Sessions:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Sessions(*(torch.from_numpy(a) for a in (items, offsets)), num_items, torch.from_numpy(times))
