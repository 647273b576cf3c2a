"""How fast a training step is, beside the least that it could cost, measured in the same process.

Shapes: B examples, D width, V items.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbr_core.batches import Batch
from sbr_core.config import TrainConfig
from sbr_core.evaluate import evaluate
from sbr_core.losses import FullSoftmax, Scores, least_rows
from sbr_core.models.base import CountingModel, SessionModel
from sbr_core.records import peak_rss_mb
from sbr_core.run_state import Run
from sbr_core.sessions import Windows
from sbr_core.train import _update as update
from sbr_core.train import make_order, train_step

MANY_SCORES = 2**32  # more are not evaluated by a benchmark
SOME_ROWS = frozenset({  # operations that are given a table and read or write rows of it by number, or only view it
    "aten::detach", "aten::slice.Tensor", "aten::select.int", "aten::view", "aten::embedding", "aten::index.Tensor",
    "aten::index_select", "aten::index_add_", "aten::index_copy_", "aten::searchsorted.Tensor",
    "aten::_sparse_coo_tensor_with_dims_and_tensors",
})  # fmt: skip


SOFTMAX_FORMS = (
    ("plain", "fp32"), ("chunked", "fp32"), ("kept", "fp32"), ("kept", "bf16"), ("blocked", "fp32"), ("blocked", "bf16")
)  # fmt: skip


def bench_training(model: nn.Module, train: Windows, config: TrainConfig, steps: int = 50, warmup: int = 5) -> dict:
    """Median milliseconds of a step and of its floor, interleaved so that both see the same machine.

    The floor is what the recipe cannot avoid: the three products between (B, D) queries and the (V, D) table (scores,
    gradient of the queries, gradient of the table) and one fused optimizer step over the table, in the same dtype. A
    loss that draws its candidates needs as many rows of the table as it has candidates.

    Returns:
        step_ms and floor_ms (medians), mean_step_ms, floor_ratio (median of the per-pair ratios), examples_per_second
        (of all steps together: the few batches of long sessions take several medians), mean_width (mean L of the
        batches timed), parameters (how many numbers are trained), loss and table_optimizer by name, peak_rss_mb and on
        a GPU peak_device_mb (of data, model and one step); with auxiliary tasks what `bench_tasks` returns.
    """
    if steps < 1:
        raise ValueError(f"at least one step must be timed, got steps={steps}")
    run = Run(model, train, config, None, {}, 0.0)
    source = endless(make_order(train, config, 0, least_rows(run.loss)), train)
    model.train()
    train_step(model, run.loss, run.optimizers, next(source), run.encode, run.clip)
    peak = _peak(train.device)  # before the floor takes memory of its own
    drawn = None if run.loss.full_catalogue else _candidates(run.loss, config.batch_size)
    floor = _floor(model, torch.bfloat16 if config.precision == "bf16" else torch.float32, config, drawn)
    step_times, floor_times, widths, sizes = [], [], [], []
    for number in range(warmup + steps):
        batch = next(source)
        step_ms = timed(
            partial(train_step, model, run.loss, run.optimizers, batch, run.encode, run.clip), train.device
        )
        floor_ms = timed(floor, train.device)
        if number >= warmup:
            step_times.append(step_ms)
            floor_times.append(floor_ms)
            widths.append(batch.items.shape[1])
            sizes.append(len(batch))
    return {
        "step_ms": statistics.median(step_times),
        "mean_step_ms": statistics.mean(step_times),
        "floor_ms": statistics.median(floor_times),
        "floor_ratio": statistics.median(s / f for s, f in zip(step_times, floor_times, strict=True)),
        "examples_per_second": sum(sizes) / sum(step_times) * 1e3,
        "mean_width": statistics.mean(widths),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch_size": config.batch_size,
        "precision": config.precision,
        "loss": config.loss,
        "table_optimizer": config.table_optimizer,
        "steps": steps,
        **bench_tasks(run, steps, warmup),
        **peak,
        "device": str(train.device),
    }


class LargestTensors(TorchDispatchMode):
    """Inside its ``with``, every operation's name and how many numbers the largest dense tensor has that it takes or
    gives, in `found`."""

    def __init__(self):
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, operation, types, arguments=(), more=None):
        """Do it, and note the size."""
        given = operation(*arguments, **(more or {}))
        tensors = [x for x in tree_leaves((arguments, more, given)) if isinstance(x, torch.Tensor)]
        largest = max((x.numel() for x in tensors if x.layout == torch.strided), default=0)
        self.found[operation.name()] = max(largest, self.found.get(operation.name(), 0))
        return given


def profile_step(model: nn.Module, train: Windows, config: TrainConfig) -> dict[str, int]:
    """The operations of a training step, once the optimizers have their state: `LargestTensors.found` of the second.

    Work in proportion to the catalogue is an operation with V numbers or more that is not one of `SOME_ROWS`.
    """
    run = Run(model, train, config, None, {}, 0.0)
    batches = endless(make_order(train, config, 0, least_rows(run.loss)), train)
    train_step(model, run.loss, run.optimizers, next(batches), run.encode, run.clip)
    batch = next(batches)
    with LargestTensors() as watch:
        train_step(model, run.loss, run.optimizers, batch, run.encode, run.clip)
    return watch.found


def _candidates(loss, batch_size: int) -> int:
    """How many items a sampled loss looks at in a step."""
    return batch_size + loss.negatives * (1 if getattr(loss, "shared", True) else batch_size)


def bench_tasks(run: Run, steps: int, warmup: int) -> dict:
    """For every auxiliary task of a model: median milliseconds of a step, pairs a second, and steps of an epoch; and
    what the tasks of an epoch add to the milliseconds of an example."""
    found = {}
    for name, task in run.tasks.items():
        of_epoch, times = task.steps([]), []
        for number in range(warmup + steps if of_epoch else 0):
            step = partial(_task_step, task, run.task_optimizers[name], number % of_epoch)
            times.append(timed(step, run.train.device))
        if times:
            ms = statistics.median(times[warmup:])
            found |= {
                f"{name}_step_ms": ms,
                f"{name}_pairs_per_second": task.size / ms * 1e3,
                f"{name}_steps": of_epoch,
            }
            share = ms * of_epoch / len(run.train)
            found["task_ms_per_example"] = found.get("task_ms_per_example", 0.0) + share
    return found


def _task_step(task, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    update(task.loss(0, step), optimizers)


def bench_evaluation(model: nn.Module, windows: Windows) -> dict:
    """Seconds to rank the target of every example among all items, and milliseconds an example.

    Of a catalogue so large that this would take minutes, the first examples.
    """
    if len(windows) * windows.num_items > MANY_SCORES:
        windows = windows[: max(1, MANY_SCORES // 4 // windows.num_items)]
    seconds = timed(lambda: evaluate(model, windows), windows.device) / 1e3
    return {
        "evaluation_s": seconds,
        "evaluation_ms_per_example": 1e3 * seconds / len(windows),
        "examples": len(windows),
    }


def bench(model: nn.Module, train: Windows, test: Windows | None, config: TrainConfig, steps: int = 50) -> dict:
    """Training and evaluation speed of a neural model; evaluation speed of a counting one.

    Args:
        test: examples to evaluate; None for none.

    Raises:
        ValueError: if there is nothing to measure: a counting model without examples.
    """
    if not isinstance(model, CountingModel):
        return bench_training(model, train, config, steps) | ({} if test is None else bench_evaluation(model, test))
    if test is None:
        raise ValueError(f"{type(model).__name__} counts: its evaluation is all that is measured, leave it in")
    return bench_evaluation(model, test) | _peak(test.device) | {"device": str(test.device)}


def _peak(device: torch.device) -> dict[str, float]:
    """Peak memory so far, in MB: of the process, and on a GPU of the device."""
    peak = {"peak_rss_mb": peak_rss_mb()}
    if device.type == "cuda":
        peak["peak_device_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return peak


def endless(order, train: Windows) -> Iterator[Batch]:
    """The batches of an order, again and again."""
    while True:
        yield from order.batches(train)


def _floor(model: nn.Module, dtype: torch.dtype, config: TrainConfig, rows: int | None = None) -> Callable[[], None]:
    """The unavoidable work of one step, on so many rows of the table, as a function."""
    table = model.table.detach()
    table = table if rows is None else table[torch.arange(rows + 1, device=table.device) % len(table)]
    query = torch.randn(config.batch_size, table.shape[1], dtype=dtype, device=table.device)
    items = table[:-1].to(dtype)
    probs, queries, grad = query @ items.T, torch.empty_like(query), torch.empty_like(items)
    parameter = nn.Parameter(table.clone())
    parameter.grad = torch.randn_like(parameter) * 1e-3
    optimizer = torch.optim.Adam([parameter], lr=config.lr, weight_decay=config.l2, fused=True)

    def work() -> None:
        torch.mm(query, items.T, out=probs)
        torch.mm(probs, items, out=queries)
        torch.mm(probs.T, query, out=grad)
        optimizer.step()

    return work


def timed(work: Callable, device: torch.device) -> float:
    """Milliseconds that `work()` takes, the queue of the device that it runs on included."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun)


