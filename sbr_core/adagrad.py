"""Adagrad as GRU4Rec uses it: epsilon inside the root, heavy-ball momentum, and rows without a gradient left alone."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Adagrad(torch.optim.Optimizer):
    """Every parameter's rate falls with the squares of its own past gradients.

    .. math::
        G \\leftarrow G + g^2, \\quad v \\leftarrow \\mu v - \\eta \\frac{g}{\\sqrt{G + \\epsilon}}, \\quad
        \\theta \\leftarrow \\theta + v

    With a sparse gradient, G, v and the parameter change in the rows that it names and nowhere else; a row named
    several times has its gradients added up first.

    Args:
        parameters: tensors, or groups of them.
        lr: rate, > 0.
        momentum: mu, 0 <= mu < 1.
        eps: epsilon, > 0.

    Raises:
        ValueError: naming the argument that is out of range.

    Source: specs of GRU4Rec, equation 4.6 (the public code calls its momentum Nesterov's; it is heavy-ball).
    Differs: torch's Adagrad has epsilon outside the root, no momentum, and accepts sparse gradients as well.
    """

    def __init__(self, parameters: Iterable, lr: float = 0.1, momentum: float = 0.0, eps: float = 1e-6):
        if lr <= 0 or not 0 <= momentum < 1 or eps <= 0:
            raise ValueError(
                f"Adagrad wants lr > 0, 0 <= momentum < 1 and eps > 0, got lr={lr}, momentum={momentum} and eps={eps}"
            )
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Move every parameter that has a gradient."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move = _sparse if parameter.grad.is_sparse else _dense
                    move(parameter, self._state_of(parameter, group["momentum"]), group)
        return value

    def _state_of(self, parameter: Tensor, momentum: float) -> dict[str, Tensor]:
        state = self.state[parameter]
        for name in ("squares", "velocity") if momentum else ("squares",):
            if name not in state:
                state[name] = torch.zeros_like(parameter)
        return state


def _dense(parameter: Tensor, state: dict[str, Tensor], group: dict) -> None:
    scale = state["squares"].addcmul_(parameter.grad, parameter.grad).add(group["eps"]).rsqrt_()
    if group["momentum"]:
        velocity = state["velocity"].mul_(group["momentum"]).addcmul_(parameter.grad, scale, value=-group["lr"])
        parameter.add_(velocity)
    else:
        parameter.addcmul_(parameter.grad, scale, value=-group["lr"])


def _sparse(parameter: Tensor, state: dict[str, Tensor], group: dict) -> None:
    grad = parameter.grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    squares = state["squares"].index_select(0, rows).addcmul_(values, values)
    state["squares"].index_copy_(0, rows, squares)
    scale = squares.add_(group["eps"]).rsqrt_()
    if group["momentum"]:
        velocity = state["velocity"].index_select(0, rows).mul_(group["momentum"])
        velocity.addcmul_(values, scale, value=-group["lr"])
        state["velocity"].index_copy_(0, rows, velocity)
        parameter.index_add_(0, rows, velocity)
    else:
        parameter.index_add_(0, rows, scale.mul_(values).mul_(-group["lr"]))
