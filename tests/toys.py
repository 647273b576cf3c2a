"""Small random data for the tests, and the slow obvious loops that several of them compare with."""

import json
import random
from dataclasses import asdict

import torch
from torch.nn import functional as F

from sbr_core.recipes import recipe
from sbr_core.record_check import SCHEMA, both_columns, file_name, sealed
from sbr_core.sessions import Sessions
from sbr_core.sources import FINGERPRINTS


def random_clicks(count=60, num_items=30, longest=9, seed=0, shortest=1) -> list[list[int]]:
    """`count` sessions of shortest..longest clicks; a click is a repeat of the session in one case of four."""
    draw = random.Random(seed)
    sessions = []
    for _ in range(count):
        session: list[int] = []
        for _ in range(draw.randint(shortest, longest)):
            repeat = session and draw.random() < 0.25
            session.append(draw.choice(session) if repeat else draw.randrange(num_items))
        sessions.append(session)
    return sessions


def random_sessions(count=60, num_items=30, longest=9, seed=0, shortest=1) -> Sessions:
    """The sessions of `random_clicks`, with a time each."""
    clicks = random_clicks(count, num_items, longest, seed, shortest)
    return Sessions.from_lists(clicks, num_items, times=range(1000, 1000 + count))


def chain(num_items=20, count=120, length=6, seed=0) -> Sessions:
    """Sessions that always step from item i to item i + 1: any model that trains at all learns them."""
    draw = random.Random(seed)
    starts = [draw.randrange(num_items) for _ in range(count)]
    return Sessions.from_lists([[(start + step) % num_items for step in range(length)] for start in starts], num_items)


def prefix_loop(sessions: list[list[int]]) -> list[tuple[list[int], int]]:
    """(input, label) of every prefix, by a double loop."""
    return [(session[:t], session[t]) for session in sessions for t in range(1, len(session))]


def suffix_loop(sessions: list[list[int]]) -> list[tuple[list[int], int]]:
    """(input, label) of every suffix, by a double loop."""
    return [(session[s:-1], session[-1]) for session in sessions for s in range(len(session) - 1)]


def as_lists(windows) -> list[tuple[list[int], int]]:
    """(input, label) of every window, read one by one."""
    items, head = windows.items.tolist(), windows.head
    rows = zip(windows.start.tolist(), windows.target.tolist(), strict=True)
    return [(items[start:target][:head], items[target]) for start, target in rows]


def softmax_loop(query, table, target):
    """Mean cross-entropy of the plain product, differentiable, as the textbook writes it."""
    return F.cross_entropy(query @ table[:-1].T, target)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def record(system, dataset, seed=0, variant="", hr=50.0, mrr=20.0, half=1.0):
    """A record whose second epoch is the best one; the honest one is the first, 1 below, its intervals +- `half`."""
    final = []
    for number, below, seconds, speed in ((1, 1.0, 10.0, 5.0), (2, 0.0, 30.0, 7.0)):
        test = {"HR@20": hr - below, "MRR@20": mrr - below}
        test |= {f"{name} interval": [max(0.0, value - half), value + half] for name, value in test.items()}
        final.append({"epoch": number, "test": test, "seconds": seconds, "examples_per_second": speed})
    select = [{"epoch": number, "validation": {"MRR@20": value}} for number, value in ((1, 2.0), (2, 1.0))]
    runs = {"select": select, "final": final}
    fingerprint, planned = FINGERPRINTS.get(dataset, "f" * 64), recipe(system, dataset)
    return {
        "schema": SCHEMA, "system": system, "variant": variant, "dataset": dataset, "protocol": "test",
        "fingerprint": fingerprint, "seed": seed, "runs": runs, "seconds": 40.0, "device": "CPU", "peak_rss_mb": 1.0,
        "recipe": {"arguments": dict(planned.arguments), "config": asdict(planned.config)}, "versions": {},
    } | both_columns(runs)  # fmt: skip


def put(folder, found):
    """Write a record, sealed, where the book keeps it; returns its path."""
    path = folder / file_name(found["system"], found["dataset"], found["seed"], found["variant"])
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(sealed(found)))
    return path
