"""Training: a straight loop, with what a long run needs around it.

Shapes: B examples of a batch.
"""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sbr_core.batches import Batch, Order, chronological_order, epoch_order
from sbr_core.config import TrainConfig
from sbr_core.every_position import SessionOrder, session_order
from sbr_core.losses import Scores, least_rows, seek
from sbr_core.optim import learning_rate, set_learning_rate
from sbr_core.run_state import Run
from sbr_core.session_parallel import ParallelOrder, parallel_order
from sbr_core.sessions import Windows

CHECK_EVERY = 50  # steps between two looks at the loss from the host
LONG = 500  # clicks of an input that are told of; the longest of the published datasets has 145
AnyOrder = Order | ParallelOrder | SessionOrder


def train_step(
    model: nn.Module,
    loss: Callable,
    optimizers: list[torch.optim.Optimizer],
    batch: Batch,
    encode: Callable | None = None,
    clip: Callable[[], None] | None = None,
) -> Tensor:
    """One step; returns the loss, still on the device.

    Args:
        encode: used instead of ``model.encode``.
        clip: called between the backward pass and the optimizers, to change the gradients in place.
    """
    query = (encode or model.encode)(batch)
    value = loss(Scores(model, query), batch.target)
    extra = model.extra_loss(query, batch.target)
    _update(value if extra is None else value + extra, optimizers, clip)
    return value.detach()


def _update(value: Tensor, optimizers: list[torch.optim.Optimizer], clip: Callable[[], None] | None = None) -> None:
    """Backward pass and step of every optimizer."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    value.backward()
    if clip:
        clip()
    for optimizer in optimizers:
        optimizer.step()


def make_order(train: Windows, config: TrainConfig, epoch: int, least_rows: int = 1) -> AnyOrder:
    """The batches of an epoch as the configuration wants them.

    Args:
        least_rows: fewest rows of a session-parallel batch, see `losses.least_rows`.
    """
    if config.batches == "examples":
        return epoch_order(train, config.batch_size, config.seed, epoch, config.block)
    if config.batches == "chronological":
        return chronological_order(train, config.batch_size)
    if config.batches == "every-position":
        return session_order(train, config.batch_size, config.seed, epoch, config.block)
    return parallel_order(train, config.batch_size, config.seed, epoch, least=least_rows, **config.batches_arguments)


def fit(
    model: nn.Module,
    train: Windows,
    config: TrainConfig,
    evaluators: dict[str, Callable[[nn.Module], dict]] | None = None,
    output: Path | str | None = None,
    run: dict | None = None,
    after_epoch: Callable[[nn.Module, list[dict]], None] | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = True,
) -> list[dict]:
    """Train a model and return one record per epoch.

    Args:
        train: the examples, on the model's device.
        evaluators: name -> function of the model, called after every epoch; their results enter the epoch's record.
            The one named "validation" steers `patience` and must return "MRR@20".
        output: folder of the checkpoint ``state.safetensors``. A run found there is continued where it stopped, in
            the middle of an epoch if need be, and ends with the weights that an uninterrupted run would have (bit for
            bit on a CPU).
        run: what identifies the run (JSON); a checkpoint of another run is refused.
        after_epoch: called with the model and all epoch records so far, before the epoch's checkpoint is written.
        checkpoint_seconds: time between two checkpoints within an epoch.
        progress: show a bar on stderr.

    Raises:
        FloatingPointError: if the loss is not finite, naming epoch, step and examples.
        KeyboardInterrupt: after Ctrl-C, once the current step is done and the checkpoint is written.
        ValueError: if `output` holds a checkpoint of another run.
    """
    _warn_of_long(train, config)
    state = Run(model, train, config, Path(output) if output else None, run or {}, checkpoint_seconds)
    state.resume()
    with _interruptible() as interrupted:
        while len(state.epochs) < config.epochs and not _out_of_patience(state.epochs, config.patience):
            record = _train_epoch(state, progress, interrupted)
            for name, evaluator in (evaluators or {}).items():
                record[name] = evaluator(model)
            state.epochs.append(record)
            if after_epoch:
                after_epoch(model, state.epochs)
            state.begin_epoch()
            state.save()
            if interrupted.is_set():
                raise KeyboardInterrupt(f"stopped after epoch {len(state.epochs)}")
    return state.epochs


def _warn_of_long(train: Windows, config: TrainConfig) -> None:
    """Say what to do about inputs far longer than sessions are; session-parallel batches read a click at a time."""
    if config.max_len is not None or config.batches == "session-parallel" or len(train) == 0:
        return
    longest = int(train.lengths.max())
    if longest > LONG:
        warnings.warn(
            f"the longest input has {longest:,} clicks; inputs so long make training slow and take much memory: "
            "--max-len 50 (max_len=50) keeps the last 50 clicks of each; chapter 05 shows how to clean robots away",
            stacklevel=3,
        )


def _train_epoch(state: Run, progress: bool, interrupted: threading.Event) -> dict:
    """One epoch, or what is left of it."""
    config, number = state.config, len(state.epochs)
    lr = learning_rate(number, config.lr, config.lr_decay, config.lr_every, config.schedule_offset)
    set_learning_rate(state.optimizers, lr)
    for name, task in state.tasks.items():
        if task.decays:
            set_learning_rate(state.task_optimizers[name], task.lr * lr / config.lr)
    order = make_order(state.train, config, number, least_rows(state.loss))
    seek(state.loss, number, state.step)
    state.model.train()
    begun = time.perf_counter() - state.seconds
    auxiliary = {name: _train_task(state, name, begun, progress, interrupted) for name in state.tasks}
    with _bar(f"epoch {number + 1}", len(order), state.step, progress) as bar:
        for batch in order.batches(state.train, first=state.step):
            value = train_step(state.model, state.loss, state.optimizers, batch, state.encode, state.clip)
            state.total += value * len(batch)
            state.recent.append(value)
            state.step, state.seen = state.step + 1, state.seen + len(batch)
            if state.step % CHECK_EVERY == 0 or state.step == len(order):
                bar.set_postfix(loss=f"{_finite(state, order) / state.seen:.3f}")
                bar.update(state.step - bar.n)
            if interrupted.is_set() and state.recent:
                _finite(state, order)  # never save a model that has diverged since the last look
            _pause(state, begun, state.step, interrupted)
    seconds, loss = time.perf_counter() - begun, state.total.item() / max(state.seen, 1)
    record = {"epoch": number + 1, "lr": lr, "loss": loss, "seconds": seconds}
    record["examples_per_second"] = state.seen / seconds
    return record | ({"auxiliary": auxiliary} if auxiliary else {})


def _train_task(state: Run, name: str, begun: float, progress: bool, interrupted: threading.Event) -> float:
    """What is left of an auxiliary task's part of the epoch; returns its mean loss."""
    task, optimizers, epoch = state.tasks[name], state.task_optimizers[name], len(state.epochs)
    steps = task.steps(state.epochs)
    with _bar(f"epoch {epoch + 1}, {name}", steps, state.task_steps[name], progress) as bar:
        for step in range(state.task_steps[name], steps):
            value = task.loss(epoch, step)
            _update(value, optimizers)
            state.task_totals[name] += value.detach()
            state.task_steps[name] = step + 1
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps or interrupted.is_set():
                mean = state.task_totals[name].item() / (step + 1)
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"the loss of the auxiliary task {name} is not finite in epoch {epoch + 1} before its step "
                        f"{step + 2}; the checkpoint on disk is from before. Lower its learning rate"
                    )
                bar.set_postfix(loss=f"{mean:.3f}")
                bar.update(step + 1 - bar.n)
            _pause(state, begun, step + 1, interrupted)
    return state.task_totals[name].item() / max(steps, 1)


