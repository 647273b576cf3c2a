"""Training: a straight loop, with what a long run needs around it.

Shapes: B examples of a batch.
"""

import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sbr_core import checkpoints
from sbr_core.batches import Batch, Order, epoch_order
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.optim import learning_rate, make_optimizers, set_learning_rate
from sbr_core.sessions import Sessions, Windows

CHECK_EVERY = 50  # steps between two looks at the loss from the host


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the published settings of SR-GNN.

    Args:
        epochs: epochs at most.
        batch_size: examples of a step.
        lr, lr_decay, lr_every, schedule_offset: see `optim.learning_rate`.
        l2: coupled L2 on every parameter.
        precision: "fp32" or "bf16", see `losses.FullSoftmax`.
        patience: stop after so many epochs without a better validation MRR@20; None to go on.
        seed: of the order of the examples (the caller seeds the initialisation with it too).
        augmentation: "prefix" (all systems) or "suffix" (the dissertation's text).
        max_len, keep: inputs longer than `max_len` keep their "last" or "first" clicks.
        block: batches per length-sorted block, see `batches.epoch_order`.
        compile: run the encoder through `torch.compile` (worth it on a GPU).
    """

    epochs: int = 8
    batch_size: int = 100
    lr: float = 1e-3
    lr_decay: float = 0.1
    lr_every: int | None = 3
    schedule_offset: int = 0
    l2: float = 1e-5
    precision: str = "fp32"
    patience: int | None = None
    seed: int = 0
    augmentation: str = "prefix"
    max_len: int | None = None
    keep: str = "last"
    block: int = 256
    compile: bool = False

    def __post_init__(self):
        for name in ("epochs", "batch_size", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr_every is not None and self.lr_every < 1:
            raise ValueError(f"lr_every must be at least 1, or None for a constant rate, got {self.lr_every}")
        for name, allowed in (("augmentation", ("prefix", "suffix")), ("keep", ("last", "first"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {' or '.join(allowed)}, got {getattr(self, name)!r}")

    def examples(self, sessions: Sessions, augment: bool = True) -> Windows:
        """The examples of these sessions under this configuration; test sessions always give their prefixes."""
        windows = sessions.suffixes() if augment and self.augmentation == "suffix" else sessions.prefixes()
        return self.truncate(windows)

    def truncate(self, windows: Windows) -> Windows:
        """The examples with inputs of `max_len` clicks at most."""
        if self.max_len is None:
            return windows
        return windows.last(self.max_len) if self.keep == "last" else windows.first(self.max_len)


def train_step(
    model: nn.Module,
    loss: Callable,
    optimizers: list[torch.optim.Optimizer],
    batch: Batch,
    encode: Callable | None = None,
) -> Tensor:
    """One step; returns the loss, still on the device."""
    value = loss(Scores(model, (encode or model.encode)(batch)), batch.target)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    value.backward()
    for optimizer in optimizers:
        optimizer.step()
    return value.detach()


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
    if len(train) == 0:
        raise ValueError("there is no example to learn from: every session has fewer than two clicks")
    state = _Run(model, train, config, Path(output) if output else None, run or {}, checkpoint_seconds)
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
    return state.epochs


class _Run:
    """The moving parts of one `fit`: where it stands, and how that is saved and found again."""

    def __init__(self, model, train, config, output, identity, checkpoint_seconds):
        self.model, self.train, self.config, self.output = model, train, config, output
        fixed = {name: value for name, value in asdict(config).items() if name not in ("epochs", "patience")}
        self.identity = identity | {"config": fixed, "examples": len(train)}  # a run may be continued for longer
        self.checkpoint_seconds, self.saved_at = checkpoint_seconds, time.monotonic()
        self.loss = FullSoftmax(config.precision)
        self.optimizers = make_optimizers(model, config.lr, config.l2, sparse_table=not self.loss.full_catalogue)
        self.encode = torch.compile(model.encode, dynamic=True) if config.compile else model.encode
        self.epochs: list[dict] = []
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Set the counters of an epoch to its first step."""
        self.step, self.seconds, self.recent = 0, 0.0, []
        self.total = torch.zeros((), dtype=torch.float64, device=self.train.device)

    def save(self) -> None:
        """Write the checkpoint; a full disk costs the checkpoint, not the run."""
        if self.output is None:
            return
        tensors = checkpoints.training_state(self.model, self.optimizers) | {"total": self.total}
        info = {"run": self.identity, "epochs": self.epochs, "step": self.step, "seconds": self.seconds}
        try:
            checkpoints.write(self.output / "state.safetensors", tensors, info)
        except OSError as error:
            warnings.warn(f"training goes on without a new checkpoint: {error}", stacklevel=2)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.output and self.output / "state.safetensors"
        if path is None or not path.exists():
            return
        tensors, info = checkpoints.read(path, str(self.train.device))
        there, here = (_flat(run) for run in (info["run"], json.loads(json.dumps(self.identity))))
        differing = [key for key in there | here if there.get(key) != here.get(key)]
        if differing:
            raise ValueError(
                f"{path} belongs to another run: {', '.join(differing)} differ "
                f"(there: {[there.get(key) for key in differing]}); choose another folder or delete it"
            )
        checkpoints.restore_training_state(tensors, self.model, self.optimizers)
        self.epochs, self.step, self.seconds, self.total = (
            info["epochs"],
            info["step"],
            info["seconds"],
            tensors["total"],
        )


def _flat(run: dict) -> dict:
    """The identity of a run with its configuration's fields beside the others."""
    return {key: value for key, value in run.items() if key != "config"} | run["config"]


def _train_epoch(state: _Run, progress: bool, interrupted: threading.Event) -> dict:
    """One epoch, or what is left of it."""
    config, number = state.config, len(state.epochs)
    lr = learning_rate(number, config.lr, config.lr_decay, config.lr_every, config.schedule_offset)
    set_learning_rate(state.optimizers, lr)
    order = epoch_order(state.train, config.batch_size, config.seed, number, config.block)
    state.model.train()
    begun = time.perf_counter() - state.seconds
    with tqdm(
        total=len(order), initial=state.step, desc=f"epoch {number + 1}", disable=not progress, mininterval=1
    ) as bar:
        for batch in order.batches(state.train, first=state.step):
            value = train_step(state.model, state.loss, state.optimizers, batch, state.encode)
            state.total += value * len(batch)
            state.recent.append(value)
            state.step += 1
            if state.step % CHECK_EVERY == 0 or state.step == len(order):
                state.seconds = time.perf_counter() - begun
                bar.set_postfix(
                    loss=f"{_finite(state, order) / min(state.step * config.batch_size, len(state.train)):.3f}"
                )
                bar.update(state.step - bar.n)
            if interrupted.is_set():
                if state.recent:
                    _finite(state, order)  # never save a model that has diverged since the last look
                state.seconds = time.perf_counter() - begun
                state.save()
                raise KeyboardInterrupt(f"stopped in epoch {number + 1} after step {state.step}")
            if state.step % CHECK_EVERY == 0 and time.monotonic() - state.saved_at > state.checkpoint_seconds:
                state.save()
    seconds, examples = state.seconds, len(state.train)
    loss = state.total.item() / examples
    return {"epoch": number + 1, "lr": lr, "loss": loss, "seconds": seconds, "examples_per_second": examples / seconds}


def _finite(state: _Run, order: Order) -> float:
    """The summed loss so far; raises if it is not finite, naming the first step to blame."""
    recent, state.recent = torch.stack(state.recent), []
    if recent.isfinite().all():
        return state.total.item()
    step = state.step - len(recent) + int((~recent.isfinite()).nonzero()[0])
    rows = order.index[step * order.batch_size : (step + 1) * order.batch_size]
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
