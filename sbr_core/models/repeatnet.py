"""RepeatNet (Ren et al., AAAI 2019).

Shapes: B sessions, L positions, D width, V items, K candidates.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sbr_core.batches import Batch
from sbr_core.layers import last
from sbr_core.models.base import SessionModel
from sbr_core.table import Buffers, blocks

EXPLORE, REPEAT = 0, 1  # columns of the mode


class RepeatQuery(NamedTuple):
    """What RepeatNet makes of a batch of sessions.

    Args:
        items: (B, L) the clicks.
        mode: (B, 2) log-probability of exploring and of repeating.
        repeat: (B, L) log-probability of taking up each click if the session repeats; -inf on padding.
        explore: (B, 2D) what is multiplied with W_o to score the items that the session has not seen.
    """

    items: Int[Tensor, "B L"]
    mode: Float[Tensor, "B modes"]
    repeat: Float[Tensor, "B L"]
    explore: Float[Tensor, "B D2"]


class AdditiveAttention(nn.Module):
    """``a = softmax_i(v . tanh(W g + U k_i))`` over the real positions.

    Args:
        dim: D.

    Shapes:
        g (B, D), k (B, L, D), mask (B, L) -> log a (B, L), -inf on padding
    """

    def __init__(self, dim: int):
        super().__init__()
        self.W, self.U = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, 1, bias=False)

    def forward(
        self, g: Float[Tensor, "B D"], k: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L"]:
        """The logarithm of every position's attention."""
        energy = self.v(torch.tanh(self.W(g)[:, None] + self.U(k))).squeeze(-1)
        return energy.masked_fill(~mask, -torch.inf).log_softmax(-1)