def _bar(text: str, total: int, done: int, progress: bool) -> tqdm:
    return tqdm(total=total, initial=done, desc=text, disable=not progress, mininterval=1)


def _pause(state: Run, begun: float, step: int, interrupted: threading.Event) -> None:
    """After a step: save if it is time, or if the user wants to stop."""
    state.seconds = time.perf_counter() - begun
    if interrupted.is_set():
        state.save()
        raise KeyboardInterrupt(f"stopped in epoch {len(state.epochs) + 1} after step {step}")
    if step % CHECK_EVERY == 0 and time.monotonic() - state.saved_at > state.checkpoint_seconds:
        state.save()


def _finite(state: Run, order: AnyOrder) -> float:
    """The summed loss so far; raises if it is not finite, naming the first step to blame."""
    recent, state.recent = torch.stack(state.recent), []
    if recent.isfinite().all():
        return state.total.item()
    step = state.step - len(recent) + int((~recent.isfinite()).nonzero()[0])
    rows = order.rows(step)
    raise FloatingPointError(
        f"the loss is not finite in epoch {len(state.epochs) + 1} at step {step + 1} (its batch holds examples of "
        f"sessions {state.train.session[rows[:3]].tolist()} ...); the checkpoint on disk is from before. "
        "Lower the learning rate, or use precision='fp32'"
    )


def _out_of_patience(epochs: list[dict], patience: int | None) -> bool:
    """No better validation MRR@20 for `patience` epochs."""
    if patience is None or not epochs or "validation" not in epochs[0]:
        return False
    values = [epoch["validation"]["MRR@20"] for epoch in epochs]
    return len(values) - 1 - values.index(max(values)) >= patience


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C sets the event instead of breaking a step in two; the second one is the usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def handler(number, frame):
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
