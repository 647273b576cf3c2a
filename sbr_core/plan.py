"""The plan of the replications: which runs the book wants, in order of value, and what each of them costs.

The plan is one TOML file of ``[[rows]]``. A row multiplies its systems, datasets and seeds; a run that an earlier row
already wants is not listed twice. Fields of a row::

    why = "every system of the tables"      # shown by `sbr replicate --list`
    systems = ["tagnn", "sr-gnn"]           # names of `models.MODELS`
    datasets = ["yoochoose1_64"]
    seeds = [0]                             # default
    variant = "null-slots"                  # a-z, 0-9, -: name of the departure from the published recipe; default none
    arguments = {null_slots = "official"}   # of the model's constructor, over those of the recipe
    config = {agc = "off"}                  # fields of `TrainConfig`, over those of the recipe
    select = true                           # default; false: no select run, the last epoch is the honest one
"""

import dataclasses
import math
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sbr_core import records
from sbr_core.config import TrainConfig, fits
from sbr_core.costs import Costs
from sbr_core.costs import speeds as speeds
from sbr_core.models import MODELS, CountingModel, build
from sbr_core.recipes import Recipe, recipe
from sbr_core.run_state import Run
from sbr_core.sessions import Sessions
from sbr_core.sources import EXPECTED, RAW

FIELDS = {  # of a row, and what each holds
    "why": str, "systems": list, "datasets": list, "seeds": list, "variant": str, "arguments": dict, "config": dict,
    "select": bool,
}  # fmt: skip
FEW, MANY = 50, 50_000  # items on which a row is tried; many where negatives, fewer than all items, are to be drawn


@dataclass(frozen=True)
class Job:
    """One run that the plan wants: a recipe (with its variant) on a dataset with a seed.

    Args:
        changes: what the row changes of the published recipe, as `varied` takes it.
    """

    recipe: Recipe
    dataset: str
    seed: int
    why: str = ""
    changes: dict = dataclasses.field(default_factory=dict, compare=False)

    @property
    def file(self) -> str:
        """Path of its record inside the folder of the records."""
        return records.file_name(self.recipe.model, Path(self.dataset).name, self.seed, self.recipe.variant)


def read(path: Path | str) -> list[Job]:
    """All runs of a plan, in its order.

    Raises:
        ValueError: if the file is not such a plan, or a row names a system, a dataset, a switch or a field that does
            not exist, or holds a value of another kind.
    """
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a plan: {error}") from error
    rows = found.get("rows")
    if found.keys() != {"rows"} or not isinstance(rows, list) or not rows:
        raise ValueError(
            f"{path} is not a plan: it holds [[rows]] and nothing else, got {', '.join(found) or 'nothing'}"
        )
    jobs: dict[str, Job] = {}
    for number, row in enumerate(rows, 1):
        try:
            for job in _jobs_of(row):
                jobs.setdefault(job.file, job)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return list(jobs.values())


def _jobs_of(row: object) -> Iterator[Job]:
    _check(row)
    for dataset in row["datasets"]:
        for system in row["systems"]:
            changes = {key: row[key] for key in ("variant", "arguments", "config", "select") if key in row}
            found = varied(system, dataset, **changes)
            for seed in row.get("seeds", [0]):
                yield Job(found, dataset, seed, row.get("why", ""), changes)


