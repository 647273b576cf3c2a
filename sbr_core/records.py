"""Records: what a run did and measured, one JSON file each, append-only; the book's tables are computed from them."""

import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from sbr_core.config import TrainConfig
from sbr_core.datasets import Dataset
from sbr_core.files import replaced
from sbr_core.models import bound, seeded
from sbr_core.recipes import Recipe
from sbr_core.record_check import SCHEMA, both_columns, parse, sealed
from sbr_core.record_check import file_name as file_name

EXTENT = ("epochs", "precision")  # how much of a recipe was run, and how exactly: a record of it may differ in these
LAST_RANK = 255  # of an example, as kept beside a record: all ranks from here on
PACKAGES = ("torch", "numpy", "sbr-core")


class Watch:
    """Wall time, peak memory and the state of the code from here on.

    Only Linux forgets the memory of a process before; elsewhere the host's peak is that of the process so far.
    """

    def __init__(self, device: str = "cpu"):
        self.device, self.begun, self.commit = device, time.perf_counter(), _commit()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # what VmHWM and ru_maxrss give begins anew
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict:
        """Seconds of this process, peak memory in MB (host; device too on a GPU), device name."""
        seconds = time.perf_counter() - self.begun
        cuda = torch.device(self.device).type == "cuda"
        device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
        memory = {"peak_rss_mb": peak_rss_mb()}
        if cuda:
            memory["peak_device_mb"] = torch.cuda.max_memory_allocated() / 1e6
        return {"seconds": seconds, "device": device, "commit": self.commit} | memory


def peak_rss_mb() -> float:
    """Peak resident memory of this process in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def check_same(path: Path, recipe: Recipe, config: TrainConfig, fingerprint: str) -> dict:
    """Refuse a record that is not of this recipe on this data; it may have other epochs or precision.

    Args:
        fingerprint: of the data.

    Returns:
        What of `EXTENT` the record has otherwise: name -> its value.

    Raises:
        ValueError: naming what else differs, or that the file is no record.
    """
    record = read(path)
    arguments = seeded(recipe.model, recipe.arguments, config.seed)
    built = bound(recipe.model, arguments) if "constructor" in record else recipe.arguments
    there = asdict(TrainConfig()) | record["recipe"]["config"]
    there |= record.get("constructor", record["recipe"]["arguments"]) | {"fingerprint": record["fingerprint"]}
    here = asdict(config) | built | {"fingerprint": fingerprint}
    differing = {key: there.get(key) for key in sorted(there | here) if there.get(key) != here.get(key)}
    wrong = [key for key in differing if key not in EXTENT or key in built]  # BPR-MF has epochs of its own
    if wrong:
        raise ValueError(f"{path} is a record of other settings ({', '.join(wrong)} differ): give another --results")
    return differing


def write(
    path: Path,
    recipe: Recipe,
    config: TrainConfig,
    dataset: Dataset,
    epochs: dict,
    watch: Watch,
    origin: str | None = None,
) -> Path:
    """Write the record of a run, whole or not at all, with the sha256 of the ranks that are beside it already.

    Args:
        origin: digest of the earlier record that the final run is from, if it was not trained now.
    """
    kept = ranks_path(path)
    record = {
        "schema": SCHEMA,
        "system": recipe.model,
        "variant": recipe.variant,
        "dataset": dataset.name,
        "protocol": dataset.protocol,
        "fingerprint": dataset.fingerprint,
        "seed": config.seed,
        "recipe": {"arguments": recipe.arguments, "config": asdict(config), "source": recipe.source},
        "constructor": bound(recipe.model, seeded(recipe.model, recipe.arguments, config.seed)),
        **both_columns(epochs),
        "runs": epochs,
        **watch.read(),
        "versions": {"python": platform.python_version()} | _versions(),
    } | ({"ranks_sha256": _sha256(kept)} if kept.exists() else {})
    record |= {"final_of": origin} if origin else {}
    with replaced(path) as beside:
        beside.write_text(json.dumps(sealed(record), indent=1) + "\n", encoding="utf-8")
    return path


def unpicked(record: dict, recipe: Recipe) -> bool:
    """Whether nothing chose the honest one of a record's epochs, where the recipe lets a select run choose it."""
    runs = record["runs"]
    return recipe.select and "select" not in runs and len(runs["final"]) > 1


def lacks(path: Path, recipe: Recipe) -> list[str]:
    """What a record holds less than its run asks for, in words: epochs, a select run, float32, its ranks beside it.

    One with more epochs than asked lacks nothing, nor does one with a select run of what is asked without.
    """
    record, config = read(path), recipe.config
    held = record["recipe"]["config"]
    if held["epochs"] > config.epochs or ("select" in record["runs"] and not recipe.select):
        return []
    parts = {
        f"{held['epochs']} of {config.epochs} epochs": held["epochs"] < config.epochs,
        "no select run": unpicked(record, recipe),
        "bf16": held.get("precision", "fp32") != config.precision == "fp32",
    }
    return [words for words, missing in parts.items() if missing] + without_ranks(path)


