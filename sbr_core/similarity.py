"""What a score compares: product, distance, or either on the unit sphere.

Shapes: B queries, D width, V items, K candidates.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SIMILARITIES = ("dot", "distance", "squared-distance")
NO_LENGTH = 1e-12  # a vector that is shorter has no direction
NO_DISTANCE = 1e-12  # squared distance below which the distance has no gradient


def inverse_length(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows"]:
    """What a vector is multiplied with to be of length 1; 1 for a vector without direction."""
    length = torch.linalg.vector_norm(x, dim=-1)
    return torch.where(length > NO_LENGTH, length, 1.0).reciprocal()


def unit(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
    """The vectors on the unit sphere.

    A zero vector has no direction: it stays where it is, so its products are 0, and it learns by their plain gradient.
    """
    return x * inverse_length(x)[..., None]


def tangent(
    grad: Float[Tensor, "*rows D"], direction: Float[Tensor, "*rows D"], inverse: Float[Tensor, "*rows"]
) -> Float[Tensor, "*rows D"]:
    """Gradient of the vectors from that of their directions ``x * inverse_length(x)``."""
    along = (grad * direction).sum(-1, keepdim=True)
    return torch.addcmul(grad, along, direction, value=-1) * inverse[..., None]


def compare(query: Float[Tensor, "B D"], items: Tensor, kind: str = "dot") -> Float[Tensor, "B K"]:
    """The similarity of every query to K shared items (K, D), or to K items of its own (B, K, D).

    Args:
        kind: "dot", "distance" (minus the Euclidean distance) or "squared-distance" (minus its square). Distances come
            from the products, so those below a thousandth of the vectors' length are inexact in float32.
    """
    product = query @ items.T if items.ndim == 2 else torch.einsum("bd,bkd->bk", query, items)
    if kind == "dot":
        return product
    squared = query.square().sum(-1, keepdim=True) + items.square().sum(-1) - 2 * product
    if kind == "squared-distance":
        return -squared.clamp(min=0)
    return -squared.clamp(min=NO_DISTANCE).sqrt()


def search_items(table: Float[Tensor, "V D"], kind: str, normalise: bool) -> Float[Tensor, "V W"]:
    """Item vectors whose products with `search_query` rank the items as `compare` does; no copy where none is needed.

    On the unit sphere all three similarities rank by the cosine. Elsewhere :math:`|q - v|^2 = |q|^2 - 2 (q \\cdot v -
    |v|^2 / 2)`: a distance is a product of vectors that are longer by one coordinate.
    """
    if normalise:
        return unit(table)
    return table if kind == "dot" else torch.cat([table, -0.5 * table.square().sum(-1, keepdim=True)], -1)


def search_query(query: Float[Tensor, "B D"], kind: str, normalise: bool) -> Float[Tensor, "B W"]:
    """See `search_items`."""
    return query if normalise or kind == "dot" else torch.nn.functional.pad(query, (0, 1), value=1.0)
