"""Records: what a run did and measured, one JSON file each, append-only; the book's tables are computed from them."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sbr_core.datasets import Dataset
from sbr_core.recipes import Recipe
from sbr_core.train import TrainConfig

SCHEMA = 1
PACKAGES = ("torch", "numpy", "sbr-core")


def file_name(model: str, dataset: str, seed: int) -> str:
    """Name of the record of a run."""
    return f"{model}--{dataset}--seed{seed}.json"


class Watch:
    """Wall time, peak memory and the state of the code from here on."""

    def __init__(self, device: str = "cpu"):
        self.device, self.begun, self.commit = device, time.perf_counter(), _commit()

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


def both_columns(epochs: dict[str, list[dict]], metrics=("HR@20", "MRR@20")) -> dict:
    """Both protocols of a pair of runs: best test value per metric, and the test at the epoch picked without it."""
    final = epochs["final"]
    best = {}
    for name in metrics:
        at = max(final, key=lambda epoch: epoch["test"][name])
        best |= {name: at["test"][name], f"{name} epoch": at["epoch"]}
    picked = 1
    if "select" in epochs:
        picked = max(epochs["select"], key=lambda epoch: epoch["validation"]["MRR@20"])["epoch"]
    honest = next((epoch for epoch in final if epoch["epoch"] == picked), final[-1])
    keys = [key for name in metrics for key in (name, f"{name} interval")]
    return {"as_published": best, "honest": {key: honest["test"][key] for key in keys} | {"epoch": honest["epoch"]}}


def check_same(path: Path, recipe: Recipe, config: TrainConfig, dataset: Dataset) -> None:
    """Refuse a record that is not of this recipe on this dataset.

    Raises:
        ValueError: naming what differs.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    there = record["recipe"]["config"] | record["recipe"]["arguments"] | {"fingerprint": record["fingerprint"]}
    here = asdict(config) | recipe.arguments | {"fingerprint": dataset.fingerprint}
    differing = sorted(key for key in there | here if there.get(key) != here.get(key))
    if differing:
        raise ValueError(
            f"{path} is a record of other settings ({', '.join(differing)} differ): give another --results"
        )


def write(path: Path, recipe: Recipe, config: TrainConfig, dataset: Dataset, epochs: dict, watch: Watch) -> Path:
    """Write the record of a run, whole or not at all."""
    record = {
        "schema": SCHEMA,
        "system": recipe.model,
        "dataset": dataset.name,
        "protocol": dataset.protocol,
        "fingerprint": dataset.fingerprint,
        "seed": config.seed,
        "recipe": {"arguments": recipe.arguments, "config": asdict(config), "source": recipe.source},
        **both_columns(epochs),
        "runs": epochs,
        **watch.read(),
        "versions": {"python": platform.python_version()} | _versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def load(folder: Path | str) -> list[dict]:
    """All records of a folder, in order of their names.

    Raises:
        ValueError: if a file is not a record of this schema, naming it.
    """
    records = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["schema"] != SCHEMA:
                raise ValueError(f"it has schema {record['schema']}, this package reads {SCHEMA}")
            records.append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a record: {error}") from error
    return records


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
