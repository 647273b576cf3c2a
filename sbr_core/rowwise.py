"""Optimizers of an item table that move looked-up rows only: SparseAdam, and two with one number of state a row.

Beside them Adam itself, which moves every row at every step, for comparison.

State of 10^7 rows of 64 numbers: SparseAdam 5.1 GB, a row-wise optimizer 40 MB.

Shapes: R rows that a gradient names, V rows of the table, D width.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def named_rows(parameter: Tensor, l2: float = 0.0) -> tuple[Tensor | None, Tensor]:
    """(rows (R,), gradient (R, D)) of a sparse gradient, each row once; (None, gradient) of a dense one.

    Args:
        l2: lazy L2: ``l2 * row`` is added to the gradient of the rows that it names, and to no other. A row decays as
            often as it is looked up, not at every step, so the same l2 decays popular items more: it is a substitute
            of weight decay, not the same thing.
    """
    if not parameter.grad.is_sparse:
        if l2:
            parameter.grad.add_(parameter, alpha=l2)
        return None, parameter.grad
    grad = parameter.grad = parameter.grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    if l2:
        values.add_(parameter.index_select(0, rows), alpha=l2)
    return rows, values


class _Table(torch.optim.Optimizer):
    """Moves every parameter that has a gradient; here by one number of state a row."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Move the rows that the gradient names."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return value

    def _move(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"], state["squares"] = 0, parameter.new_zeros(len(parameter))
        state["step"] += 1
        rows, grad = named_rows(parameter, group["l2"])
        new = torch.linalg.vector_norm(grad, dim=1).square_().div_(grad.shape[1])  # (R,), mean of squares
        squares = self._updated(state["squares"] if rows is None else state["squares"][rows], new, group)
        factor = self._factor(squares, state["step"], group)[:, None]
        if rows is None:
            parameter.addcmul_(grad, factor, value=-group["lr"])
        else:
            state["squares"].index_copy_(0, rows, squares)
            parameter.index_add_(0, rows, grad * factor, alpha=-group["lr"])


class RowwiseAdagrad(_Table):
    """Adagrad with one accumulator a row.

    .. math::
        G_r \\leftarrow G_r + \\tfrac1D |g_r|^2, \\quad
        \\theta_r \\leftarrow \\theta_r - \\eta \\frac{g_r}{\\sqrt{G_r} + \\epsilon}

    Args:
        parameters: matrices, or groups of them, with sparse or dense gradients.
        lr: rate, > 0.
        l2: lazy L2, see `named_rows`.
        eps: epsilon, > 0.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: the row-wise Adagrad of FBGEMM (described there, not copied).
    """

    def __init__(self, parameters: Iterable, lr: float = 0.1, l2: float = 0.0, eps: float = 1e-8):
        _check(lr, l2, eps)
        super().__init__(parameters, {"lr": lr, "l2": l2, "eps": eps})

    def _updated(self, squares: Tensor, new: Tensor, group: dict) -> Tensor:
        return squares.add_(new)

    def _factor(self, squares: Tensor, step: int, group: dict) -> Tensor:
        return squares.sqrt().add_(group["eps"]).reciprocal_()


class RowwiseAdam(_Table):
    """Adam without its first moment, and with one second moment a row.

    .. math::
        v_r \\leftarrow \\beta v_r + (1 - \\beta) \\tfrac1D |g_r|^2, \\quad
        \\theta_r \\leftarrow \\theta_r - \\eta \\frac{g_r}{\\sqrt{v_r / (1 - \\beta^t)} + \\epsilon}

    As in SparseAdam, t counts all steps, and rows that a gradient does not name keep their value and their moment.

    Args:
        parameters, l2, eps: as in `RowwiseAdagrad`.
        lr: rate, > 0.
        beta: 0 <= beta < 1.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    def __init__(self, parameters: Iterable, lr: float = 1e-3, l2: float = 0.0, beta: float = 0.999, eps: float = 1e-8):
        _check(lr, l2, eps)
        if not 0 <= beta < 1:
            raise ValueError(f"beta must lie in 0 <= beta < 1, got {beta}")
        super().__init__(parameters, {"lr": lr, "l2": l2, "beta": beta, "eps": eps})

    def _updated(self, squares: Tensor, new: Tensor, group: dict) -> Tensor:
        return squares.lerp_(new, 1 - group["beta"])

    def _factor(self, squares: Tensor, step: int, group: dict) -> Tensor:
        return (squares / (1 - group["beta"] ** step)).sqrt_().add_(group["eps"]).reciprocal_()


class SparseAdam(_Table):
    """Adam of the rows that the gradient names: the others keep their value and their moments.

    .. math::
        m_r &\\leftarrow \\beta_1 m_r + (1 - \\beta_1) g_r, \\quad
        v_r \\leftarrow \\beta_2 v_r + (1 - \\beta_2) g_r^2 \\\\
        \\theta_r &\\leftarrow \\theta_r - \\eta \\frac{\\sqrt{1 - \\beta_2^t}}{1 - \\beta_1^t}
        \\frac{m_r}{\\sqrt{v_r} + \\epsilon}

    Args:
        parameters, lr, l2, eps: as in `RowwiseAdam`.

    Source: `torch.optim.SparseAdam`, of which this has the mathematics.
    Differs: both moments of a row lie side by side. In a large table every access to a row is a page that the processor
        has to look up, which takes longer than the arithmetic.
    """

    def __init__(self, parameters: Iterable, lr: float = 1e-3, l2: float = 0.0, eps: float = 1e-8):
        _check(lr, l2, eps)
        super().__init__(parameters, {"lr": lr, "l2": l2, "betas": (0.9, 0.999), "eps": eps})

    def _move(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"], state["moments"] = 0, parameter.new_zeros(len(parameter), 2, *parameter.shape[1:])
        state["step"] += 1
        rows, grad = named_rows(parameter, group["l2"])
        if rows is None:
            raise ValueError("SparseAdam moves looked-up rows, and this gradient is dense: use Adam")
        (one, two), (first, second) = group["betas"], (1 - beta ** state["step"] for beta in group["betas"])
        moments = state["moments"].index_select(0, rows)  # (R, 2, D)
        m, v = moments.unbind(1)
        m.lerp_(grad, 1 - one)
        v.mul_(two).addcmul_(grad, grad, value=1 - two)
        state["moments"].index_copy_(0, rows, moments)
        parameter.index_add_(0, rows, m / v.sqrt().add_(group["eps"]), alpha=-group["lr"] * second**0.5 / first)


class EveryRowAdam(torch.optim.Adam):
    """Adam of the whole table, also where a gradient names some rows only: what SparseAdam is compared with.

    A row that is not named has the gradient 0: its moments decay, and as long as its momentum lasts it goes on moving.
    A step takes time in proportion to the table.

    Args:
        parameters, lr, eps: as in `SparseAdam`.
        l2: coupled L2 of all rows, see `optim.make_optimizers`.
    """

    def __init__(self, parameters: Iterable, lr: float = 1e-3, l2: float = 0.0, eps: float = 1e-8):
        _check(lr, l2, eps)
        super().__init__(parameters, lr=lr, weight_decay=l2, eps=eps, fused=True)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Move every row."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()
        return super().step(closure)


def _check(lr: float, l2: float, eps: float) -> None:
    if lr <= 0 or l2 < 0 or eps <= 0:
        raise ValueError(f"a row-wise optimizer wants lr > 0, l2 >= 0 and eps > 0, got lr={lr}, l2={l2} and eps={eps}")


TABLE_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "sparse-adam": SparseAdam,
    "rowwise-adam": RowwiseAdam,
    "rowwise-adagrad": RowwiseAdagrad,
    "adam": EveryRowAdam,
}
