"""Batch normalisation over what is real of a padded batch.

Shapes: W width; rows stand for any leading dimensions.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class NodeNorm(nn.Module):
    """Batch normalisation whose statistics are those of some rows only: the real nodes of a batch.

    Args:
        width: W.
        momentum: weight of the present batch in the running statistics.
        eps: added to the variance.

    Shapes:
        x (..., W), real (...) -> (..., W); rows that are not real are normalised too, but count for nothing
    """

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Float[Tensor, "*rows W"], real: Bool[Tensor, "*rows"]) -> Float[Tensor, "*rows W"]:
        """The rows, normalised by their batch in training and by the running statistics otherwise."""
        mean, var = self._statistics(x, real) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.bias - mean * scale, x, scale)

    def _statistics(self, x: Tensor, real: Tensor) -> tuple[Float[Tensor, "W"], Float[Tensor, "W"]]:
        rows, weight = x.flatten(0, -2), real.flatten().to(x.dtype)
        count = weight.sum()
        mean = weight @ rows / count
        var = weight @ (rows - mean).square() / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        return mean, var
