"""Optimizers and the learning-rate schedule, decided where model and loss meet."""

from collections.abc import Callable

import torch
from torch import nn

from sbr_core.adagrad import Adagrad
from sbr_core.agc import agc
from sbr_core.config import TABLE_L2, TrainConfig
from sbr_core.rowwise import TABLE_OPTIMIZERS


def make_optimizers(
    model: nn.Module,
    lr: float = 1e-3,
    l2: float = 0.0,
    sparse_table: bool = False,
    optimizer: str = "adam",
    momentum: float = 0.0,
    table_optimizer: str = "auto",
    table_l2: str = "all",
    table_lr: float | None = None,
) -> list[torch.optim.Optimizer]:
    """The named optimizer for everything, or an optimizer of rows for tables that are only looked up and the named one
    for the rest. Adagrad does both itself.

    Args:
        model: its item table, if it has one, is the parameter named ``table``; its ``looked_up`` names further tables
            whose gradient is sparse whatever the loss.
        lr: learning rate, > 0.
        l2: >= 0. Adam adds ``l2 * parameter`` to the gradient, as the papers and nearly all public code do (coupled
            L2). AdamW decays matrices by ``lr * l2`` and leaves vectors (biases, gains, slopes) alone.
        sparse_table: the loss touches only looked-up rows of the table.
        optimizer: "adam", "adamw" or "adagrad" (`adagrad.Adagrad`, which has no l2).
        momentum: of Adagrad.
        table_optimizer: for the tables that are only looked up: "auto" (SparseAdam) or a name of
            `rowwise.TABLE_OPTIMIZERS`. The row-wise ones also take the table of a full softmax; "adam" moves all rows
            at every step, whatever the loss.
        table_l2: "all" rows decay, or only those "touched" by a step, see `rowwise.named_rows`.
        table_lr: learning rate of the item table and of the further ones, > 0, whatever the loss; None is `lr`.
            `set_learning_rate` keeps its ratio to `lr`.

    Raises:
        ValueError: if l2 is asked for all rows of a sparse table: no optimizer sees the rows that decay alone would
            move; or if "sparse-adam" is asked for a table whose gradient is dense.
    """
    if lr <= 0 or l2 < 0:
        raise ValueError(f"lr must be positive and l2 not negative, got lr={lr} and l2={l2}")
    if table_lr is not None and table_lr <= 0:
        raise ValueError(f"table_lr must be positive, or None for the rate of all else, got {table_lr}")
    if table_optimizer not in ("auto", *TABLE_OPTIMIZERS) or table_l2 not in TABLE_L2:
        raise ValueError(
            f"table_optimizer is 'auto' or one of {', '.join(TABLE_OPTIMIZERS)}, and table_l2 {' or '.join(TABLE_L2)}; "
            f"got {table_optimizer!r} and {table_l2!r}"
        )
    if optimizer == "adagrad":
        if table_optimizer != "auto":
            raise ValueError(
                f"optimizer='adagrad' moves the tables itself: leave table_optimizer={table_optimizer!r} out"
            )
        if l2:
            raise ValueError(f"optimizer='adagrad' is written without l2, got l2={l2}: set l2=0")
        return _with_table_rate([Adagrad(model.parameters(), lr, momentum)], model, lr, table_lr)
    if table_optimizer == "sparse-adam" and not sparse_table:
        raise ValueError(
            "table_optimizer='sparse-adam' wants a sparse gradient of the item table, and a full softmax touches all "
            "of its rows: use a sampled loss, or table_optimizer='auto'"
        )
    names = {"table"} if sparse_table or table_optimizer != "auto" else set()
    names |= set(getattr(model, "looked_up", ()))
    if names and l2 and table_l2 == "all" and table_optimizer != "adam" and (sparse_table or names != {"table"}):
        raise ValueError(
            f"l2={l2} cannot reach the untouched rows of a sparse item table: set l2=0 (--l2 0), or table_l2='touched' "
            "(--config table_l2=touched)"
            + ("; or use table_optimizer='adam', or a full softmax" if names == {"table"} else "")
        )
    sparse = [p for name, p in model.named_parameters() if name in names]
    dense = [p for name, p in model.named_parameters() if name not in names]
    kind = TABLE_OPTIMIZERS["sparse-adam" if table_optimizer == "auto" else table_optimizer]
    optimizers = [kind(sparse, lr=lr, l2=l2)] if sparse else []
    optimizers += [_dense(dense, lr, l2, optimizer)] if dense else []
    return _with_table_rate(optimizers, model, lr, table_lr)


def _with_table_rate(
    optimizers: list[torch.optim.Optimizer], model: nn.Module, lr: float, table_lr: float | None
) -> list[torch.optim.Optimizer]:
    """The optimizers, the item tables in groups of their own if they have a rate of their own."""
    if table_lr is None:
        return optimizers
    names = {"table", *getattr(model, "looked_up", ())}
    tables = {id(p) for name, p in model.named_parameters() if name in names}
    for optimizer in optimizers:
        for group in list(optimizer.param_groups):
            apart = [p for p in group["params"] if id(p) in tables]
            group["params"] = [p for p in group["params"] if id(p) not in tables]
            if apart:
                optimizer.add_param_group(group | {"params": apart, "rate_factor": table_lr / lr})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    set_learning_rate(optimizers, lr)
    return optimizers


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
    if config.agc != "off":
        return agc(model, config.agc)
    if config.clip_grad is None:
        return None
    parameters = [p for p in model.parameters() if p.requires_grad]
    return lambda: _clip(parameters, config.clip_grad)


def _clip(parameters: list[nn.Parameter], longest: float) -> None:
    """Scale all gradients if together they are longer; of a sparse one, the rows that it names."""
    grads = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()  # the rows of a repeated item are added up first
            grads.append(parameter.grad.values())
        elif parameter.grad is not None:
            grads.append(parameter.grad)
    length = torch.nn.utils.get_total_norm(grads)
    torch._foreach_mul_(grads, (longest / (length + 1e-6)).clamp(max=1.0))


def learning_rate(epoch: int, lr: float, decay: float = 0.1, every: int | None = 3, offset: int = 0) -> float:
    """``lr * decay ** floor((epoch + offset) / every)`` for epoch 0, 1, 2, ...

    Args:
        every: epochs between two decays; None for a constant rate.
        offset: 0 is the schedule that the papers mean. 1 is what the public code of SR-GNN and TAGNN does on PyTorch
            1.1 and later, where stepping the scheduler at the *start* of an epoch skips the first value.
    """
    return lr if every is None else lr * decay ** ((epoch + offset) // every)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group of every optimizer the rate `lr`, and tables with a rate of their own as much of it
    as `make_optimizers` gave them."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("rate_factor", 1.0)
