"""What the commands of `sbr_core.cli` share: options, and what they mean."""

import dataclasses
import json
import math
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[str, typer.Option("--model", help="A system, such as sr-gnn; a wrong name is told all.")]
DatasetName = Annotated[
    str, typer.Option("--dataset", help="A name of `sbr data list`, large:N, a folder, or a CSV or Parquet file.")
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        help="How to read a file: --log session=visitor,item=sku,time=when names its columns; session_gap=1800 cuts "
        "users into sessions; also test_seconds, protocol, sep. Repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Constructor argument of the model: --set steps=2. Repeatable.")
]
Config = Annotated[
    list[str] | None, typer.Option("--config", help="Field of TrainConfig: --config optimizer=adamw. Repeatable.")
]
Loss = Annotated[str | None, typer.Option(help="full, negative-sampling, triplet, ...: see `sbr_core.losses.LOSSES`.")]
Optimizer = Annotated[
    str | None, typer.Option(help="adam, adamw, adagrad; or sparse-adam, rowwise-adam, rowwise-adagrad for the table.")
]
TableOptimizer = Annotated[
    str | None,
    typer.Option(help="Of an item table that is only looked up: sparse-adam, rowwise-adam, rowwise-adagrad, adam."),
]
Clicks = Annotated[
    str,
    typer.Option(
        "--session",
        help="Raw item ids, oldest first, separated by commas; one with a comma, a quote at its start, or blanks at an "
        'end that matter is quoted as in a CSV file: "a, b".',
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs (default: the recipe's).")]
Seed = Annotated[int | None, typer.Option(help="Of the parameters and the order of the examples; 0.")]
Output = Annotated[Path | None, typer.Option(help="Folder of checkpoint and model; a run found there is continued.")]
LearningRate = Annotated[float | None, typer.Option(help="Learning rate of the first epochs (default: the recipe's).")]
MaxLen = Annotated[int | None, typer.Option(help="Keep the last so many clicks of an input.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples of a step (default: the recipe's).")]
L2 = Annotated[
    float | None, typer.Option(help="Weight decay (default: the recipe's); 0 where a loss only looks the table up.")
]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16 (default: the recipe's).")]

LOG = dict.fromkeys(("session", "item", "time", "protocol", "sep"), str) | {"session_gap": float, "test_seconds": float}
OF_COUNTING = ("max_len", "keep")  # the fields of a configuration that a counting system heeds


def fail(message: str) -> int:
    """One line on stderr, and the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def options(version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False) -> None:
    """Session-based recommendation: data, training, evaluation, recommendation and replications."""
    if version:
        print(f"sbr {metadata.version('sbr-core')}")


def show(result: dict, as_json: bool) -> None:
    """One JSON object, or one line a key."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    for key, value in result.items():
        print(f"{key:24} {_shown(value)}")


def _shown(value: object) -> str:
    """A value as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
    if value and isinstance(value, list) and all(isinstance(each, float) for each in value):
        return " to ".join(map(_shown, value)) if len(value) == 2 else ", ".join(map(_shown, value))
    return f"{value:.3f}" if isinstance(value, float) else "none" if value is None else str(value)


def parse_pairs(pairs: list[str] | None, option: str = "--set") -> dict:
    """["steps=2", "readout=mean"] -> {"steps": 2, "readout": "mean"}."""
    arguments = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{option} takes name=value, got {pair!r}")
        try:
            arguments[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            arguments[key.strip()] = text
    return arguments


def load_dataset(name: str, log: list[str] | None):
    """The dataset of a --dataset option; a click log is read as the --log options say."""
    from sbr_core import datasets

    arguments = {}
    for pair in (pair for pairs in log or [] for pair in pairs.split(",")):
        key, _, text = pair.partition("=")
        if key.strip() == "sep" and not text:
            raise ValueError("--log sep=, says nothing: commas separate what --log takes, and cut a file but a .tsv")
        if key.strip() not in LOG or not text:
            raise ValueError(f"--log takes name=value of {', '.join(LOG)}, separated by commas, got {pair!r}")
        try:
            arguments[key.strip()] = LOG[key.strip()](text)
        except ValueError:
            raise ValueError(f"--log {key.strip()} is a number of seconds, got {text!r}") from None
    return datasets.load(name, **arguments)


def whole_numbers(text: str, option: str) -> list[int]:
    """ "1000,40000" -> [1000, 40000]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes whole numbers, separated by commas, got {text!r}") from None


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
    if not 0 < value < math.inf:
        raise ValueError(f"a budget must be positive, got {text!r}")
    return value


def config_fields(pairs: list[str] | None) -> dict:
    """Fields of `TrainConfig` from name=value pairs; a whole number will do where the field is a float.

    Raises:
        ValueError: no such field, or a value of another type.
    """
    from sbr_core.plan import checked_fields

    return checked_fields(parse_pairs(pairs, "--config"), "--config")


def device_of(name: str) -> str:
    """The device that a --device option means, checked."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # no such kind of device, no such number, or torch built without it
        raise ValueError(f"--device {name}: torch cannot use it on this machine; use --device cpu") from error
    return name


def recipe_of(model: str, dataset: str, set_: list[str] | None, config_: list[str] | None = None, **overrides):
    """The published recipe of the pair, with what the command line says otherwise."""
    from sbr_core.config import CHOICES
    from sbr_core.models import MODELS, CountingModel, seeded
    from sbr_core.recipes import recipe

    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}; the models are {', '.join(MODELS)}")
    found, fields = recipe(model, dataset), config_fields(config_)
    given = fields | {key: value for key, value in overrides.items() if value is not None}
    if given.get("optimizer") in set(CHOICES["table_optimizer"]) - set(CHOICES["optimizer"]):
        of_table = given.pop("optimizer")
        if given.setdefault("table_optimizer", of_table) != of_table:
            raise ValueError(
                f"--optimizer {of_table} is for the item table, and so is --table-optimizer "
                f"{given['table_optimizer']}: give one of them"
            )
    read = {*OF_COUNTING, *({"seed"} & seeded(model, {}, 0).keys())}
    ignored = [key for key in given if key not in read and (key != "seed" or given[key] != found.config.seed)]
    if issubclass(MODELS[model], CountingModel) and ignored:
        warnings.warn(
            f"{model} counts instead of training by steps and does not read {', '.join(ignored)}; what it has of its "
            "own is set by --set",
            stacklevel=2,
        )
    if given.get("loss", found.config.loss) != found.config.loss:
        given.setdefault("loss_arguments", {})  # the recipe's are those of its own loss
    config = dataclasses.replace(found.config, **given)
    return dataclasses.replace(found, arguments=found.arguments | parse_pairs(set_), config=config)


def jobs_of(
    models: str | None, datasets: str | None, seeds: str | None, path: Path, epochs: int | None, precision: str | None
) -> list:
    """The runs that the options of `sbr replicate` name: those of --models, or the plan's on --datasets with --seeds.

    Raises:
        ValueError: if the plan has none such, or --epochs or --precision are to change its recipes.
    """
    from sbr_core import plan
    from sbr_core.rerun import jobs_for


    each = whole_numbers(seeds, "--seeds") if seeds else []
    if models is not None:
        names = [name.strip() for name in (datasets or "demo").split(",")]
        for name in names:
            plan.check_dataset(name)
        systems = [name.strip() for name in models.split(",")]
        parts = (jobs_for(systems, name, each or [0], epochs, path, precision) for name in names)
        return [job for part in parts for job in part]
    if epochs is not None or precision is not None:
        raise ValueError(f"--epochs and --precision go with --models: the runs of {path} keep to their recipes")
    return plan.only(plan.read(path), datasets.split(",") if datasets else [], each)


def render(rows: list[dict], workers: int = 1) -> str:
    """The rows of `plan.listing`, one line a run, and sums: of what is missing, and of everything made from nothing."""
    lines = []
    for row in rows:
        minutes = "      ?" if row["seconds"] is None else f"{row['seconds'] / 60:7.1f}"
        text = f"{row['state']:15}{minutes} min {row['time']:10} {row['system']:28} {row['dataset']:19} {row['seed']}"
        lines.append(text + (f"  {row['problem']}" if row["problem"] else ""))
    counts = {"recorded": [], "shorter": [], "unreadable": [], "missing": []}
    for row in rows:
        counts[row["state"] if row["state"] in counts else "shorter"].append(row)
    said = [f"{len(found)} {what}" for what, found in counts.items() if found or what in ("recorded", "missing")]
    lines.append(f"{', '.join(said)}: {_hours(counts['missing'], workers)}")
    lines.append(f"all {len(rows)} from nothing: {_hours(rows, workers)}")
    return "\n".join(lines)


def _hours(rows: list[dict], workers: int) -> str:
    """The sum of their times in words."""
    hours = sum(row["seconds"] or 0 for row in rows) / 3600
    unknown = sum(row["seconds"] is None for row in rows)
    estimated = sum(row["seconds"] or 0 for row in rows if row["time"] == "estimated") / 3600
    alone = sum(row["undivided"] for row in rows) / 3600
    text = f"{hours:.1f} hours, {estimated:.1f} of them estimated"
    text += f", {(hours - alone) / workers + alone:.1f} with {workers} workers" if workers > 1 else ""
    text += f", {alone:.1f} of them the card's own" if workers > 1 and alone else ""
    return text + (f", and {unknown} runs of unknown length" if unknown else "")


def write(text: str, output: Path | None) -> None:
    """Write a text to a file, whose folder is made, or print it: also if it cannot be written, before the error."""
    if output is None:
        print(text)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    except OSError:
        print(text)  # what may have taken an hour is not lost
        raise
