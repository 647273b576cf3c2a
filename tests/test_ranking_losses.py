"""The losses of GRU4Rec: the figures of the specs, loops over rows and candidates, candidates and refusals."""

import math

import pytest
import torch
from torch.nn import functional as F

from sbr_core import ranking_losses as rl
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.base import SessionModel
from sbr_core.ranking_losses import BPR, TOP1, XE, BPRMax, TOP1Max

TWO = torch.tensor([[2.0, 0.0], [1.0, 3.0]]).double()
THREE = torch.tensor([[2.0, 0.0, 1.0], [1.0, 3.0, -1.0]]).double()
FORMS = {
    "xe": rl.cross_entropy,
    "bpr": rl.bpr,
    "top1": rl.top1,
    "top1-max": rl.top1_max,
    "bpr-max": lambda r: rl.bpr_max(r, 0.7),
}


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def loss_loop(name, r):
    """Loss of every row, written from the equations, one candidate at a time."""
    rows = []
    for b in range(len(r)):
        others = [j for j in range(r.shape[1]) if j != b]
        top = sum(torch.exp(r[b, j]) for j in others)
        s = {j: torch.exp(r[b, j]) / top for j in others}
        every = range(r.shape[1])
        if name == "xe":
            rows.append(-torch.log(torch.exp(r[b, b]) / sum(torch.exp(r[b, j]) for j in every) + 1e-24))
        elif name == "bpr":
            rows.append(-sum(torch.log(sigmoid(r[b, b] - r[b, j])) for j in every) / len(every))
        elif name == "top1":
            total = sum(sigmoid(r[b, j] - r[b, b]) + sigmoid(r[b, j] ** 2) for j in every)
            rows.append(total / len(every) - sigmoid(r[b, b] ** 2) / len(every))
        elif name == "top1-max":
            rows.append(sum(s[j] * (sigmoid(r[b, j] - r[b, b]) + sigmoid(r[b, j] ** 2)) for j in others))
        else:
            won = sum(s[j] * sigmoid(r[b, b] - r[b, j]) for j in others)
            rows.append(-torch.log(won + 1e-24) + 0.7 * sum(s[j] * r[b, j] ** 2 for j in others))
    return torch.stack(rows)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("rows, extra", [(2, 0), (5, 0), (5, 4), (1, 3)])
