"""The plan of the replications: which runs the book wants, in order of value, and what each of them costs.

The plan is one TOML file of ``[[rows]]``. A row multiplies its systems, datasets and seeds; a run that an earlier row
already wants is not listed twice. Fields of a row::

    why = "every system of the tables"      # shown by `sbr replicate --list`
    systems = ["tagnn", "sr-gnn"]           # names of `models.MODELS`
    datasets = ["yoochoose1_64"]
    seeds = [0]                             # default
    variant = "null-slots"                  # name of the departure from the published recipe; default none
    arguments = {null_slots = "official"}   # of the model's constructor, over those of the recipe
    config = {agc = "off"}                  # fields of `TrainConfig`, over those of the recipe
    select = true                           # default; false: no select run, the last epoch is the honest one
"""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from sbr_core import records
from sbr_core.config import TrainConfig
from sbr_core.models import MODELS, build
from sbr_core.models.base import CountingModel
from sbr_core.recipes import Recipe, recipe
from sbr_core.sources import EXPECTED

FIELDS = {"why", "systems", "datasets", "seeds", "variant", "arguments", "config", "select"}
PASSES = 1.9  # of both runs: the select run sees nine tenths of the sessions, the final run all of them


@dataclass(frozen=True)
class Job:
    """One run that the plan wants: a recipe (with its variant) on a dataset with a seed."""

    recipe: Recipe
    dataset: str
    seed: int
    why: str = ""

    @property
    def file(self) -> str:
        """Path of its record inside the folder of the records."""
        return records.file_name(self.recipe.model, self.dataset, self.seed, self.recipe.variant)


