"""One published row repeated: a select run, a final run, and one record with both columns.

The *select* run trains on all but the latest tenth of the training sessions and picks one epoch by MRR@20 on that
tenth. The *final* run trains on all of them and reports the test after every epoch. Its best values, each metric for
itself, are what the literature prints ("as published"); its value at the epoch that the select run picked is the
honest one. A recipe without a select run picks nothing: its honest epoch is the last, of a number fixed in advance.
"""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from sbr_core import datasets, records
from sbr_core.datasets import Dataset
from sbr_core.evaluate import evaluate
from sbr_core.models import MODELS, build, seeded
from sbr_core.models.base import CountingModel
from sbr_core.recipes import Recipe
from sbr_core.run_state import Busy, alone_in
from sbr_core.sessions import Sessions, Windows
from sbr_core.sources import FINGERPRINTS
from sbr_core.train import TrainConfig, fit

HELD_OUT = 0.1  # the latest share of the training sessions on which an epoch is picked
STOPPED = 130  # exit code of a worker that was told to stop


def new_model(recipe: Recipe, num_items: int, seed: int, device: str = "cpu"):
    """The recipe's model, initialised from `seed`."""
    torch.manual_seed(seed)
    return build(recipe.model, num_items, **seeded(recipe.model, recipe.arguments, seed)).to(device)


def evaluator(
    windows: Windows, config: TrainConfig, train: Sessions | None = None, resamples: int = 500, progress: bool = False
):
    """A function of a model: its metrics on these examples, with 95 % session bootstrap intervals.

    `progress` shows a bar on stderr. The `Evaluation` behind the last answer is its attribute ``result``.
    """
    windows = config.truncate(windows)
    seen = None if train is None else occurring(train)

    def function(model) -> dict:
        result = function.result = evaluate(model, windows, seen=seen, progress=progress)
        intervals = {f"{name} interval": list(result.interval(name, resamples)) for name in ("HR@20", "MRR@20")}
        unknown = {"unknown_targets": result.unknown_targets, "unknown_clicks": result.unknown_clicks}
        return result.metrics | intervals | {"examples": len(windows)} | unknown

    return function


def occurring(sessions: Sessions):
    """(V,) True for the items that occur in these sessions."""
    return torch.bincount(sessions.clicks.long(), minlength=sessions.num_items) > 0


def replicate(
    recipe: Recipe,
    dataset: Dataset,
    seed: int,
    work: Path,
    results: Path,
    device: str = "cpu",
    progress: bool = True,
    renew: bool = False,
) -> Path:
    """Run a recipe in both protocols and write its record; a run that was stopped is continued.

    Args:
        work: folder of the checkpoints.
        results: folder of the records; the ranks of the honest epoch go into its folder ``ranks``.
        renew: a record that falls short (`records.lacks`) is no reason to stop; it is set aside at the end. One that
            lacks only its select run gets that alone: its final run is kept if the epoch picked is the one whose
            ranks lie beside it.

    Returns:
        The record's file. One that is there already is left alone otherwise: records are append-only.

    Raises:
        ValueError: if the record that is there is of other settings or other data, or the dataset is not the one that
            its name says.
        Busy: if another process is at work on the same run.
    """
    if dataset.fingerprint != FINGERPRINTS.get(dataset.name, dataset.fingerprint):
        raise ValueError(f"{dataset.name} is the name of another dataset, with other clicks: rename the folder or file")
    path = results / records.file_name(recipe.model, dataset.name, seed, recipe.variant)
    config = dataclasses.replace(recipe.config, seed=seed)
    stands = partial(_stands, path, recipe, config, dataset, renew)
    if stands():
        return path
    final = work / f"{path.stem}-final"
    final.mkdir(parents=True, exist_ok=True)
    with alone_in(final):
        parts = ("select", "final") if recipe.select and not _counts(recipe) else ("final",)
        watch = records.Watch(device)
        run = partial(_run, recipe, config, dataset, work / path.stem, device, progress)
        epochs, origin = {}, None
        for part in parts:
            origin = _finished(path, recipe, config, dataset, epochs, final) if part == "final" and renew else None
            epochs[part] = records.read(path)["runs"]["final"] if origin else run(part)
        if stands():  # another command, with other checkpoints, was faster
            return path
        if path.exists():
            records.set_aside(path)
        records.keep_ranks(path, final, records.both_columns(epochs)["honest"]["epoch"])
        return records.write(path, recipe, config, dataset, epochs, watch, origin)