def bench_softmax(
    num_items: int,
    batch_size: int = 100,
    dim: int = 100,
    repeats: int = 7,
    device: str = "cpu",
    forms: Iterable[tuple[str, str]] = SOFTMAX_FORMS,
) -> dict:
    """Milliseconds of value and gradients of the full softmax in some of its forms, interleaved, median of `repeats`.

    Returns:
        num_items, batch_size, dim, and one key "form precision" per form of `losses.FullSoftmax`.
    """
    model = _Table(num_items, dim).to(device)
    query = torch.randn(batch_size, dim, device=device, requires_grad=True)
    target = torch.randint(num_items, (batch_size,), device=device)
    losses = {f"{form} {precision}": FullSoftmax(precision, form) for form, precision in forms}
    times: dict[str, list[float]] = {name: [] for name in losses}

    def work(loss: FullSoftmax) -> None:
        model.zero_grad(set_to_none=True)
        loss(Scores(model, query), target).backward()

    for repeat in range(repeats + 2):
        for name, loss in losses.items():
            milliseconds = timed(lambda: work(loss), query.device)  # noqa: B023
            if repeat >= 2:
                times[name].append(milliseconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {"num_items": num_items, "batch_size": batch_size, "dim": dim} | medians


class _Table(SessionModel):
    """An item table and nothing else."""

    def __init__(self, num_items: int, dim: int):
        super().__init__(num_items, dim)
        nn.init.normal_(self.table, std=dim**-0.5)
