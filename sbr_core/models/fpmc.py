"""FPMC (Rendle et al., WWW 2010): a factorised Markov chain beside factorised sessions, baskets of one click.

Shapes: B sessions, L positions, D width, V items.
"""

from jaxtyping import Float
from torch import Tensor

from sbr_core.batches import Batch
from sbr_core.models.bprmf import Factorised, mean_rows
from sbr_core.models.counting import positions
from sbr_core.sessions import Sessions

USERS = ("dropped", "mean")


class FPMC(Factorised):
    """FPMC: what follows the last click, from factors, plus what fits the session.

    .. math::
        x(q, l, i) = \\langle V^{UI}_q, V^{IU}_i \\rangle + \\langle V^{LI}_l, V^{IL}_i \\rangle

    is fitted to all pairs of neighbouring clicks l, i of a session q. A new session has no V^{UI}; its score is

    .. math::
        score_j = \\langle V^{LI}_{s_L}, V^{IL}_j \\rangle \\;\\Bigl(+\\; \\bigl\\langle \\tfrac1L \\sum_t V^{IU}_{s_t},
        V^{IU}_j \\bigr\\rangle\\Bigr)

    Args:
        num_items: V.
        dim: D, of both pairs of tables.
        epochs: passes over all pairs of neighbouring clicks.
        lr: learning rate, > 0.
        l2: weight decay of the rows that a case touches, >= 0.
        negatives: "uniform" over the items that the session never clicks, or "code", see `bprmf.Negatives`.
        user: "dropped" leaves the session's term out when scoring (as in the comparisons that papers copy); "mean"
            puts the mean of the session's V^{IU} in the place of the unknown V^{UI} (rn5l/session-rec).
        seed: of everything that is drawn.

    Shapes:
        batch.items (B, L) -> scores (B, V)

    Source: rn5l/session-rec (read, not copied), within a fixed budget of steps. It means to draw hard negatives, those
        with high scores; as read, its ranking has the wrong sign and the negatives are easy ones.
    Differs: plain stochastic gradient descent, 1024 cases at a time, uniform negatives.
    """

    def __init__(
        self,
        num_items: int,
        dim: int = 100,
        epochs: int = 40,
        lr: float = 0.1,
        l2: float = 1e-3,
        negatives: str = "uniform",
        user: str = "dropped",
        seed: int = 0,
    ):
        super().__init__(num_items, dim, epochs, lr, l2, negatives, seed)
        if user not in USERS:
            raise ValueError(f"user is one of {', '.join(USERS)}, got {user!r}")
        self.user = user

    def count(self, train: Sessions) -> dict[str, Tensor]:
        """`last` = V^LI (V, D) and `next` = V^IL (V + 1, D); `fits` = V^IU (V + 1, D) where scoring needs it."""
        session, position = positions(train)
        clicks, later = train.clicks.long(), position.nonzero().squeeze(1)
        session = session[later]
        sizes = [(len(train), session), (self.num_items, clicks[later - 1])]
        (_, fits), (last, follows) = self.learn(train, sizes, session, clicks[later])
        return {"last": last, "next": follows} | ({"fits": fits} if self.user == "mean" else {})

    def scores(self, batch: Batch) -> Float[Tensor, "B V"]:
        """The chain's term, and the session's where `user` wants it."""
        last = batch.items.gather(1, batch.lengths[:, None] - 1).squeeze(1)
        scores = self.last[last] @ self.next[:-1].T
        if self.user == "mean":
            scores = scores.addmm_(mean_rows(self.fits, batch), self.fits[:-1].T)
        return scores
