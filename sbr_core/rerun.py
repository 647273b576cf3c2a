"""The runs of a replication chapter made again from nothing, and what a reader types to have a missing one.

A run is named as its record is: ``tagnn``, or ``tagnn--average`` for a variant that the plan defines, or
``tagnn--code`` for a published one of `recipes_variants`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sbr_core import plan
from sbr_core.plan import Job
from sbr_core.recipes import recipe
from sbr_core.recipes_variants import variants_of


def jobs_for(
    names: Sequence[str],
    dataset: str,
    seeds: Sequence[int] = (0,),
    epochs: int | None = None,
    path: Path | str = "",
    precision: str | None = None,
) -> list[Job]:
    """The runs of these names on a dataset, variants as published or as the plan at `path` defines them (anywhere).

    Args:
        epochs, precision: in place of the recipe's.

    Raises:
        ValueError: if neither has such a variant, or there is no such system.
    """
    systems = {name.partition("--")[0] for name in names}
    published = {f"{s}--{v}": found for s in systems for v, found in variants_of(s, dataset).items()}
    planned = plan.read(path) if path and any("--" in name and name not in published for name in names) else []
    defined = {f"{job.recipe.model}--{job.recipe.variant}": job for job in planned if job.recipe.variant}
    given = {"epochs": epochs, "precision": precision}
    given = {field: value for field, value in given.items() if value is not None}
    jobs = []
    for name in names:
        system, _, variant = name.partition("--")
        if variant and name not in defined | published:
            known = ", ".join(each for each in defined if each.startswith(f"{system}--")) or f"none of {system}"
            more = ", ".join(each for each in published if each.startswith(f"{system}--"))
            more = f"; published are {more}" if more else ""
            raise ValueError(f"{path or 'no plan'} defines no variant {name!r}; it has {known}{more}")
        changes = {"variant": variant} | _changed(defined[name]) if name in defined else {}
        found = published.get(name) or plan.varied(system, dataset, **changes)
        found = dataclasses.replace(found, config=dataclasses.replace(found.config, **given))
        jobs += [Job(found, dataset, seed) for seed in seeds]
    return jobs


def _changed(job: Job) -> dict:
    """In what a variant departs from its recipe, as `plan.varied` takes it."""
    plain = recipe(job.recipe.model, job.dataset)
    arguments = {key: value for key, value in job.recipe.arguments.items() if plain.arguments.get(key) != value}
    before, after = dataclasses.asdict(plain.config), dataclasses.asdict(job.recipe.config)
    config = {key: value for key, value in after.items() if before[key] != value}
    return {"arguments": arguments, "config": config, "select": job.recipe.select}


def command(system: str, dataset: str, seed: int, variant: str = "") -> str:
    """What a reader types to make a record; a variant is one that the plan defines."""
    name = f"{system}--{variant}" if variant else system
    return f"sbr replicate --models {name} --datasets {dataset} --seeds {seed}"


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


def _command_of(job: Job) -> str:
    return command(job.recipe.model, job.dataset, job.seed, job.recipe.variant)
