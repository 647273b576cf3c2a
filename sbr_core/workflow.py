"""What the commands do, as functions that return what they print."""

import inspect
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from sbr_core import bench as benchmarks
from sbr_core import checkpoints, item_index
from sbr_core.batches import length_order
from sbr_core.datasets import Dataset
from sbr_core.evaluate import evaluate as rank_all
from sbr_core.losses import LOSSES
from sbr_core.memory import refuse_beyond
from sbr_core.models import MODELS
from sbr_core.models.base import CountingModel
from sbr_core.recipes import Recipe
from sbr_core.recommend import FILE, Recommender
from sbr_core.records import Watch
from sbr_core.replicate import HELD_OUT, evaluator, new_model, occurring
from sbr_core.run_state import STATE, alone_in, fixed_fields, refuse_other
from sbr_core.sessions import Sessions
from sbr_core.train import fit


def best_epoch(epochs: list[dict], part: str) -> dict:
    """The epoch with the best MRR@20 on a part ("test" or "validation")."""
    return max(epochs, key=lambda epoch: epoch[part]["MRR@20"])


def train(
    recipe: Recipe, dataset: Dataset, output: Path | None, validate: bool, device: str = "cpu", progress: bool = True
) -> dict:
    """Train, report the test after every epoch, keep a model for `Recommender.load` in `output`.

    The model kept is that of the epoch picked on the held-out sessions if `validate`, else that of the last epoch.

    Returns:
        "best" (the epoch with the best test MRR@20: what the literature would print), "epochs", with `validate`
        "selected", and the run's seconds and memory; "unkept" (what is wrong) if the model could not be kept.

    Raises:
        ValueError: if `output` holds another run, or another training is at work there.
    """
    config, watch = recipe.config, Watch(device)
    if config.patience is not None and not validate:
        raise ValueError("--patience wants --validate: without held-out sessions there is nothing to be patient about")
    if output:
        make_folder(output)
    with alone_in(output):
        keeper = Keeper(recipe, dataset, output, validate)
        epochs = _train(recipe, dataset, keeper, device, progress)
    best = best_epoch(epochs, "test")
    result = {"model": recipe.model, "dataset": dataset.name, "seed": config.seed}
    result["best"] = {name: best["test"][name] for name in ("HR@20", "MRR@20")} | {"epoch": best["epoch"]}
    if validate:
        picked = best_epoch(epochs, "validation")
        result["selected"] = {key: picked[key] for key in ("epoch", "validation", "test")}
    kept = {"unkept": keeper.unkept, "output": None} if keeper.unkept else {"output": output and str(output)}
    return result | {"epochs": epochs} | kept | watch.read()


def _train(recipe: Recipe, dataset: Dataset, keeper: "Keeper", device: str, progress: bool) -> list[dict]:
    """The records of all epochs; the model is with the keeper."""
    config, validate = recipe.config, keeper.validate
    early, late = dataset.train.split_latest(HELD_OUT) if validate else (dataset.train, None)
    train_part = early.to(device)
    parts = ({"validation": late.prefixes()} if validate else {}) | {"test": dataset.test_windows()}
    evaluators = {name: evaluator(p.to(device), config, train_part, progress=progress) for name, p in parts.items()}
    check_memory(recipe, dataset.num_items)
    model = new_model(recipe, dataset.num_items, config.seed, device)
    if isinstance(model, CountingModel):
        model.fit(train_part)
        epochs = [{"epoch": 1} | {name: function(model) for name, function in evaluators.items()}]
        keeper(model, epochs)
    else:
        if validate and getattr(model, "transductive", False):
            raise ValueError(
                "transductive=True makes neighbours of test sessions, and --validate picks an epoch without them: "
                "leave one of them out"
            )
        _prepare(model, train_part, dataset)
        examples = config.examples(early).to(device)
        identity = identity_of(recipe, dataset, validate)
        epochs = fit(model, examples, config, evaluators, keeper.output, identity, keeper, progress=progress)
        if len(epochs) > config.epochs:
            raise ValueError(f"{keeper.output} holds {len(epochs)} epochs: ask for --epochs {len(epochs)} or more")
    keeper.finish(model, epochs)
    return epochs


