"""BPR-MF (Rendle et al., UAI 2009): factors of sessions and items, fitted to rank a session's own items first.

Shapes: S sessions, N cases, B cases of a step, D width, V items, P pairs of tables.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sbr_core.batches import Batch
from sbr_core.models.base import CountingModel
from sbr_core.models.counting import pick, positions
from sbr_core.sessions import Sessions

NEGATIVES = ("uniform", "code")
Pair = tuple[Tensor, Tensor, Tensor]  # left table (R, D), right table (V + 1, D), row of the left one per case


def bpr_step(pairs: list[Pair], item: Int[Tensor, "B"], other: Int[Tensor, "B"], lr: float, l2: float) -> None:
    """One step of stochastic gradient descent on ``-ln sigmoid(x(item) - x(other))``, in place.

    .. math::
        x(i) = \\sum_p \\langle l_p, r_{p,i} \\rangle, \\quad \\delta = 1 - \\sigma(x(i) - x(j)), \\quad
        l \\mathrel{+}= \\eta (\\delta (r_i - r_j) - \\lambda l), \\quad
        r_i \\mathrel{+}= \\eta (\\delta l - \\lambda r_i), \\quad r_j \\mathrel{+}= \\eta (-\\delta l - \\lambda r_j)

    All cases of the step see the old values; a row that serves several of them moves by the sum.

    Args:
        pairs: the tables whose products add up to a score, and the left row of every case.
        item: the item that was clicked.
        other: the item that it is to rank above.
        lr, l2: eta and lambda.
    """
    both, decay, margin, held = torch.cat([item, other]), lr * l2, 0, []
    for left, right, row in pairs:
        L, R = left.index_select(0, row), right.index_select(0, both)  # (B, D), (2 B, D)
        difference = R[: len(item)] - R[len(item) :]
        margin = margin + (L * difference).sum(1)
        held.append((L, R, difference))
    step = lr * torch.sigmoid(-margin)[:, None]
    for (left, right, row), (L, R, difference) in zip(pairs, held, strict=True):
        left.index_add_(0, row, step * difference - decay * L)
        gain = step * L
        right.index_add_(0, both, torch.cat([gain, -gain]) - decay * R)


class Negatives:
    """Items that the clicked ones are to be ranked above.

    Args:
        train: the sessions.
        kind: "uniform": every item that the session never clicks is equally likely, and no other is drawn. "code": the
            item of one of the log's first V click events, whether the session has it or not: what the public code
            does, which takes a random item number for the number of an event.
    """

    def __init__(self, train: Sessions, kind: str = "uniform"):
        session, clicks, self.num_items = positions(train)[0], train.clicks.long(), train.num_items
        self.early = clicks[: self.num_items] if kind == "code" else None
        member = torch.unique(session * self.num_items + clicks)  # distinct (session, item), sorted
        owner, item = member // self.num_items, member % self.num_items
        self.size = torch.bincount(owner, minlength=len(train))  # distinct items of every session
        self.begin = self.size.cumsum(0) - self.size
        place = torch.arange(len(member), device=member.device) - self.begin[owner]
        self.missing_below = owner * (self.num_items + 1) + item - place  # sorted too

    def draw(self, session: Int[Tensor, "B"], generator: torch.Generator) -> Int[Tensor, "B"]:
        """One item per case.

        A session with n distinct items leaves V - n others; number u of them is u plus the number of the session's
        items i, at place p among them, with i - p <= u. So one binary search finds it, and no draw is thrown away.
        """
        uniform = torch.rand(len(session), generator=generator, dtype=torch.float64).to(session.device)
        if self.early is not None:
            return pick(self.early, (uniform * len(self.early)).long())
        number = (uniform * (self.num_items - pick(self.size, session))).long()
        key = session * (self.num_items + 1) + number
        return number + torch.searchsorted(self.missing_below, key, right=True) - pick(self.begin, session)


class Factorised(CountingModel):
    """A system that fits tables of factors by itself, by `bpr_step` from a seed of its own.

    Args:
        num_items: V.
        dim: D.
        epochs: passes over the cases; 0 leaves the factors as they were drawn.
        lr: eta, > 0.
        l2: lambda, >= 0.
        negatives: "uniform" or "code", see `Negatives`.
        seed: of the initial factors, the order of the cases and the negatives. The global seed plays no part.
    """

    batch_size, width = 1024, 0.05  # cases of a step; factors begin uniform in -width..width

    def __init__(self, num_items: int, dim: int, epochs: int, lr: float, l2: float, negatives: str, seed: int):
        super().__init__(num_items)
        if dim < 1 or epochs < 0 or lr <= 0 or l2 < 0:
            raise ValueError(
                "dim must be at least 1, epochs at least 0, lr positive and l2 not negative; "
                f"got dim={dim}, epochs={epochs}, lr={lr}, l2={l2}"
            )
        if negatives not in NEGATIVES:
            raise ValueError(f"negatives is one of {', '.join(NEGATIVES)}, got {negatives!r}")
        self.dim, self.epochs, self.lr, self.l2 = dim, epochs, lr, l2
        self.negatives, self.seed = negatives, seed

    def learn(
        self, train: Sessions, sizes: list[tuple[int, Tensor]], session: Int[Tensor, "N"], item: Int[Tensor, "N"]
    ) -> list[tuple[Tensor, Tensor]]:
        """Fit one pair of tables (left (R, D), right (V + 1, D), last row 0) for every (R, left row of every case).

        Args:
            session, item: session and clicked item of every case.
        """
        generator = torch.Generator().manual_seed(self.seed)
        tables = [(self._drawn(R, generator, item), self._drawn(self.num_items, generator, item)) for R, _ in sizes]
        negatives = Negatives(train, self.negatives)
        cases = (negatives.size[session] < self.num_items).nonzero().squeeze(1)  # there is something to rank below
        for _ in range(self.epochs):
            order = cases[torch.randperm(len(cases), generator=generator).to(cases.device)]
            for batch in order.split(self.batch_size):
                pairs = [(*pair, pick(row, batch)) for pair, (_, row) in zip(tables, sizes, strict=True)]
                other = negatives.draw(pick(session, batch), generator)
                bpr_step(pairs, pick(item, batch), other, self.lr, self.l2)
        return [(left, torch.nn.functional.pad(right, (0, 0, 0, 1))) for left, right in tables]

    def _drawn(self, rows: int, generator: torch.Generator, like: Tensor) -> Float[Tensor, "R D"]:
        return torch.empty(rows, self.dim).uniform_(-self.width, self.width, generator=generator).to(like.device)


def mean_rows(table: Float[Tensor, "V1 D"], batch: Batch) -> Float[Tensor, "B D"]:
    """Mean of the clicks' rows, a repeated click counted as often as it occurs; the padding's row is 0."""
    return table[batch.items].sum(1) / batch.lengths[:, None]


class BPRMF(Factorised):
    """BPR-MF: sessions play the users; a new session is the mean of its items' factors.

    .. math::
        x(q, i) = \\langle u_q, v_i \\rangle \\text{ in training}, \\quad
        score_j = \\langle \\tfrac1L \\sum_t v_{s_t}, v_j \\rangle \\text{ for a session } s

    Every click of a session is a case, a repeated one several. The session factors are not used again.

    Args:
        num_items: V.
        dim: D.
        epochs: passes over all clicks; 0 leaves random factors, which recommend what the session has clicked already.
        lr: learning rate, > 0.
        l2: weight decay of the rows that a case touches, >= 0.
        negatives: "uniform" over the items that the session never clicks, or "code", see `Negatives`.
        seed: of everything that is drawn.

    Shapes:
        batch.items (B, L) -> scores (B, V)

    Source: hidasib/GRU4Rec, its baselines (read, not copied); it runs 10 epochs at lr 0.01, negatives
        "code".
    Differs: cases are taken 1024 at a time. The item biases are left out: the public code has them and never moves
        them from 0.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        epochs: int = 40,
        lr: float = 0.1,
        l2: float = 1e-3,
        negatives: str = "uniform",
        seed: int = 0,
    ):
        super().__init__(num_items, dim, epochs, lr, l2, negatives, seed)

    def count(self, train: Sessions) -> dict[str, Tensor]:
        """`items` (V + 1, D): the item factors."""
        session = positions(train)[0]
        ((_, items),) = self.learn(train, [(len(train), session)], session, train.clicks.long())
        return {"items": items}

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """Products with the session's mean."""
        return mean_rows(self.items, batch) @ self.items[:-1].T
