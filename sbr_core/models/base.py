"""What every model is: `encode` a batch into a query, `score` items for that query.

Shapes: B sessions, L positions, D width, V items, K candidates. Padding has the id V, the last row of every table.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sbr_core.batches import Batch
from sbr_core.sessions import Sessions
from sbr_core.similarity import SIMILARITIES, compare, search_items, search_query, unit
from sbr_core.table import Buffers, lookup

SPHERE_SCALE = 16.0  # of products on the unit sphere: e^16 is enough to give one of some 10^5 items half the softmax


class SessionModel(nn.Module):
    """A neural model: a query vector per session, scored against the item table by a dot product.

    Subclasses define ``encode(batch) -> query (B, D)``, and override `score` only if one query vector cannot serve all
    candidates. Losses and evaluation see ``score`` alone. `compare_by` puts another similarity in the place of the
    product.

    Args:
        num_items: V.
        dim: D, width of the item vectors.
    """

    plain_product = True  # False: a score is more than one query vector against one row; `compare_by` is refused

    needs_all_items = False  # True: the scores are normalised over the catalogue, sampled losses are refused
    carries_state = False  # True: session-parallel batches are read, with ``carry(slots)`` called before the first
    has_states = False  # True: ``states(batch)`` is the query of every position, for batches="every-position"
    looked_up: tuple[str, ...] = ()  # further tables that are read by `table.lookup` alone: always sparse gradients

    def __init__(self, num_items: int, dim: int):
        super().__init__()
        if num_items < 1 or dim < 1:
            raise ValueError(f"num_items and dim must be at least 1, got {num_items} and {dim}")
        self.num_items, self.dim = num_items, dim
        self.table = nn.Parameter(torch.empty(num_items + 1, dim))
        self.similarity, self.normalise, self.scale = "dot", False, 1.0

    def compare_by(self, similarity: str = "dot", normalise: bool = False, scale: float | None = None) -> None:
        """Say what a score is; `models.build` calls it with its arguments of these names.

        Args:
            similarity: "dot", "distance" or "squared-distance": the product, or minus the distance.
            normalise: both sides are scaled to length 1, only when they are compared: what `encode` reads is not.
            scale: tau, the score is tau times the similarity; None is 16 for products on the unit sphere, which would
                otherwise lie between -1 and 1, and 1 for all else.

        Raises:
            ValueError: naming the argument that is out of range, or the two settings that exclude each other.

        Source: specs of the scalable losses, sections 10.1 and 10.4.
        """
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity is one of {', '.join(SIMILARITIES)}, got {similarity!r}")
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"scale must be positive and finite, got {scale}")
        if not self.plain_product and (similarity != "dot" or normalise or scale not in (None, 1.0)):
            setting = f"similarity={similarity!r}" if similarity != "dot" else "normalise" if normalise else "scale"
            raise ValueError(
                f"{setting} wants scores that are one query vector against the item table, and those of this "
                f"{type(self).__name__} are not: leave similarity, normalise and scale out"
            )
        self.similarity, self.normalise = similarity, normalise
        self.scale = scale or (SPHERE_SCALE if normalise and similarity == "dot" else 1.0)

    def prepare(self, train: Sessions) -> None:
        """Take from the training sessions what the model wants to know of them, before it is trained.

        What scoring needs is kept in buffers, which are saved with the model.
        """

    def auxiliary_tasks(self) -> list:
        """Training tasks besides the loss on the examples, done before each epoch's pass over the examples.

        A task has a ``name``, ``make_optimizers() -> list``, ``steps(epochs) -> int`` (of the coming epoch, given the
        records of those before), ``loss(epoch, step) -> scalar``, which depends on nothing else but the parameters,
        and ``decays``: whether its rate, which it then names ``lr``, falls as that of the loss on the examples does.
        """
        return []

    def extra_loss(self, query: object, target: Int[Tensor, "B"]) -> Tensor | None:
        """A term that the model adds to the loss of a batch; None for none."""
        return None

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over a saved state, the buffers that `prepare` made included."""
        for name, tensor in tensors.items():
            if "." not in name and name not in self._parameters:
                self.register_buffer(name, tensor)
        self.load_state_dict(tensors)

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Rows of the item table (see `sbr_core.table` for their gradient)."""
        return lookup(self.table, ids)

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The query of every session of the batch."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes a session")

    def score(self, query: Float[Tensor, "B D"], ids: Tensor | None = None) -> Float[Tensor, "B K"]:
        """Scores of all items (ids None), of K shared candidates (ids (K,)), or of K candidates each (ids (B, K))."""
        query, items = self._side(query), self._side(self.table[:-1] if ids is None else self.embed(ids))
        if self.similarity == "dot":
            return compare(query if self.scale == 1 else query * self.scale, items)
        return self.scale * compare(query, items, self.similarity)

    def _side(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """One side of the comparison."""
        return unit(x) if self.normalise else x

    def linear(self, query: Float[Tensor, "B D"]) -> tuple[Tensor, Tensor] | None:
        """(query, table) if the scores of all items are their plain product: lets a loss fuse product and softmax.

        A subclass that overrides `score` returns None.
        """
        if self.similarity != "dot" or self.normalise:
            return None
        return query if self.scale == 1 else query * self.scale, self.table

    def directions(self, query: object) -> tuple[Tensor, Tensor] | None:
        """(query, table) if the scores are the product of the query and the rows scaled to length 1; None where they
        are not."""
        if not self.normalise or self.similarity != "dot":
            return None
        return self._side(query) * self.scale, self.table

    def search_items(self) -> Float[Tensor, "V W"] | None:
        """Vectors of all items whose plain products with `search_query` rank them as `score` does, for evaluation and
        for an index; None where no such vectors exist."""
        table = self.table.detach()[:-1]
        return search_items(table, self.similarity, self.normalise) if self.plain_product else None

    def search_query(self, query: Float[Tensor, "B D"]) -> Float[Tensor, "B W"]:
        """See `search_items`."""
        return search_query(query, self.similarity, self.normalise)

    def softmax_loss(
        self, query: object, target: Int[Tensor, "B"], dtype: torch.dtype | None, buffers: Buffers
    ) -> Tensor | None:
        """Mean cross-entropy over all items by a fused operation of the model's own; None where it has none.

        Asked for only where `linear` is None. `dtype` is that of the large products (None: the table's); `buffers` are
        the loss's, kept from step to step (see `sbr_core.table`).
        """
        return None


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
