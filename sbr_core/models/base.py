"""What every model is: `encode` a batch into a query, `score` items for that query.

Shapes: B sessions, L positions, D width, V items, K candidates. Padding has the id V, the last row of every table.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sbr_core.batches import Batch
from sbr_core.sessions import Sessions
from sbr_core.table import lookup


class SessionModel(nn.Module):
    """A neural model: a query vector per session, scored against the item table by a dot product.

    Subclasses define ``encode(batch) -> query (B, D)``, and override `score` only if one query vector cannot serve all
    candidates. Losses and evaluation see ``score`` alone.

    Args:
        num_items: V.
        dim: D, width of the item vectors.
    """

    needs_all_items = False  # True: the scores are normalised over the catalogue, sampled losses are refused

    def __init__(self, num_items: int, dim: int):
        super().__init__()
        if num_items < 1 or dim < 1:
            raise ValueError(f"num_items and dim must be at least 1, got {num_items} and {dim}")
        self.num_items, self.dim = num_items, dim
        self.table = nn.Parameter(torch.empty(num_items + 1, dim))

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Rows of the item table (see `sbr_core.table` for their gradient)."""
        return lookup(self.table, ids)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The query of every session of the batch."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes a session")

    def score(self, query: Float[Tensor, "B D"], ids: Tensor | None = None) -> Float[Tensor, "B K"]:
        """Scores of all items (ids None), of K shared candidates (ids (K,)), or of K candidates each (ids (B, K))."""
        if ids is None:
            return query @ self.table[:-1].T  # (B, V)
        if ids.ndim == 1:
            return query @ self.embed(ids).T  # (B, K)
        return torch.einsum("bd,bkd->bk", query, self.embed(ids))  # (B, K)

    def linear(self, query: Float[Tensor, "B D"]) -> tuple[Tensor, Tensor] | None:
        """(query, table) if the scores of all items are their plain product: lets a loss fuse product and softmax.

        A subclass that overrides `score` returns None.
        """
        return query, self.table


class CountingModel(nn.Module):
    """A model that counts instead of training: `fit` fills its tables, the query is the batch itself.

    Subclasses define ``count(train) -> dict of tensors`` (the tables, kept as buffers) and
    ``scores(batch) -> (B, V)``.
    """

    needs_all_items = False

    def __init__(self, num_items: int):
        super().__init__()
        self.num_items = num_items

    def fit(self, train: Sessions) -> "CountingModel":
        """Count the training sessions; returns itself.

        Raises:
            ValueError: if the sessions are of another catalogue.
        """
        if train.num_items != self.num_items:
            raise ValueError(f"the model is for {self.num_items} items, the sessions have {train.num_items}")
        self.set_tables(self.count(train))
        return self

    def set_tables(self, tables: dict[str, Tensor]) -> None:
        """Take over tables, as counted or as read from a checkpoint."""
        for name, table in tables.items():
            self.register_buffer(name, table)

    def encode(self, batch: Batch) -> Batch:
        """A counting model reads the clicks when it scores."""
        return batch

    def score(self, query: Batch, ids: Tensor | None = None) -> Float[Tensor, "B K"]:
        """Scores of all items (ids None), of K shared candidates (ids (K,)), or of K candidates each (ids (B, K))."""
        if not self._buffers:
            raise ValueError(f"this {type(self).__name__} has counted nothing yet: call fit(train) first")
        scores = self.scores(query)  # (B, V)
        if ids is None:
            return scores
        return scores[:, ids] if ids.ndim == 1 else scores.gather(1, ids)
