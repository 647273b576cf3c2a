"""The runs of a replication chapter made again from nothing, and what a reader types to have a missing one.

A run is named as its record is: ``tagnn``, or ``tagnn--average`` for a variant that the plan defines.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sbr_core import plan
from sbr_core.plan import Job
from sbr_core.recipes import recipe


def jobs_for(
    names: Sequence[str], dataset: str, seeds: Sequence[int] = (0,), epochs: int | None = None, path: Path | str = ""
) -> list[Job]:
    """The runs of these names on a dataset, variants as the plan at `path` defines them (for whatever dataset).

    Args:
        epochs: in place of the recipe's.

    Raises:
        ValueError: if the plan has no such variant, or there is no such system.
    """
    planned = [job for job in plan.read(path) if job.recipe.variant] if path else []
    defined = {f"{job.recipe.model}--{job.recipe.variant}": job for job in planned}
    jobs = []
    for name in names:
        system, _, variant = name.partition("--")
        if variant and name not in defined:
            raise ValueError(f"{path or 'no plan'} defines no variant {name!r}; it has {', '.join(defined)}")
        arguments, config = _changed(defined[name]) if variant else ({}, {})
        found = plan.varied(system, dataset, variant, arguments, config)
        if epochs is not None:
            found = dataclasses.replace(found, config=dataclasses.replace(found.config, epochs=epochs))
        jobs += [Job(found, dataset, seed) for seed in seeds]
    return jobs


def _changed(job: Job) -> tuple[dict, dict]:
    """Arguments of the model and fields of the configuration in which a variant departs from its recipe."""
    plain = recipe(job.recipe.model, job.dataset)
    arguments = {key: value for key, value in job.recipe.arguments.items() if plain.arguments.get(key) != value}
    before, after = dataclasses.asdict(plain.config), dataclasses.asdict(job.recipe.config)
    return arguments, {key: value for key, value in after.items() if before[key] != value}


def command(system: str, dataset: str, seed: int, variant: str = "") -> str:
    """What a reader types to make a record; variants are run by the plan that defines them."""
    if variant:
        return "sbr replicate --plan book/plan.toml"
    return f"sbr replicate --models {system} --datasets {dataset} --seeds {seed}"


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
