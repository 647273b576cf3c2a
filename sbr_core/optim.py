"""Optimizers and the learning-rate schedule, decided where model and loss meet."""

from collections.abc import Callable

import torch
from torch import nn

from sbr_core.adagrad import Adagrad
from sbr_core.config import TrainConfig


def make_optimizers(
    model: nn.Module,
    lr: float = 1e-3,
    l2: float = 0.0,
    sparse_table: bool = False,
    optimizer: str = "adam",
    momentum: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """The named optimizer for everything, or SparseAdam for tables that are only looked up and the named one for the
    rest. Adagrad does both itself.

    Args:
        model: its item table, if it has one, is the parameter named ``table``; its ``looked_up`` names further tables
            whose gradient is sparse whatever the loss.
        lr: learning rate, > 0.
        l2: >= 0. Adam adds ``l2 * parameter`` to the gradient, as the papers and nearly all public code do (coupled
            L2). AdamW decays matrices by ``lr * l2`` and leaves vectors (biases, gains, slopes) alone.
        sparse_table: the loss touches only looked-up rows of the table.
        optimizer: "adam", "adamw" or "adagrad" (`adagrad.Adagrad`, which has no l2).
        momentum: of Adagrad.

    Raises:
        ValueError: if l2 is asked for a sparse table: SparseAdam never sees the rows that decay alone would move.
    """
    if lr <= 0 or l2 < 0:
        raise ValueError(f"lr must be positive and l2 not negative, got lr={lr} and l2={l2}")
    if optimizer == "adagrad":
        if l2:
            raise ValueError(f"optimizer='adagrad' is written without l2, got l2={l2}: set l2=0")
        return [Adagrad(model.parameters(), lr, momentum)]
    names = {"table"} if sparse_table else set()
    names |= set(getattr(model, "looked_up", ()))
    if names and l2:
        raise ValueError(
            f"l2={l2} cannot reach the untouched rows of a sparse item table: set l2=0"
            + (" or use a full softmax" if names == {"table"} else "")
        )
    sparse = [p for name, p in model.named_parameters() if name in names]
    dense = [p for name, p in model.named_parameters() if name not in names]
    optimizers = [torch.optim.SparseAdam(sparse, lr=lr)] if sparse else []
    return optimizers + ([_dense(dense, lr, l2, optimizer)] if dense else [])


def _dense(parameters: list[nn.Parameter], lr: float, l2: float, optimizer: str) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=l2, fused=True)
    if optimizer == "adamw":
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, weight_decay=l2, fused=True)
    raise ValueError(f"optimizer is 'adam', 'adamw' or 'adagrad', got {optimizer!r}")


def make_clip(model: nn.Module, config: TrainConfig) -> Callable[[], None] | None:
    """What is done to the gradients before the optimizers step, in place; None for nothing."""
    if config.clip_grad is None:
        return None
    parameters = [p for p in model.parameters() if p.requires_grad]
    return lambda: torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad)


def learning_rate(epoch: int, lr: float, decay: float = 0.1, every: int | None = 3, offset: int = 0) -> float:
    """``lr * decay ** floor((epoch + offset) / every)`` for epoch 0, 1, 2, ...

    Args:
        every: epochs between two decays; None for a constant rate.
        offset: 0 is the schedule that the papers mean. 1 is what the public code of SR-GNN and TAGNN does on PyTorch
            1.1 and later, where stepping the scheduler at the *start* of an epoch skips the first value.
    """
    return lr if every is None else lr * decay ** ((epoch + offset) // every)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group of every optimizer the rate `lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