def make_folder(output: Path) -> None:
    """Make the folder of a run, if it is not there.

    Raises:
        ValueError: if a file is in the way.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"--output {output}: a file is in the way; it must be a folder, new or not") from None


def identity_of(recipe: Recipe, dataset: Dataset, validate: bool = False) -> dict:
    """What makes a run this run beside its configuration: a checkpoint of another one is not continued."""
    named = {"model": recipe.model, "arguments": recipe.arguments}
    return named | {"dataset": dataset.fingerprint, "validate": validate}


def keep_model(
    model: torch.nn.Module, recipe: Recipe, dataset: Dataset, output: Path, run: dict | None = None, epoch: int = 0
) -> Callable[[], None] | None:
    """Write the model for `Recommender.load`; a full disk costs the model file, not the run.

    Args:
        run, epoch: what identifies the run and the model in it; kept in the file, if they are given.

    Returns:
        What tries again to write this model, if the disk refused it.
    """
    recommender = Recommender.of(model, dataset, recipe.config.max_len, recipe.config.keep)
    tensors, info = recommender.contents(recipe.model, recipe.arguments)
    info |= {"run": run, "epoch": epoch} if run else {}
    try:
        checkpoints.write(output / FILE, tensors, info)
    except OSError as error:
        warnings.warn(f"training goes on, but without its model: {error}", stacklevel=2)
        copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
        return partial(checkpoints.write, output / FILE, copies, info)
    return None


class Keeper:
    """Keeps the model of the epoch that counts in the folder of a run, and none over that of another run.

    Args:
        output: the folder, or None.
        validate: the epoch that counts is the best one on the held-out sessions, and not the last.

    Attributes:
        unkept: what is wrong, if the model could not be kept in the end.

    Raises:
        ValueError: if the folder holds another run.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, output: Path | None, validate: bool):
        self.recipe, self.dataset, self.output, self.validate = recipe, dataset, output, validate
        self.run = identity_of(recipe, dataset, validate) | {"config": fixed_fields(recipe.config)}
        self.again: Callable[[], None] | None = None
        self.unkept: str | None = None
        for path in (output / STATE, output / FILE) if output else ():
            if path.exists():
                info = checkpoints.header(path)
                there = info.get("run") or self.run | {name: info[name] for name in ("model", "arguments")}
                refuse_other(path, {name: value for name, value in there.items() if name != "examples"}, self.run)

    def __call__(self, model: torch.nn.Module, epochs: list[dict]) -> None:
        """After an epoch."""
        if self.output and self._counting(epochs) is epochs[-1]:
            epoch = epochs[-1]["epoch"]
            self.again = keep_model(model, self.recipe, self.dataset, self.output, self.run, epoch)

    def _counting(self, epochs: list[dict]) -> dict:
        return best_epoch(epochs, "validation") if self.validate else epochs[-1]

    def finish(self, model: torch.nn.Module, epochs: list[dict]) -> None:
        """See that the model is there: one that the disk refused, or of a finished run that was lost, is written."""
        if not self.output:
            return
        path, epoch = self.output / FILE, self._counting(epochs)["epoch"]
        if self.again is None and not _holds(path, epoch):
            self(model, epochs)
        try:
            if self.again:
                self.again()
        except OSError as error:
            self.unkept = f"{error}; free space and give the same command again"
            return
        if not _holds(path, epoch):
            self.unkept = (
                f"{path} does not hold the model of epoch {epoch}, which was picked, and the checkpoint is of a later "
                f"one: delete {self.output / STATE} and train again"
            )


def _holds(path: Path, epoch: int) -> bool:
    """Whether a model file is there, and of this epoch, if it says so."""
    return path.exists() and checkpoints.header(path).get("epoch", epoch) == epoch


def check_memory(recipe: Recipe, num_items: int) -> None:
    """Refuse a neural system whose item table, with its gradient if the loss is a full softmax, this machine cannot
    hold.

    Raises:
        ValueError: naming both sizes.
    """
    taken = inspect.signature(MODELS[recipe.model]).parameters
    dim = recipe.arguments.get("dim", taken["dim"].default if "dim" in taken else None)
    if type(dim) is not int or recipe.config.loss not in LOSSES:
        return  # it has no table, or `build` or `make_loss` says what is wrong
    dense = LOSSES[recipe.config.loss].full_catalogue
    what = f"an item table of {num_items:,} x {dim}" + (" with the gradient of a full softmax" if dense else "")
    instead = "take fewer items, --set dim=32 or less" + (", or a sampled loss" if dense else "")
    refuse_beyond(4 * num_items * dim * (2 if dense else 1), what, instead)


