"""Optimizers and the learning-rate schedule, decided where model and loss meet."""

import torch
from torch import nn


def make_optimizers(
    model: nn.Module, lr: float = 1e-3, l2: float = 0.0, sparse_table: bool = False
) -> list[torch.optim.Optimizer]:
    """Adam for everything, or SparseAdam for the item table and Adam for the rest.

    Args:
        model: its item table, if it has one, is the parameter named ``table``.
        lr: learning rate, > 0.
        l2: coupled L2: ``l2 * parameter`` is added to the gradient, as the papers and all public code do (not AdamW).
        sparse_table: the loss touches only looked-up rows of the table.

    Raises:
        ValueError: if l2 is asked for a sparse table: SparseAdam never sees the rows that decay alone would move.
    """
    if lr <= 0 or l2 < 0:
        raise ValueError(f"lr must be positive and l2 not negative, got lr={lr} and l2={l2}")
    if sparse_table and l2:
        raise ValueError(
            f"l2={l2} cannot reach the untouched rows of a sparse item table: set l2=0 or use a full softmax"
        )
    sparse = [p for name, p in model.named_parameters() if sparse_table and name == "table"]
    dense = [p for name, p in model.named_parameters() if not (sparse_table and name == "table")]
    optimizers = [torch.optim.SparseAdam(sparse, lr=lr)] if sparse else []
    if dense:
        optimizers.append(torch.optim.Adam(dense, lr=lr, weight_decay=l2, fused=True))
    return optimizers


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
