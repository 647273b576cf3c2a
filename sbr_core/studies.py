"""Measurements that the book shows beside the records of runs, each repeated by ``sbr study``.

Shapes: S sessions, E examples.
"""

import json
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import product

import torch

from sbr_core import datasets
from sbr_core.bench import bench_softmax, bench_training
from sbr_core.config import TrainConfig
from sbr_core.datasets import Dataset
from sbr_core.models import build
from sbr_core.sessions import Sessions

# What a model may be given of an input: the less it is told, the more inputs look alike.
VIEWS = {
    "items": lambda s: frozenset(s),
    "items, last click": lambda s: (frozenset(s), s[-1]),
    "graph": lambda s: (s[0] if len(s) == 1 else None, _steps(s)),
    "graph, last click": lambda s: (s[-1], _steps(s)),
    "graph, last click, clicks per item": lambda s: (s[-1], _steps(s), frozenset(Counter(s).items())),
    "counted graph, last click": lambda s: (s[-1], frozenset(Counter(zip(s, s[1:], strict=False)).items())),
}


def _steps(session: tuple) -> frozenset:
    return frozenset(zip(session, session[1:], strict=False))


def inputs(sessions: Sessions) -> Counter:
    """Every input of the prefix examples, as a tuple of items, and how many examples have it."""
    return Counter(
        tuple(session[:end])
        for session in (sessions[number] for number in range(len(sessions)))
        for end in range(1, len(session))
    )


def colliding(found: Counter, view) -> list[list[tuple]]:
    """Groups of different inputs that are the same under a view."""
    groups = defaultdict(list)
    for session in found:
        groups[view(session)].append(session)
    return [group for group in groups.values() if len(group) > 1]


def collisions(dataset: Dataset) -> dict:
    """Which different inputs look the same to a model, under every view, and what a graph has to show."""
    found = inputs(dataset.train)
    result = {"fingerprint": dataset.fingerprint, "statistics": dataset.statistics()}
    result["session_lengths"] = torch.bincount(dataset.train.lengths).tolist()
    result["test_session_lengths"] = torch.bincount(dataset.test.lengths).tolist()
    result["inputs"] = {"examples": sum(found.values()), "distinct": len(found)}
    result["collisions"] = {name: _size(colliding(found, view), found) for name, view in VIEWS.items()}
    return result | {"sessions": _repeats(dataset.train)}


def _size(groups: list[list[tuple]], found: Counter) -> dict:
    members = [session for group in groups for session in group]
    return {
        "groups": len(groups),
        "largest": max(map(len, groups), default=0),
        "distinct": len(members),
        "examples": sum(found[session] for session in members),
    }


def _repeats(sessions: Sessions) -> dict:
    """How many sessions have an item, an immediate repeat, or a step more than once."""
    counts = Counter({"all": 0, "repeated item": 0, "immediate repeat": 0, "repeated step": 0})
    for number in range(len(sessions)):
        session = sessions[number]
        steps = list(zip(session, session[1:], strict=False))
        counts["all"] += 1
        counts["repeated item"] += len(set(session)) < len(session)
        counts["immediate repeat"] += any(u == v for u, v in steps)
        counts["repeated step"] += len(set(steps)) < len(steps)
    return dict(counts)


def collision_study(names: list[str]) -> dict:
    """`collisions` of each dataset, as ``results/studies/collisions.json`` holds it."""
    return {"schema": 1, "study": "collisions", "datasets": {name: collisions(datasets.load(name)) for name in names}}


def softmax_study(sizes: tuple[int, ...] = (1_000, 4_000, 20_000, 43_097, 100_000)) -> dict:
    """Time of the full softmax in its forms against the size of the catalogue."""
    return {"softmax": [bench_softmax(size) for size in sizes]}


def every_position_study(names: list[str], steps: int = 25) -> dict:
    """Speed of a Transformer trained on prefixes one by one and on whole sessions, with one and with two blocks."""
    rows = []
    for name in names:
        dataset = datasets.load(name)
        for blocks, batches in product((1, 2), ("examples", "every-position")):
            torch.manual_seed(0)
            model = build("transformer", dataset.num_items, positions="start", blocks=blocks)
            config = TrainConfig(max_len=50, batches=batches)
            found = bench_training(model, config.examples(dataset.train), config, steps)
            row = {"dataset": name, "items": dataset.num_items, "blocks": blocks, "batches": batches}
            rows.append(row | found)
    return {"every_position": rows}


def speed_study(models: list[str], names: list[str], steps: int = 20) -> list[dict]:
    """What `sbr bench` measures of every system on every dataset, each in a process of its own (for its memory).

    Raises:
        RuntimeError: if a benchmark fails.
    """
    rows = []
    for name in names:
        for model in models:
            command = [sys.executable, "-m", "sbr_core", "bench", "--model", model, "--dataset", name]
            done = subprocess.run([*command, "--steps", str(steps), "--json"], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the benchmark of {model} on {name} failed: {done.stderr.strip()}")
            rows.append(json.loads(done.stdout))
    return rows