def _prepare(model: torch.nn.Module, train: Sessions, dataset: Dataset) -> None:
    """Give a model the training sessions, and the test's where it is told to find neighbours among them (DGTN)."""
    test = [dataset.test.to(train.clicks.device)] if getattr(model, "transductive", False) else []
    model.prepare(train, *test)


def evaluate(
    recipe: Recipe | None,
    checkpoint: Path | None,
    dataset: Dataset,
    ties: str,
    breakdown: bool,
    device: str = "cpu",
    progress: bool = False,
) -> dict:
    """Metrics of a counting system fitted on the spot (`recipe`), or of a trained model (`checkpoint`)."""
    windows = dataset.test_windows().to(device)
    if checkpoint:
        recommender = Recommender.load(checkpoint, device)
        model = recommender.model
        windows = recommender.truncate(windows)
        if recommender.item_ids.tolist() != dataset.item_ids.tolist():
            raise ValueError(f"{checkpoint} was trained on another catalogue than {dataset.name}: the item ids differ")
    else:
        model = new_model(recipe, dataset.num_items, seed=0, device=device)
        if not isinstance(model, CountingModel):
            raise ValueError(
                f"{recipe.model} must be trained first: `sbr train --model {recipe.model} --output DIR`, then "
                "`sbr evaluate --checkpoint DIR`"
            )
        model.fit(dataset.train.to(device))
    begun = time.perf_counter()
    seen = occurring(dataset.train).to(device)
    result = rank_all(model, windows, ties, seen, progress=progress)
    report = result.metrics | {
        "examples": len(result.ranks),
        "ties": ties,
        "HR@20 interval": list(result.interval("HR@20")),
        "MRR@20 interval": list(result.interval("MRR@20")),
        "unknown_targets": result.unknown_targets,
        "unknown_clicks": result.unknown_clicks,
        "seconds": time.perf_counter() - begun,
    }
    if breakdown:
        counts = dataset.train.clicks.long().bincount(minlength=dataset.num_items)
        report |= {"by_length": result.by_length(), "by_popularity": result.by_popularity(counts)}
    return report


def bench(recipe: Recipe, dataset: Dataset, steps: int, device: str = "cpu", evaluation: bool = True) -> dict:
    """Speed of a recipe on a dataset; `evaluation` says whether that of ranking the test is measured too."""
    check_memory(recipe, dataset.num_items)
    model = new_model(recipe, dataset.num_items, recipe.config.seed, device)
    if isinstance(model, CountingModel):
        model.fit(dataset.train.to(device))
    else:
        _prepare(model, dataset.train.to(device), dataset)
    config = recipe.config
    train_part, test = config.examples(dataset.train).to(device), config.truncate(dataset.test_windows()).to(device)
    found = benchmarks.bench(model, train_part, test if evaluation else None, config, steps)
    return {"model": recipe.model, "dataset": dataset.name} | found


@torch.no_grad()
def index(checkpoint: Path, dataset: Dataset, output: Path, kind: str, effort: int, k: int, asked: int = 1000) -> dict:
    """Write an index of a trained model's item vectors; how much of the exact shelves of `k` it finds, and how fast.

    Measured on the first `asked` test examples of the dataset, their inputs cut as in training.
    """
    recommender = Recommender.load(checkpoint)
    model = recommender.model
    found = item_index.Index(model, kind, effort)
    windows = dataset.test_windows()
    if recommender.item_ids.tolist() != dataset.item_ids.tolist():
        raise ValueError(f"{checkpoint} was trained on another catalogue than {dataset.name}: the item ids differ")
    windows = recommender.truncate(windows[:asked])
    query = torch.cat([model.search_query(model.encode(b)) for b in length_order(windows, 256).batches(windows)])
    items = item_index.item_vectors(model)
    begun = time.perf_counter()
    _, exact = item_index.exact_top(query, items, k)
    between = time.perf_counter()
    _, ids = found.top(query, k)
    took = {"exact_ms": between - begun, "index_ms": time.perf_counter() - between}
    report = {"items": len(items), "kind": kind, "effort": effort, f"recall@{k}": item_index.recall(ids, exact)}
    report |= {name: 1e3 * seconds / len(query) for name, seconds in took.items()}
    return report | {"output": str(found.save(output))}
