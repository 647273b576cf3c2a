"""How a model is trained: one frozen dataclass, checked when it is made."""

import math
import typing
from dataclasses import dataclass, field, fields

from sbr_core.session_parallel import ENDS, ORDERS
from sbr_core.sessions import Sessions, Windows

TABLE_L2 = ("all", "touched")
CHOICES = {
    "augmentation": ("prefix", "suffix"),
    "keep": ("last", "first"),
    "batches": ("examples", "chronological", "session-parallel", "every-position"),
    "optimizer": ("adam", "adamw", "adagrad"),
    "agc": ("off", "nfnet", "sbr_inverted_axis0"),
    "table_optimizer": ("auto", "sparse-adam", "rowwise-adam", "rowwise-adagrad", "adam"),
    "table_l2": TABLE_L2,
}


def fits(value: object, kind: object) -> bool:
    """Whether a setting's value is of the kind that it is declared with; True and False are no numbers."""
    return isinstance(value, kind) and (not isinstance(value, bool) or kind is bool or bool in typing.get_args(kind))


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the published settings of SR-GNN.

    Args:
        epochs: epochs at most.
        batch_size: examples of a step.
        lr, lr_decay, lr_every, schedule_offset: see `optim.learning_rate`.
        l2: strength of the L2 regularisation, see `optim.make_optimizers`.
        precision: "fp32" or "bf16", see `losses.FullSoftmax`.
        patience: stop after so many epochs without a better validation MRR@20; None to go on.
        seed: of the order of the examples (the caller seeds the initialisation with it too).
        augmentation: "prefix" (all systems) or "suffix" (the dissertation's text).
        max_len, keep: inputs longer than `max_len` keep their "last" or "first" clicks.
        block: batches per length-sorted block, see `batches.epoch_order`.
        compile: run the encoder through `torch.compile` (worth it on a GPU).
        batches: "examples" (shuffled), "chronological" (examples in the order of the log, never shuffled),
            "session-parallel" (see `session_parallel`; for models that carry a state), or "every-position" (all
            prefixes of a session in one pass, see `every_position`; for models with a state for every position).
        batches_arguments: of "session-parallel": ``order`` and ``end`` of `session_parallel.parallel_order`.
        loss, loss_arguments: a name of `losses.LOSSES` and the arguments of its constructor.
        optimizer: "adam", "adamw" or "adagrad", see `optim.make_optimizers`.
        momentum: of "adagrad".
        table_optimizer, table_l2: of an item table that is only looked up, see `optim.make_optimizers`.
        table_lr: learning rate of the item tables, > 0; None is `lr`. It falls by the same schedule.
        clip_grad: longest gradient (2-norm over all parameters) before a step; None for no clipping.
        agc: adaptive gradient clipping, "off", "nfnet" or "sbr_inverted_axis0", see `agc.clip_gradients`.
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
    batches: str = "examples"
    batches_arguments: dict = field(default_factory=dict)
    loss: str = "full"
    loss_arguments: dict = field(default_factory=dict)
    optimizer: str = "adam"
    momentum: float = 0.0
    clip_grad: float | None = None
    agc: str = "off"
    table_optimizer: str = "auto"
    table_l2: str = "all"
    table_lr: float | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, none in (("lr_every", "a constant rate"), ("patience", "no early end"), ("max_len", "all clicks")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, or None for {none}, got {value}")
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{each.name} must be a finite number, got {value}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {' or '.join(allowed)}, got {getattr(self, name)!r}")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ValueError(f"clip_grad must be positive, or None for no clipping, got {self.clip_grad}")
        if self.table_lr is not None and self.table_lr <= 0:
            raise ValueError(f"table_lr must be positive, or None for the rate of all else, got {self.table_lr}")
        if self.clip_grad is not None and self.agc != "off":
            raise ValueError(f"clip_grad={self.clip_grad} and agc={self.agc!r} both clip: leave one of them out")
        if self.agc == "sbr_inverted_axis0" and self.loss != "full":
            raise ValueError(
                f"agc={self.agc!r} changes the whole gradient of the item table, and loss={self.loss!r} has a sparse "
                "one: use loss='full', or agc='nfnet', which leaves the table alone"
            )
        if self.momentum and self.optimizer != "adagrad":
            raise ValueError(f"momentum={self.momentum} is for optimizer='adagrad', not for {self.optimizer!r}")
        self._check_batches()

    def _check_batches(self) -> None:
        parallel = self.batches == "session-parallel"
        known = {"order": ORDERS, "end": ENDS} if parallel else {}
        for name, value in self.batches_arguments.items():
            if value not in known.get(name, ()):
                raise ValueError(
                    f"batches={self.batches!r} has no {name}={value!r} among its batches_arguments; "
                    f"it has {known or 'none'}"
                )
        if parallel and (self.augmentation != "prefix" or self.max_len is not None):
            raise ValueError(
                "batches='session-parallel' reads whole sessions click by click: it wants augmentation='prefix' and "
                f"max_len=None, got {self.augmentation!r} and {self.max_len}"
            )
        if self.batches == "every-position" and self.keep == "first":
            raise ValueError(
                "batches='every-position' reads sessions of which every click is the label of those before it, and "
                "keep='first' cuts the inputs away from their labels: set keep='last', or batches='examples'"
            )

    def examples(self, sessions: Sessions, augment: bool = True) -> Windows:
        """The examples of these sessions under this configuration; test sessions always give their prefixes."""
        windows = sessions.suffixes() if augment and self.augmentation == "suffix" else sessions.prefixes()
        return self.truncate(windows)

    def truncate(self, windows: Windows) -> Windows:
        """The examples with inputs of `max_len` clicks at most."""
        if self.max_len is None:
            return windows
        return windows.last(self.max_len) if self.keep == "last" else windows.first(self.max_len)
