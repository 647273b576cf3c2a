"""Small operations that several models share.

Shapes: B sessions, L positions, D width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def last(x: Float[Tensor, "B L D"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
    """The vector of every session's last real position."""
    return x[torch.arange(len(x), device=x.device), lengths - 1]


def take(x: Float[Tensor, "B L D"], index: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
    """Rows of `x` at `index`, session by session: node vectors to positions."""
    return x.gather(1, index[..., None].expand_as(x))


def masked_mean(x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Mean over the real positions."""
    weight = mask.to(x.dtype)
    return (x * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)


def uniform_(module: nn.Module, bound: float) -> None:
    """Draw every parameter from Uniform(-bound, bound): biases, normalisation gains and padding rows too.

    Source: the public code of SR-GNN and all its descendants (`bound` = 1/sqrt(d)).
    """
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -bound, bound)