def without_ranks(path: Path) -> list[str]:
    """["no ranks"] or ["damaged ranks"] where the record at `path` has no file of ranks beside it, or not its own."""
    seal = read(path).get("ranks_sha256")
    if not ranks_path(path).exists():
        return ["no ranks"]
    try:
        whole = seal == _sha256(ranks_path(path)) if seal else read_ranks(path) is not None
    except ValueError:
        whole = False
    return [] if whole else ["damaged ranks"]


def set_aside(path: Path) -> Path:
    """Make room for a better run: the record and its ranks go to the folder ``earlier`` beside it, nothing is lost.

    Returns:
        Where the record lies now, named after its digest too.
    """
    there = path.parent / "earlier" / f"{path.stem}--{read(path)['digest'][:8]}.json"
    ranks_path(there).parent.mkdir(parents=True, exist_ok=True)
    if ranks_path(path).exists():
        os.replace(ranks_path(path), ranks_path(there))
    os.replace(path, there)
    return there


def read(path: Path | str) -> dict:
    """One record.

    Raises:
        ValueError: if the file is not a record, naming it (see `record_check.parse`).
    """
    return parse(Path(path))


def load(folder: Path | str) -> list[dict]:
    """All records of a folder, in order of their names; not those of its subfolders.

    Raises:
        ValueError: if a file is not a record, naming it.
    """
    return [read(path) for path in sorted(Path(folder).glob("*.json"))]


def write_ranks(path: Path, ranks: Tensor, session: Tensor) -> None:
    """Keep the rank of every test example, whole or not at all.

    Args:
        ranks: (E,) kept in one byte each, 255 for all ranks from 255 on.
        session: (E,) session of each example; kept is only where a new one begins.
    """
    begins = np.diff(session.numpy(), prepend=-1) != 0
    small = ranks.ceil().clamp(max=LAST_RANK).to(torch.uint8).numpy()
    with replaced(path) as beside:
        np.savez_compressed(beside, ranks=small, begins=np.packbits(begins))


def ranks_path(path: Path) -> Path:
    """Where the ranks behind the honest column of a record are kept."""
    return path.parent / "ranks" / f"{path.stem}.npz"


def keep_ranks(path: Path, folder: Path, epoch: int) -> None:
    """Put the ranks of an epoch, found in the run's folder, where the record at `path` has those of its honest one."""
    there, kept = folder / f"ranks-{epoch}.npz", ranks_path(path)
    if there.exists():
        with replaced(kept) as beside:
            shutil.copyfile(there, beside)


def read_ranks(path: Path) -> tuple[Tensor, Tensor] | None:
    """Ranks (E,) of the honest epoch of the record at `path`, 255 for all from 255 on, and the session (E,) of each
    example; None if they were not kept.

    Raises:
        ValueError: if the file is no such file, is not the one that the record names by its sha256, or its ranks do
            not give the record's metrics.
    """
    kept = ranks_path(path)
    if not kept.exists():
        return None
    remedy, record = "move it away, and repeat the run with --renew", read(path)
    try:
        with np.load(kept) as arrays:
            ranks = torch.from_numpy(arrays["ranks"]).float()
            begins = np.unpackbits(arrays["begins"], count=len(ranks))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"{kept} does not hold ranks ({type(error).__name__}: {error}): {remedy}") from error
    if record.get("ranks_sha256", seal := _sha256(kept)) != seal:
        raise ValueError(f"{kept} does not belong to {path}, or was changed: it has another sha256; {remedy}")
    said, inside = record["honest"], (ranks <= 20).double()
    found = {"HR@20": 100 * inside.mean().item(), "MRR@20": 100 * (inside / ranks).mean().item()}
    for metric, value in found.items():
        if abs(value - said[metric]) > 1e-4:
            raise ValueError(
                f"{kept} does not belong to {path}: its {metric} is {value:.4f}, the record's {said[metric]:.4f}; "
                + remedy
            )
    return ranks, torch.from_numpy(begins.cumsum(dtype=np.int64) - 1)


def training_seconds(record: dict) -> float:
    """Seconds of training in all runs of a record, evaluation not counted."""
    return sum(epoch.get("seconds", 0.0) for epochs in record["runs"].values() for epoch in epochs)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str | None:
    """The commit of the package, with "-dirty" behind it if a file of the project was changed; None without git, or
    where the package is installed inside another project."""
    here = Path(__file__)
    git = partial(subprocess.run, cwd=here.parent, capture_output=True, text=True, check=True)
    try:
        git(["git", "ls-files", "--error-unmatch", here.name])
        return git(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
