"""BPR-MF and FPMC: the update against a loop and the specs' figures, the sampler, what they learn, how they score."""

import pytest
import torch
from torch.nn import functional as F
from toys import chain, random_clicks, random_sessions, same

from sbr_core.batches import Batch
from sbr_core.evaluate import evaluate
from sbr_core.models.bprmf import BPRMF, Negatives, bpr_step
from sbr_core.models.fpmc import FPMC
from sbr_core.sessions import Sessions

V = 7
LOG = [[0, 1, 0, 2], [3, 3], [4], [6, 5, 4, 3, 2, 1], [0, 1, 2, 3, 4, 5, 6], [2, 6]]
PREFIXES = [[3], [5, 5], [1, 2, 1, 3], [6, 6, 6, 0, 6]]


def tables(seed=0, *rows, dim=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, dim, generator=generator).double() for count in rows]


def test_the_update_has_the_figures_of_the_specs():
    u, v = torch.tensor([[0.1, 0.2]]).double(), torch.tensor([[0.3, 0.1], [0.0, 0.4]]).double()
    bpr_step([(u, v, torch.tensor([0]))], torch.tensor([0]), torch.tensor([1]), lr=0.01, l2=0.0)
    torch.testing.assert_close(u, torch.tensor([[0.1015225, 0.1984775]]).double(), rtol=0, atol=1e-7)
    expected = torch.tensor([[0.3005075, 0.1010150], [-0.0005075, 0.3989850]]).double()
    torch.testing.assert_close(v, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 2])
def test_a_step_is_one_of_gradient_descent_on_the_summed_loss(count, l2):
    """Rows that occur twice, as left rows, as clicked items, as negatives or as both, move by the sum."""
    item, other = torch.tensor([2, 2, 0, 5, 1]), torch.tensor([1, 4, 2, 5, 4])
    row = torch.tensor([[0, 0, 1, 2, 2], [3, 1, 3, 3, 0]])[:count]
    pairs = [(*tables(p, 4, 6), row[p]) for p in range(count)]
    leaves = [[table.clone().requires_grad_() for table in pair[:2]] for pair in pairs]
    loss = torch.zeros((), dtype=torch.float64)
    for case in range(5):
        margin, decay = 0, 0
        for (left, right), index in zip(leaves, row, strict=True):
            u, r, n = left[index[case]], right[item[case]], right[other[case]]
            margin = margin + u @ r - u @ n
            decay = decay + u.square().sum() + r.square().sum() + n.square().sum()
        loss = loss - F.logsigmoid(margin) + 0.5 * l2 * decay
    loss.backward()
    bpr_step(pairs, item, other, lr=0.1, l2=l2)
    for pair, leaf in zip(pairs, leaves, strict=True):
        for table, before in zip(pair, leaf, strict=False):
            torch.testing.assert_close(table, (before - 0.1 * before.grad).detach(), rtol=0, atol=1e-12)


def test_negatives_are_drawn_evenly_from_what_the_session_never_clicks():
    train = Sessions.from_lists([*LOG[:4], LOG[5]], V)
    negatives, generator = Negatives(train), torch.Generator().manual_seed(0)
    for number in range(len(train)):
        drawn = negatives.draw(torch.full((7000,), number), generator)
        allowed = sorted(set(range(V)) - set(train[number]))
        count = torch.bincount(drawn, minlength=V)
        assert count[allowed].sum() == 7000 and (count[allowed] - 7000 / len(allowed)).abs().max() < 200


