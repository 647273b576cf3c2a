"""What a training step costs against the size of the catalogue: seconds and memory, by loss and optimizer.

Shapes: V items, B examples of a batch, D width.
"""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from types import MappingProxyType

import torch
from tqdm.auto import tqdm

from sbr_core import datasets, recipes, synthetic
from sbr_core.bench import endless
from sbr_core.config import TrainConfig
from sbr_core.evaluate import evaluate
from sbr_core.graphs import global_graph
from sbr_core.losses import least_rows
from sbr_core.models import build
from sbr_core.records import peak_rss_mb
from sbr_core.run_state import Run
from sbr_core.train import fit, make_order, train_step
from sbr_core.walks import edges, random_walks

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
SAMPLES = {"negatives": 512}
FORMS = {
    "full softmax, plain": {"loss": "full", "loss_arguments": {"form": "plain"}},
    "full softmax, chunked": {"loss": "full", "loss_arguments": {"form": "chunked"}},
    "full softmax, blocked": {"loss": "full", "loss_arguments": {"form": "blocked"}},
    "full softmax": {"loss": "full"},
    "full softmax, row-wise": {"loss": "full", "table_optimizer": "rowwise-adam"},
    "sampled softmax": {"loss": "sampled-softmax", "loss_arguments": SAMPLES},
    "sampled softmax, Adam": {"loss": "sampled-softmax", "loss_arguments": SAMPLES, "table_optimizer": "adam"},
    "negative sampling": {"loss": "negative-sampling", "loss_arguments": SAMPLES},
    "triplet": {"loss": "triplet"},
    "negative sampling, row-wise": {
        "loss": "negative-sampling", "loss_arguments": SAMPLES, "table_optimizer": "rowwise-adam"
    },
}  # fmt: skip
DENSE = tuple(form for form in FORMS if form.startswith("full") or form.endswith("Adam"))  # they go over every row
MELI = "large:1279791"  # the shape of MeLi2020, see `synthetic.large_catalogue`
DISSERTATION = {
    "cross-entropy": {"loss": "full", "loss_arguments": {"form": "plain"}},
    "negative sampling, L2": {
        "arguments": {"normalise": True, "scale": 10.0},
        "loss": "negative-sampling",
        "loss_arguments": {"negatives": 20, "shared": False},
    },
    "triplet, L2": {"arguments": {"normalise": True, "similarity": "distance"}, "loss": "triplet"},
    "sampled softmax, L2": {"arguments": {"normalise": True}, "loss": "sampled-softmax", "loss_arguments": SAMPLES},
}
WHOLE = tuple(form for form in DISSERTATION if form.endswith("L2"))  # epochs that are trained to their end
LEVEL = 10_000  # items from which a cost is said to be level
LIMIT_BYTES = 14e9  # of table, gradient, state and scores: what is larger is not tried
LIMIT_SECONDS = 120.0  # of 1,000 examples, in proportion to the size before: what is slower is not tried


def step_cost(
    model: str,
    num_items: int,
    fields: dict,
    batch_size: int = 100,
    dim: int = 64,
    steps: int = 20,
    sessions: int = 50_000,
    arguments: Mapping = MappingProxyType({}),
) -> dict:
    """Seconds and peak memory of training on a generated log over V items, in this process.

    Args:
        fields: of `TrainConfig`: loss and optimizer of the table.
        sessions: of the log.
        arguments: of the model.

    Returns:
        seconds per 1,000 examples (median step), peak memory in MB: of the whole process, and less what the log took.
    """
    step, before = _stepper(model, num_items, fields, batch_size, dim, sessions, arguments)
    times = [step() for _ in range(steps + 2)][2:]
    peak = peak_rss_mb()
    row = {"model": model, "items": num_items, "batch_size": batch_size, "dim": dim, "steps": steps}
    row["seconds_per_1000"] = 1000 / batch_size * statistics.median(times)
    return row | {"peak_rss_mb": peak, "peak_model_mb": peak - before}


