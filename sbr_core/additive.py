"""Additive attention between all pairs of nodes, without ever holding the (B, L, L, D) tensor of all pairs.

Shapes: B sessions, L nodes, D width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

BUDGET = {"cpu": 1 << 18, "cuda": 1 << 26}  # numbers held at a time: what fits the cache, and what fills the device


def additive_energy(
    source: Float[Tensor, "B L D"], receiver: Float[Tensor, "B L D"], p: Float[Tensor, "D"]
) -> Float[Tensor, "B L L"]:
    """``p . sigmoid(source_j + receiver_i)`` at [i, j].

    The sigmoids of a few sessions at a time are made, used and forgotten, and made again in the backward pass: memory
    is bounded, and on a CPU the work stays in its cache.
    """
    return _Energy.apply(source, receiver, p)


def masked_softmax(x: Float[Tensor, "*rows L"], mask: Bool[Tensor, "*rows L"]) -> Float[Tensor, "*rows L"]:
    """Softmax over the last dimension where the mask is True, 0 elsewhere; all 0 in a row without any."""
    return x.masked_fill(~mask, torch.finfo(x.dtype).min).softmax(-1) * mask


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, source: Tensor, receiver: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(source, receiver, p)
        return torch.cat([_sigmoids(source, receiver, rows) @ p for rows in _pieces(source)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """With s the sigmoids: sum of grad s for p, and p times the sums of grad s (1 - s) for the two vectors."""
        source, receiver, p = ctx.saved_tensors
        grad_p, grad_source, grad_receiver = torch.zeros_like(p), torch.empty_like(source), torch.empty_like(receiver)
        for rows in _pieces(source):
            s = _sigmoids(source, receiver, rows)  # (rows, L, L, D)
            grad_p += grad[rows].flatten() @ s.flatten(0, 2)
            s.addcmul_(s, s, value=-1).mul_(grad[rows][..., None])
            torch.mul(s.sum(1), p, out=grad_source[rows])
            torch.mul(s.sum(2), p, out=grad_receiver[rows])
        return grad_source, grad_receiver, grad_p


def _sigmoids(source: Tensor, receiver: Tensor, rows: slice) -> Float[Tensor, "rows L L D"]:
    return (source[rows][:, None] + receiver[rows][:, :, None]).sigmoid_()


def _pieces(x: Float[Tensor, "B L D"]) -> list[slice]:
    """Sessions whose pairs are held at a time."""
    B, L, D = x.shape
    step = max(1, BUDGET.get(x.device.type, BUDGET["cuda"]) // (L * L * D))
    return [slice(begin, begin + step) for begin in range(0, B, step)]