def read(path: Path | str) -> list[Job]:
    """All runs of a plan, in its order.

    Raises:
        ValueError: if the file is not such a plan, or a row names a system, a switch or a field that does not exist.
    """
    try:
        rows = tomllib.loads(Path(path).read_text(encoding="utf-8")).get("rows", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is not a plan: {error}") from error
    jobs: dict[str, Job] = {}
    for number, row in enumerate(rows, 1):
        try:
            for job in _jobs_of(row):
                jobs.setdefault(job.file, job)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return list(jobs.values())


def _jobs_of(row: dict) -> Iterator[Job]:
    unknown = row.keys() - FIELDS
    if unknown or not {"systems", "datasets"} <= row.keys():
        raise ValueError(f"a row has systems, datasets and of {', '.join(sorted(FIELDS))}; got {', '.join(row)}")
    for dataset in row["datasets"]:
        for system in row["systems"]:
            changes = {key: row[key] for key in ("variant", "arguments", "config", "select") if key in row}
            found = varied(system, dataset, **changes)
            for seed in row.get("seeds", [0]):
                yield Job(found, dataset, seed, row.get("why", ""))


def varied(
    system: str,
    dataset: str,
    variant: str = "",
    arguments: Mapping = MappingProxyType({}),
    config: Mapping = MappingProxyType({}),
    select: bool = True,
) -> Recipe:
    """The published recipe of a system on a dataset with some of its settings changed, checked.

    Raises:
        ValueError: if the system, an argument or a field does not exist, or settings are changed without a name.
    """
    if system not in MODELS:
        raise ValueError(f"there is no model {system!r}; the models are {', '.join(MODELS)}")
    changes = [*arguments, *config] + ([] if select else ["select"])
    if changes and not variant:
        raise ValueError(f"settings of {system} are changed ({', '.join(changes)}): name the variant")
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if config.keys() - known:
        raise ValueError(f"no field of TrainConfig: {', '.join(sorted(config.keys() - known))}")
    found = recipe(system, dataset)
    changed = dataclasses.replace(
        found,
        arguments=found.arguments | dict(arguments),
        config=dataclasses.replace(found.config, **config),
        variant=variant,
        select=select,
    )
    build(system, 50, **changed.arguments)  # refuses what makes no sense before anything runs
    return changed


def speeds(folder: Path) -> dict[tuple[str, str], float]:
    """Milliseconds of training per example with its auxiliary tasks, (system, dataset) -> median, as benchmarked."""
    path = folder / "studies" / "speed.json"
    rows = pd.read_json(path, orient="records") if path.exists() else pd.DataFrame()
    if rows.empty:
        return {}
    tasks = rows["task_ms_per_example"].fillna(0.0) if "task_ms_per_example" in rows else 0.0
    return dict(zip(zip(rows.model, rows.dataset, strict=True), 1e3 / rows.examples_per_second + tasks, strict=True))


def seconds(job: Job, folder: Path) -> tuple[float | None, str]:
    """What a run takes, and where that is known from: "measured" on its own record or on another seed's, "estimated"
    from the benchmark's milliseconds per example, or None and "unknown"."""
    pattern = records.file_name(job.recipe.model, job.dataset, 0, job.recipe.variant).replace("seed0", "seed*")
    for path in sorted(folder.glob(pattern.replace("[", "[[]"))):
        record = records.read(path)
        return records.training_seconds(record) or record["seconds"], "measured"
    if issubclass(MODELS[job.recipe.model], CountingModel):
        return 60.0, "estimated"
    found = speeds(folder)
    milliseconds = found.get((job.recipe.model, job.dataset)) or found.get((job.recipe.model, "yoochoose1_64"))
    examples = EXPECTED.get(job.dataset, {}).get("train_examples")
    if milliseconds is None or examples is None:
        return None, "unknown"
    passes = PASSES if job.recipe.select else 1.0
    return passes * job.recipe.config.epochs * examples * milliseconds / 1e3, "estimated"


def listing(jobs: list[Job], folder: Path) -> list[dict]:
    """One row per run: what it is, whether it is recorded, how long it takes."""
    rows = []
    for job in jobs:
        took, source = seconds(job, folder)
        name = job.recipe.model + (f" ({job.recipe.variant})" if job.recipe.variant else "")
        state = "recorded" if (folder / job.file).exists() else "missing"
        rows.append({"system": name, "dataset": job.dataset, "seed": job.seed, "state": state, "seconds": took})
        rows[-1] |= {"time": source, "why": job.why, "record": job.file}
    return rows


def render(rows: list[dict]) -> str:
    """The rows of `listing`, one line a run, and a line of sums."""
    lines = []
    for row in rows:
        minutes = "      ?" if row["seconds"] is None else f"{row['seconds'] / 60:7.1f}"
        lines.append(
            f"{row['state']:9}{minutes} min {row['time']:10} {row['system']:28} {row['dataset']:19} {row['seed']}"
        )
    missing = [row for row in rows if row["state"] == "missing"]
    known = sum(row["seconds"] or 0 for row in missing) / 3600
    unknown = sum(row["seconds"] is None for row in missing)
    lines.append(
        f"{len(rows) - len(missing)} recorded, {len(missing)} missing: {known:.1f} hours"
        + (f" and {unknown} runs of unknown length" if unknown else "")
    )
    return "\n".join(lines)


def affordable(jobs: list[Job], folder: Path, budget: float | None) -> list[Job]:
    """The missing runs in the plan's order, as many as fit into `budget` seconds (None: all of them).

    A run that does not fit is passed over for a later one that does; one of unknown length never fits a budget.
    """
    chosen, left = [], budget
    for job in jobs:
        if (folder / job.file).exists():
            continue
        took, _ = seconds(job, folder)
        if left is not None:
            if took is None or took > left:
                continue
            left -= took
        chosen.append(job)
    return chosen


def parse_budget(text: str) -> float:
    """ "20m", "90s", "2h" or "120" (seconds) -> seconds.

    Raises:
        ValueError: if the text is none of these.
    """
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        value = float(number) * units[unit]
    except ValueError as error:
        raise ValueError(f"a budget is a time such as 90s, 20m or 2h, got {text!r}") from error
    if value <= 0:
        raise ValueError(f"a budget must be positive, got {text!r}")
    return value