def _stepper(
    model: str, num_items: int, fields: dict, batch_size: int, dim: int, sessions: int, arguments: Mapping
) -> tuple[Callable[[], float], float]:
    """A function that trains one step and returns its seconds, and the process's peak memory (MB) before the model."""
    train = synthetic.large_catalogue(num_items, sessions)
    config = TrainConfig(**{"batch_size": batch_size, "max_len": 20, "lr": 1e-3, "l2": 0.0} | fields)
    examples, before = config.examples(train), peak_rss_mb()
    torch.manual_seed(0)
    network = build(model, num_items, dim=dim, **arguments)
    run = Run(network, examples, config, None, {}, 0.0)
    batches = endless(make_order(examples, config, 0, least_rows(run.loss)), examples)
    network.train()

    def step() -> float:
        batch, begun = next(batches), time.perf_counter()
        train_step(network, run.loss, run.optimizers, batch, run.encode, run.clip)
        return time.perf_counter() - begun

    return step, before


def flatness(
    model: str, form: str, sizes: tuple[int, ...], steps: int = 100, batch_size: int = 100, dim: int = 64,
    sessions: int = 50_000,
) -> list[dict]:  # fmt: skip
    """Seconds per 1,000 examples for several catalogues in one process, a step of each in turn.

    Slower and faster moments of the machine meet all of them alike, so their ratios are those of the catalogues.
    """
    stepper = [_stepper(model, size, FORMS[form], batch_size, dim, sessions, {})[0] for size in sizes]
    times = [[step() for step in stepper] for _ in range(steps + 2)][2:]
    return [
        {"form": form, "model": model, "items": size, "seconds_per_1000": 1000 / batch_size * statistics.median(column)}
        for size, column in zip(sizes, zip(*times, strict=True), strict=True)
    ]


def needed_bytes(form: str, num_items: int, batch_size: int = 100, dim: int = 64) -> float:
    """Of table, gradient, optimizer state and scores, roughly."""
    table = 4.0 * num_items * dim
    if form not in DENSE:
        return table * (1 if "row-wise" in form else 3)
    scores = 8.0 * batch_size * num_items if form.endswith("plain") else 0.0
    return table * (2 if "row-wise" in form else 4) + scores