def test_value_and_gradient_equal_a_loop(name, rows, extra):
    r = torch.randn(rows, rows + extra, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(rows, dtype=torch.float64)
    found, expected = FORMS[name](r), loss_loop(name, r)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad((value * weight).sum(), r)[0] for value in (found, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def assert_close(found, *expected):
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_the_figures_of_the_specs_without_samples():
    assert_close(rl.cross_entropy(TWO), 0.126928, 0.126928)
    assert rl.bpr(TWO).mean().item() == pytest.approx(0.410038, abs=1e-6)
    assert_close(rl.top1(TWO), 0.559601, 0.675131)
    assert rl.top1(TWO).mean().item() == pytest.approx(0.617366, abs=1e-6)
    assert_close(rl.top1_max(TWO), 0.619203, 0.850262)
    assert_close(rl.bpr_max(TWO, 1.0), 0.126928, 1.126928)


def test_the_figures_of_the_specs_with_one_sample():
    assert_close(rl.hardness(THREE)[0], 0, 0.268941, 0.731059)
    assert_close(rl.hardness(THREE)[1], 0.880797, 0, 0.119203)
    assert_close(rl.bpr_max(THREE, 0.5), 0.625169, 0.613323)
    assert_close(rl.bpr_max(rl.activate(THREE, "elu-0.5"), 0.5), 0.625169, 0.511744)


def test_the_figures_of_the_specs_for_logq():
    loss = XE(1, 0.5, counts=torch.tensor([10, 100, 1000]), logq=1.0)
    corrected = loss.corrected(THREE, torch.tensor([0, 1, 2]))
    assert_close(corrected[0], -0.302585, -4.605170, -2.453878)
    assert_close(corrected[1], -1.302585, -1.605170, -4.453878)
    assert_close(loss.rows(corrected), 0.122100, 0.880154)


def test_gradients_flow_through_the_weights_of_the_max_losses():
    for name in ("top1-max", "bpr-max"):
        r = THREE.clone().requires_grad_()
        FORMS[name](r).sum().backward()
        frozen = THREE.clone().requires_grad_()
        s = rl.hardness(THREE)
        truth = frozen.diagonal()[:, None]
        if name == "top1-max":
            (s * (sigmoid(frozen - truth) + sigmoid(frozen**2))).sum().backward()
        else:
            (-(s * sigmoid(truth - frozen)).sum(1).log().sum() + 0.7 * (s * frozen**2).sum()).backward()
        assert (r.grad - frozen.grad).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["xe", "bpr-max", "top1-max"])
def test_candidates_scored_minus_infinity_change_nothing(name):
    wide = torch.cat([THREE, torch.full((2, 2), -math.inf).double()], 1).requires_grad_()
    assert_close(FORMS[name](wide), *FORMS[name](THREE).tolist())
    FORMS[name](wide[:, :3]).sum().backward()
    expected, wide.grad = wide.grad, None
    masked = torch.randn(2, 5).double().requires_grad_()
    hidden = torch.tensor([[False] * 3 + [True] * 2] * 2)
    FORMS[name](torch.where(hidden, -math.inf, torch.cat([THREE, masked[:, 3:]], 1))).sum().backward()
    assert masked.grad[:, 3:].eq(0).all() and expected.isfinite().all()


@pytest.mark.parametrize("name", ["xe", "bpr-max"])
def test_a_truth_whose_probability_underflows_loses_a_finite_amount(name):
    r = torch.tensor([[-200.0, 0.0], [0.0, 0.0]], requires_grad=True)
    rows = FORMS[name](r)
    torch.testing.assert_close(rows, torch.tensor([-math.log(1e-24), math.log(2)]))
    rows.sum().backward()
    assert r.grad.isfinite().all()


def test_a_truth_without_others_meets_no_hardness():
    assert rl.hardness(torch.tensor([[1.0]])).tolist() == [[0.0]]


def test_activations():
    x = torch.tensor([[-2.0, 0.0, 3.0]]).double()
    assert torch.equal(rl.activate(x, "linear"), x) and torch.equal(rl.activate(x, "tanh"), x.tanh())
    assert_close(rl.activate(x, "elu-0.5")[0], 0.5 * (math.exp(-2) - 1), 0.0, 3.0)
    assert_close(rl.activate(x, "elu-1")[0], math.exp(-2) - 1, 0.0, 3.0)


class Given(SessionModel):
    """A model whose queries are given."""

    def __init__(self, table):
        super().__init__(len(table) - 1, table.shape[1])
        self.table = torch.nn.Parameter(table.clone())


V, COUNTS = 12, torch.tensor([3, 0, 5, 9, 1, 2, 7, 0, 4, 30, 6, 8])


@pytest.fixture
def scores():
    model = Given(torch.randn(V + 1, 4, dtype=torch.float64))
    return Scores(model, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


TARGET = torch.tensor([3, 9, 3])


@pytest.mark.parametrize("kind", [XE, BPRMax, TOP1Max, BPR, TOP1])
@pytest.mark.parametrize("negatives", [0, 5])
def test_the_candidates_are_the_targets_and_then_the_samples(kind, negatives, scores):
    loss = kind(negatives, 0.75, counts=COUNTS, seed=4, batch_size=8)
    sampled = loss.sampler.draw() if negatives else TARGET[:0]
    loss.seek(0, 0)
    ids = torch.cat([TARGET, sampled])
    r = torch.stack([scores()[:, i] for i in ids.tolist()], 1)
    if kind is XE:
        r = r - torch.tensor([math.log(COUNTS[i]) * (1 if at < 3 else 0.75) for at, i in enumerate(ids.tolist())])
    r = r.tanh() if kind in (BPR, TOP1) else r
    name = {XE: "xe", BPR: "bpr", TOP1: "top1", TOP1Max: "top1-max"}.get(kind)
    rows = loss_loop(name, r) if name else rl.bpr_max(r, 1.0)
    torch.testing.assert_close(loss(scores, TARGET), rows.sum() / 8, rtol=0, atol=1e-6)


def test_the_sum_is_divided_by_the_nominal_size_or_by_the_rows(scores):
    plain, nominal = (BPRMax(5, counts=COUNTS, batch_size=size)(scores, TARGET) for size in (None, 12))
    torch.testing.assert_close(plain * 3 / 12, nominal)


def test_accidental_hits_stay_unless_they_are_masked(scores):
    """Rows 0 and 2 have the same target: each is the other's negative, as in the public code."""
    loss = XE(0, logq=0.0)
    r = scores()[:, TARGET]
    torch.testing.assert_close(loss(scores, TARGET), loss_loop("xe", r).mean())
    without = torch.stack([F.cross_entropy(r[b, keep][None], torch.tensor([at])) for b, keep, at in
                           ((0, [0, 1], 0), (1, [0, 1, 2], 1), (2, [1, 2], 1))])  # fmt: skip
    torch.testing.assert_close(XE(0, logq=0.0, mask_hits=True)(scores, TARGET), without.mean())


def test_rows_that_masking_leaves_without_a_negative_lose_a_finite_amount(scores):
    loss = BPRMax(0, mask_hits=True)(scores, torch.tensor([3, 3, 3]))
    assert loss.item() == pytest.approx(-math.log(1e-24))
    loss.backward()
    assert scores.query.grad.isfinite().all()


def test_every_item_once_as_a_sample_is_the_full_softmax(scores, monkeypatch):
    """Up to the targets, which are candidates twice: masking them leaves the full softmax exactly."""
    loss = XE(1, 0.0, counts=COUNTS, logq=0.0, mask_hits=True)
    monkeypatch.setattr(loss.sampler, "draw", lambda: torch.arange(V))
    distinct = torch.tensor([3, 9, 4])
    r = torch.cat([scores()[:, distinct], scores()], 1)
    once = r.clone()
    for b in range(3):
        once[b, [3 + int(i) for i in distinct]] = -math.inf  # every target is a column already
    full = FullSoftmax(form="plain")(scores, distinct)
    torch.testing.assert_close(rl.cross_entropy(once).mean(), full)
    loss.mask_hits = False
    torch.testing.assert_close(loss(scores, distinct), rl.cross_entropy(r).mean())


@pytest.mark.parametrize("kind", [XE, BPRMax, TOP1Max])
def test_only_the_rows_of_candidates_get_a_gradient(kind, scores):
    loss = kind(4, counts=COUNTS)
    sampled = loss.sampler.draw()
    loss.seek(0, 0)
    loss(scores, TARGET).backward()
    grad = scores.model.table.grad
    assert grad.is_sparse and set(grad.coalesce().indices()[0].tolist()) == {3, 9, *sampled.tolist()}


def test_samples_are_drawn_anew_at_every_step_and_repeat_after_a_seek(scores):
    loss = BPRMax(4, counts=COUNTS, seed=2)
    values = [loss(scores, TARGET).item() for _ in range(3)]
    assert len(set(values)) == 3
    loss.seek(0, 1)
    assert loss(scores, TARGET).item() == values[1]


def test_a_loss_knows_how_many_rows_it_needs():
    assert XE(0, logq=0.0).least_rows == 2 and XE(3, counts=COUNTS).least_rows == 1 and TOP1().least_rows == 2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: BPRMax(activation="relu", counts=COUNTS), "activation is 'linear', 'tanh' or 'elu-a'.* got 'relu'"),
        (lambda: BPRMax(activation="elu-0", counts=COUNTS), "with a > 0 .*got 'elu-0'"),
        (lambda: BPRMax(activation="elu-x", counts=COUNTS), "got 'elu-x'"),
        (lambda: XE(precision="bf16", counts=COUNTS), "precision='bf16' is written for loss='full'"),
        (lambda: XE(-1, counts=COUNTS), r"negatives must lie in 0\.\.11 \(fewer than the 12 items\), got -1"),
        (lambda: XE(V, counts=COUNTS), "fewer than the 12 items.* got 12; .*all items use loss='full'"),
        (lambda: BPRMax(100_000, counts=COUNTS), "fewer than the 12 items.* got 100000"),
        (lambda: BPRMax(7), "negatives=7 wants the training clicks"),
        (lambda: TOP1Max(), "negatives=None wants the training clicks"),
        (lambda: BPRMax(penalty=-1.0, counts=COUNTS), "penalty must be 0 .none. or more, and finite, got -1.0"),
        (lambda: BPRMax(penalty=math.nan, counts=COUNTS), "penalty must be .* got nan"),
        (lambda: XE(logq=-1.0, counts=COUNTS), "logq must be 0 .none. or more, and finite, got -1.0"),
        (lambda: XE(logq=math.inf, counts=COUNTS), "logq must be .* got inf"),
        (lambda: XE(0), "logq=1.0 wants the training clicks"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_ranking_without_a_form_says_so(scores):
    with pytest.raises(TypeError, match="Ranking does not say what a row loses"):
        rl.Ranking(0)(scores, TARGET)


@pytest.mark.parametrize("items, negatives", [(12, 11), (5000, 2048)])
def test_samples_are_2048_or_all_other_items_of_a_smaller_catalogue(items, negatives):
    loss = BPRMax(counts=torch.ones(items, dtype=torch.long))
    assert loss.negatives == len(loss.sampler.draw()) == negatives
