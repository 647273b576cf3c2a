"""``sbr``: the package from a shell. ``--json`` prints exactly one JSON object on stdout; progress goes to stderr.

Exit codes: 0 done, 1 wrong input, 130 interrupted.
"""

import dataclasses
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__.split("``--json``")[0]
)
data_app = typer.Typer(no_args_is_help=True, help="Datasets: what there is, what they hold, preparing them.")
app.add_typer(data_app, name="data")

ModelName = Annotated[str, typer.Option("--model", help="A system of `sbr_core.models.MODELS`, such as sr-gnn.")]
DatasetName = Annotated[str, typer.Option("--dataset", help="A name of `sbr data list`, large:N, or a folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Constructor argument of the model: --set steps=2. Repeatable.")
]
Precision = Annotated[str | None, typer.Option(help="fp32 or bf16 (default: the recipe's).")]


def main() -> None:
    """Entry point: wrong input is one line on stderr and exit code 1."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        code = app(standalone_mode=False) or 0
    except typer.TyperException as error:
        code = _fail(error.format_message() or "a command is missing")
    except (ValueError, OSError, FloatingPointError, LookupError) as error:
        code = _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        print("interrupted: with --output, the same command continues", file=sys.stderr)
    sys.exit(code)


def _fail(message: str) -> int:
    """One line on stderr, and the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _print(result: dict, as_json: bool) -> None:
    """One JSON object, or one line a key."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    for key, value in result.items():
        shown = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{key:24} {shown}")


def _arguments(pairs: list[str] | None) -> dict:
    """["steps=2", "readout=mean"] -> {"steps": 2, "readout": "mean"}."""
    arguments = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes name=value, got {pair!r}")
        try:
            arguments[key.strip()] = json.loads(text)
        except json.JSONDecodeError:
            arguments[key.strip()] = text
    return arguments


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # no such kind of device, no such number, or torch built without it
        raise ValueError(f"--device {name}: torch cannot use it on this machine; use --device cpu") from error
    return name


def _recipe(model: str, dataset: str, set_: list[str] | None, **overrides):
    """The published recipe of the pair, with what the command line says otherwise."""
    from sbr_core.models import MODELS
    from sbr_core.recipes import recipe

    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}; the models are {', '.join(MODELS)}")
    found = recipe(model, dataset)
    config = dataclasses.replace(found.config, **{key: value for key, value in overrides.items() if value is not None})
    return dataclasses.replace(found, arguments=found.arguments | _arguments(set_), config=config)


@data_app.command("list")
def data_list(as_json: Json = False) -> None:
    """Every dataset, whether it is on this machine, and how to get it."""
    from sbr_core import datasets

    _print(
        {row.pop("name"): row if as_json else f"{row['status']:10} {row['note']}" for row in datasets.catalogue()},
        as_json,
    )


@data_app.command("stats")
def data_stats(dataset: DatasetName = "demo", as_json: Json = False) -> None:
    """Counts of a dataset, checked against the published ones where there are any."""
    from sbr_core import datasets

    _print(datasets.load(dataset).statistics(), as_json)


@data_app.command("prepare")
def data_prepare(dataset: DatasetName = "demo", as_json: Json = False) -> None:
    """Read, preprocess and cache a dataset."""
    from sbr_core import datasets

    begun = time.perf_counter()
    found = datasets.load(dataset)
    seconds = time.perf_counter() - begun
    _print(
        {"dataset": found.name, "fingerprint": found.fingerprint, "protocol": found.protocol, "seconds": seconds},
        as_json,
    )


@app.command()
def train(
    model: ModelName,
    dataset: DatasetName = "demo",
    epochs: Annotated[int | None, typer.Option(help="Epochs (default: the recipe's).")] = None,
    seed: int = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of checkpoint and model; a run found there is continued.")
    ] = None,
    validate: Annotated[
        bool, typer.Option(help="Hold out the latest tenth of the sessions and pick an epoch on it.")
    ] = False,
    precision: Precision = None,
    batch_size: int | None = None,
    lr: float | None = None,
    l2: float | None = None,
    max_len: Annotated[int | None, typer.Option(help="Keep the last so many clicks of an input.")] = None,
    patience: int | None = None,
    device: Device = "auto",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Train a system by its published recipe; the test is reported after every epoch."""
    from sbr_core import datasets, workflow

    options = dict(
        epochs=epochs, precision=precision, batch_size=batch_size, lr=lr, l2=l2, max_len=max_len, patience=patience
    )
    recipe = _recipe(model, dataset, set_, seed=seed, **options)
    result = workflow.train(
        recipe, datasets.load(dataset), output, validate, _device(device), progress=sys.stderr.isatty()
    )
    if not as_json:
        for epoch in result.pop("epochs"):
            print(f"epoch {epoch['epoch']}: HR@20 {epoch['test']['HR@20']:.2f}  MRR@20 {epoch['test']['MRR@20']:.2f}")
    _print(result, as_json)


