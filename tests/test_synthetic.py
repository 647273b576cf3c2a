"""The shop's law against slow, obvious calculations: enumeration, simulation, frequencies."""

import time

import numpy as np
import pytest
import torch

from sbr_core.batches import Batch, gather
from sbr_core.evaluate import Evaluation, evaluate
from sbr_core.models.srgnn import SRGNN
from sbr_core.sessions import Sessions
from sbr_core.synthetic import MAX_LENGTH, ceiling, demo, large_catalogue, make_shop
from sbr_core.train import TrainConfig, fit


@pytest.fixture(scope="module")
def shop():
    return make_shop(np.random.default_rng(3), 20, per_category=4, num_intents=6, skew=0.7, stray=0.1)


@pytest.fixture(scope="module")
def demo_data():
    return demo()


def step_law(shop, intent, history):
    """P(next | intent, history) as a list of V numbers, straight from the three rules of the module's docstring."""
    law = []
    for item in range(shop.num_items):
        p = float(shop.intent_items[intent, item])
        if len(history) >= 1:
            p = shop.follow * float(shop.transition[history[-1], item]) + (1 - shop.follow) * p
        if len(history) >= 2:
            p = shop.revisit * (item == history[-2]) + (1 - shop.revisit) * p
        law.append(p)
    return law


def brute_force(shop, prefix):
    """P(next | prefix) = sum_z P(z, prefix, next) / P(prefix), with explicit loops."""
    joint, total = np.zeros(shop.num_items), 0.0
    for intent in range(len(shop.intent_prior)):
        p = float(shop.intent_prior[intent])
        for t, item in enumerate(prefix):
            p *= step_law(shop, intent, prefix[:t])[item]
        total += p
        joint += p * np.array(step_law(shop, intent, prefix))
    return joint / total


PREFIXES = [[5], [5, 6], [7, 7], [5, 6, 5], [9, 30, 9, 31], [0, 79, 3, 79, 79, 79, 2], [11] * 5, list(range(20, 33))]


@pytest.mark.parametrize("prefix", PREFIXES, ids=str)
def test_prediction_equals_enumeration_over_intents(shop, prefix):
    found = shop.next_probabilities(Batch.of([prefix], shop.num_items))[0]
    np.testing.assert_allclose(found.numpy(), brute_force(shop, prefix), rtol=1e-10, atol=1e-15)


def test_padding_and_neighbours_change_nothing(shop):
    together = shop.next_probabilities(Batch.of(PREFIXES, shop.num_items))
    alone = [shop.next_probabilities(Batch.of([prefix], shop.num_items))[0] for prefix in PREFIXES]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=0)
    torch.testing.assert_close(together.sum(1), torch.ones(len(PREFIXES), dtype=torch.float64))


def test_tables_are_distributions(shop):
    for table in (shop.popularity, shop.intent_prior, shop.intent_items, shop.transition):
        torch.testing.assert_close(table.sum(-1), torch.ones(table.shape[:-1], dtype=torch.float64))
    assert float(shop.transition.diagonal().sum()) == 0
    wanted = shop.category[shop.intent_items[0] > 0.1 * shop.popularity + 1e-9]
    assert wanted.tolist() == [c for c in sorted(shop.intent_pairs[0].tolist()) for _ in range(4)]
    assert shop.name(0) == "teapots 1" and shop.name(7) == "lamps 4"


def follow_one_visitor(shop, rng, prefix):
    """One session by the rules, click by click; its third item if it starts with `prefix`, else None."""
    intent = rng.choice(len(shop.intent_prior), p=shop.intent_prior.numpy())
    clicks = []
    while len(clicks) < 3:
        law = np.array(step_law(shop, intent, clicks))
        clicks.append(int(rng.choice(shop.num_items, p=law / law.sum())))
        if clicks != prefix[: len(clicks)] and len(clicks) <= len(prefix):
            return None
    return clicks[-1]


def test_prediction_equals_direct_simulation():
    """Visitors are simulated one by one; those who begin with the same two clicks show the posterior predictive."""
    rng = np.random.default_rng(0)
    shop = make_shop(rng, 20, per_category=1, num_intents=4)
    first, second = shop.intent_pairs[0].tolist()
    thirds = [third for _ in range(6000) if (third := follow_one_visitor(shop, rng, [first, second])) is not None]
    law = shop.next_probabilities(Batch.of([[first, second]], shop.num_items))[0].numpy()
    frequency = np.bincount(thirds, minlength=shop.num_items) / len(thirds)
    assert len(thirds) > 300
    assert (np.abs(frequency - law) < 4 * np.sqrt(law / len(thirds)) + 2 / len(thirds)).all()


