"""Where a training run stands, and how that is saved and found again.

Shapes: B examples of a batch.
"""

import fcntl
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from sbr_core import checkpoints
from sbr_core.config import TrainConfig
from sbr_core.every_position import encoder
from sbr_core.losses import make_loss
from sbr_core.optim import make_clip, make_optimizers
from sbr_core.sessions import Windows

STATE = "state.safetensors"


class Run:
    """The moving parts of one `train.fit`: where it stands, and how that is saved and found again.

    Args:
        model, train, config: as `train.fit` takes them.
        output: folder of the checkpoint, or None.
        identity: what else makes this run this run (JSON).
        checkpoint_seconds: time between two checkpoints within an epoch.

    Raises:
        ValueError: if there is no example, or the settings exclude each other.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Windows,
        config: TrainConfig,
        output: Path | None,
        identity: dict,
        checkpoint_seconds: float,
    ):
        if len(train) == 0:
            raise ValueError("there is no example to learn from: every session has fewer than two clicks")
        self.model, self.train, self.config, self.output = model, train, config, output
        self.identity = identity | {"config": fixed_fields(config), "examples": len(train)}
        self.checkpoint_seconds, self.saved_at = checkpoint_seconds, time.monotonic()
        self.loss = make_loss(model, config, train)
        sparse_table = not self.loss.full_catalogue
        table = {name: getattr(config, name) for name in ("table_optimizer", "table_l2", "table_lr")}
        self.optimizers = make_optimizers(
            model, config.lr, config.l2, sparse_table, config.optimizer, config.momentum, **table
        )
        if config.batches == "session-parallel":
            if not model.carries_state:
                raise ValueError(
                    f"batches='session-parallel' wants a model that carries a state from click to click; "
                    f"{type(model).__name__} does not: use batches='examples', or gru4rec-2018"
                )
            model.carry(config.batch_size)
        self.clip = make_clip(model, config)
        self.tasks = {task.name: task for task in model.auxiliary_tasks()}
        self.task_optimizers = {name: task.make_optimizers() for name, task in self.tasks.items()}
        encode = encoder(model, config.max_len) if config.batches == "every-position" else model.encode
        self.encode = torch.compile(encode, dynamic=True) if config.compile else encode
        self.epochs: list[dict] = []
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Set the counters of an epoch to its first step."""
        self.step, self.seen, self.seconds, self.recent = 0, 0, 0.0, []
        self.total = torch.zeros((), dtype=torch.float64, device=self.train.device)
        self.task_steps = dict.fromkeys(self.tasks, 0)
        self.task_totals = {name: torch.zeros_like(self.total) for name in self.tasks}

    @property
    def all_optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of the main task, then those of every auxiliary one."""
        return [*self.optimizers, *(each for optimizers in self.task_optimizers.values() for each in optimizers)]

    def save(self) -> None:
        """Write the checkpoint; a full disk costs the checkpoint, not the run."""
        if self.output is None:
            return
        self.write(*self.contents())

    def write(self, tensors: dict, info: dict) -> None:
        """See `save`."""
        try:
            checkpoints.write(self.output / STATE, tensors, info)
        except OSError as error:
            warnings.warn(f"training goes on without a new checkpoint: {error}", stacklevel=2)
        self.saved_at = time.monotonic()

    def contents(self) -> tuple[dict, dict]:
        """What a checkpoint holds: tensors, and a JSON object."""
        tensors = checkpoints.training_state(self.model, self.all_optimizers) | {"total": self.total}
        tensors |= {f"task.{name}": total for name, total in self.task_totals.items()}
        info = {"run": self.identity, "epochs": self.epochs, "step": self.step, "seconds": self.seconds}
        return tensors, info | {"seen": self.seen, "task_steps": self.task_steps}

    def read(self, path: Path) -> tuple[dict, dict]:
        """Tensors and JSON object of a checkpoint, on the run's device."""
        return checkpoints.read(path, str(self.train.device))

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.output and self.output / STATE
        if path is None or not path.exists():
            return
        tensors, info = self.read(path)
        refuse_other(path, info["run"], self.identity)
        checkpoints.restore_training_state(tensors, self.model, self.all_optimizers)
        self.epochs, self.step, self.seconds = info["epochs"], info["step"], info["seconds"]
        self.total, self.seen, self.task_steps = tensors["total"], info["seen"], info["task_steps"]
        self.task_totals = {name: tensors[f"task.{name}"] for name in self.tasks}


def fixed_fields(config: TrainConfig) -> dict:
    """The fields of a configuration that make a run this run: it may be continued for longer."""
    return {name: value for name, value in asdict(config).items() if name not in ("epochs", "patience")}


def refuse_other(path: Path, there: dict, here: dict) -> None:
    """Compare the identity of the run that wrote a file with that of this one.

    Raises:
        ValueError: naming the file and what differs.
    """
    there, here = _flat(there), _flat(json.loads(json.dumps(here)))
    differing = [key for key in there | here if there.get(key) != here.get(key)]
    if differing:
        raise ValueError(
            f"{path} belongs to another run: {', '.join(differing)} differ "
            f"(there: {[there.get(key) for key in differing]}); choose another folder, or delete it"
        )


def _flat(run: dict) -> dict:
    """The identity of a run beside its configuration's fields; a field that it does not know had its default."""
    return {key: value for key, value in run.items() if key != "config"} | fixed_fields(TrainConfig()) | run["config"]


class Busy(ValueError):
    """Another process is at work on this run."""


@contextmanager
def alone_in(output: Path | None) -> Iterator[None]:
    """Hold the folder of a run: the lock goes with the process, however it ends.

    Raises:
        Busy: if another process holds it.
    """
    if output is None:
        yield
        return
    folder = os.open(output, os.O_RDONLY)
    try:
        _lock(folder, output)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, output: Path) -> None:
    """Lock an open folder, where its file system can."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"another process is at work in {output}: wait for it, or choose another folder") from None
    except OSError as error:
        warnings.warn(f"{output} cannot be locked ({error}): start no second training there", stacklevel=2)
