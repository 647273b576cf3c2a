"""Measurements that the book shows beside the records of runs, each repeated by ``sbr study``.

Shapes: S sessions, E examples.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sbr_core import datasets, recipes
from sbr_core.bench import bench_softmax, bench_training
from sbr_core.config import TrainConfig
from sbr_core.datasets import Dataset
from sbr_core.evaluate import evaluate
from sbr_core.losses import least_rows
from sbr_core.models import build
from sbr_core.run_state import Run
from sbr_core.samplers import click_counts
from sbr_core.sessions import Sessions, Windows
from sbr_core.sources import FINGERPRINTS
from sbr_core.tables import compare
from sbr_core.train import fit, make_order, train_step

GRID_BYTES = 2**29  # of the scores of a batch: the plain form holds them three times
POPULARITY = (0, 10, 30, 100, 300, 1000)  # training clicks of the target

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


def softmax_study(
    sizes: tuple[int, ...] = (1_000, 4_000, 20_000, 43_097, 100_000, 300_000, 1_000_000),
) -> dict:
    """Time of the full softmax in its forms against the size of the catalogue."""
    return {"softmax": [bench_softmax(size) for size in sizes]} | _machine()


def softmax_grid_study(
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000),
    batch_sizes: tuple[int, ...] = (32, 100, 512),
    dims: tuple[int, ...] = (64, 128, 256),
) -> dict:
    """Time of the plain and of our two forms in float32, by items, batch and width: where one overtakes another.

    Batches whose scores take more than `GRID_BYTES` are left out.
    """
    forms = [(form, "fp32") for form in ("plain", "kept", "blocked")]
    cells = product(batch_sizes, dims, sizes)
    rows = [bench_softmax(v, b, d, forms=forms) for b, d, v in cells if 4 * b * v <= GRID_BYTES]
    return {"grid": rows} | _machine()


def _machine() -> dict:
    return {"device": f"CPU, {torch.get_num_threads()} threads", "torch": torch.__version__}


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


TABLE_VARIANTS = {
    "Adam, every row": {"table_optimizer": "adam"},
    "Adam, every row, L2": {"table_optimizer": "adam", "l2": 1e-5},
    "SparseAdam": {"table_optimizer": "sparse-adam"},
    "SparseAdam, lazy L2": {"table_optimizer": "sparse-adam", "l2": 1e-5, "table_l2": "touched"},
    "row-wise Adam": {"table_optimizer": "rowwise-adam"},
}


def row_movement(
    model: nn.Module, train: Windows, config: TrainConfig, steps: int
) -> tuple[Float[Tensor, "steps rows"], Bool[Tensor, "steps rows"]]:
    """Train for some steps and say how far every row of the item table moves in each, and whether the step named it.

    Returns:
        moved (Euclidean lengths) and named (the gradient of the loss is not zero there), the padding's row included.
    """
    run = Run(model, train, config, None, {}, 0.0)
    moved, named = [], []
    model.train()
    for batch in islice(make_order(train, config, 0, least_rows(run.loss)).batches(train), steps):
        before = model.table.detach().clone()
        train_step(model, run.loss, run.optimizers, batch, run.encode, run.clip)
        moved.append((model.table.detach() - before).norm(dim=1))
        grad = model.table.grad
        named.append((grad.to_dense() if grad.is_sparse else grad).any(1))
    return torch.stack(moved), torch.stack(named)


REFERENCE = "SparseAdam"  # of TABLE_VARIANTS, what the others are compared with
RARE = 10  # training clicks of a target, fewer are rare


def table_study(
    names: list[str], seeds: Sequence[int] = (0, 1, 2), epochs: int = 2, examples: int | None = None, steps: int = 100
) -> dict:
    """STAMP on the unit sphere with sampled softmax, by the optimizer of its table: accuracy, and which rows move.

    Args:
        seeds: starts of every training.
        examples: of the test, evenly taken; None for all.

    Returns:
        "table_optimizers": a row for each dataset, seed and variant, with its MRR@20 less that of `REFERENCE` from the
        same start on the same examples: of all ("against") and of the rare targets ("against, rare"): difference, low,
        high (paired bootstrap over sessions).
    """
    rows = []
    for name, seed in product(names, seeds):
        dataset, found = datasets.load(name), {}
        test = dataset.test_windows()
        some = test[torch.linspace(0, len(test) - 1, min(examples or len(test), len(test))).long()]
        for title, fields in TABLE_VARIANTS.items():
            row, found[title] = _table_variant(dataset, fields | {"seed": seed}, some, epochs, steps)
            rows.append({"dataset": name, "items": dataset.num_items, "variant": title} | row)
        counts = click_counts(recipes.recipe("stamp", name).config.examples(dataset.train))
        rare = counts[some.labels.long()] < RARE
        for row, ranks in zip(rows[-len(found) :], found.values(), strict=True):
            for key, part in ("against", torch.ones_like(rare)), ("against, rare", rare):
                row[key] = _against(ranks[part], found[REFERENCE][part], some.session[part])
    return {"table_optimizers": rows, "rare": RARE}


def _table_variant(dataset: Dataset, fields: dict, test: Windows, epochs: int, steps: int) -> tuple[dict, Tensor]:
    """Train, evaluate and watch one variant: what `table_study` records of it, and its ranks (E,)."""
    recipe = recipes.recipe("stamp", dataset.name)
    arguments = recipe.arguments | {"normalise": True}
    fields = {"loss": "sampled-softmax", "loss_arguments": {"negatives": 512}, "l2": 0.0} | fields
    config = replace(recipe.config, epochs=epochs, **fields)
    train = config.examples(dataset.train)
    torch.manual_seed(config.seed)
    model = build("stamp", dataset.num_items, **arguments)
    losses = [epoch["loss"] for epoch in fit(model, train, config, progress=False)]
    found = evaluate(model, test)
    torch.manual_seed(config.seed)
    fresh = build("stamp", dataset.num_items, **arguments)
    row = {"batch_size": config.batch_size, "lr": config.lr, "examples": len(test), "losses": losses}
    row |= {"metrics": found.metrics, "groups": found.by_popularity(click_counts(train), POPULARITY)} | fields
    return row | _movement(*row_movement(fresh, train, config, steps)), found.ranks


def _against(ranks: Tensor, other: Tensor, session: Tensor) -> dict | None:
    """MRR@20 less that of the other, paired; None without examples."""
    if not len(ranks):
        return None
    found = compare(ranks, other, session, resamples=500)
    return {"examples": len(ranks), "difference": found.difference, "low": found.low, "high": found.high}


def _movement(moved: Tensor, named: Tensor) -> dict:
    """Of the later half of the steps: rows named and rows moved in a step, and the path of rows that no step named."""
    late = slice(len(moved) // 2, None)
    moved, named = moved[late].double(), named[late]
    return {
        "rows_named": named.sum(1).double().mean().item(),
        "rows_moved": (moved > 0).sum(1).double().mean().item(),
        "path_unnamed": (moved[~named].sum() / moved.sum()).item(),
    }


def read_study(path: Path | str) -> dict | list | None:
    """What ``sbr study --output`` wrote; None if there is no such file.

    Raises:
        ValueError: if the file is not JSON, or a part of it ran on other data than the records of the book.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a study: {error}") from error
    listed = isinstance(found, list)
    parts = [(row.get("dataset"), row) for row in found] if listed else found.get("datasets", {}).items()
    for name, part in parts:
        held, known = part.get("fingerprint"), FINGERPRINTS.get(name)
        if held and known and held != known:
            raise ValueError(f"{path}: its fingerprint {held[:12]}... is not that of {name}: it ran on other data")
    return found