class RepeatNet(SessionModel):
    """Two decoders: one takes up an item of the session, the other looks among all others; a third part weighs them.

    .. math::
        g &= h_L, \\quad a^x_i = \\mathrm{softmax}_i(v_x \\cdot \\tanh(W_x g + U_x h_i)), \\quad
        c^x = \\sum_i a^x_i h_i \\quad (x \\in \\{mode, repeat, explore\\}) \\\\
        [P(explore), P(repeat)] &= \\mathrm{softmax}(W_m c^{mode}), \\quad
        P(j \\mid repeat) = \\sum_{i: x_i = j} a^{repeat}_i \\\\
        P(j \\mid explore) &= \\mathrm{softmax}_{j \\notin session}([c^{explore} ; g] W_o), \\quad
        P(j) = P(repeat) P(j \\mid repeat) + P(explore) P(j \\mid explore)

    No item has both parts, so the scores are ``log P(j)``, computed without ever leaving the logarithms: no
    probability underflows, and none needs a small number added. Their cross-entropy is the paper's loss.

    Args:
        num_items: V.
        dim: D, width of the item vectors and of the recurrent state (paper: 100).
        dropout: share of the entries of g and of the states dropped in training, each with its own mask (paper: 0.5).
        mode_loss: weight of ``-log P(the mode that the target asks for)`` in the loss, >= 0 (released script: 0;
            its option for joint training: 1).

    Shapes:
        batch.items (B, L) -> `RepeatQuery`; scores (B, V)

    Raises:
        ValueError: on a dropout outside 0 <= dropout < 1, or a negative weight.

    Source: PengjieRen/RepeatNet (read, not copied); the later PyTorch release there is another model.
    Example:
        >>> from sbr_core.batches import Batch
        >>> model = RepeatNet(num_items=9, dim=4).eval()
        >>> scores = model.score(model.encode(Batch.of([[1, 2, 1, 3]], num_items=9)))
        >>> round(scores.exp().sum().item(), 4)
        1.0
    """

    needs_all_items = True
    plain_product = False

    def __init__(self, num_items: int, dim: int = 100, dropout: float = 0.5, mode_loss: float = 0.0):
        super().__init__(num_items, dim)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in 0 <= dropout < 1, got {dropout}")
        if mode_loss < 0:
            raise ValueError(f"mode_loss is a weight and must not be negative, got {mode_loss}")
        self.mode_loss, self.dropout = mode_loss, nn.Dropout(dropout)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.mode, self.repeat, self.explore = (AdditiveAttention(dim) for _ in range(3))
        self.W_m = nn.Linear(dim, 2, bias=False)
        self.W_o = nn.Linear(2 * dim, num_items, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot, normal, for every matrix (every gate's own); 0 for the biases of the recurrent layer."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                for block in parameter.chunk(3) if name.startswith("gru") else [parameter]:
                    nn.init.xavier_normal_(block)

    def embed(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Rows of the item table: no softmax reads it here, so its gradient is the ordinary dense one."""
        return F.embedding(ids, self.table)

    def encode(self, batch: Batch) -> RepeatQuery:
        states, _ = self.gru(self.embed(batch.items))  # (B, L, D)
        g, k = self.dropout(last(states, batch.lengths)), self.dropout(states)
        mode, repeat, explore = (part(g, k, batch.mask) for part in (self.mode, self.repeat, self.explore))
        c_mode, c_explore = ((log_a.exp()[:, None] @ k).squeeze(1) for log_a in (mode, explore))  # (B, D)
        return RepeatQuery(batch.items, self.W_m(c_mode).log_softmax(-1), repeat, torch.cat([c_explore, g], dim=-1))

    def score(self, query: RepeatQuery, ids: Tensor | None = None) -> Float[Tensor, "B K"]:
        """log P of all items (ids None), of K shared candidates (ids (K,)), or of K candidates each (ids (B, K)).

        Every one of them needs the normaliser over all items, so all are computed in any case.
        """
        items = _without_padding(query.items, self.num_items)
        same = items[:, :, None] == items[:, None, :]  # (B, L, L)
        repeat = query.repeat[:, None].masked_fill(~same, -torch.inf).logsumexp(-1)  # (B, L): of each click's item
        repeat = query.mode[:, REPEAT, None] + repeat
        first = same.int().argmax(-1) == torch.arange(items.shape[1], device=items.device)
        scores = _Mixture.apply(query.explore, self.W_o.weight, query.mode[:, EXPLORE], items, first, repeat)
        if ids is None:
            return scores
        return scores[:, ids] if ids.ndim == 1 else scores.gather(1, ids)

    def linear(self, query: RepeatQuery) -> None:
        """None: the scores are not a plain product."""
        return None

    def softmax_loss(
        self, query: RepeatQuery, target: Int[Tensor, "B"], dtype: torch.dtype | None, buffers: Buffers
    ) -> Float[Tensor, ""] | None:
        """Mean of -log P(target): the scores are normalised already. None in another precision than the table's.

        On a CPU the sessions that have seen their target are left out of the products with W_o: P(repeat) and the
        attention give their probability, and the value of the others saturates as that of `table.LinearSoftmax` does.
        A GPU would have to wait for their number, and takes all scores.
        """
        if dtype:
            return None
        if target.is_cuda:
            return -self.score(query, target[:, None]).mean()
        same = query.items == target[:, None]  # (B, L)
        seen = same.any(1)
        repeat = query.repeat.masked_fill(~same, -torch.inf)[seen].logsumexp(-1) + query.mode[seen, REPEAT]
        items = _without_padding(query.items, self.num_items)[~seen]
        explore = _Explore.apply(query.explore[~seen], self.W_o.weight, items, target[~seen], buffers)
        return -(repeat.sum() + explore.sum() + query.mode[~seen, EXPLORE].sum()) / len(target)

    def extra_loss(self, query: RepeatQuery, target: Int[Tensor, "B"]) -> Float[Tensor, ""] | None:
        """``mode_loss`` times the mean of -log P(mode), the mode being whether the target is in the session."""
        if not self.mode_loss:
            return None
        repeats = (query.items == target[:, None]).any(1).long()  # EXPLORE or REPEAT
        return self.mode_loss * F.nll_loss(query.mode, repeats)


def _without_padding(items: Int[Tensor, "B L"], num_items: int) -> Int[Tensor, "B L"]:
    """The clicks, with the session's first one in place of padding."""
    return torch.where(items == num_items, items[:, :1], items)


class _Explore(torch.autograd.Function):
    """log P(target | explore) of sessions that have not seen their target, in buffers kept from step to step."""

    @staticmethod
    def forward(ctx, query: Tensor, W_o: Tensor, items: Tensor, target: Tensor, buffers: Buffers) -> Tensor:
        """(b,) of queries (b, 2D), W_o (V, 2D), clicks (b, L) without padding and targets (b,)."""
        probs, target = buffers.matrix("probs", len(query), len(W_o), query), target[:, None]
        for some in blocks(W_o):
            torch.mm(query, W_o[some].T, out=probs[:, some])
        torch.softmax(probs.scatter_(1, items, -torch.inf), dim=1, out=probs)
        chosen = probs.gather(1, target)
        probs.scatter_(1, target, chosen - 1)
        ctx.save_for_backward(query, W_o, probs)
        return chosen.clamp(min=torch.finfo(chosen.dtype).tiny).log().squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """The gradient of the logits is ``grad (Y - P)``; `probs` holds P - Y."""
        (query, W_o, residual), minus = ctx.saved_tensors, -grad[:, None]
        scaled, grad_W_o = query * minus, torch.empty_like(W_o)
        for some in blocks(W_o):
            torch.mm(residual[:, some].T, scaled, out=grad_W_o[some])
        return (residual @ W_o) * minus, grad_W_o, None, None, None


class _Mixture(torch.autograd.Function):
    """log P of all items, with one (B, V) matrix forward and one backward.

    Left to autograd there would be ten of them, and a step of 1,024 examples on 37,483 items would take twice as long.
    """

    @staticmethod
    def forward(ctx, query: Tensor, W_o: Tensor, explore: Tensor, items: Tensor, first: Tensor, repeat: Tensor):
        """Scores (B, V).

        Args:
            query: (B, 2D), and W_o (V, 2D).
            explore: (B,) log P(explore).
            items: (B, L) the clicks, with some click of the session in place of padding.
            first: (B, L) whether a click is the first on its item.
            repeat: (B, L) log P(repeat) P(item | repeat), alike for all clicks on an item.
        """
        scores = query @ W_o.T
        scores.scatter_(1, items, -torch.inf)
        scores -= (scores.logsumexp(1) - explore)[:, None]
        scores.scatter_(1, items, repeat)
        ctx.save_for_backward(query, W_o, explore, items, first, scores)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """With P = P(item | explore) and s the sum of `grad` over unseen items, an unseen logit gets ``grad - s P``."""
        query, W_o, explore, items, first, scores = ctx.saved_tensors
        grad_repeat = grad.gather(1, items) * first
        total = grad.sum(1) - grad_repeat.sum(1)  # (B,)
        logits = (scores - explore[:, None]).exp_().mul_(-total[:, None]).add_(grad)  # (B, V)
        logits.scatter_(1, items, 0)
        return logits @ W_o, logits.T @ query, total, None, None, grad_repeat