def chi_square(observed, expected):
    """Distance in standard deviations from the mean of the chi-square law, cells under 5 pooled."""
    rare = expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    freedom = len(expected) - 1
    return (((observed - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_simulated_labels_follow_the_law(shop, length):
    """Over all prefixes of one length, the sum of the predictions is the expected count of every label."""
    windows = shop.simulate(40_000, np.random.default_rng(7)).prefixes()
    batch = gather(windows, torch.where(windows.lengths == length)[0])
    law = shop.next_probabilities(batch)
    observed = np.bincount(batch.target.numpy(), minlength=shop.num_items)
    assert abs(chi_square(observed, law.sum(0).numpy())) < 4
    rank = (law >= law.gather(1, batch.target[:, None])).sum(1).clamp(max=30)  # and of every rank of the prediction
    expected = law.sort(1, descending=True).values.sum(0).numpy()
    expected = np.append(expected[:29], expected[29:].sum())
    assert abs(chi_square(np.bincount(rank.numpy() - 1, minlength=30), expected)) < 4


def test_returns_and_successors_are_as_frequent_as_the_law_says(shop):
    windows = shop.simulate(40_000, np.random.default_rng(8)).prefixes()
    batch = gather(windows, torch.where(windows.lengths == 3)[0])
    law, row = shop.next_probabilities(batch), torch.arange(len(batch))
    successor = shop.transition[batch.items[:, 2]].argmax(1)
    for guess in (batch.items[:, 1], successor):
        p = law[row, guess]
        surplus = float(((batch.target == guess).double() - p).sum() / (p * (1 - p)).sum().sqrt())
        assert abs(surplus) < 3  # standard deviations


def test_session_ends_ignore_items(shop):
    lengths = shop.simulate(50_000, np.random.default_rng(1)).lengths
    assert int(lengths.min()) == 2 and int(lengths.max()) == MAX_LENGTH
    for n in (2, 3, 6):  # geometric: P(length = n) = (1/3) (2/3)^(n-2)
        share = (1 / 3) * (2 / 3) ** (n - 2)
        assert float((lengths == n).float().mean()) == pytest.approx(share, abs=4 * (share / 50_000) ** 0.5)


def test_demo_is_seeded_ordered_and_fast():
    begin = time.perf_counter()
    shop, train, test = demo()
    assert time.perf_counter() - begin < 1
    assert (len(train), len(test), shop.num_items) == (18_000, 2_000, 280)
    assert 3.9 < float(train.lengths.float().mean()) < 4.1 and int(train.lengths.max()) <= 20
    assert bool((train.times.diff() >= 0).all()) and int(train.times[-1]) <= int(test.times[0])
    again, other = demo()[1], demo(seed=1)[1]
    assert torch.equal(train.items, again.items) and torch.equal(train.times, again.times)
    assert not torch.equal(train.items[:100], other.items[:100])


def markov_evaluation(train, test):
    """The tiniest baseline, in a loop: count successors of the last click, fill up by popularity."""
    counts = np.zeros((train.num_items, train.num_items))
    for session in range(len(train)):
        clicks = train[session]
        for a, b in zip(clicks, clicks[1:], strict=False):
            counts[a, b] += 1
    counts += 0.1 * np.bincount(train.clicks.numpy(), minlength=train.num_items) / train.num_clicks
    ranks = []
    for session in range(len(test)):
        clicks = test[session]
        ranks += [1 + int((counts[a] > counts[a, b]).sum()) for a, b in zip(clicks, clicks[1:], strict=False)]
    windows = test.prefixes()
    assert windows.labels.tolist() == [item for s in range(len(test)) for item in test[s][1:]]  # the same order
    return Evaluation(
        torch.tensor(ranks).float(), windows.session, windows.lengths, windows.labels, "standard", None, None
    )


def test_ceiling_is_above_markov_and_in_the_interesting_range(demo_data):
    shop, train, test = demo_data
    best = ceiling(shop, test.prefixes())
    markov = markov_evaluation(train, test)
    assert 70 < best["HR@20"] < 80 and 35 < best["MRR@20"] < 42
    noise = 4 * 50 / len(test.prefixes()) ** 0.5  # four standard errors of a percentage
    assert best["HR@20 realised"] == pytest.approx(best["HR@20"], abs=noise)
    assert best["MRR@20 realised"] == pytest.approx(best["MRR@20"], abs=noise)
    plenty = markov_evaluation(shop.simulate(60_000, np.random.default_rng(9)), test)  # more data do not lift Markov
    for baseline in (markov, plenty):
        for name in ("HR@20", "MRR@20"):
            assert baseline.metric(name) < best[name] - 12


class Oracle(torch.nn.Module):
    """Scores are the law itself; with `peek`, that share of the examples gets its label on top."""

    def __init__(self, shop, peek=0.0):
        super().__init__()
        self.shop, self.peek = shop, peek

    def encode(self, batch):
        law = self.shop.next_probabilities(batch)
        told = torch.arange(len(batch)) < self.peek * len(batch)
        law[torch.arange(len(batch))[told], batch.target[told]] = 2.0
        return law.float()

    def score(self, query, ids=None):
        return query


def advantage(found, best, name):
    """How far one evaluation is above another, in percent, and the standard error of that.

    Given the inputs, the labels alone are chance. The hits of two rankings of the same examples differ only where the
    rankings disagree, so differences are taken example by example and summed by session; the error is the delta
    method's for a mean over sessions of unequal size.
    """
    by_session = torch.zeros(int(best.session.max()) + 1, 2, dtype=torch.float64)
    difference = 100 * (found.values(name) - best.values(name)).double()
    by_session.index_add_(0, best.session.long(), torch.stack([difference, torch.ones_like(difference)], 1))
    total, count = by_session.unbind(1)
    mean = total.sum() / count.sum()
    return float(mean), float((total - mean * count).square().sum().sqrt() / count.sum())


@pytest.fixture(scope="module")
def trained(demo_data):
    """SR-GNN as a reader of the book trains it: three epochs, a few seconds each."""
    torch.manual_seed(0)
    model = SRGNN(demo_data[1].num_items, dim=64)
    config = TrainConfig(epochs=3, batch_size=100, lr=6e-3, lr_decay=0.15, lr_every=2, l2=0.0)
    fit(model, demo_data[1].prefixes(), config, progress=False)
    return model


def test_nothing_beats_the_ceiling_beyond_noise_and_srgnn_comes_close(demo_data, trained):
    """Three standard errors of the paired difference are noise: about 1.2 points of HR@20 on 2,000 test sessions.

    "Close" is within 8 % of the best HR@20 and 10 % of the best MRR@20; it is 6.3 % and 7.8 % with this seed, and other
    seeds differ by less than 1 %.
    """
    shop, train, test = demo_data
    windows = test.prefixes()
    expected, best = ceiling(shop, windows), evaluate(Oracle(shop), windows)
    models = {"markov": markov_evaluation(train, test), "sr-gnn": evaluate(trained, windows)}
    for name, share in (("HR@20", 0.92), ("MRR@20", 0.90)):
        assert best.metric(name) == pytest.approx(expected[f"{name} realised"], abs=1e-3)
        for found in models.values():
            above, error = advantage(found, best, name)
            assert 0.1 < error < 1 and above < 3 * error
        assert models["sr-gnn"].metric(name) > share * expected[name]
        assert models["sr-gnn"].metric(name) > models["markov"].metric(name) + 8
        above, error = advantage(evaluate(Oracle(shop, peek=0.1), windows), best, name)
        assert above > 3 * error  # one label in ten told: a leak is seen


def test_the_hidden_intent_is_found_by_accumulating_clicks(demo_data):
    shop, _, test = demo_data
    windows = test.prefixes()
    certain = [
        float(shop.posterior(gather(windows, torch.where(windows.lengths == n)[0])).amax(1).mean()) for n in (1, 3, 6)
    ]
    assert certain[0] < 0.6 and certain[1] > certain[0] + 0.2 and certain[2] > certain[1] + 0.1


def test_ceiling_against_a_loop(shop):
    windows = shop.simulate(12, np.random.default_rng(2)).prefixes()
    expected, realised = [], []
    for example in range(len(windows)):
        prefix = windows.items[windows.start[example] : windows.target[example]].tolist()
        law = brute_force(shop, prefix)
        order = sorted(range(shop.num_items), key=lambda item: (-round(law[item], 13), item))
        rank = 1 + order.index(int(windows.labels[example]))
        expected.append([law[order[:5]].sum(), sum(law[item] / (r + 1) for r, item in enumerate(order[:5]))])
        realised.append([rank <= 5, (rank <= 5) / rank])
    found = ceiling(shop, windows, k=5, batch_size=7)
    assert list(found) == ["HR@5", "MRR@5", "HR@5 realised", "MRR@5 realised"]
    wanted = 100 * np.concatenate([np.mean(expected, 0), np.mean(realised, 0)])
    np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-9)


def test_no_other_ranking_has_a_higher_expected_value(shop):
    law = brute_force(shop, [5, 6, 5])
    order = np.argsort(-law)
    weights = {"HR": np.ones(5), "MRR": 1 / np.arange(1, 6)}
    rng = np.random.default_rng(0)
    for weight in weights.values():
        best = (law[order[:5]] * weight).sum()
        others = [(law[rng.permutation(shop.num_items)[:5]] * weight).sum() for _ in range(200)]
        swapped = [(law[np.r_[order[:4], [order[k]]]] * weight).sum() for k in range(5, 20)]
        assert max(others + swapped) <= best + 1e-15


def test_ceiling_refuses_what_is_not_the_shops(shop):
    with pytest.raises(ValueError, match="got 0 examples"):
        ceiling(shop, Sessions.from_lists([[1]], shop.num_items).prefixes())
    with pytest.raises(ValueError, match="over 9 items"):
        ceiling(shop, Sessions.from_lists([[1, 2]], 9).prefixes())


def test_large_catalogue_has_the_shape_asked_for():
    sessions = large_catalogue(num_items=100_003, num_sessions=20_000, seed=4)
    lengths = sessions.lengths.double()
    assert len(sessions) == 20_000 and int(lengths.min()) >= 2
    assert float(lengths.mean()) == pytest.approx(21.74, abs=4 * 20 / 20_000**0.5)
    assert int(sessions.items.min()) >= 0 and int(sessions.items.max()) < sessions.num_items == 100_003
    assert torch.equal(sessions.items, large_catalogue(num_items=100_003, num_sessions=20_000, seed=4).items)


def test_large_catalogue_is_skewed_and_local():
    V = 100_003
    sessions = large_catalogue(num_items=V, num_sessions=20_000, local=0.7, reach=5)
    inner = torch.ones(sessions.num_clicks, dtype=torch.bool)
    inner[sessions.offsets[:-1]] = False
    step = sessions.items.long().diff()[inner[1:]]
    step = torch.minimum(step % V, -step % V)  # distance on the circle of ids
    assert float((step <= 5).double().mean()) == pytest.approx(0.7, abs=0.01)
    assert int((step == 0).sum()) < 0.01 * len(step)
    counts = sessions.items[sessions.offsets[:-1]].long().bincount(minlength=V).sort(descending=True).values
    assert int(counts[: V // 100].sum()) > 0.3 * 20_000  # one item in a hundred gets a third of the first clicks


def test_large_catalogue_without_locality_is_popularity_alone():
    """Counts of the most popular items follow 1 / (rank + 100)."""
    sessions = large_catalogue(num_items=1_000, num_sessions=50_000, mean_length=4.0, local=0.0)
    counts = np.sort(np.bincount(sessions.items.numpy(), minlength=1_000))[::-1]
    law = np.log1p(1 / (100 + np.arange(1_000))) / np.log(11)
    np.testing.assert_allclose(np.cumsum(counts)[::100] / counts.sum(), np.cumsum(law)[::100], rtol=0.05)


def test_a_catalogue_that_no_memory_or_id_holds_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="at most 2,147,483,647 items, whose ids fit 32 bits, got 2,147,483,648"):
        large_catalogue(2**31, 10)
    monkeypatch.setattr("sbr_core.memory.machine_bytes", lambda: 16_000)
    assert large_catalogue(1_000, 10).num_items == 1_000
    with pytest.raises(ValueError, match="1,001 items takes 0.0 GB at least, .* of memory: ask for fewer items"):
        large_catalogue(1_001, 10)


@pytest.mark.parametrize("wrong", [{"num_items": 1}, {"num_sessions": 0}, {"mean_length": 2.0}])
def test_large_catalogue_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match="large catalogue"):
        large_catalogue(**({"num_items": 10, "num_sessions": 10} | wrong))
