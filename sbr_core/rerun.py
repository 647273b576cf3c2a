"""The runs of a replication chapter made again from nothing, and what a reader types to have a missing one.

A run is named as its record is: ``tagnn``, or ``tagnn--average`` for a variant that the plan defines, or
``tagnn--code`` for a published one of `recipes_variants`.
"""

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd

from sbr_core import plan, records
from sbr_core.config import TrainConfig
from sbr_core.models import MODELS, CountingModel
from sbr_core.plan import Job
from sbr_core.recipes import Recipe
from sbr_core.recipes_variants import variants_of

PRECISIONS = {"bf16": "bfloat16", "fp32": "float32"}


def jobs_for(
    names: Sequence[str] | str,
    dataset: str,
    seeds: int | str | Sequence[int] = (0,),
    epochs: int | None = None,
    path: Path | str = "",
    precision: str | None = None,
) -> list[Job]:
    """The runs of these names on a dataset, variants as published or as the plan at `path` defines them (anywhere).

    Args:
        names: a list, or a text such as "tagnn,sr-gnn".
        seeds: as `seeds_of` takes them.
        epochs, precision: in place of the recipe's.

    Raises:
        ValueError: if neither has such a variant, there is no such system, or the seeds are not such.
    """
    names = names.split(",") if isinstance(names, str) else names
    systems = {name.partition("--")[0] for name in names}
    published = {f"{s}--{v}": found for s in systems for v, found in variants_of(s, dataset).items()}
    wanted = path and any("--" in name and name not in published for name in names)
    defined = _defined(Path(path), Path(path).stat().st_mtime_ns if Path(path).exists() else 0) if wanted else {}
    given = {"epochs": epochs, "precision": precision}
    given = {field: value for field, value in given.items() if value is not None}
    jobs = []
    for name in names:
        system, _, variant = name.partition("--")
        if variant and name not in defined | published:
            known = ", ".join(each for each in defined if each.startswith(f"{system}--")) or f"none of {system}"
            more = ", ".join(each for each in published if each.startswith(f"{system}--"))
            more = f"; published are {more}" if more else ""
            where = f"{path} defines no variant {name!r}; it has {known}" if path else f"no plan is given for {name!r}"
            raise ValueError(where + more)
        rows = defined.get(name, {})
        changes = rows.get(dataset) or next(iter(rows.values()), {})  # elsewhere as the plan's first row has it
        found = published.get(name) or plan.varied(system, dataset, **changes)
        if not issubclass(MODELS[system], CountingModel):  # one that counts has no epochs and no precision
            found = dataclasses.replace(found, config=dataclasses.replace(found.config, **given))
        jobs += [Job(found, dataset, seed) for seed in seeds_of(seeds)]
    return jobs


def seeds_of(given: object) -> list[int]:
    """Seeds as a reader or papermill gives them: ``0``, ``"0,1"`` or ``[0, 1]``.

    Raises:
        ValueError: if there is none, or one is not a whole number from 0 on.
    """
    each = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    texts = [str(seed).strip() for seed in each]
    if not texts or not all(text.isdecimal() for text in texts):
        raise ValueError(f'seeds are whole numbers from 0 on, given as 0, "0,1" or [0, 1]; got {given!r}')
    return [int(text) for text in texts]


@lru_cache(maxsize=2)
def _defined(path: Path, changed: int) -> dict[str, dict[str, dict]]:
    """The variants of a plan: name -> dataset -> what they change; read again when the file has changed."""
    found: dict[str, dict[str, dict]] = {}
    for job in plan.read(path):
        if job.recipe.variant:
            found.setdefault(_name(job.recipe.model, job.recipe.variant), {}).setdefault(job.dataset, job.changes)
    return found


def command(system: str, dataset: str, seed: int, variant: str = "", **given) -> str:
    """What a reader types to make a record; a variant is one that the plan defines, `given` replaces the recipe's."""
    options = "".join(f" --{key}" if value is True else f" --{key} {value}" for key, value in given.items())
    return f"sbr replicate --models {_name(system, variant)} --datasets {dataset} --seeds {seed}{options}"


def repeat(record: dict, path: Path | str = "") -> str:
    """What a reader types to make a record again, with the runs, the epochs and the precision that it has.

    Args:
        path: of the plan that defines its variant.
    """
    of_its_own = {key: held for key, (held, _) in departures(record, path).items()}
    typed = command(record["system"], record["dataset"], record["seed"], record["variant"], **of_its_own)
    changed = _changed(record, _planned(record, path))
    return typed + (f"  # the record has settings of its own: {', '.join(changed)}" if changed else "")


def _planned(record: dict, path: Path | str) -> Recipe:
    """The recipe of a record's name."""
    return jobs_for([_name(record["system"], record["variant"])], record["dataset"], path=path)[0].recipe


def _changed(record: dict, planned: Recipe) -> list[str]:
    """In which settings, `records.EXTENT` and the seed aside, a record is not what the recipe of its name says."""
    held = record["recipe"]
    there = dataclasses.asdict(TrainConfig()) | held["config"] | held["arguments"]
    here = dataclasses.asdict(planned.config) | planned.arguments
    aside = {*records.EXTENT, "seed"} - (held["arguments"] | planned.arguments).keys()  # BPR-MF has epochs of its own
    return [key for key in sorted(there | here) if key not in aside and there.get(key) != here.get(key)]


