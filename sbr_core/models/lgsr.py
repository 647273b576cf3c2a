"""LGSR (Xu et al., ECAI 2020).

Shapes: B sessions, L positions, D width, V items.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sbr_core.attention import Positions, SelfAttention, latest
from sbr_core.batches import Batch
from sbr_core.layers import last, uniform_
from sbr_core.models.base import SessionModel
from sbr_core.models.srgnn import SRGNN
from sbr_core.sessions import Sessions
from sbr_core.skipgram import SkipGram, SkipGramTask

MAX_POSITIONS = 19


class Block(nn.Module):
    """Causal self-attention, then two linear maps with a ReLU between (equations 6 to 8 of the paper).

    Args:
        dim: D.
        dropout: share of the attention weights, of the inner and of the outer layer's outputs dropped in training.
        residual: each half adds its input to its output and normalises the sum (public code).

    Shapes:
        x (B, L, D), mask (B, L) -> (B, L, D)
    """

    def __init__(self, dim: int, dropout: float, residual: bool):
        super().__init__()
        self.attention, self.dropout = SelfAttention(dim, dropout=dropout), nn.Dropout(dropout)
        self.W1, self.W2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in range(2 * residual))

    def forward(self, x: Float[Tensor, "B L D"], mask: Tensor) -> Float[Tensor, "B L D"]:
        """The state of every position; it depends on no later one."""
        y = self.attention(x, mask, causal=True)
        y = self.norms[0](y + x) if self.norms else y
        f = self.dropout(self.W2(self.dropout(torch.relu(self.W1(y)))))
        return self.norms[1](f + y) if self.norms else f


class Aggregation(nn.Module):
    """The recommender of LGSR: states of the clicks, and an attentive pooling that starts from the last one.

    Args:
        dim: D.
        pooling, residual, hard_sigmoid, dropout, max_positions: see `LGSR`.

    Shapes:
        x (B, L, D), the vectors of the clicks, and their batch -> (B, D)
    """

    def __init__(self, dim: int, pooling: bool, residual: bool, hard_sigmoid: bool, dropout: float, max_positions: int):
        super().__init__()
        self.hard_sigmoid, self.dropout = hard_sigmoid, nn.Dropout(dropout)
        self.positions, self.block = Positions(dim, max_positions), Block(dim, dropout, residual)
        if pooling:
            self.W1, self.W2 = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.q = nn.Linear(dim, 1, bias=False) if pooling else None
        self.W3 = nn.Linear(2 * dim if pooling else dim, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform(-1/sqrt(D), 1/sqrt(D)); in the two maps of the block Glorot and 0; normalisations as ever."""
        uniform_(self, self.W3.out_features**-0.5)
        for layer in (self.block.W1, self.block.W2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for norm in self.block.norms:
            norm.reset_parameters()

    def states(self, x: Float[Tensor, "B L D"], batch: Batch) -> Float[Tensor, "B L D"]:
        """f_i of every click."""
        return self.block(self.dropout(x + self.positions(batch.lengths, x.shape[1])), batch.mask)

    def weights(self, f: Float[Tensor, "B L D"], batch: Batch) -> Float[Tensor, "B L"]:
        """The pooling's attention over the clicks: a row sums to 1, padding has 0 (equation 9)."""
        inner = self.W1(last(f, batch.lengths))[:, None] + self.W2(f)
        inner = (0.2 * inner + 0.5).clamp(0, 1) if self.hard_sigmoid else torch.sigmoid(inner)
        return self.q(inner).squeeze(-1).masked_fill(~batch.mask, -torch.inf).softmax(-1)

    def forward(self, x: Float[Tensor, "B L D"], batch: Batch) -> Float[Tensor, "B D"]:
        """The query of every session."""
        f = self.states(x, batch)  # equations 6-8
        s = last(f, batch.lengths)  # (B, D), the current interest
        if self.q is not None:
            pooled = (self.weights(f, batch)[:, None] @ f).squeeze(1)  # (B, D), the long-term preference
            s = torch.cat([s, pooled], dim=-1)
        return self.W3(self.dropout(s))


class LGSR(SessionModel):
    """Self-attention and a pooling of its states, on item vectors that skip-gram on the graph of all sessions teaches.

    .. math::
        X &= E[x_i] + P[L - i], \\quad S = \\mathrm{softmax}\\big((X W_Q)(X W_K)^\\top / \\sqrt D\\big)\\, X W_V, \\quad
        F = \\mathrm{ReLU}(S W^{(1)} + b^{(1)}) W^{(2)} + b^{(2)} \\\\
        \\alpha_i &= \\mathrm{softmax}_i\\big(q \\cdot \\sigma(W_1 f_L + W_2 f_i)\\big), \\quad
        s = W_3 [f_L \\,; \\textstyle\\sum_i \\alpha_i f_i], \\quad score_j = s \\cdot y_j

    Before every epoch, `g` passes of `skipgram.SkipGram` over random walks train the same item table.

    Args:
        num_items: V.
        dim: D (paper: 100).
        g: passes of skip-gram before each epoch (paper: 2); 0 is the ablation LGSR-C.
        recommender: "attention", or "sr-gnn" (LGSR-H: an SR-GNN in place of all of the above).
        pooling: False has f_L alone, s = W_3 f_L (LGSR-A).
        residual: residuals and normalisations around attention and maps (public code).
        hard_sigmoid: clip(0.2 x + 0.5, 0, 1) in the place of the sigmoid (public code).
        dropout: share dropped in training of inputs, attention weights, both layers and [f_L; pooled] (paper: 0.3).
        max_positions: clicks of a session that are read, the last ones.
        nce: noise-contrastive estimation (public code) instead of plain negative sampling (paper).
        rounds, length: random walks from each item and items of a walk (paper: 13 and 50).
        window: places on either side of a label (paper: 8).
        off_by_one: one place less on the right (public code).
        negatives: of a step, shared by its pairs (paper: 512); at most half of the items of the graph.
        pairs: of a step of skip-gram (public code: 8,192).
        pairs_per_pass: share of the walks' pairs that a pass goes through, 0 < share <= 1.
        skipgram_lr: rate of skip-gram.
        skipgram_decays: that rate falls as the recommender's does (public code) instead of staying as it is.
        label_bias: the biases of nce start at the logarithms of the labels' shares instead of 0 (ours).
        seed: of the walks, their order and the negatives.

    Shapes:
        batch.items (B, L) -> query s (B, D)

    Source: paper section 2; chenjh1988/LGSR (read, not copied).
    Differs: skip-gram's rate is constant unless told otherwise; the public code lets both rates fall tenfold ten times
        an epoch, to 1e-13 after the first. Its Adam moves every row of the item table by its momentum at each step of
        skip-gram, this one moves the rows looked up. A full pass has more than 1e8 pairs on Yoochoose 1/64: minutes on
        two cores, and `pairs_per_pass` is for those who have less time. No row of P or E is kept at zero: padding is
        masked.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        g: int = 2,
        recommender: str = "attention",
        pooling: bool = True,
        residual: bool = False,
        hard_sigmoid: bool = False,
        dropout: float = 0.3,
        max_positions: int = MAX_POSITIONS,
        nce: bool = False,
        rounds: int = 13,
        length: int = 50,
        window: int = 8,
        off_by_one: bool = False,
        negatives: int = 512,
        pairs: int = 8192,
        pairs_per_pass: float = 1.0,
        skipgram_lr: float = 1e-3,
        seed: int = 0,
        label_bias: bool = False,
        skipgram_decays: bool = False,
    ):
        if g < 0 or not 0 <= dropout < 1 or not 0 < pairs_per_pass <= 1 or skipgram_lr <= 0:
            raise ValueError(
                "g must be 0 or more, skipgram_lr positive, and 0 <= dropout < 1 and 0 < pairs_per_pass <= 1, got "
                f"g={g}, skipgram_lr={skipgram_lr}, dropout={dropout} and pairs_per_pass={pairs_per_pass}"
            )
        super().__init__(num_items, dim)
        if recommender not in ("attention", "sr-gnn"):
            raise ValueError(f"recommender is 'attention' or 'sr-gnn', got {recommender!r}")
        if recommender == "sr-gnn" and (residual or hard_sigmoid or not pooling or max_positions != MAX_POSITIONS):
            raise ValueError(
                "recommender='sr-gnn' has no part that pooling, residual, hard_sigmoid or max_positions could change, "
                f"got pooling={pooling}, residual={residual}, hard_sigmoid={hard_sigmoid} and "
                f"max_positions={max_positions}: leave them out"
            )
        if g == 0 and (label_bias or skipgram_decays):
            raise ValueError(
                "g=0 has no skip-gram that label_bias or skipgram_decays could change, got "
                f"label_bias={label_bias} and skipgram_decays={skipgram_decays}: leave them out, or set g to 1 or more"
            )
        self.g, self.max_positions = g, max_positions
        self.skipgram_settings = pairs_per_pass, skipgram_lr, skipgram_decays
        if recommender == "sr-gnn":
            self.recommender = SRGNN(num_items, dim)
            self.table = self.recommender.table  # one table: that of this model
            del self.recommender.table
            self.recommender.embed = self.embed
        else:
            nn.init.uniform_(self.table, -(dim**-0.5), dim**-0.5)
            self.recommender = Aggregation(dim, pooling, residual, hard_sigmoid, dropout, max_positions)
        walking = (rounds, length, window, off_by_one, negatives, pairs, seed, label_bias)
        self.skipgram = SkipGram(num_items, dim, nce, *walking) if g else None

    def prepare(self, train: Sessions) -> None:
        """Walk through the graph of the training sessions, if there are passes of skip-gram to come."""
        if self.skipgram is not None:
            self.skipgram.prepare(train)

    def auxiliary_tasks(self) -> list:
        """Skip-gram, `g` passes of it an epoch."""
        return [SkipGramTask(self, self.g, *self.skipgram_settings)] if self.g else []

    def encode(self, batch: Batch) -> Float[Tensor, "B D"]:
        if isinstance(self.recommender, SRGNN):
            return self.recommender.encode(batch)
        batch = latest(batch, self.max_positions)
        return self.recommender(self.embed(batch.items), batch)
