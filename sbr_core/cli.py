"""``sbr``: the package from a shell. ``--json`` prints exactly one JSON object on stdout; progress goes to stderr.

Exit codes: 0 done, 1 wrong input or a result that could not be kept, 130 interrupted.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from sbr_core import cli_data
from sbr_core.cli_options import (
    L2,
    BatchSize,
    Clicks,
    Config,
    DatasetName,
    Device,
    Epochs,
    Json,
    LearningRate,
    Log,
    Loss,
    MaxLen,
    ModelName,
    Optimizer,
    Output,
    Precision,
    Seed,
    Set,
    TableOptimizer,
    device_of,
    fail,
    jobs_of,
    load_dataset,
    options,
    parse_budget,
    recipe_of,
    render,
    show,
    whole_numbers,
    write,
)  # fmt: skip

PLAN = Path("book/plan.toml")
RENEW = (
    "Run again what is recorded with fewer epochs, without a select run, in bf16 or without its ranks; that record is "
    "kept in earlier/."
)
FINAL_ONLY = "No select run, half of the time: the last epoch counts. A later --renew adds the select run."
CONTINUES = {  # what follows after Ctrl-C
    "train": ": with --output, the same command continues",
    "replicate": ": the same command continues",
}

app = typer.Typer(callback=options, invoke_without_command=True, no_args_is_help=True, add_completion=False,
                  pretty_exceptions_enable=False)  # fmt: skip
app.add_typer(cli_data.app, name="data")


def main() -> None:
    """Entry point: wrong input is one line on stderr and exit code 1."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        code = app(standalone_mode=False) or 0
    except typer.TyperException as error:
        code = fail(error.format_message() or "a command is missing")
    except (ValueError, OSError, FloatingPointError, LookupError, RuntimeError, ImportError) as error:
        code = fail(str(error))
    except MemoryError as error:
        code = fail(f"not enough memory ({error}); take a smaller dataset, model or batch")
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        print("interrupted" + CONTINUES.get(" ".join(sys.argv[1:2]), ""), file=sys.stderr)
    sys.exit(code)


@app.command()
def train(
    model: ModelName,
    dataset: DatasetName = "demo",
    log: Log = None,
    epochs: Epochs = None,
    seed: Seed = None,
    output: Output = None,
    validate: Annotated[
        bool, typer.Option(help="Hold out the latest tenth of the sessions and pick an epoch on it.")
    ] = False,
    loss: Loss = None,
    optimizer: Optimizer = None,
    table_optimizer: TableOptimizer = None,
    precision: Precision = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    l2: L2 = None,
    max_len: MaxLen = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better one; wants --validate.")
    ] = None,
    device: Device = "auto",
    set_: Set = None,
    config_: Config = None,
    as_json: Json = False,
) -> int:
    """Train a system by its published recipe; the test is reported after every epoch."""
    from sbr_core import workflow

    options = dict(
        epochs=epochs, precision=precision, batch_size=batch_size, lr=lr, l2=l2, max_len=max_len, patience=patience
    ) | dict(loss=loss, optimizer=optimizer, table_optimizer=table_optimizer)
    recipe = recipe_of(model, dataset, set_, config_, seed=seed, **options)
    result = workflow.train(
        recipe, load_dataset(dataset, log), output, validate, device_of(device), progress=sys.stderr.isatty()
    )
    unkept = result.pop("unkept", None)
    if not as_json:
        for epoch in result.pop("epochs"):
            print(f"epoch {epoch['epoch']}: HR@20 {epoch['test']['HR@20']:.2f}  MRR@20 {epoch['test']['MRR@20']:.2f}")
    show(result, as_json)
    return fail(unkept) if unkept else 0


