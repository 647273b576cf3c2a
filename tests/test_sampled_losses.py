"""Sampled losses: loops over rows and candidates, the invariants and optima of the specs, candidates, refusals."""

import math
from itertools import product

import pytest
import torch

from sbr_core import row_losses as sl
from sbr_core.config import TrainConfig
from sbr_core.losses import LOSSES, FullSoftmax, Scores, make_loss
from sbr_core.models import build
from sbr_core.models.base import SessionModel
from sbr_core.row_losses import Drawn
from sbr_core.sampled_losses import GBCE, InBatchSoftmax, NegativeSampling, SampledSoftmax, Triplet
from sbr_core.sessions import Sessions

V, COUNTS = 12, torch.tensor([3, 1, 5, 9, 1, 2, 7, 4, 4, 30, 6, 8])
TARGET = torch.tensor([3, 9, 3])
KINDS = [NegativeSampling, Triplet, SampledSoftmax, GBCE]


def log_sigma(x):
    return -torch.log(1 + torch.exp(-x))


def drawn_of(rows=4, count=5, seed=0):
    """Random scores, some of which do not count, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in ((rows,), (rows, count))
    )
    kept = torch.rand(rows, count, generator=generator) < 0.7
    kept[:, 0], kept[1] = True, False  # row 1 has drawn its own target every time
    return Drawn(positive, negative, kept, torch.arange(count))


def rows_of(drawn):
    """(s_y, [s_j that count]) of every row."""
    for b in range(len(drawn.positive)):
        yield drawn.positive[b], [s for s, kept in zip(drawn.negative[b], drawn.kept[b], strict=True) if kept]


def mean(values):
    return sum(values) / len(values) if values else torch.zeros((), dtype=torch.float64)


def loops(drawn, log_q, log_q_target):
    """Every loss of a row by the equations, one candidate at a time."""
    k, found = drawn.negative.shape[1], {}
    rows = list(rows_of(drawn))
    found["mean"] = [-log_sigma(y) - mean([log_sigma(-s) for s in n]) for y, n in rows]
    found["sum"] = [-log_sigma(y) - k * mean([log_sigma(-s) for s in n]) for y, n in rows]
    found["triplet"] = [mean([torch.relu(0.7 - y + s) for s in n]) for y, n in rows]
    found["hardest"] = [max([torch.relu(0.7 - y + s) for s in n], default=y * 0) for y, n in rows]
    found["gbce"] = [-(0.3 * log_sigma(y) + k * mean([log_sigma(-s) for s in n])) / (k + 1) for y, n in rows]
    for name in ("none", "standard", "corrected", "unmasked"):
        found[name] = []
        for b, (y, n) in enumerate(rows):
            q = [log_q[j] for j in range(k) if drawn.kept[b, j]]
            if name == "none":
                terms = [s.exp() for s in n]
            elif name == "standard":
                y, terms = y - log_q_target[b], [(s - w).exp() for s, w in zip(n, q, strict=True)]
            else:
                rest = 1 - log_q_target[b].exp() if name == "corrected" else 1.0
                terms = [rest * (s - w).exp() / len(n) for s, w in zip(n, q, strict=True)]
            found[name].append((y.exp() + sum(terms)).log() - y)
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.mark.parametrize("rows, count", [(4, 5), (2, 1)])
def test_values_and_gradients_equal_loops(rows, count):
    drawn = drawn_of(rows, count)
    log_q, truth = torch.rand(count).double().log() - 1, torch.rand(rows).double().log() - 1
    expected = loops(drawn, log_q, truth)
    found = {
        "mean": sl.negative_sampling(drawn),
        "sum": sl.negative_sampling(drawn, "sum"),
        "triplet": sl.triplet(drawn, 0.7),
        "hardest": sl.triplet(drawn, 0.7, hardest=True),
        "gbce": sl.gbce(drawn, 0.3),
        "unmasked": sl.sampled_cross_entropy(drawn, log_q, truth, "corrected", masked=False),
    }
    found |= {name: sl.sampled_cross_entropy(drawn, log_q, truth, name) for name in ("none", "standard", "corrected")}
    weight = torch.rand(rows, dtype=torch.float64)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12, msg=name)
        for part in (drawn.positive, drawn.negative):
            grads = [
                torch.autograd.grad((x * weight).sum(), part, retain_graph=True, allow_unused=True)[0]
                for x in (value, expected[name])
            ]
            torch.testing.assert_close(
                *(g if g is not None else torch.zeros_like(part) for g in grads), rtol=0, atol=1e-12
            )


def given(positive, negative):
    """One row whose candidates all count."""
    negative = torch.tensor([negative]).double().requires_grad_()
    kept = torch.ones(negative.shape, dtype=torch.bool)
    return Drawn(torch.tensor([positive]).double().requires_grad_(), negative, kept, torch.arange(negative.shape[1]))


def test_figures_made_by_hand():
    drawn = given(0.0, [math.log(3), 0.0])  # sigma(-s) is 1/4 and 1/2
    assert sl.negative_sampling(drawn).item() == pytest.approx(math.log(2) + math.log(8) / 2)
    assert sl.negative_sampling(drawn, "sum").item() == pytest.approx(math.log(2) + math.log(8))
    assert sl.gbce(drawn, 0.5).item() == pytest.approx((math.log(2) / 2 + math.log(8)) / 3)
    assert sl.triplet(drawn, 0.5).item() == pytest.approx((0.5 + math.log(3) + 0.5) / 2)
    assert sl.triplet(drawn, 0.5, hardest=True).item() == pytest.approx(0.5 + math.log(3))
    uniform = torch.full((2,), -math.log(5)).double()
    assert sl.sampled_cross_entropy(drawn, uniform, uniform[:1], "none").item() == pytest.approx(math.log(1 + 3 + 1))
    # the four others of five items by the mean of two: 4 * (3 + 1) / 2 = 8
    assert sl.sampled_cross_entropy(drawn, uniform, uniform[:1], "corrected").item() == pytest.approx(math.log(1 + 8))


def test_one_negative_gives_the_mean_and_the_sum_the_same_loss():
    drawn = given(0.3, [-0.8])
    torch.testing.assert_close(sl.negative_sampling(drawn), sl.negative_sampling(drawn, "sum"))


def test_the_same_negative_again_leaves_the_mean_alone_and_multiplies_the_sums_noise():
    once, four = given(0.3, [-0.8, 0.4]), given(0.3, [-0.8, 0.4] * 4)
    truth = -log_sigma(torch.tensor([0.3]).double())
    torch.testing.assert_close(sl.negative_sampling(once), sl.negative_sampling(four))
    noise = [sl.negative_sampling(drawn, "sum") - truth for drawn in (once, four)]
    torch.testing.assert_close(4 * noise[0], noise[1])


def test_at_zero_the_truth_pulls_as_hard_as_all_negatives_push():
    drawn = given(0.0, [0.0] * 7)
    sl.negative_sampling(drawn).sum().backward()
    assert drawn.positive.grad.item() == pytest.approx(-0.5) and drawn.negative.grad.sum().item() == pytest.approx(0.5)
    assert drawn.negative.grad[0].tolist() == pytest.approx([0.5 / 7] * 7)


def test_the_triplet_loss_is_zero_exactly_where_the_margin_is_kept():
    assert sl.triplet(given(-0.2, [-0.70001]), 0.5).item() == 0
    assert sl.triplet(given(-0.2, [-0.69]), 0.5).item() == pytest.approx(0.01)


def test_gbce_is_the_public_form_without_its_powers():
    """The public code turns sigma(s)^beta into a logit in float64; ours needs neither, and does not overflow."""
    drawn, beta = drawn_of(6, 3, seed=3), 0.26
    drawn = drawn._replace(kept=torch.ones_like(drawn.kept))
    prob = torch.sigmoid(drawn.positive)
    logit = torch.log(1 / (prob**-beta - 1))
    logits = torch.cat([logit[:, None], drawn.negative], 1)
    truth = torch.zeros_like(logits)
    truth[:, 0] = 1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
    torch.testing.assert_close(sl.gbce(drawn, beta), expected, rtol=0, atol=1e-12)
    far = Drawn(
        torch.tensor([-300.0, 300.0], requires_grad=True), torch.zeros(2, 1), torch.ones(2, 1).bool(), TARGET[:1]
    )
    value = sl.gbce(far, beta)
    value.sum().backward()
    assert value.tolist() == pytest.approx([(beta * 300 + math.log(2)) / 2, math.log(2) / 2])
    assert far.positive.grad.tolist() == pytest.approx([-beta / 2, 0])


def test_the_corrected_softmax_has_the_gradient_of_the_papers_weighted_form():
    """Weight 1 - p(y), truth out of the denominator: another value, the same gradient."""
    drawn = drawn_of(5, 6, seed=2)
    drawn = drawn._replace(kept=torch.ones_like(drawn.kept))
    log_q, truth = torch.rand(6).double().log(), torch.rand(5).double().log() - 1
    rest = (drawn.negative - log_q + torch.log1p(-truth.exp())[:, None] - math.log(6)).logsumexp(1)
    uncertainty = (1 - 1 / (1 + (rest - drawn.positive).exp())).detach()
    paper = uncertainty * (rest - drawn.positive)
    ours = sl.sampled_cross_entropy(drawn, log_q, truth, "corrected")
    assert (paper - ours).abs().min() > 1e-3
    for part in (drawn.positive, drawn.negative):
        grads = [torch.autograd.grad(x.sum(), part, retain_graph=True)[0] for x in (paper, ours)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


class Given(SessionModel):
    """A model whose queries are given."""

    def __init__(self, table):
        super().__init__(len(table) - 1, table.shape[1])
        self.table = torch.nn.Parameter(table.clone())


@pytest.fixture
def scores():
    model = Given(torch.randn(V + 1, 4, dtype=torch.float64))
    return Scores(model, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


def test_the_corrected_denominator_is_right_on_average_and_the_standard_one_is_not(scores):
    every = scores().detach().exp()
    others = every.sum(1) - every[torch.arange(3), TARGET]
    for alpha in (0.0, 0.7):
        loss = SampledSoftmax(4, alpha=alpha, correction="corrected", counts=COUNTS)
        found = torch.zeros(3, dtype=torch.float64)
        for _ in range(4000):
            drawn = loss.draw(scores, TARGET)
            value = loss.rows(drawn, TARGET).detach()  # ln(e^y + others) - y
            found += (value.exp() - 1) * drawn.positive.detach().exp() / 4000
        torch.testing.assert_close(found, others, rtol=0.06, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mask_hits", [True, False])
def test_candidates_are_the_target_and_what_the_noise_draws(kind, shared, mask_hits, scores):
    loss = kind(8, shared, 0.75, mask_hits, counts=COUNTS, seed=4)
    drawn = loss.draw(scores, TARGET)
    loss.seek(0, 0)
    ids = loss.noise.draw(8) if shared else loss.noise.draw(3, 8)
    every, wide = scores(), ids.expand(3, 8)
    torch.testing.assert_close(drawn.positive, every[torch.arange(3), TARGET])
    torch.testing.assert_close(drawn.negative, every.gather(1, wide))
    hits = wide == TARGET[:, None]
    assert (hits.any() or shared) and torch.equal(drawn.kept, ~hits if mask_hits else torch.ones_like(hits))
    loss.seek(0, 0)
    torch.testing.assert_close(loss(scores, TARGET), loss.rows(drawn, TARGET).mean())


def test_what_is_called_by_name_is_the_function_of_its_candidates(scores):
    def check(loss, expected):
        drawn = loss.draw(scores, TARGET)
        torch.testing.assert_close(loss.rows(drawn, TARGET), expected(drawn))

    q = (COUNTS / COUNTS.sum()).double().log()
    check(NegativeSampling(5, counts=COUNTS), sl.negative_sampling)
    check(
        NegativeSampling(5, alpha=1.0, logq=False, reduction="sum", counts=COUNTS),
        lambda d: sl.negative_sampling(d, "sum"),
    )

    def shifted(d):
        moved = d._replace(positive=d.positive - q[TARGET] - math.log(V), negative=d.negative - q[d.ids] - math.log(V))
        return sl.negative_sampling(moved)

    check(NegativeSampling(5, alpha=1.0, counts=COUNTS), shifted)
    check(Triplet(5, margin=0.3, hardest=True, counts=COUNTS), lambda d: sl.triplet(d, 0.3, True))
    check(GBCE(4, t=0.5, counts=COUNTS), lambda d: sl.gbce(d, 1 - 0.5 * (1 - 4 / 11)))
    for correction in sl.CORRECTIONS:
        loss = SampledSoftmax(5, alpha=1.0, correction=correction, counts=COUNTS)
        check(loss, lambda d: sl.sampled_cross_entropy(d, q[d.ids], q[TARGET], loss.correction))  # noqa: B023


def test_without_calibration_gbce_is_binary_cross_entropy(scores):
    drawn = GBCE(5, t=0.0, counts=COUNTS).draw(scores, TARGET)
    torch.testing.assert_close(GBCE(5, t=0.0, counts=COUNTS).rows(drawn, TARGET), sl.gbce(drawn, 1.0))


@pytest.mark.parametrize("correction", sl.CORRECTIONS)
@pytest.mark.parametrize("mask_hits", [True, False])
def test_the_in_batch_softmax_takes_the_other_rows_targets(correction, mask_hits, scores):
    q, every, rows = (COUNTS / COUNTS.sum()).double().log(), scores(), []
    for b, y in enumerate(TARGET.tolist()):
        js = [int(t) for a, t in enumerate(TARGET) if a != b and (t != y or not mask_hits)]
        if correction == "none":
            rest, truth = sum(every[b, j].exp() for j in js), every[b, y]
        elif correction == "standard":
            rest, truth = sum((every[b, j] - q[j]).exp() for j in js), every[b, y] - q[y]
        else:
            outside = 1 - q[y].exp() if mask_hits else 1.0
            rest, truth = outside * sum((every[b, j] - q[j]).exp() for j in js) / len(js), every[b, y]
        rows.append((truth.exp() + rest).log() - truth)
    found = InBatchSoftmax(correction, mask_hits, COUNTS)(scores, TARGET)
    torch.testing.assert_close(found, torch.stack(rows).mean(), rtol=0, atol=1e-6)


def test_every_other_item_once_is_the_full_softmax(scores, monkeypatch):
    loss = SampledSoftmax(V - 1, alpha=0.0, correction="corrected", counts=COUNTS)
    monkeypatch.setattr(loss.noise, "draw", lambda *shape: torch.arange(V))
    full = FullSoftmax(form="plain")(scores, TARGET)
    torch.testing.assert_close(loss(scores, TARGET), full, rtol=0, atol=1e-6)  # the corrected one, by the mean
    none = SampledSoftmax(V - 1, alpha=0.0, correction="none", counts=COUNTS)
    monkeypatch.setattr(none.noise, "draw", lambda *shape: torch.arange(V))
    torch.testing.assert_close(none(scores, TARGET), full)


def law(alpha):
    """Three sessions' laws over five items in twentieths, and a noise law in twentieths."""
    p = torch.tensor([[8, 6, 3, 2, 1], [1, 2, 4, 5, 8], [4, 4, 4, 4, 4]])
    return p, torch.tensor([4, 4, 4, 4, 4]) if alpha == 0 else torch.tensor([10, 5, 2, 2, 1])