def departures(record: dict, path: Path | str = "") -> dict[str, tuple]:
    """In which of `records.EXTENT` a record is not what its recipe says: name -> (the record's, the recipe's); none if
    its system is a model of one's own, which has no recipe.

    One more, "final-only", is (True, False) if it has no select run where the recipe has.

    Args:
        path: of the plan that defines its variant.

    Raises:
        ValueError: if the plan has no such variant.
    """
    if record["system"] not in MODELS:
        return {}
    planned = _planned(record, path)
    held = dataclasses.asdict(TrainConfig()) | record["recipe"]["config"]
    both = {key: (held[key], getattr(planned.config, key)) for key in records.EXTENT}
    both["final-only"] = (records.unpicked(record, planned), False)
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}


def shortened(folder: Path | str, system: str, dataset: str, seed: int = 0) -> str:
    """A sentence on how a record departs from its recipe in `departures`; "" if it does not, or is missing."""
    file = Path(folder, records.file_name(system, dataset, seed))
    departs = departures(record := records.read(file)) if file.exists() else {}
    if not departs:
        return ""
    there, fixed = f"The run of {system} on {dataset} here", "had no select run: its last epoch is the honest one."
    if departs.keys() == {"final-only"}:
        return f"{there} {fixed}"
    text = _cut(there, departs, [epoch["test"]["HR@20"] for epoch in record["runs"]["final"]])
    return f"{text} It {fixed}" if "final-only" in departs else text


def _cut(there: str, departs: dict[str, tuple], curve: list[float]) -> str:
    """What `shortened` says of epochs and precision."""
    form = PRECISIONS[departs["precision"][0]] if "precision" in departs else ""
    if "epochs" not in departs:
        return f"{there} was made in {form}."
    text = f"{there} stopped after {len(curve)} of its recipe's {departs['epochs'][1]} epochs"
    text += f", in {form}" if form else ""
    return text + (f"; the last one moved HR@20 by {curve[-1] - curve[-2]:+.2f}." if len(curve) > 1 else ".")


def extents(
    folder: Path | str,
    dataset: str,
    names: Sequence[str],
    seed: int = 0,
    path: Path | str = "",
    title: str = "",
) -> str:
    """A Markdown sentence on runs recorded on a dataset: which stopped early, ran in bfloat16, or without a select run.

    Args:
        names: of the runs, variants too (``lgsr--a``); those without a record are passed over.
        path: of the plan that defines the variants.
        title: what the dataset is called.
    """
    files = {name: Path(folder, _file(name, dataset, seed)) for name in dict.fromkeys(names)}
    departs = {name: departures(records.read(file), path) for name, file in files.items() if file.exists()}
    early = [f"`{name}` {d['epochs'][0]} of {d['epochs'][1]}" for name, d in departs.items() if "epochs" in d]
    rough = [f"`{name}`" for name, d in departs.items() if d.get("precision", ("",))[0] == "bf16"]
    fixed = [f"`{name}`" for name, d in departs.items() if "final-only" in d]
    parts = [f"stopped before their recipes' last epoch: {', '.join(early)}"] if early else []
    parts += [f"trained in bfloat16: {', '.join(rough)}"] if rough else []
    parts += [f"without a select run, so that the last epoch is the honest one: {', '.join(fixed)}"] if fixed else []
    return f"Of {len(departs)} runs recorded on {title or dataset}, {'; '.join(parts)}." if parts else ""


def _file(name: str, dataset: str, seed: int) -> str:
    """Path of the record of a run by its name, in the folder of the records."""
    system, _, variant = name.partition("--")
    return records.file_name(system, dataset, seed, variant)


def _name(system: str, variant: str) -> str:
    return f"{system}--{variant}" if variant else system


def missing(jobs: Sequence[Job], folder: Path) -> pd.DataFrame:
    """The runs of a plan that have no record, in its order.

    Returns:
        Columns system (with its variant), dataset, seed, minutes (NaN if unknown), time ("measured", "estimated",
        "unknown"), why, command.
    """
    rows = []
    for row, job in zip(plan.listing(list(jobs), folder), jobs, strict=True):
        if row["state"] == "missing":
            took = row["seconds"]
            shown = {key: row[key] for key in ("system", "dataset", "seed", "time", "why")}
            minutes = float("nan") if took is None else took / 60
            rows.append(shown | {"minutes": minutes, "command": _command_of(job)})
    return pd.DataFrame(rows, columns=["system", "dataset", "seed", "minutes", "time", "why", "command"])


def hours(todo: pd.DataFrame) -> str:
    """The sum of the times of `missing` in words; those that are unknown are not taken for nothing."""
    unknown = int(todo.minutes.isna().sum())
    if unknown and unknown == len(todo):
        return "of unknown length"
    text = f"about {todo.minutes.sum() / 60:.0f} hours"
    return text + (f", and {unknown} of unknown length" if unknown else "")


def short(jobs: Sequence[Job], folder: Path) -> pd.DataFrame:
    """The runs of a plan whose record holds less than the plan asks for (`records.lacks`), in its order.

    Returns:
        Columns system (with its variant), dataset, seed, lacks (in words), command (that makes the fuller one).
    """
    rows = []
    for job in jobs:
        path = folder / job.file
        if path.exists() and (less := records.lacks(path, job.recipe)):
            shown = {"system": _name(job.recipe.model, job.recipe.variant), "dataset": job.dataset, "seed": job.seed}
            rows.append(shown | {"lacks": ", ".join(less), "command": _command_of(job, renew=True)})
    return pd.DataFrame(rows, columns=["system", "dataset", "seed", "lacks", "command"])


def _command_of(job: Job, **given) -> str:
    return command(job.recipe.model, job.dataset, job.seed, job.recipe.variant, **given)