@app.command()
def evaluate(
    model: Annotated[str | None, typer.Option(help="A counting system, fitted on the spot.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder written by `sbr train --output`.")] = None,
    dataset: DatasetName = "demo",
    log: Log = None,
    ties: Annotated[str, typer.Option(help="conservative, standard or median.")] = "conservative",
    breakdown: Annotated[bool, typer.Option(help="Add metrics by prefix length and by target popularity.")] = False,
    device: Device = "auto",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Rank the target of every test example among all items."""
    from sbr_core import workflow

    if (model is None) == (checkpoint is None) or checkpoint and set_:
        raise ValueError("give either --model (a counting system, with --set) or --checkpoint (a trained one)")
    recipe = recipe_of(model, dataset, set_) if model else None
    found, progress = load_dataset(dataset, log), sys.stderr.isatty()
    show(workflow.evaluate(recipe, checkpoint, found, ties, breakdown, device_of(device), progress), as_json)


@app.command()
def recommend(
    checkpoint: Annotated[Path, typer.Option(help="Folder written by `sbr train --output`.")],
    session: Clicks,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 20,
    as_json: Json = False,
) -> None:
    """The k best next items after these clicks."""
    from sbr_core.recommend import Recommender

    recommender = Recommender.load(checkpoint)
    items, scores = recommender.recommend(recommender.parse(session), k)
    if as_json:
        show({"items": items, "scores": scores}, True)
    else:
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1):
            print(f"{rank:3}  {item}  {score:.4f}")


@app.command()
def index(
    checkpoint: Annotated[Path, typer.Option(help="Folder written by `sbr train --output`.")],
    output: Annotated[Path, typer.Option(help="File of the index, for any program that has faiss.")],
    dataset: DatasetName = "demo",
    log: Log = None,
    kind: Annotated[str, typer.Option(help="flat (exact), hnsw or ivf.")] = "hnsw",
    effort: Annotated[int, typer.Option(help="Nodes (hnsw) or cells (ivf) that a search looks at.")] = 64,
    k: Annotated[int, typer.Option("-k", help="Items of a shelf.")] = 20,
    as_json: Json = False,
) -> None:
    """Write a faiss index of a model's items; its recall and speed against exact search, on test examples."""
    from sbr_core import workflow

    show(workflow.index(checkpoint, load_dataset(dataset, log), output, kind, effort, k), as_json)


@app.command()
def bench(
    model: ModelName = "sr-gnn",
    dataset: DatasetName = "demo",
    log: Log = None,
    steps: Annotated[int, typer.Option(help="Training steps that are timed; a few more warm up.")] = 50,
    no_evaluation: Annotated[bool, typer.Option("--no-evaluation", help="Time the steps and no evaluation.")] = False,
    softmax: Annotated[
        str | None,
        typer.Option(help="Instead: time the forms of the full softmax at these numbers of items, e.g. 1000,40000."),
    ] = None,
    loss: Loss = None,
    optimizer: Optimizer = None,
    table_optimizer: TableOptimizer = None,
    precision: Precision = None,
    batch_size: BatchSize = None,
    l2: L2 = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Run the encoder through torch.compile.")] = False,
    device: Device = "auto",
    set_: Set = None,
    config_: Config = None,
    as_json: Json = False,
) -> None:
    """Time of a training step beside its floor, of the evaluation, and peak memory."""
    from sbr_core import workflow
    from sbr_core.bench import bench_softmax

    if softmax:
        counts = whole_numbers(softmax, "--softmax")
        rows = [bench_softmax(count, batch_size or 100, device=device_of(device)) for count in counts]
        show({"softmax": rows}, as_json)
        return
    options = dict(precision=precision, batch_size=batch_size, compile=compile_ or None)
    options |= dict(loss=loss, optimizer=optimizer, table_optimizer=table_optimizer, l2=l2)
    recipe = recipe_of(model, dataset, set_, config_, **options)
    found = load_dataset(dataset, log)
    show(workflow.bench(recipe, found, steps, device_of(device), not no_evaluation), as_json)


@app.command()
def replicate(
    models: Annotated[str | None, typer.Option(help="Systems or variants (tagnn--average) of the plan.")] = None,
    datasets_: Annotated[str | None, typer.Option("--datasets", help="Of the plan's; with --models: demo.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Of the plan's, separated by commas; with --models: 0.")] = None,
    plan_: Annotated[Path | None, typer.Option("--plan", help=f"A plan to follow, such as {PLAN}.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what is recorded, what is missing, its time.")] = False,
    budget: Annotated[str | None, typer.Option(help=f"As many missing runs of {PLAN} as fit: 20m, 2h.")] = None,
    package: Annotated[Path | None, typer.Option(help="Put new records here, not among --results.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the runs.")] = 1,
    epochs: Epochs = None,
    final_only: Annotated[bool, typer.Option("--final-only", help=FINAL_ONLY)] = False,
    renew: Annotated[bool, typer.Option("--renew", help=RENEW)] = False,
    precision: Precision = None,
    work: Annotated[Path, typer.Option(help="Folder of the checkpoints.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("book/results"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Select run, final run and record of each recipe, in turn; what is recorded or half done is not done again."""
    from sbr_core import plan, work_package
    from sbr_core.replicate import run_all, run_with_workers

    if models is None and plan_ is None and not (list_ or budget):
        raise ValueError(f"say what to run: --models and --datasets, --budget 2h, or --plan {PLAN} (--list shows it)")
    jobs = jobs_of(models, datasets_, seeds, plan_ or PLAN, epochs, precision)
    jobs = plan.without_select(jobs) if final_only else jobs
    seconds, of_plan = parse_budget(budget) if budget else None, models is None
    if list_:
        rows = plan.listing(jobs, results, device if device != "auto" else device_of(device))
        print(json.dumps({"runs": rows}) if as_json else render(rows, workers))
        return
    device, progress = device_of(device), sys.stderr.isatty()
    if seconds or package or of_plan:
        paths = work_package.fill(jobs, work, results, package, seconds, workers, device, renew, progress)
    elif workers > 1:
        paths = run_with_workers(jobs, workers, work, results, device, renew)
    else:
        paths = run_all(jobs, work, results, device, progress, renew)
    show({"records": [str(path) for path in paths]}, as_json)


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Such as softmax, speed or scale; a wrong name lists them all.")],
    datasets_: Annotated[str, typer.Option("--datasets", help="Datasets, separated by commas.")] = "demo",
    models: Annotated[str | None, typer.Option(help="Systems of speed (default: neural ones) or of blend.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of checkpoints, for blend, stream, attention.")] = Path("runs"),
    output: Annotated[Path | None, typer.Option(help="File to write (the book reads book/results/studies).")] = None,
) -> None:
    """A measurement of the book that is not a run: inputs that look alike, the softmax, the speed of all systems."""
    from sbr_core import attention_study, blend, data_studies, leaks, retrieval_study, scaling, speed, studies

    names = datasets_.split(",")
    known = {
        "collisions": lambda: studies.collision_study(names),
        "softmax": studies.softmax_study,
        "softmax-grid": studies.softmax_grid_study,
        "every-position": lambda: studies.every_position_study(names),
        "table-optimizers": lambda: studies.table_study(names),
        "scale": scaling.scale_study,
        "epoch": scaling.epoch_study,
        "retrieval": retrieval_study.retrieval_study,
        "blend": lambda: [blend.blend_study(work, (models or "sr-gnn,stan").split(","), name) for name in names],
        "stream": lambda: [leaks.stream_study(work, name) for name in names],
        "attention": lambda: [attention_study.attention_study(work, name) for name in names],
        "walks": lambda: [scaling.walk_study(name) for name in names],
        "speed": lambda: speed.speed_study(models.split(",") if models else None, names),
        "targets": speed.targets_study,
        "parts": lambda: [speed.parts_study(each, name) for name in names for each in (models or "sr-gnn").split(",")],
        "ties": lambda: data_studies.ties_study(names),
        "click-order": lambda: data_studies.click_order_study(names),
    }
    if name not in known:
        raise ValueError(f"there is no study {name!r}; the studies are {', '.join(known)}")
    write(json.dumps(known[name](), indent=1), output)
