"""One published row repeated: a select run, a final run, and one record with both columns.

The *select* run trains on all but the latest tenth of the training sessions and picks one epoch by MRR@20 on that
tenth. The *final* run trains on all of them and reports the test after every epoch. Its best values, each metric for
itself, are what the literature prints ("as published"); its value at the epoch that the select run picked is the
honest one.
"""

import dataclasses
from pathlib import Path

import torch

from sbr_core import records
from sbr_core.datasets import Dataset
from sbr_core.evaluate import evaluate
from sbr_core.models import build
from sbr_core.models.base import CountingModel
from sbr_core.recipes import Recipe
from sbr_core.sessions import Sessions, Windows
from sbr_core.train import TrainConfig, fit

HELD_OUT = 0.1  # the latest share of the training sessions on which an epoch is picked


def new_model(recipe: Recipe, num_items: int, seed: int, device: str = "cpu"):
    """The recipe's model, initialised from `seed`."""
    torch.manual_seed(seed)
    return build(recipe.model, num_items, **recipe.arguments).to(device)


def evaluator(windows: Windows, config: TrainConfig, train: Sessions | None = None, resamples: int = 500):
    """A function of a model: its metrics on these examples, with 95 % session bootstrap intervals."""
    windows = config.truncate(windows)
    seen = None if train is None else occurring(train)

    def function(model) -> dict:
        result = evaluate(model, windows, seen=seen)
        intervals = {f"{name} interval": list(result.interval(name, resamples)) for name in ("HR@20", "MRR@20")}
        unknown = {"unknown_targets": result.unknown_targets, "unknown_clicks": result.unknown_clicks}
        return result.metrics | intervals | {"examples": len(windows)} | unknown

    return function


def occurring(sessions: Sessions):
    """(V,) True for the items that occur in these sessions."""
    return torch.bincount(sessions.clicks.long(), minlength=sessions.num_items) > 0


def replicate(
    recipe: Recipe, dataset: Dataset, seed: int, work: Path, results: Path, device: str = "cpu", progress: bool = True
) -> Path:
    """Run a recipe in both protocols and write its record; a run that was stopped is continued.

    Args:
        work: folder of the checkpoints.
        results: folder of the records.

    Returns:
        The record's file. One that is there already is left alone: records are append-only.

    Raises:
        ValueError: if the record that is there is of other settings or other data.
    """
    path = results / records.file_name(recipe.model, dataset.name, seed)
    config = dataclasses.replace(recipe.config, seed=seed)
    if path.exists():
        records.check_same(path, recipe, config, dataset)
        return path
    early, late = dataset.train.split_latest(HELD_OUT)
    parts = {
        "select": (early, {"validation": late.prefixes()}),
        "final": (dataset.train, {"test": dataset.test_windows()}),
    }
    epochs, watch = {}, records.Watch(device)
    for name, (train, held) in parts.items():
        model = new_model(recipe, dataset.num_items, seed, device)
        if isinstance(model, CountingModel):
            if name == "select":
                continue
            train = train.to(device)
            model.fit(train)
            results_of = {key: evaluator(w.to(device), config, train)(model) for key, w in held.items()}
            epochs[name] = [{"epoch": 1} | results_of]
            continue
        evaluators = {key: evaluator(w.to(device), config, train.to(device)) for key, w in held.items()}
        identity = {"model": recipe.model, "arguments": recipe.arguments, "dataset": dataset.fingerprint, "part": name}
        examples = config.examples(train).to(device)
        folder = work / f"{path.stem}-{name}"
        epochs[name] = fit(model, examples, config, evaluators, folder, identity, progress=progress)
    return records.write(path, recipe, config, dataset, epochs, watch)