def test_negatives_of_many_sessions_are_found_as_by_a_list():
    """Number u of the items that a session lacks, with the same random numbers."""
    clicks = random_clicks(50, 12, seed=4, shortest=1)
    session = torch.randint(50, (500,), generator=torch.Generator().manual_seed(1))
    negatives = Negatives(Sessions.from_lists(clicks, 12))
    drawn = negatives.draw(session, torch.Generator().manual_seed(2))
    uniform = torch.rand(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for number, u, found in zip(session.tolist(), uniform.tolist(), drawn.tolist(), strict=True):
        missing = [item for item in range(12) if item not in clicks[number]]
        assert found == missing[int(u * len(missing))]


def test_negatives_of_the_public_code_are_the_first_events_even_the_sessions_own():
    train = Sessions.from_lists(LOG, V)
    drawn = Negatives(train, "code").draw(torch.zeros(7000, dtype=torch.long), torch.Generator().manual_seed(0))
    count = torch.bincount(drawn, minlength=V)  # the first seven events: 0 1 0 2 3 3 4
    assert count[[5, 6]].sum() == 0 and (count - torch.tensor([2, 1, 1, 2, 1, 0, 0]) * 1000).abs().max() < 150


def fit_loop(log, kinds, dim, epochs, lr, l2, seed, batch_size, width):
    """The whole fit with loops over cases and lists; `kinds` names the left row of each pair: session or last."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows):
        return torch.empty(rows, dim).uniform_(-width, width, generator=generator).double()

    pairs = [(drawn(len(log) if kind == "session" else V), drawn(V)) for kind in kinds]
    cases = []
    for q, session in enumerate(log):
        for t, item in enumerate(session):
            if (t or "last" not in kinds) and len(set(session)) < V:
                cases.append(({"session": q, "last": session[t - 1]}, q, item))
    for _ in range(epochs):
        order = torch.randperm(len(cases), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            chosen = [cases[number] for number in order[start : start + batch_size]]
            before = [(left.clone(), right.clone()) for left, right in pairs]
            uniform = torch.rand(len(chosen), generator=generator, dtype=torch.float64).tolist()
            for (rows, q, i), u in zip(chosen, uniform, strict=True):
                missing = [item for item in range(V) if item not in log[q]]
                j = missing[int(u * len(missing))]
                margin = sum(
                    left[rows[kind]] @ (right[i] - right[j]) for kind, (left, right) in zip(kinds, before, strict=True)
                )
                delta = 1 - torch.sigmoid(margin)
                for kind, old, new in zip(kinds, before, pairs, strict=True):
                    u_q, v_i, v_j = old[0][rows[kind]], old[1][i], old[1][j]
                    new[0][rows[kind]] += lr * (delta * (v_i - v_j) - l2 * u_q)
                    new[1][i] += lr * (delta * u_q - l2 * v_i)
                    new[1][j] += lr * (-delta * u_q - l2 * v_j)
    return pairs


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_fit_equals_the_update_in_a_loop(batch_size):
    settings = {"dim": 3, "epochs": 4, "lr": 0.7, "l2": 0.05, "seed": 5}
    train = Sessions.from_lists(LOG, V)
    bpr, fpmc = BPRMF(V, **settings), FPMC(V, **settings, user="mean")
    for model in (bpr, fpmc):
        model.batch_size = batch_size
        model.fit(train)
    ((_, items),) = fit_loop(LOG, ["session"], **settings, batch_size=batch_size, width=0.05)
    torch.testing.assert_close(bpr.items[:V].double(), items, rtol=0, atol=1e-6)
    (_, fits), (last, follows) = fit_loop(LOG, ["session", "last"], **settings, batch_size=batch_size, width=0.05)
    for mine, expected in ((fpmc.fits[:V], fits), (fpmc.last, last), (fpmc.next[:V], follows)):
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=1e-6)
    assert all(table[V].eq(0).all() for table in (bpr.items, fpmc.fits, fpmc.next))
    assert items.abs().max() > 0.06  # it has moved


def by_hand(model, **given):
    """The model with tables given, as after a fit."""
    model.set_tables(given)
    return model


def scores_of(model, *prefixes):
    return model.score(model.encode(Batch.of([list(prefix) for prefix in prefixes], V)))


def padded(table):
    return F.pad(table, (0, 0, 0, 1))


def test_the_scores_are_those_of_the_formulas():
    items, last, follows, fits = tables(1, V, V, V, V)
    bpr = scores_of(by_hand(BPRMF(V, 3), items=padded(items)), *PREFIXES)
    chained = {"last": last, "next": padded(follows)}
    dropped = scores_of(by_hand(FPMC(V, 3), **chained), *PREFIXES)
    mean = scores_of(by_hand(FPMC(V, 3, user="mean"), **chained, fits=padded(fits)), *PREFIXES)
    for row, prefix in enumerate(PREFIXES):
        for j in range(V):
            u, w = sum(items[i] for i in prefix) / len(prefix), sum(fits[i] for i in prefix) / len(prefix)
            chance = last[prefix[-1]] @ follows[j]
            assert bpr[row, j].item() == pytest.approx((u @ items[j]).item(), abs=1e-12)
            assert dropped[row, j].item() == pytest.approx(chance.item(), abs=1e-12)
            assert mean[row, j].item() == pytest.approx((chance + w @ fits[j]).item(), abs=1e-12)


def test_what_one_system_is_of_another():
    items, last, follows, _ = tables(1, V, V, V, V)
    bpr = scores_of(by_hand(BPRMF(V, 3), items=padded(items)), *PREFIXES)
    chained = {"last": last, "next": padded(follows)}
    none = padded(torch.zeros_like(items))
    markov = scores_of(by_hand(FPMC(V, 3), **chained), *PREFIXES)
    assert torch.equal(scores_of(by_hand(FPMC(V, 3, user="mean"), **chained, fits=none), *PREFIXES), markov)
    chained = {"last": torch.zeros_like(last), "next": padded(follows)}
    without = scores_of(by_hand(FPMC(V, 3, user="mean"), **chained, fits=padded(items)), *PREFIXES)
    torch.testing.assert_close(without, bpr, rtol=0, atol=1e-12)


def test_what_each_system_looks_at():
    train = random_sessions(80, V, seed=1)
    bpr, dropped, mean = (model.fit(train) for model in (BPRMF(V), FPMC(V), FPMC(V, user="mean")))
    mixed, other = [1, 2, 1, 3], [4, 5, 3]
    torch.testing.assert_close(scores_of(bpr, mixed), scores_of(bpr, [3, 1, 1, 2]))  # no order, but repetitions count
    assert not torch.allclose(scores_of(bpr, mixed), scores_of(bpr, [1, 2, 3]))
    torch.testing.assert_close(scores_of(bpr, [3])[0], bpr.items[:-1] @ bpr.items[3])
    torch.testing.assert_close(scores_of(dropped, mixed), scores_of(dropped, other))  # the last click alone
    assert not torch.allclose(scores_of(mean, mixed), scores_of(mean, other))
    torch.testing.assert_close(scores_of(mean, mixed), scores_of(mean, [2, 1, 1, 3]))


def test_fpmc_learns_what_follows_and_bpr_mf_what_goes_together():
    train = chain(20, 300)
    model = FPMC(20, dim=20, epochs=60).fit(train)
    assert evaluate(model, train.prefixes()).metric("HR@1") == 100
    blocks = Sessions.from_lists([[5 * (q % 4) + (q + t * t) % 5 for t in range(4)] for q in range(200)], 20)
    scores = BPRMF(20, dim=20, epochs=60).fit(blocks).scores(Batch.of([[5 * b + 1] for b in range(4)], 20))
    assert (scores.topk(5).indices // 5).tolist() == [[b] * 5 for b in range(4)]


def test_untrained_factors_recommend_what_the_session_has_clicked():
    model = BPRMF(30, epochs=0).fit(random_sessions(40, 30))
    scores = model.scores(Batch.of([[3, 9, 27], [4, 4]], 30))
    assert set(scores[0].topk(3).indices.tolist()) == {3, 9, 27} and scores[1].argmax() == 4


@pytest.mark.parametrize("cls", [BPRMF, FPMC])
def test_the_seed_is_the_argument_alone(cls):
    train = random_sessions(60, V, seed=2)
    torch.manual_seed(1)
    one = cls(V, dim=4, epochs=2).fit(train)
    torch.manual_seed(2)
    assert same(cls(V, dim=4, epochs=2).fit(train).state_dict(), one.state_dict())
    assert not same(cls(V, dim=4, epochs=2, seed=1).fit(train).state_dict(), one.state_dict())


@pytest.mark.parametrize("cls", [BPRMF, FPMC])
@pytest.mark.parametrize("log", [[[0, 1, 2, 3, 4, 5, 6]], [[3], [4]]])
def test_a_log_without_anything_to_compare_leaves_finite_factors(cls, log):
    """A session that clicks the whole catalogue has no negatives, one of a single click no pair."""
    model = cls(V).fit(Sessions.from_lists(log, V))
    assert scores_of(model, *PREFIXES).isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dim": 0}, "dim must be at least 1.*got dim=0"),
        ({"epochs": -1}, "epochs at least 0.*epochs=-1"),
        ({"lr": 0.0}, "lr positive.*lr=0.0"),
        ({"l2": -1.0}, "l2 not negative.*l2=-1.0"),
        ({"negatives": "popular"}, "negatives is one of uniform, code, got 'popular'"),
    ],
)
@pytest.mark.parametrize("cls", [BPRMF, FPMC])
def test_settings_without_meaning_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(V, **arguments)


def test_an_unknown_way_with_the_user_is_refused():
    with pytest.raises(ValueError, match="user is one of dropped, mean, got 'last'"):
        FPMC(V, user="last")