def _check(row: object) -> None:
    """Refuse a row whose fields are not of their kinds; `varied` looks at what they name."""
    if not isinstance(row, dict):
        raise ValueError(f"a row is a table under [[rows]], got {row!r}")
    if row.keys() - FIELDS.keys() or not {"systems", "datasets"} <= row.keys():
        raise ValueError(f"a row has systems, datasets and of {', '.join(sorted(FIELDS))}; got {', '.join(row)}")
    kinds = {str: "a text", list: "a list", dict: "a table", bool: "true or false"}
    for field, value in row.items():
        if not isinstance(value, FIELDS[field]):
            raise ValueError(f"{field} is {kinds[FIELDS[field]]}, got {value!r}")
    for field in ("systems", "datasets", "seeds"):
        whole = [type(value) is int and value >= 0 for value in row.get(field, ())]
        right = whole if field == "seeds" else [isinstance(value, str) for value in row[field]]
        if field in row and not (right and all(right)):
            what = "whole numbers from 0 on" if field == "seeds" else "names"
            raise ValueError(f"{field} lists {what}, at least one, got {row[field]!r}")
    for dataset in row["datasets"]:
        check_dataset(dataset)
    if not re.fullmatch("[a-z0-9-]+", row.get("variant", "none")):
        raise ValueError(f"a variant is named with a-z, 0-9 and -, got {row['variant']!r}")