def scale_study(models: tuple[str, ...] = ("stamp", "sr-gnn"), sizes: tuple[int, ...] = SIZES, steps: int = 60) -> dict:
    """`step_cost` of every model, form and size within the limits, each in a process of its own.

    Slow ones take fewer steps.

    Returns:
        "scale": these; "flat": `flatness` of the forms that do not go over every row, from `LEVEL` items on; threads.
    """
    rows = []
    for model, (form, fields) in tqdm([*product(models, FORMS.items())], "scale"):
        row = None
        for size in sizes:
            slow = row is not None and row["seconds_per_1000"] * size / row["items"] > LIMIT_SECONDS
            if slow or needed_bytes(form, size) > LIMIT_BYTES:
                break
            count = max(3, steps // 12) if form in DENSE and size >= 10**6 else steps
            row = {"form": form} | _apart(step_cost, model, size, fields, steps=count)
            rows.append(row)
    return {"scale": rows, "flat": flat_study(models, sizes), "threads": torch.get_num_threads()}


def flat_study(models: tuple[str, ...] = ("stamp", "sr-gnn"), sizes: tuple[int, ...] = SIZES) -> list[dict]:
    """`flatness` of each model and form that looks at some rows only, each in a process of its own."""
    level = tuple(size for size in sizes if size >= LEVEL)
    pairs = [pair for pair in product(models, FORMS) if pair[1] not in DENSE]
    return [row for model, form in tqdm(pairs, "flat") for row in _apart(flatness, model, form, level)]


def _apart(work: Callable, *arguments, **more):
    """Do it in a process of its own, for its peak memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments, **more).result()


def whole_epoch(model: str, form: str, dataset: str, batch_size: int, dim: int, test: int = 20_000) -> dict:
    """One epoch trained and its model evaluated on `test` examples by exact ranks, in this process."""
    data = datasets.load(dataset)
    arguments, config = _dissertation(form, batch_size)
    examples = config.examples(data.train)
    torch.manual_seed(0)
    network = build(model, data.num_items, dim=dim, **arguments)
    (epoch,) = fit(network, examples, config, progress=False)
    held = config.truncate(data.test_windows())
    begun = time.perf_counter()
    found = evaluate(network, held[torch.linspace(0, len(held) - 1, min(test, len(held))).long()])
    row = {"model": model, "form": form, "items": data.num_items, "examples": len(examples), "loss": epoch["loss"]}
    row |= {"batch_size": batch_size, "dim": dim, "epoch_seconds": epoch["seconds"], "metrics": found.metrics}
    row |= {"test_examples": len(found.ranks), "evaluation_seconds": time.perf_counter() - begun}
    return row | {"peak_rss_mb": peak_rss_mb()}


def _dissertation(form: str, batch_size: int) -> tuple[dict, TrainConfig]:
    """Arguments of the model, and the training of one epoch."""
    fields = {key: value for key, value in DISSERTATION[form].items() if key != "arguments"}
    config = TrainConfig(epochs=1, batch_size=batch_size, max_len=25, lr=1e-3, l2=0.0, **fields)
    return DISSERTATION[form].get("arguments", {}), config


def epoch_study(dataset: str = MELI, batch_size: int = 128, dim: int = 100, steps: int = 300) -> dict:
    """An epoch of the dissertation's largest log: its steps for every model and loss, and STAMP's on the sphere whole.

    A step of the full softmax is measured on a tenth of the steps.
    """
    num_items = datasets.load(dataset).num_items
    rows = []
    for model, form in tqdm([*product(("stamp", "sr-gnn", "gru4rec"), DISSERTATION)], "steps"):
        arguments, config = _dissertation(form, batch_size)
        fields = {name: getattr(config, name) for name in ("loss", "loss_arguments", "max_len")}
        count = max(3, steps // 10) if config.loss == "full" else steps
        found = _apart(step_cost, model, num_items, fields, batch_size, dim, count, arguments=arguments)
        rows.append({"form": form} | found)
    whole = [_apart(whole_epoch, "stamp", form, dataset, batch_size, dim) for form in tqdm(WHOLE, "epochs")]
    return {"dataset": dataset, "steps": rows, "epochs": whole, "threads": torch.get_num_threads()}


def slope(rows: list[dict], value: str = "seconds_per_1000") -> float:
    """Least-squares slope of a value against V on log-log axes: 1 is in proportion to the catalogue, 0 level.

    Raises:
        ValueError: if there are fewer than two sizes.
    """
    points = [(math.log(row["items"]), math.log(row[value])) for row in rows]
    if len({x for x, _ in points}) < 2:
        raise ValueError("a slope wants at least two sizes of the catalogue")
    x_mean, y_mean = (statistics.mean(axis) for axis in zip(*points, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def walk_study(name: str, steps: int = 30) -> dict:
    """What the walks of LGSR cost in the graph of a log's training sessions, and the pairs that they give skip-gram.

    Seconds are of the processor: on one thread, what a clock shows on a machine that does nothing else.

    Returns:
        items; nodes (those with an edge), edges; rounds, length, walks and their seconds, the graph not included; pairs
        of a full pass; made and trained (pairs a second, read from the walks and learned from as the recipe says).
    """
    recipe = recipes.recipe("lgsr", name)
    data = datasets.load(name)
    graph = global_graph(data.train)
    begun = time.process_time()
    walks = random_walks(graph)
    seconds = time.process_time() - begun
    torch.manual_seed(0)
    model = build("lgsr", data.num_items, **recipe.arguments)
    model.prepare(data.train)
    task, pairs = model.auxiliary_tasks()[0], model.skipgram.pairs
    (optimizer,) = task.make_optimizers()

    def train(step: int) -> None:
        optimizer.zero_grad()
        task.loss(0, step).backward()
        optimizer.step()

    row = {"study": "walks", "dataset": name, "fingerprint": data.fingerprint, "items": data.num_items}
    row |= {"nodes": len(walks) // model.skipgram.rounds, "edges": len(edges(graph)[0]), "walks": len(walks)}
    row |= {"rounds": model.skipgram.rounds, "length": walks.shape[1], "seconds": seconds, "pairs": len(pairs)}
    row |= {"made": _pairs_a_second(lambda step: pairs.batch(0, step), pairs.size, steps)}
    row |= {"trained": _pairs_a_second(train, pairs.size, steps), "dim": model.dim}
    row |= {"negatives": model.skipgram.negatives}
    return row | {"device": f"CPU, {torch.get_num_threads()} threads", "torch": torch.__version__}


def _pairs_a_second(work: Callable[[int], object], size: int, steps: int) -> float:
    """Pairs of a step over the median seconds of a step, the first left out."""
    seconds = []
    for step in range(steps + 1):
        begun = time.process_time()
        work(step)
        seconds.append(time.process_time() - begun)
    return size / statistics.median(seconds[1:])