def _finished(
    path: Path, recipe: Recipe, config: TrainConfig, dataset: Dataset, epochs: dict[str, list[dict]], final: Path
) -> str | None:
    """The digest of the record at `path` if its final run is the one that is wanted, with the ranks of the epoch that
    the select run has picked; they are then put into the folder `final` of the run."""
    if not path.exists() or records.lacks(path, recipe) != ["no select run"]:
        return None
    record = records.read(path)
    both = epochs | {"final": record["runs"]["final"]}
    if records.check_same(path, recipe, config, dataset.fingerprint) or (
        records.both_columns(both)["honest"] != record["honest"]
    ):
        return None
    shutil.copyfile(records.ranks_path(path), final / f"ranks-{record['honest']['epoch']}.npz")
    return record["digest"]


def _stands(path: Path, recipe: Recipe, config: TrainConfig, dataset: Dataset, renew: bool) -> bool:
    """Whether there is a record that is to stay; said on stderr: who asked for other epochs is not to take it for
    theirs."""
    if not path.exists():
        return False
    departs = records.check_same(path, recipe, config, dataset.fingerprint)
    short = bool(records.lacks(path, recipe))
    if renew and short:
        return False
    departs |= {"no": "select run"} if records.unpicked(records.read(path), recipe) else {}
    held = ", with " + ", ".join(f"{key} {value}" for key, value in departs.items()) if departs else ""
    hint = ", or --renew, which keeps this one in earlier/" if short else ""
    print(f"recorded already: {path}{held}; a new one needs another --results{hint}", file=sys.stderr)
    return True


def _counts(recipe: Recipe) -> bool:
    return issubclass(MODELS[recipe.model], CountingModel)


def _run(
    recipe: Recipe, config: TrainConfig, dataset: Dataset, work: Path, device: str, progress: bool, part: str
) -> list[dict]:
    """Epoch records of the "select" or of the "final" run."""
    train, held, name = dataset.train, dataset.test_windows(), "test"
    if part == "select":
        train, late = dataset.train.split_latest(HELD_OUT)
        held, name = late.prefixes(), "validation"
    folder, train = Path(f"{work}-{part}"), train.to(device)
    held_out = evaluator(held.to(device), config, train, progress=progress)
    model = new_model(recipe, dataset.num_items, config.seed, device)

    def keep(model, epochs: list[dict]) -> None:
        if part == "final":
            result = held_out.result
            records.write_ranks(folder / f"ranks-{len(epochs)}.npz", result.ranks, result.session)

    if isinstance(model, CountingModel):
        epochs = [{"epoch": 1, name: held_out(model.fit(train))}]
        keep(model, epochs)
        return epochs
    model.prepare(train)
    identity = {"model": recipe.model, "arguments": recipe.arguments, "dataset": dataset.fingerprint, "part": part}
    examples = config.examples(train)
    epochs = fit(model, examples, config, {name: held_out}, folder, identity, keep, progress=progress)
    return epochs[: config.epochs]  # an earlier run there may have been longer


def run_all(
    jobs: list, work: Path, results: Path, device: str = "cpu", progress: bool = True, renew: bool = False
) -> list[Path]:
    """`replicate` the jobs of a `plan` one after another, passing over what another process is at work on.

    A job that fails is reported on stderr and the next one begins.

    Raises:
        RuntimeError: at the end, if a job failed.
    """
    written, failed = [], []
    for job in jobs:
        try:
            dataset = datasets.load(job.dataset)
            written.append(replicate(job.recipe, dataset, job.seed, work, results, device, progress, renew))
        except Busy as busy:
            print(f"passed over: {busy}", file=sys.stderr)
        except (ValueError, OSError, ArithmeticError, LookupError, ImportError, RuntimeError, MemoryError) as error:
            print(f"failed: {job.file}: {str(error) or type(error).__name__}", file=sys.stderr)
            failed.append(job.file)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")
    return written


def run_with_workers(
    jobs: list, workers: int, work: Path, results: Path, device: str = "cpu", renew: bool = False
) -> list[Path]:
    """`run_all` in several processes that share the jobs; a job belongs to the process that locks it first.

    Raises:
        RuntimeError: if a process failed.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    arguments = (jobs, work, results, device, threads, renew)
    processes = [context.Process(target=_worker, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        for process in processes:
            process.join()
        raise
    if any(process.exitcode not in (0, STOPPED) for process in processes):
        raise RuntimeError("a worker failed; its message is above")
    return [results / job.file for job in jobs if (results / job.file).exists()]


def _worker(jobs: list, work: Path, results: Path, device: str, threads: int, renew: bool) -> None:
    torch.set_num_threads(threads)
    try:
        run_all(jobs, work, results, device, progress=False, renew=renew)
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    except RuntimeError as error:
        sys.exit(str(error))