@app.command()
def evaluate(
    model: Annotated[str | None, typer.Option(help="A counting system, fitted on the spot.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder written by `sbr train --output`.")] = None,
    dataset: DatasetName = "demo",
    ties: Annotated[str, typer.Option(help="conservative, standard or median.")] = "conservative",
    breakdown: Annotated[bool, typer.Option(help="Add metrics by prefix length and by target popularity.")] = False,
    device: Device = "auto",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Rank the target of every test example among all items."""
    from sbr_core import datasets, workflow

    if (model is None) == (checkpoint is None):
        raise ValueError("give either --model (a counting system) or --checkpoint (a trained one)")
    recipe = _recipe(model, dataset, set_) if model else None
    found = datasets.load(dataset)
    _print(workflow.evaluate(recipe, checkpoint, found, ties, breakdown, _device(device)), as_json)


@app.command()
def recommend(
    checkpoint: Annotated[Path, typer.Option(help="Folder written by `sbr train --output`.")],
    session: Annotated[str, typer.Option(help="Raw item ids, oldest first, separated by commas.")],
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 20,
    as_json: Json = False,
) -> None:
    """The k best next items after these clicks."""
    from sbr_core.recommend import Recommender

    recommender = Recommender.load(checkpoint)
    items, scores = recommender.recommend(recommender.parse(session), k)
    if as_json:
        _print({"items": items, "scores": scores}, True)
    else:
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1):
            print(f"{rank:3}  {item}  {score:.4f}")


@app.command()
def bench(
    model: ModelName = "sr-gnn",
    dataset: DatasetName = "demo",
    steps: int = 50,
    softmax: Annotated[
        str | None,
        typer.Option(help="Instead: time the forms of the full softmax at these numbers of items, e.g. 1000,40000."),
    ] = None,
    precision: Precision = None,
    batch_size: int | None = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Run the encoder through torch.compile.")] = False,
    device: Device = "auto",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Time of a training step beside its floor, of the evaluation, and peak memory."""
    from sbr_core import datasets, workflow
    from sbr_core.bench import bench_softmax

    if softmax:
        counts = [int(count) for count in softmax.split(",")]
        rows = [bench_softmax(count, batch_size or 100, device=_device(device)) for count in counts]
        _print({"softmax": rows}, as_json)
        return
    recipe = _recipe(model, dataset, set_, precision=precision, batch_size=batch_size, compile=compile_ or None)
    _print(workflow.bench(recipe, datasets.load(dataset), steps, _device(device)), as_json)


@app.command()
def replicate(
    models: Annotated[str, typer.Option(help="Systems, separated by commas.")] = "sr-gnn",
    datasets_: Annotated[str, typer.Option("--datasets", help="Datasets, separated by commas.")] = "demo",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    epochs: int | None = None,
    precision: Precision = None,
    work: Annotated[Path, typer.Option(help="Folder of the checkpoints.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("book/results"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Select run, final run and record of each recipe, in turn; what is recorded or half done is not done again."""
    from sbr_core import datasets
    from sbr_core.replicate import replicate as run

    wanted = [(m, d, int(s)) for m in models.split(",") for d in datasets_.split(",") for s in seeds.split(",")]
    recipes = {(m, d): _recipe(m, d, None, epochs=epochs, precision=precision) for m, d, _ in wanted}
    paths = []
    for model, name, seed in wanted:
        found = datasets.load(name)
        paths.append(run(recipes[model, name], found, seed, work, results, _device(device), sys.stderr.isatty()))
    _print({"records": [str(path) for path in paths]}, as_json)
