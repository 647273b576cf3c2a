"""What the data decide before a model does: who wins a tie, and the order in which a session's clicks are kept.

Counting systems only, so that ``sbr study ties`` and ``sbr study click-order`` take minutes.

Shapes: N clicks, S sessions, V items, E examples, P pairs of items.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sbr_core import cache, datasets, readers
from sbr_core.datasets import Dataset
from sbr_core.evaluate import TIES, Evaluation, evaluate
from sbr_core.models import build
from sbr_core.models.counting import expand, positions, runs
from sbr_core.pickles import DataError
from sbr_core.readers import Clicks
from sbr_core.sessions import Sessions

METRICS = ("HR@20", "MRR@20")
COUNTING = ("pop", "s-pop", "item-knn", "markov")
SAMPLE = "sample_train-item-views.csv"  # the end of its name
PRINTED = {  # percent; its authors' own output, sessions as they stand in the file
    "system": "STAMP",
    "HR@20": 62.04,
    "MRR@20": 27.39,
    "source": "uestcnlp/STAMP, output/text/mlp_totalrnnv38-cikm16-201801161650.out (recall, mrr)",
}


def shown_at_random(standard: Float[Tensor, "E"], conservative: Float[Tensor, "E"], k: int = 20) -> Float[Tensor, "E"]:
    """Probability that the label is among the first k items if equal scores are put in random order.

    Args:
        standard, conservative: its ranks if it wins, and if it loses, every tie.
    """
    return ((k + 1 - standard) / (conservative - standard + 1)).clamp(0, 1)


def ties(dataset: Dataset, systems: tuple[str, ...] = COUNTING) -> dict[str, dict]:
    """Counting systems under every tie policy, on the whole test.

    Returns:
        {system: {metric: {policy: percent}}} for HR@20 and MRR@20; for HR@20 "at random" as well, see
        `shown_at_random`.
    """
    test, found = dataset.test_windows(), {}
    for system in systems:
        model = build(system, dataset.num_items).fit(dataset.train)
        by = {policy: evaluate(model, test, policy) for policy in ("standard", "conservative")}
        low, high = by["standard"].ranks, by["conservative"].ranks
        by["median"] = replace(by["standard"], ranks=(low + high) / 2, ties="median")
        found[system] = {metric: {policy: by[policy].metric(metric) for policy in TIES} for metric in METRICS}
        found[system]["HR@20"]["at random"] = 100 * shown_at_random(low, high).mean().item()
    return found


def ties_study(names: list[str]) -> dict:
    """`ties` of each dataset, as ``results/studies/ties.json`` holds it: datasets > name > systems."""
    rows = {}
    for dataset in map(datasets.load, names):
        about = {"fingerprint": dataset.fingerprint, "examples": len(dataset.test_windows())}
        rows[dataset.name] = about | {"systems": ties(dataset)}
    return {"schema": 1, "study": "ties", "datasets": rows}


def in_order_of(sessions: Sessions, rank: Int[Tensor, "V"]) -> Sessions:
    """Every session sorted by one order of the whole catalogue, where item i has place ``rank[i]``."""
    session, _ = positions(sessions)
    clicks = sessions.clicks
    order = (session * sessions.num_items + rank[clicks.long()]).argsort(stable=True)
    return replace(sessions, items=clicks[order], offsets=sessions.offsets - sessions.offsets[0])


def order_counts(sessions: Sessions) -> dict[str, int]:
    """Traces that a sorting leaves in sessions, and clicks in the order of time do not.

    Returns:
        sessions; "with repeats": those that have an item more than once; "adjacent": those of them in which all clicks
        on an item stand side by side; "pairs met again": pairs of items that are together in two sessions or more;
        "meetings again": how often, beyond each pair's first session; "reversed": in how many of these meetings the
        two items stand the other way round than in the first (an item stands where it is clicked first).
    """
    session, _ = positions(sessions)
    clicks, count = sessions.clicks.long(), len(sessions)
    key = session * sessions.num_items + clicks
    first = _first(key)
    changes = torch.ones_like(first)
    changes[1:] = key[1:] != key[:-1]
    distinct, pieces = (torch.bincount(session[marks], minlength=count) for marks in (first, changes))
    repeats = distinct < sessions.lengths
    pair, forward = _pairs(session[first], clicks[first], sessions.num_items)
    place, size = runs(pair)
    again = place > 0
    other = forward != forward[torch.arange(len(pair)) - place]
    return {
        "sessions": count,
        "with repeats": int(repeats.sum()),
        "adjacent": int((repeats & (pieces == distinct)).sum()),
        "pairs met again": int((size[~again] > 1).sum()),
        "meetings again": int(again.sum()),
        "reversed": int(other.sum()),
    }


def _first(key: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
    """Marks the first of equal elements."""
    found, order = key.sort(stable=True)
    marks = torch.zeros(len(key), dtype=torch.bool)
    marks[order[runs(found)[0] == 0]] = True
    return marks


def _pairs(
    session: Int[Tensor, "N"], items: Int[Tensor, "N"], num_items: int
) -> tuple[Int[Tensor, "P"], Bool[Tensor, "P"]]:
    """Pairs of different items of each session: equal pairs side by side, the earlier session first; is a < b?"""
    place, size = runs(session)
    owner, other = expand(torch.arange(len(items)) + 1, size - 1 - place)
    a, b = items[owner], items[other]
    pair, order = (torch.minimum(a, b) * num_items + torch.maximum(a, b)).sort(stable=True)
    return pair, (a < b)[order]


def take(sessions: Sessions, marks: Bool[Tensor, "S"]) -> Sessions:
    """The marked sessions, on clicks of their own."""
    lengths = sessions.lengths
    offsets = torch.nn.functional.pad(lengths[marks].cumsum(0), (1, 0))
    return Sessions(sessions.clicks[marks.repeat_interleave(lengths)], offsets, sessions.num_items)


def held_out(sessions: Sessions, folds: int = 10) -> Evaluation:
    """First-order Markov's ranks on every session; session s is asked by the counts of those with another s mod folds.

    For logs that are too small to spare a test.
    """
    fold, parts = torch.arange(len(sessions)) % folds, []
    for number in range(folds):
        windows = take(sessions, fold == number).prefixes()
        if len(windows):
            model = build("markov", sessions.num_items).fit(take(sessions, fold != number))
            found = evaluate(model, windows)
            parts.append(replace(found, session=found.session * folds + number))
    joined = (torch.cat([getattr(part, name) for part in parts]) for name in ("ranks", "session", "lengths", "labels"))
    return Evaluation(*joined, parts[0].ties)


def hidden_order(dataset: Dataset, draws: int = 5) -> dict:
    """First-order Markov on the sessions as they are, and sorted by an order of the catalogue drawn at random.

    Returns:
        "as clicked": percent, 95 % intervals, and the `order_counts` of the training sessions; "as filed": the same of
        sessions sorted in training and test, means over `draws` orders, with the least and the largest ("range").
    """
    metrics, rows = {name: [] for name in METRICS}, {}
    model = build("markov", dataset.num_items)
    honest = evaluate(model.fit(dataset.train), dataset.test.prefixes())
    rows["as clicked"] = _row(honest) | {"train": order_counts(dataset.train)}
    for draw in range(draws):
        rank = torch.randperm(dataset.num_items, generator=torch.Generator().manual_seed(draw))
        train, test = (in_order_of(part, rank) for part in (dataset.train, dataset.test))
        found = evaluate(build("markov", dataset.num_items).fit(train), test.prefixes())
        for name, values in metrics.items():
            values.append(found.metric(name))
    rows["as filed"] = {name: sum(values) / draws for name, values in metrics.items()}
    rows["as filed"] |= {f"{name} range": [min(values), max(values)] for name, values in metrics.items()}
    rows["as filed"] |= {"draws": draws, "train": order_counts(train)}
    return rows


def _row(found: Evaluation) -> dict:
    row = {name: found.metric(name) for name in METRICS}
    return row | {f"{name} interval": list(found.interval(name)) for name in METRICS}


def sample_path() -> Path:
    """The public sample of Diginetica's click file, in ``$SBR_DATA`` or the cache folder, or in ``raw/`` of either.

    Raises:
        DataError: if it is not there.
    """
    roots = [Path(root) for root in (os.environ.get("SBR_DATA"), cache.folder() / "data") if root]
    found = [path for root in roots for folder in (root, root / "raw") for path in sorted(folder.glob(f"*{SAMPLE}"))]
    if not found:
        raise DataError(f"no {SAMPLE} in {' or '.join(map(str, roots))}: put it there, from datasets/ of the public "
                        "repository CRIPAC-DIG/SR-GNN")  # fmt: skip
    return found[0]


def as_sessions(clicks: Clicks, by_time: bool) -> Sessions:
    """All sessions of a raw log, unfiltered, their clicks in the order of time or in that of the file."""
    time = clicks.exact if by_time else np.zeros(len(clicks), np.int64)
    rows = np.lexsort((time, clicks.session))
    lengths = np.bincount(clicks.session, minlength=len(clicks.session_ids))
    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
    return Sessions(torch.from_numpy(clicks.item[rows].astype(np.int32)), offsets, len(clicks.item_ids))


def file_order(clicks: Clicks) -> dict:
    """A raw log whose clicks have a time, in the order of its file and in the order of time.

    Returns:
        clicks; examples; "as clicked" and "as filed": `order_counts` of all sessions, and first-order Markov on each of
        them, `held_out` (percent, with 95 % intervals).
    """
    rows = {"clicks": len(clicks)}
    for name, by_time in (("as clicked", True), ("as filed", False)):
        sessions = as_sessions(clicks, by_time)
        rows["examples"] = len(sessions.prefixes())
        rows[name] = order_counts(sessions) | _row(held_out(sessions))
    return rows


def click_order_study(names: list[str]) -> dict:
    """What the order of a session's clicks is worth to counting, as ``results/studies/click_order.json`` holds it.

    Returns:
        "datasets": `hidden_order` of each; "raw sample": `file_order` of the public sample of Diginetica's click file;
        "printed": what STAMP's authors measured in the order of the whole file.

    Raises:
        DataError: if a dataset or the sample is missing.
    """
    clicks, rows = readers.read_diginetica(sample_path()), {}
    for dataset in map(datasets.load, names):
        about = {"fingerprint": dataset.fingerprint, "examples": len(dataset.test.prefixes())}
        rows[dataset.name] = about | hidden_order(dataset)
    return {"schema": 1, "study": "click order", "printed": PRINTED, "datasets": rows, "raw sample": file_order(clicks)}