def check_dataset(dataset: str) -> None:
    """Refuse with a ValueError what is neither the name of a dataset nor a path; nothing is read or loaded."""
    if dataset not in ("demo", *RAW) and not dataset.startswith("large:") and not Path(dataset).exists():
        known = f"demo, large:N, {', '.join(RAW)}"
        raise ValueError(f"there is no dataset {dataset!r}; the datasets are {known}, or the path of your own")


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
        ValueError: if the system, an argument or a field does not exist or is of another type, training refuses them
            (`run_state.Run`), or settings are changed without a name.
    """
    if system not in MODELS:
        raise ValueError(f"there is no model {system!r}; the models are {', '.join(MODELS)}")
    changes = [*arguments, *config] + ([] if select else ["select"])
    if changes and not variant:
        raise ValueError(f"settings of {system} are changed ({', '.join(changes)}): name the variant")
    config = checked_fields(config, "config")
    found = recipe(system, dataset)
    changed = dataclasses.replace(
        found,
        arguments=found.arguments | dict(arguments),
        config=dataclasses.replace(found.config, **config),
        variant=variant,
        select=select,
    )
    _try(changed, dataset)
    return changed


def checked_fields(given: Mapping, where: str) -> dict:
    """Fields of `TrainConfig` and their values; a whole number will do where the field is a float.

    Raises:
        ValueError: naming the field that does not exist, or has a value of another type.
    """
    fields, kinds = dict(given), {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    for key, value in given.items():
        if key not in kinds:
            raise ValueError(f"{where} has no field {key!r}; the fields are {', '.join(kinds)}")
        if type(value) is int and isinstance(1.0, kinds[key]):
            fields[key] = value = float(value)
        if not fits(value, kinds[key]) or isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where} {key} is {getattr(kinds[key], '__name__', kinds[key])}, got {value!r}")
    return fields


def _try(changed: Recipe, dataset: str) -> None:
    """Begin the run as training does, on two sessions: what makes no sense is refused before anything runs."""
    items = FEW if changed.config.loss == "full" else EXPECTED.get(dataset, {}).get("items", MANY)
    model = build(changed.model, items, **changed.arguments)
    if isinstance(model, CountingModel):
        return
    sessions = Sessions.from_lists([[0, 1, 2], [1, 2, 3]], items)
    model.prepare(sessions)
    Run(model, changed.config.examples(sessions), changed.config, None, {}, checkpoint_seconds=60.0)


def only(jobs: Sequence[Job], datasets: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Job]:
    """The runs of a plan on these datasets with these seeds; none named: all.

    Raises:
        ValueError: if one that is named is in no run of the plan.
    """
    for named, there, what in (
        (datasets, {job.dataset for job in jobs}, "dataset"),
        (seeds, {job.seed for job in jobs}, "seed"),
    ):
        if unknown := [str(name) for name in named if name not in there]:
            has = ", ".join(map(str, sorted(there)))
            raise ValueError(f"the plan has no run with {what} {', '.join(unknown)}; it has {has}")
    return [job for job in jobs if job.dataset in (datasets or [job.dataset]) and job.seed in (seeds or [job.seed])]


def without_select(jobs: Sequence[Job]) -> list[Job]:
    """The same runs, of each the final run alone: half of the time, and its last epoch is the honest one."""
    return [dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, select=False)) for job in jobs]


def state(job: Job, folder: Path) -> tuple[str, str]:
    """How far a run is recorded: "missing", "recorded", "unreadable", "4 of 6 epochs", without the select run that is
    to choose one of them "final run only", or "no ranks" or "damaged ranks" beside it; and what is wrong with an
    unreadable record, "" with any other."""
    path = folder / job.file
    if not path.exists():
        return "missing", ""
    try:
        record = records.read(path)
    except ValueError as error:
        return "unreadable", str(error)
    held, planned = record["recipe"]["config"]["epochs"], job.recipe.config.epochs
    if held < planned:
        return f"{held} of {planned} epochs", ""
    words = ["final run only"] if records.unpicked(record, job.recipe) else records.without_ranks(path)
    return (words or ["recorded"])[0], ""


def missing(jobs: Sequence[Job], folder: Path, renew: bool = False) -> list[Job]:
    """The runs without a record, in the plan's order; with `renew` also those whose record falls short of the plan
    (`records.lacks`).

    Raises:
        ValueError: naming every record that cannot be read.
    """
    states = [(job, *state(job, folder)) for job in jobs]
    if wrong := [problem for *_, problem in states if problem]:
        raise ValueError("; ".join(wrong))
    short = {
        job.file
        for job, found, _ in states
        if renew and found != "missing" and records.lacks(folder / job.file, job.recipe)
    }
    return [job for job, found, _ in states if found == "missing" or job.file in short]


def listing(jobs: Sequence[Job], folder: Path, device: str = "cpu") -> list[dict]:
    """One row per run: what it is, how far it is recorded, how long it takes on a kind of device, and how much of that
    several workers cannot share out (`Costs.undivided`)."""
    rows, costs = [], Costs(folder, device)
    for job in jobs:
        took, source = costs.seconds(job)
        name = job.recipe.model + (f" ({job.recipe.variant})" if job.recipe.variant else "")
        found, problem = state(job, folder)
        rows.append({"system": name, "dataset": job.dataset, "seed": job.seed, "state": found, "seconds": took})
        rows[-1] |= {"time": source, "why": job.why, "record": job.file, "problem": problem}
        rows[-1] |= {"undivided": costs.undivided(job)}
    return rows


def affordable(
    jobs: Sequence[Job],
    folder: Path,
    budget: float | None,
    renew: bool = False,
    device: str = "cpu",
    workers: int = 1,
) -> list[Job]:
    """The `missing` runs in the plan's order, as many as `workers` processes do in `budget` seconds (None: all).

    Each run goes to the process with most time left. One that does not fit there is passed over for a later one that
    does; one of unknown length never fits a budget. If none fits, every process begins one all the same, the first that
    have checkpoints, by which the next call goes on; stderr says so.
    """
    todo = missing(jobs, folder, renew)
    if budget is None or not todo:
        return todo
    workers = min(workers, len(todo))
    chosen, left, costs, times = [], [budget] * workers, Costs(folder, device), []
    for job in todo:
        took, _ = costs.seconds(job)
        freest = max(range(workers), key=left.__getitem__)
        if took is not None:
            times.append(took + (workers - 1) * costs.undivided(job))
            if times[-1] <= left[freest]:
                left[freest] -= times[-1]
                chosen.append(job)
    return chosen or _begun(todo, workers, times)


def _begun(todo: Sequence[Job], workers: int, times: Sequence[float]) -> list[Job]:
    """Of runs that are all longer than the budget, those to begin in it; and what is said of that."""
    begun = [job for job in todo if not issubclass(MODELS[job.recipe.model], CountingModel)][:workers]
    shortest = f"the shortest takes {min(times) / 60:.1f} min" if times else "all are of unknown length"
    what = f"{', '.join(job.file for job in begun)} all the same, for the same command continues"
    text = f"of {len(todo)} missing runs none fits into the budget, {shortest}: begins {what if begun else 'none'}"
    print(text, file=sys.stderr)
    return begun
