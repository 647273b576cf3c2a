"""What a training step costs against the size of the catalogue: seconds and memory, by loss and optimizer.

Shapes: V items, B examples of a batch, D width.
"""

import math
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product

import torch

from sbr_core import synthetic
from sbr_core.bench import endless
from sbr_core.config import TrainConfig
from sbr_core.losses import least_rows
from sbr_core.models import build
from sbr_core.records import peak_rss_mb
from sbr_core.run_state import Run
from sbr_core.train import make_order, train_step

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
SAMPLES = {"negatives": 512}
FORMS = {
    "full softmax, plain": {"loss": "full", "loss_arguments": {"form": "plain"}},
    "full softmax": {"loss": "full"},
    "full softmax, row-wise": {"loss": "full", "table_optimizer": "rowwise-adam"},
    "sampled softmax": {"loss": "sampled-softmax", "loss_arguments": SAMPLES},
    "negative sampling": {"loss": "negative-sampling", "loss_arguments": SAMPLES},
    "triplet": {"loss": "triplet"},
    "negative sampling, row-wise": {
        "loss": "negative-sampling", "loss_arguments": SAMPLES, "table_optimizer": "rowwise-adam"
    },
}  # fmt: skip
DENSE = ("full softmax, plain", "full softmax", "full softmax, row-wise")
LIMIT_BYTES = 14e9  # of table, gradient, state and scores: what is larger is not tried


def step_cost(
    model: str,
    num_items: int,
    fields: dict,
    batch_size: int = 100,
    dim: int = 64,
    steps: int = 20,
    sessions: int = 50_000,
) -> dict:
    """Seconds and peak memory of training on a generated log over V items, in this process.

    Args:
        fields: of `TrainConfig`: loss and optimizer of the table.
        sessions: of the log.

    Returns:
        seconds per 1,000 examples (median step), peak memory in MB: of the whole process, and less what the log took.
    """
    train = synthetic.large_catalogue(num_items, sessions)
    config = TrainConfig(batch_size=batch_size, max_len=20, lr=1e-3, l2=0.0, **fields)
    examples, before = config.examples(train), peak_rss_mb()
    torch.manual_seed(0)
    network = build(model, num_items, dim=dim)
    run = Run(network, examples, config, None, {}, 0.0)
    batches, times = endless(make_order(examples, config, 0, least_rows(run.loss)), examples), []
    network.train()
    for _ in range(steps + 2):
        batch, begun = next(batches), time.perf_counter()
        train_step(network, run.loss, run.optimizers, batch, run.encode, run.clip)
        times.append(time.perf_counter() - begun)
    peak = peak_rss_mb()
    row = {"model": model, "items": num_items, "batch_size": batch_size, "dim": dim, "steps": steps}
    row["seconds_per_1000"] = 1000 / batch_size * statistics.median(times[2:])
    return row | {"peak_rss_mb": peak, "peak_model_mb": peak - before}


def needed_bytes(form: str, num_items: int, batch_size: int = 100, dim: int = 64) -> float:
    """Of table, gradient, optimizer state and scores, roughly."""
    table = 4.0 * num_items * dim
    if form not in DENSE:
        return table * (1 if "row-wise" in form else 3)
    scores = 8.0 * batch_size * num_items if form.endswith("plain") else 0.0
    return table * (2 if "row-wise" in form else 4) + scores


def scale_study(models: tuple[str, ...] = ("stamp", "sr-gnn"), sizes: tuple[int, ...] = SIZES, steps: int = 20) -> dict:
    """`step_cost` of every model, form and size that fits, each in a process of its own; slow ones with fewer steps."""
    rows = []
    for model, (form, fields), size in product(models, FORMS.items(), sizes):
        if needed_bytes(form, size) > LIMIT_BYTES:
            continue
        count = max(3, steps // 4) if form in DENSE and size >= 10**6 else steps
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found = process.submit(step_cost, model, size, fields, steps=count).result()
        rows.append({"form": form} | found)
    return {"scale": rows, "threads": torch.get_num_threads()}


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
