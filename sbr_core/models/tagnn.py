"""TAGNN (Yu et al., SIGIR 2020, arXiv:2005.02844).

Shapes: B sessions, L positions (= node slots), D width, V items.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sbr_core.batches import Batch
from sbr_core.graphs import session_graph
from sbr_core.layers import last, masked_mean, take, uniform_
from sbr_core.models.srgnn import GatedGraph, SoftAttention
from sbr_core.models.target import TargetModel, click_counts
from sbr_core.target_attention import Slots

READOUTS = ("full", "L+Att", "Att", "L", "Avg")


class TargetReadout(nn.Module):
    """From the states of the clicks to a query (equations 6 to 10 of the paper).

    Args:
        dim: D.
        readout, combine, attention_softmax, hybrid: see `TAGNN`.

    Differs: the paper's W3 of D x 3D is kept in two parts, W_T for the target vector and W3 for the other two, which is
        SR-GNN's W3 with its bias. What W_T and W3 give is summed.
    """

    def __init__(self, dim: int, readout: str, combine: str, attention_softmax: bool, hybrid: bool):
        super().__init__()
        self.readout, self.attention_softmax, self.hybrid = readout, attention_softmax, hybrid
        if readout in ("L", "Avg"):
            return
        self.attention = SoftAttention(dim)
        if readout == "full":
            self.W = nn.Linear(dim, dim, bias=False)
            self.W_T = nn.Linear(dim, dim, bias=False) if combine == "project" else nn.Identity()
        if readout != "Att":
            width = 2 * dim if hybrid else dim
            self.W3 = nn.Linear(width, dim) if hybrid or combine == "project" else nn.Identity()

    def forward(
        self,
        h: Float[Tensor, "B L D"],
        batch: Batch,
        nodes: Float[Tensor, "B N D"],
        clicks: Int[Tensor, "B N"],
        empty: Int[Tensor, "B"] | None = None,
        h_empty: Float[Tensor, "B D"] | None = None,
    ) -> Tensor | Slots:
        """The query of every session: a vector, or for the full model its slots.

        Args:
            h: the state of every position.
            nodes, clicks: what the candidates attend over, and how many clicks each stands for (0: none, not there).
            empty, h_empty: padding positions that the two softmaxes count, and the state that the readout's one sees
                there; None for none.
        """
        h_last = last(h, batch.lengths)
        if self.readout == "L":
            return h_last
        if self.readout == "Avg":
            return masked_mean(h, batch.mask)
        s_global = self.pool(h, h_last, batch.mask, empty, h_empty)  # equations 8 and 9
        if self.readout == "Att":
            return s_global
        a = self.W3(torch.cat([s_global, h_last], dim=-1) if self.hybrid else s_global)  # (B, D), equation 10
        if self.readout == "L+Att":
            return a
        slots = Slots(self.W(nodes), self.W_T(nodes) + a[:, None], clicks.to(h.dtype).log())  # equations 6, 7 and 10
        return slots if empty is None else self.with_empty(slots, a, empty)

    def pool(
        self, h: Float[Tensor, "B L D"], h_last: Float[Tensor, "B D"], mask: Tensor, empty: Tensor | None, h_empty
    ) -> Float[Tensor, "B D"]:
        """The sum of the states, weighted by the attention or by its softmax."""
        if not self.attention_softmax:
            return self.attention(h, h_last, mask)
        every = torch.ones_like(mask)
        alpha = self.attention.weights(h, h_last, every).masked_fill(~mask, -torch.inf)
        if empty is not None:
            alpha_empty = self.attention.weights(h_empty[:, None], h_last, every[:, :1])
            alpha = torch.cat([alpha, alpha_empty + empty.to(h.dtype).log()[:, None]], dim=1)
        return (alpha.softmax(1)[:, None, : h.shape[1]] @ h).squeeze(1)

    def with_empty(self, slots: Slots, a: Float[Tensor, "B D"], empty: Int[Tensor, "B"]) -> Slots:
        """One more slot that stands for all padding: its logit is 0, its target vector is 0."""
        keys = torch.cat([slots.keys, torch.zeros_like(a)[:, None]], dim=1)
        values = torch.cat([slots.values, a[:, None]], dim=1)
        return Slots(keys, values, torch.cat([slots.log_weight, empty.to(a.dtype).log()[:, None]], dim=1))


class TAGNN(TargetModel):
    """SR-GNN whose session vector is another one for every candidate item.

    .. math::
        \\beta_{i,t} &= \\mathrm{softmax}_i(v_t^\\top W h_i), \\quad s^t_{target} = \\sum_i \\beta_{i,t} h_i \\\\
        \\alpha_i &= q^\\top \\sigma(W_1 h_L + W_2 h_i + c), \\quad s_{global} = \\sum_i \\alpha_i h_i \\\\
        s_t &= W_3 [s^t_{target} ; h_L ; s_{global}], \\quad score_t = s_t^\\top v_t

    As the weights of a candidate sum to 1, the score is :math:`\\sum_i \\beta_{i,t}\\, (W_T h_i + a)^\\top v_t`,
    where `a` is the part that all candidates share: the query is one key and one value per distinct item, and
    `target_attention` does the rest without a vector per candidate.

    Args:
        num_items: V.
        dim: D (paper: 100).
        steps: rounds of propagation, >= 0 (paper: 1).
        readout: "full", or the paper's ablations "L" (last state), "Avg" (mean state), "Att" (s_global), "L+Att"
            (SR-GNN).
        combine: "project" (paper: W3 mixes all three) or "add" (public code: the target vector is added as it is).
        attention_softmax: the weights of s_global go through a softmax (public code).
        hybrid: False leaves out the last state beside s_global (`nonhybrid` in the public code).
        null_slots: padding positions that the softmaxes count, with logit 0 and vector 0 in the target attention:
            "none" (paper); a number; or "official": the public code pads to the longest input of the training set and
            of the test set, and its softmaxes run over that padding.
        pad_to_train, pad_to_test: these lengths, for null_slots="official" alone: a session has as many null slots as
            it is shorter. In training mode the first counts, else the second. Public code: 145 and 73 on Yoochoose
            1/64, 69 and 40 on Diginetica.
        edge_weight: "binary" (public code) or "count".

    Shapes:
        batch.items (B, L) -> query: `target_attention.Slots`, or (B, D) for the ablations

    Source: paper section 2; CRIPAC-DIG/TAGNN, model.py (read, not copied), which is combine="add",
        attention_softmax=True, null_slots="official".
    Differs: equation 6 prints a sum over all m items of the catalogue in the denominator of a softmax over the
        session's items; as in the public code, it runs over the session.
    Example:
        >>> from sbr_core.batches import Batch
        >>> model = TAGNN(num_items=9, dim=4)
        >>> model.score(model.encode(Batch.of([[1, 2, 1, 3]], num_items=9))).shape
        torch.Size([1, 9])
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        steps: int = 1,
        readout: str = "full",
        combine: str = "project",
        attention_softmax: bool = False,
        hybrid: bool = True,
        null_slots: str | int = "none",
        pad_to_train: int | None = None,
        pad_to_test: int | None = None,
        edge_weight: str = "binary",
    ):
        super().__init__(num_items, dim, null_slots, pad_to_train, pad_to_test)
        _check(readout, combine, attention_softmax, hybrid, null_slots)
        self.edge_weight = edge_weight
        self.graph = GatedGraph(dim, steps)
        self.head = TargetReadout(dim, readout, combine, attention_softmax, hybrid)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform(-1/sqrt(D), 1/sqrt(D)) everywhere, as the public code does."""
        uniform_(self, self.dim**-0.5)

    def encode(self, batch: Batch) -> Tensor | Slots:
        alias, A_in, A_out = session_graph(batch.items, batch.mask, self.edge_weight)
        nodes = self.node_states(batch.items, A_in, A_out)  # (B, L, D), equations 1 to 5
        empty = self.empty_slots(batch)
        h_empty = self.padding_state(batch) if empty is not None and self.head.attention_softmax else None
        return self.head(take(nodes, alias), batch, nodes, click_counts(alias, batch), empty, h_empty)


def _check(readout: str, combine: str, attention_softmax: bool, hybrid: bool, null_slots: str | int) -> None:
    """Refuse settings that do not exist, and pairs of them that mean nothing together."""
    if readout not in READOUTS:
        raise ValueError(f"readout is one of {', '.join(READOUTS)}, got {readout!r}")
    if combine not in ("project", "add"):
        raise ValueError(f"combine is 'project' or 'add', got {combine!r}")
    if readout == "full":
        return
    if combine == "add":
        raise ValueError(f"combine='add' says how the target vector enters; readout={readout!r} has none")
    if not hybrid:
        raise ValueError(f"hybrid=False belongs to readout='full', not to {readout!r}; 'Att' leaves out the last state")
    if attention_softmax and readout in ("L", "Avg"):
        raise ValueError(f"attention_softmax=True wants an attention; readout={readout!r} has none")
    if null_slots != "none" and not attention_softmax:
        raise ValueError(f"null_slots={null_slots!r} are counted by a softmax; readout={readout!r} without it has none")
