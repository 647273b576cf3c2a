"""Adaptive gradient clipping: a gradient may not be large against the weights that it moves (TAGNN++).

Shapes: O outputs, I inputs of a linear map.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

MODES = ("off", "nfnet", "sbr_inverted_axis0")


def units(model: nn.Module, mode: str) -> list[nn.Parameter]:
    """The parameters that `mode` clips.

    Returns:
        "nfnet": all matrices but the item table, which is the classifier here (Brock et al. leave the classifier and
        the biases out); "sbr_inverted_axis0": all parameters, as the public code did; "off": none.
    """
    _check(mode)
    if mode == "off":
        return []
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [p for name, p in named if mode != "nfnet" or (p.ndim > 1 and name != "table")]


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter], mode: str = "nfnet", limit: float = 0.01, eps: float = 1e-3
) -> None:
    """Scale the gradients in place, before the optimizers step; no host synchronisation.

    With ``t_u = limit * max(|W_u|, eps)`` for every unit u of a parameter, its weights W_u and their gradient G_u:

    * "nfnet": ``G_u *= t_u / |G_u|`` where ``|G_u| > t_u``. A unit is what feeds one output: a row of an (O, I) matrix
      (of higher tensors, all but the first axis), or a whole vector.
    * "sbr_inverted_axis0": ``G_u *= t_u / max(|G_u|, 1e-6)`` where ``|G_u| < t_u``: small gradients are raised, large
      ones stay. A unit is a *column* of a matrix, or a whole vector. This is what the first commit of the public code
      of TAGNN++ did, a mistake that it had copied.
    * "off": nothing.

    Args:
        limit: lambda of the paper.
        eps: weights of a smaller norm count as if they had this one, so that units that start at zero can move.

    Raises:
        ValueError: on an unknown mode, a limit or eps that is not positive, or a sparse gradient.

    Source: Brock et al., ICML 2021, section 4.1; The-Learning-Machines/SBR (read, not copied).
    """
    _check(mode)
    if limit <= 0 or eps <= 0:
        raise ValueError(f"limit and eps must be positive, got limit={limit} and eps={eps}")
    for parameter in parameters:
        if mode == "off" or parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            raise ValueError(
                f"agc={mode!r} reads whole gradients, and a sampled loss has a sparse one: use loss='full'"
            )
        weight, grad = _norm(parameter, mode), _norm(parameter.grad, mode)
        threshold = limit * weight.clamp(min=eps)
        clipped, divisor = (grad > threshold, grad) if mode == "nfnet" else (grad < threshold, grad.clamp(min=1e-6))
        parameter.grad.mul_(torch.where(clipped, threshold / divisor, 1.0))


def agc(model: nn.Module, mode: str, limit: float = 0.01, eps: float = 1e-3) -> Callable[[], None]:
    """`clip_gradients` of the parameters that `mode` clips, as a function to be called before the optimizers step.

    A function and no wrapper around an optimizer: a run has up to three optimizers, and all gradients are clipped once,
    before the first of them steps.

    Raises:
        ValueError: if the model has a further table that is only looked up: its gradient is always sparse.
    """
    chosen = units(model, mode)
    if chosen and getattr(model, "looked_up", ()):
        raise ValueError(
            f"agc={mode!r} reads whole gradients, and that of {type(model).__name__}'s {model.looked_up[0]} is sparse: "
            "use agc='off'"
        )
    return lambda: clip_gradients(chosen, mode, limit, eps)


def _norm(values: Tensor, mode: str) -> Tensor:
    """Length of every unit, in a shape that multiplies with the tensor."""
    if values.ndim < 2:
        return values.norm()
    if mode == "nfnet":
        return values.flatten(1).norm(dim=1).view(-1, *[1] * (values.ndim - 1))
    return values.norm(dim=0, keepdim=True)


def _check(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"agc is one of {', '.join(MODES)}, got {mode!r}")
