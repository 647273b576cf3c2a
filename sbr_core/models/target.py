"""What TAGNN and TAGNN++ share: scores by target attention, and the padding that the public code's softmaxes count.

Shapes: B sessions, L positions (= node slots), D width, V items, K candidates.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sbr_core import target_attention
from sbr_core.batches import Batch
from sbr_core.models.base import SessionModel
from sbr_core.table import Buffers
from sbr_core.target_attention import Slots


class TargetModel(SessionModel):
    """A model on session graphs whose query is `target_attention.Slots`, or one vector for an ablation without them.

    Args:
        num_items: V.
        dim: D.
        null_slots: "none", a number, or "official": `pad_to_train` (in training mode) or `pad_to_test`, less the length
            of the session, at least 0.
        pad_to_train, pad_to_test: for "official", and for nothing else.

    Subclasses have a ``graph`` (`srgnn.GatedGraph`, or None) and an ``edge_weight``.
    """

    plain_product = False

    def __init__(
        self, num_items: int, dim: int, null_slots: str | int, pad_to_train: int | None, pad_to_test: int | None
    ):
        super().__init__(num_items, dim)
        if null_slots not in ("none", "official") and (type(null_slots) is not int or null_slots < 0):
            raise ValueError(f"null_slots is 'none', 'official' or a number of 0 or more, got {null_slots!r}")
        given = [length for length in (pad_to_train, pad_to_test) if length is not None]
        if null_slots == "official" and (len(given) < 2 or min(given) < 1):
            raise ValueError(
                "null_slots='official' wants the lengths that the public code pads to, pad_to_train and pad_to_test, "
                f"got {pad_to_train} and {pad_to_test}; on Yoochoose 1/64 they are 145 and 73, on Diginetica 69 and 40"
            )
        if null_slots != "official" and given:
            raise ValueError(f"pad_to_train and pad_to_test belong to null_slots='official', not to {null_slots!r}")
        self.null_slots, self.pad_to_train, self.pad_to_test = null_slots, pad_to_train, pad_to_test

    def empty_slots(self, batch: Batch) -> Int[Tensor, "B"] | None:
        """How many padding positions the softmaxes count in every session; None for none."""
        if self.null_slots == "none":
            return None
        if self.null_slots == "official":
            return ((self.pad_to_train if self.training else self.pad_to_test) - batch.lengths).clamp(min=0)
        return torch.full_like(batch.lengths, self.null_slots)

    def node_states(self, items: Int[Tensor, "B L"], A_in: Tensor, A_out: Tensor) -> Float[Tensor, "B L D"]:
        """The graph's states."""
        x = self.embed(items)
        return x if self.graph is None else self.graph(x, A_in, A_out)

    def padding_state(self, batch: Batch) -> Float[Tensor, "B D"]:
        """The state of a padding position: that of a node without edges, the same in every session."""
        padding, alone = batch.items.new_full((1, 1), self.num_items), self.table.new_zeros(1, 1, 1)
        return self.node_states(padding, alone, alone)[0].expand(len(batch), -1)

    def score(self, query: Tensor | Slots, ids: Tensor | None = None) -> Float[Tensor, "B K"]:
        """Scores of all items (ids None), of K shared candidates (ids (K,)), or of K candidates each (ids (B, K))."""
        if not isinstance(query, Slots):
            return super().score(query, ids)
        if ids is None:
            return target_attention.score_all(query, self.table)
        return target_attention.score_some(query, self.table, ids)

    def linear(self, query: Tensor | Slots) -> tuple[Tensor, Tensor] | None:
        """(query, table) for a query of one vector; None for target attention, which has no such vector."""
        return None if isinstance(query, Slots) else (query, self.table)

    def softmax_loss(
        self, query: Slots, target: Int[Tensor, "B"], dtype: torch.dtype | None, buffers: Buffers
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over all items, fused with the target attention."""
        return target_attention.softmax_loss(query, self.table, target, dtype, buffers)


def click_counts(alias: Int[Tensor, "B L"], batch: Batch) -> Int[Tensor, "B L"]:
    """How many clicks every node slot stands for; 0 where there is no node."""
    return torch.zeros_like(alias).scatter_add_(1, alias, batch.mask.long())
