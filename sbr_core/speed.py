"""How fast the systems train: by their recipes, beside what was asked for on two cores, and part by part.

Shapes: B examples, D width.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.utils._pytree import tree_leaves, tree_map

from sbr_core import datasets, recipes
from sbr_core.bench import endless, timed
from sbr_core.config import TrainConfig
from sbr_core.losses import Scores, least_rows
from sbr_core.models import MODELS, SessionModel, build
from sbr_core.run_state import Run
from sbr_core.sessions import Windows
from sbr_core.train import make_order

FIRST, SAME = "sr-gnn", ("--batch-size", "100", "--set", "dim=100")
STEPS = 100  # timed: one batch in ten is of long sessions, and takes several times as long as the median
SLOWER = 2.5  # times the price of an example of `FIRST` that another system may cost

# What was to be reached on two cores: (system, dataset, options) -> (examples/s, events/s for the parallel one; MB).
TARGETS = {
    ("tagnn", "diginetica", (*SAME, "--precision", "fp32")): (300, 1600),
    ("tagnn", "diginetica", (*SAME, "--precision", "bf16")): (650, None),
    ("tagnn", "yoochoose1_64", (*SAME, "--precision", "fp32")): (300, 1500),
    ("tagnn", "yoochoose1_64", (*SAME, "--precision", "bf16")): (650, None),
    ("gru4rec-2018", "yoochoose1_64", ("--batch-size", "64", "--set", "dim=100")): (8000, None),
}


def neural() -> list[str]:
    """The systems that are trained step by step."""
    return [system for system, cls in MODELS.items() if issubclass(cls, SessionModel)]


def speed_study(models: Sequence[str] | None, names: Sequence[str], steps: int = STEPS) -> list[dict]:
    """What `sbr bench` measures of every system on every dataset by its recipe.

    Args:
        models: None for all neural ones.

    Raises:
        RuntimeError: if a benchmark fails.
    """
    return [measured(model, name, (), steps) for name in names for model in models or neural()]


def measured(model: str, name: str, options: Sequence[str] = (), steps: int = STEPS) -> dict:
    """What ``sbr bench`` prints, in a process of its own (for its memory).

    Raises:
        RuntimeError: if it fails.
    """
    command = [sys.executable, "-m", "sbr_core", "bench", "--model", model, "--dataset", name, *options]
    done = subprocess.run([*command, "--steps", str(steps), "--json"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the benchmark of {model} on {name} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def targets_study(steps: int = STEPS, dataset: str = "yoochoose1_64", targets: dict | None = None) -> list[dict]:
    """Every system at one batch size and one width beside SR-GNN, and those with a target of their own.

    SR-GNN is measured before each system, so that both see the same machine; both see the same batches, too.

    Returns:
        What `sbr bench` returned, with "target" (examples/s) and "target_mb" (None where none is set), and for a system
        beside SR-GNN "times" (its time per example over SR-GNN's).

    Raises:
        RuntimeError: if a benchmark fails.
    """
    rows, targets = [], TARGETS if targets is None else targets
    for (model, name, options), (least, most) in targets.items():
        rows.append(measured(model, name, (*options, "--no-evaluation"), steps) | {"target": least, "target_mb": most})
    own = {"tagnn"} | {model for model, *_ in targets}
    for model in (system for system in neural() if system not in own | {FIRST}):
        first, other = (measured(each, dataset, (*SAME, "--no-evaluation"), steps) for each in (FIRST, model))
        times = first["examples_per_second"] / other["examples_per_second"]
        rows.append(other | {"times": times, "target": first["examples_per_second"] / SLOWER, "target_mb": None})
    return rows


def parts_study(model: str, name: str, steps: int = 12) -> dict:
    """`step_parts` of a system by its recipe on a dataset's training examples, in batches of 100, 100 wide."""
    data, found = datasets.load(name), recipes.recipe(model, name)
    torch.manual_seed(0)
    built = build(model, data.train.num_items, **found.arguments | {"dim": 100})
    config = replace(found.config, batch_size=100)
    parts = step_parts(built, config.examples(data.train), config, steps)
    return {"model": model, "dataset": name, "fingerprint": data.fingerprint, "device": "cpu"} | parts


def step_parts(model: SessionModel, train: Windows, config: TrainConfig, steps: int = 12, warmup: int = 3) -> dict:
    """Median milliseconds of the parts of a training step, cut at the query.

    Returns:
        encode, score (the loss, with its backward pass to query and table), encode_backward, update (clipping and
        optimizers), and batch_size.
    """
    run = Run(model, train, config, None, {}, 0.0)
    source, rows = endless(make_order(train, config, 0, least_rows(run.loss)), train), []
    model.train()
    for _ in range(warmup + steps):
        rows.append(_parts_of(run, next(source)))
    medians = {part: statistics.median(row[part] for row in rows[warmup:]) for part in rows[0]}
    return medians | {"batch_size": config.batch_size}


def _parts_of(run: Run, batch) -> dict[str, float]:
    """One step."""
    model, held, device = run.model, {}, run.train.device
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)

    def encode() -> None:
        held["query"] = run.encode(batch)
        held["cut"] = tree_map(_leaf, held["query"])

    def score() -> None:
        value, extra = run.loss(Scores(model, held["cut"]), batch.target), model.extra_loss(held["cut"], batch.target)
        (value if extra is None else value + extra).backward()

    def encode_backward() -> None:
        pairs = zip(tree_leaves(held["query"]), tree_leaves(held["cut"]), strict=True)
        pairs = [(whole, cut.grad) for whole, cut in pairs if torch.is_tensor(cut) and cut.grad is not None]
        torch.autograd.backward(*zip(*pairs, strict=True))

    def update() -> None:
        if run.clip:
            run.clip()
        for optimizer in run.optimizers:
            optimizer.step()

    return {work.__name__: timed(work, device) for work in (encode, score, encode_backward, update)}


def _leaf(value):
    """The same numbers without their history; they collect a gradient where the original would."""
    return value.detach().requires_grad_(value.requires_grad) if torch.is_tensor(value) else value