@pytest.mark.parametrize("alpha, logq", [(0.0, True), (1.0, False), (1.0, True)])
def test_the_optimum_of_negative_sampling(alpha, logq, monkeypatch):
    """ln p - ln P_n: under uniform noise it ranks like p, under popularity like p / P_n unless that is corrected."""
    p, noise = law(alpha)
    model = torch.nn.Module()
    model.table = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    context = torch.arange(3).repeat_interleave(20)
    target = torch.cat([torch.arange(5).repeat_interleave(row) for row in p])

    def score(query, ids):
        return model.table[query][:, ids] if ids.ndim == 1 else model.table[query].gather(1, ids)

    model.score = score
    loss = NegativeSampling(4, alpha=alpha, logq=logq, mask_hits=False, counts=noise)
    monkeypatch.setattr(loss.noise, "draw", lambda *shape: torch.arange(5).repeat_interleave(noise))  # the law, exactly
    optimizer = torch.optim.LBFGS([model.table], lr=1, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        value = loss(Scores(model, context), target)
        value.backward()
        return value

    optimizer.step(closure)
    expected = (p / 20).log() - (noise / 20).log()
    if logq:
        expected = (p / 20).log() + math.log(5)
    torch.testing.assert_close(model.table.detach(), expected.double(), rtol=0, atol=1e-5)
    ranks_like_p = torch.equal(model.table.sort(dim=1, stable=True).indices[:2], p.sort(dim=1, stable=True).indices[:2])
    assert ranks_like_p == (alpha == 0 or logq)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("correction", sl.CORRECTIONS)
def test_the_standard_softmax_is_least_at_the_law_for_every_number_of_negatives(correction, k):
    """All draws, each by its probability: the expected gradient at ln p vanishes, but not that of the other forms."""
    p, q = (torch.tensor(x).double() / sum(x) for x in ([8, 6, 3, 2, 1], [1, 2, 4, 5, 8]))
    rows = torch.tensor(list(product(range(5), repeat=1 + k)))  # the truth, then its negatives
    weight = p[rows[:, 0]] * q[rows[:, 1:]].prod(1)
    s = p.log().requires_grad_()
    kept = torch.ones(len(rows), k, dtype=torch.bool)
    drawn = Drawn(s[rows[:, 0]], s[rows[:, 1:]], kept, rows[:, 1:])
    value = sl.sampled_cross_entropy(drawn, q.log()[rows[:, 1:]], q.log()[rows[:, 0]], correction, masked=False)
    (value * weight).sum().backward()
    assert (s.grad.abs().max() < 1e-12) == (correction == "standard")


@pytest.mark.parametrize("k", [1, 2, 3])
def test_with_hits_left_out_the_standard_softmax_is_least_at_the_law_where_no_item_comes_twice(k):
    """All draws again: at ln p, rows of different candidates push nothing, those with hits or repeats do for k > 1."""
    p, q = (torch.tensor(x).double() / sum(x) for x in ([8, 6, 3, 2, 1], [1, 2, 4, 5, 8]))
    rows = torch.tensor(list(product(range(5), repeat=1 + k)))
    target, ids = rows[:, 0], rows[:, 1:]
    different = (rows[:, :, None] == rows[:, None]).sum((1, 2)) == 1 + k
    weight, pushes = p[target] * q[ids].prod(1), []
    for some in different, ~different:
        s = p.log().requires_grad_()
        drawn = Drawn(s[target], s[ids], ids != target[:, None], ids)
        value = sl.sampled_cross_entropy(drawn, q.log()[ids], q.log()[target], "standard", masked=True)
        (value * weight)[some].sum().backward()
        pushes.append(s.grad.abs().max())
    assert pushes[0] < 1e-12 and (pushes[1] < 1e-12 if k == 1 else pushes[1] > 1e-3)


@pytest.mark.parametrize("masked", [True, False])
def test_with_the_law_itself_for_negatives_the_corrected_softmax_is_least_at_the_law_where_hits_are_left_out(masked):
    """Each item as often as the noise has it is the limit of many negatives; hits that stay in are the truth again."""
    p, counts = torch.tensor([8, 6, 3, 2, 1]).double() / 20, torch.tensor([1, 2, 4, 5, 8])
    log_q, target, ids = (counts.double() / 20).log(), torch.arange(5), torch.arange(5).repeat_interleave(counts)
    s = p.log().requires_grad_()
    kept = ids != target[:, None] if masked else torch.ones(5, 20, dtype=torch.bool)
    drawn = Drawn(s[target], s[ids].expand(5, 20), kept, ids)
    value = sl.sampled_cross_entropy(drawn, log_q[ids], log_q[target], "corrected", masked)
    (value * p).sum().backward()
    assert (s.grad.abs().max() < 1e-12) == masked
    assert masked or s.grad.abs().max() > 0.01


def test_without_hits_the_optimum_of_negative_sampling_is_the_logit():
    """Every target with each of the other items once: uniform noise that never is the truth."""
    p = torch.tensor([8, 6, 3, 2, 1]).double() / 20
    s = (p.logit() + math.log(4)).requires_grad_()
    target, ids = torch.arange(5), torch.arange(5)
    drawn = Drawn(s[target], s[ids].expand(5, 5), ids != target[:, None], ids)
    (sl.negative_sampling(drawn) * p).sum().backward()
    torch.testing.assert_close(s.grad, torch.zeros_like(p), rtol=0, atol=1e-12)


def test_a_small_catalogue_has_all_other_items_as_negatives_by_default():
    assert NegativeSampling(counts=COUNTS).negatives == V - 1
    assert SampledSoftmax(counts=torch.ones(600, dtype=torch.long)).negatives == 512


def test_by_default_the_sampled_softmax_draws_by_the_root_of_the_clicks_and_the_other_losses_uniformly():
    root, uniform = COUNTS.double().sqrt(), torch.ones(V, dtype=torch.float64)
    for kind, weights in ((SampledSoftmax, root), (NegativeSampling, uniform), (Triplet, uniform), (GBCE, uniform)):
        drawn = kind(counts=COUNTS).noise.log_q(torch.arange(V)).double().exp()
        torch.testing.assert_close(drawn, weights / weights.sum(), rtol=1e-5, atol=0)


def test_published_settings_are_the_defaults():
    triplet, gbce = Triplet(counts=COUNTS), GBCE(counts=COUNTS)
    assert (triplet.negatives, triplet.shared, triplet.margin, triplet.hardest, gbce.t) == (1, False, 0.5, False, 0.75)


def test_the_other_rows_targets_come_as_often_as_items_are_targets():
    windows = Sessions.from_lists([[0, 1, 2], [0, 2], [0, 2, 1, 1]], 3).prefixes()
    loss = make_loss(build("stamp", 3), TrainConfig(loss="in-batch"), windows)
    assert loss.noise.log_q(torch.arange(3)).exp().tolist() == pytest.approx([0, 3 / 6, 3 / 6])


@pytest.mark.parametrize("kind", [*KINDS, InBatchSoftmax])
def test_losses_do_not_change_with_the_length_of_a_vector_on_the_sphere(kind, scores):
    scores.model.compare_by(normalise=True)
    loss = kind(counts=COUNTS) if kind is InBatchSoftmax else kind(5, counts=COUNTS)
    before = loss(scores, TARGET)
    with torch.no_grad():
        scores.model.table[:V] *= torch.rand(V, 1) + 0.5
    if kind is not InBatchSoftmax:
        loss.seek(0, 0)
    torch.testing.assert_close(loss(Scores(scores.model, scores.query * 9), TARGET), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [*KINDS, InBatchSoftmax])
def test_vectors_without_direction_lose_a_finite_amount_and_learn(kind, scores):
    with torch.no_grad():
        scores.model.table[:] = 0
    scores.model.compare_by(normalise=True)
    loss = kind(counts=COUNTS) if kind is InBatchSoftmax else kind(11, counts=COUNTS)
    value = loss(scores, TARGET)
    value.backward()
    grad = scores.model.table.grad.coalesce()
    assert value.isfinite() and grad.values().isfinite().all() and grad.values().abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_only_the_rows_of_candidates_get_a_gradient(kind, shared, scores):
    loss = kind(4, shared, counts=COUNTS)
    ids = loss.draw(scores, TARGET).ids
    loss.seek(0, 0)
    loss(scores, TARGET).backward()
    grad = scores.model.table.grad
    assert grad.is_sparse and set(grad.coalesce().indices()[0].tolist()) <= {3, 9, *ids.flatten().tolist()}


def test_every_step_has_its_own_negatives_and_a_seek_repeats_them(scores):
    loss = NegativeSampling(4, counts=COUNTS, seed=2)
    values = [loss(scores, TARGET).item() for _ in range(3)]
    assert len(set(values)) == 3
    loss.seek(0, 1)
    assert loss(scores, TARGET).item() == values[1]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: NegativeSampling(12, counts=COUNTS), r"negatives must lie in 1..11 .*got 12; .*loss='full'"),
        (lambda: Triplet(12, counts=COUNTS), r"""--config 'loss_arguments={"negatives":11}' draws as many as there"""),
        (lambda: Triplet(0, counts=COUNTS), "negatives must lie in 1..11 .*got 0"),
        (lambda: SampledSoftmax(3, alpha=-0.5, counts=COUNTS), r"alpha must be 0 \(uniform\) or more .*got -0.5"),
        (lambda: NegativeSampling(3, alpha=math.nan, counts=COUNTS), "alpha must be 0 .*got nan"),
        (lambda: Triplet(margin=0.0, counts=COUNTS), "margin must be positive, got 0.0: without one"),
        (lambda: Triplet(margin=-1.0, counts=COUNTS), "margin must be positive, got -1.0"),
        (lambda: NegativeSampling(3, reduction="max", counts=COUNTS), "reduction is 'mean' or 'sum', got 'max'"),
        (lambda: GBCE(3, t=1.5, counts=COUNTS), "t must lie in 0 <= t <= 1, got 1.5"),
        (lambda: GBCE(3, counts=COUNTS, precision="bf16"), "precision='bf16' is written for loss='full'"),
        (lambda: InBatchSoftmax(counts=COUNTS, precision="bf16"), "precision='bf16' is written for loss='full'"),
        (
            lambda: SampledSoftmax(3, correction="half", counts=COUNTS),
            "correction is one of corrected, standard, none",
        ),
        (lambda: InBatchSoftmax("half", counts=COUNTS), "correction is one of corrected, standard, none, got 'half'"),
        (lambda: NegativeSampling(3), r"training clicks of the items \(counts\)"),
        (lambda: SampledSoftmax(3, counts=COUNTS * 0), "nothing to draw from"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_all_are_registered():
    names = {"negative-sampling": NegativeSampling, "triplet": Triplet, "sampled-softmax": SampledSoftmax}
    names |= {"in-batch": InBatchSoftmax, "gbce": GBCE}
    assert {name: LOSSES[name] for name in names} == names
    assert all(not loss.full_catalogue for loss in names.values())
