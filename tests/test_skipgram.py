"""Skip-gram: pairs against a loop over windows, the loss against a loop over pairs, the law of the negatives."""

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from toys import random_sessions, same

from sbr_core import checkpoints, train
from sbr_core.config import TrainConfig
from sbr_core.graphs import global_graph
from sbr_core.models import build
from sbr_core.sessions import Sessions
from sbr_core.skipgram import LogUniform, Pairs, SkipGram, SkipGramTask
from sbr_core.train import fit, train_step
from sbr_core.walks import by_degree

V, D = 24, 5
TRAIN = random_sessions(80, V, seed=2, shortest=2)
SMALL = {"rounds": 2, "length": 9, "window": 3, "negatives": 6, "size": 64}
FORMS = pytest.mark.parametrize("nce", [False, True], ids=["sampled", "nce"])


def random_walks_of_any_length(count=30, longest=9, seed=0):
    """Walks as lists, some of one item, and the padded tensor that holds them."""
    draw = random.Random(seed)
    walks = [[draw.randrange(V) for _ in range(draw.randint(1, longest))] for _ in range(count)]
    return walks, torch.tensor([walk + [V] * (longest - len(walk)) for walk in walks], dtype=torch.int32)


def pairs_loop(walk, left, right):
    """(input, label) of every window of a walk."""
    pairs = []
    for i, label in enumerate(walk):
        for j in range(max(0, i - left), min(len(walk), i + right + 1)):
            if j != i:
                pairs.append((walk[j], label))
    return pairs


def whole_pass(pairs, number):
    """All pairs of a pass, step by step."""
    steps = [pairs.batch(number, step) for step in range(-(-len(pairs) // pairs.size))]
    assert all(len(inputs) == len(labels) == pairs.size for inputs, labels in steps[:-1])
    return [pair for inputs, labels in steps for pair in zip(inputs.tolist(), labels.tolist(), strict=True)]


@pytest.mark.parametrize("left, right", [(8, 8), (8, 7), (3, 3), (3, 2), (1, 1), (1, 0)])
@pytest.mark.parametrize("size", [7, 50, 100_000])
def test_a_pass_has_the_pairs_of_a_loop_over_all_windows(left, right, size):
    walks, tensor = random_walks_of_any_length()
    pairs = Pairs(tensor, V, left, right, size, seed=1)
    expected = [pair for walk in walks for pair in pairs_loop(walk, left, right)]
    for number in (0, 1):
        found = whole_pass(pairs, number)
        assert len(found) == len(pairs) == len(expected) and Counter(found) == Counter(expected)


def test_the_pairs_of_a_walk_come_together_and_the_walks_in_another_order_every_pass():
    walks, tensor = random_walks_of_any_length()
    pairs, orders = Pairs(tensor, V, 3, 3, 40, seed=1), []
    for number in (0, 1):
        found, left, order = whole_pass(pairs, number), list(range(len(walks))), []
        while found:
            sizes = {walk: len(pairs_loop(walks[walk], 3, 3)) for walk in left}
            fits = [w for w in left if sizes[w] and Counter(found[: sizes[w]]) == Counter(pairs_loop(walks[w], 3, 3))]
            assert fits, "the next pairs are those of no walk"
            order.append(fits[0])
            left.remove(fits[0])
            found = found[sizes[fits[0]] :]
        orders.append(order)
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("left, right", [(8, 8), (3, 2), (1, 0)])
def test_labels_are_counted_as_in_a_loop_over_all_windows(left, right):
    walks, tensor = random_walks_of_any_length()
    labels = Counter(label for walk in walks for _, label in pairs_loop(walk, left, right))
    assert Pairs(tensor, V, left, right, 50, seed=1).label_counts().tolist() == [labels[item] for item in range(V)]


def mean_slope_of_the_biases(label_bias, passes=20):
    """Length of the mean gradient of the biases over whole passes, while all vectors are zero."""
    skipgram = SkipGram(V, D, nce=True, **SMALL, label_bias=label_bias)
    skipgram.prepare(TRAIN)
    skipgram.theta.data.zero_()
    steps = range(-(-len(skipgram.pairs) // skipgram.size))
    losses = [skipgram.loss(lambda ids: torch.zeros(*ids.shape, D), n, step) for n in range(passes) for step in steps]
    (slope,) = torch.autograd.grad(sum(losses) / len(losses), skipgram.bias)
    return slope.to_dense().norm().item()


def test_biases_can_start_at_the_shares_of_the_labels_and_have_no_way_to_go_then():
    skipgram = SkipGram(V, D, nce=True, **SMALL, label_bias=True)
    assert not skipgram.bias.any()  # nothing is known before the walks
    skipgram.prepare(TRAIN)
    counts = skipgram.pairs.label_counts()
    assert counts.min() > 0
    torch.testing.assert_close(skipgram.bias.exp().flatten(), counts / counts.sum())
    assert mean_slope_of_the_biases(True) < 0.1 * mean_slope_of_the_biases(False)


def test_a_step_depends_on_its_number_alone():
    _, tensor = random_walks_of_any_length()
    one, two = Pairs(tensor, V, 3, 3, 20, seed=1), Pairs(tensor, V, 3, 3, 20, seed=1)
    before = [tensor.tolist() for tensor in one.batch(3, 2)]
    for number, step in ((0, 0), (3, 4), (2, 1)):
        two.batch(number, step)
    assert before == [tensor.tolist() for tensor in two.batch(3, 2)] != [t.tolist() for t in two.batch(2, 2)]
    assert before != [tensor.tolist() for tensor in Pairs(tensor, V, 3, 3, 20, seed=2).batch(3, 2)]


def test_the_law_of_the_negatives_is_log_uniform():
    labels = torch.tensor([4, 0, 2, 9, 1, 7])
    noise = LogUniform(labels, 10, 3)
    expected = [math.log((k + 2) / (k + 1)) / math.log(7) for k in range(6)]
    assert noise.law.sum().item() == pytest.approx(1, abs=1e-12)
    assert noise.law.tolist() == pytest.approx(expected, rel=1e-12)
    by_item = [0.0] * 10
    for rank, item in enumerate(labels.tolist()):
        by_item[item] = expected[rank]
    assert noise.of_item.tolist() == pytest.approx(by_item, rel=1e-12)


def one_after_another(law, count):
    """P(k is in the sample) and the mean number of tries, over all samples in all orders, repeats thrown away."""
    inside, tries = torch.zeros(len(law), dtype=torch.float64), 0.0
    for order in itertools.permutations(range(len(law)), count):
        chance, wait, left = 1.0, 0.0, 1.0
        for label in order:
            chance, wait = chance * law[label] / left, wait + 1 / left
            left -= law[label]
        inside[list(order)] += chance
        tries += chance * wait
    return inside, tries


def test_the_race_draws_as_drawing_one_after_another_does():
    noise, samples = LogUniform(torch.arange(7), 7, 3), 2500
    inside, tries = one_after_another(noise.law.tolist(), 3)
    found, first = torch.zeros(7, dtype=torch.float64), torch.zeros(7, dtype=torch.float64)
    total = 0.0
    for seed in range(samples):
        ids, time = noise.draw(seed)
        found[ids] += 1
        first[ids[0]] += 1
        total += time
    close = {"rtol": 0, "atol": 0.035}
    torch.testing.assert_close(found / samples, inside, **close)
    torch.testing.assert_close(first / samples, noise.law, **close)  # the first of a sample: the law itself
    assert total / samples == pytest.approx(tries, rel=0.03)  # the time stands for the number of tries


def test_the_expected_number_is_the_chance_to_have_arrived():
    noise = LogUniform(torch.tensor([3, 0, 2, 1]), 4, 2)
    for time in (1e-9, 0.7, 3.0, 40.0):
        expected = [math.log(-math.expm1(-time * noise.law[rank].item())) for rank in (3, 1, 0)]
        found = noise.log_expected(torch.tensor([1, 0, 3]), time)
        assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_negatives_are_distinct_drawn_from_the_graph_alone_and_no_more_than_half_of_it():
    noise = LogUniform(torch.tensor([5, 8, 1, 3, 0]), 9, 512)
    for seed in range(20):
        ids, _ = noise.draw(seed)
        assert len(ids) == 2 == len(set(ids.tolist())) and set(ids.tolist()) <= {5, 8, 1, 3, 0}
    assert noise.draw(3)[0].tolist() == noise.draw(3)[0].tolist()
    assert len({tuple(noise.draw(seed)[0].tolist()) for seed in range(20)}) > 5


def skipgram_of(nce, **more):
    torch.manual_seed(1)
    skipgram = SkipGram(V, D, nce, **SMALL | more).double()
    if nce:
        torch.nn.init.normal_(skipgram.bias)
    skipgram.prepare(TRAIN)
    return skipgram, torch.randn(V + 1, D, dtype=torch.float64, requires_grad=True)


def loss_loop(skipgram, table, inputs, labels, negatives, time):
    """Mean over the pairs, term by term."""

    def score(i, c):
        plain = (table[i] * skipgram.theta[c]).sum()
        if skipgram.bias is None:
            return plain
        rank = by_degree(global_graph(TRAIN)).tolist().index(c)
        law = math.log((rank + 2) / (rank + 1)) / math.log(len(skipgram.noise.law) + 1)
        return plain + skipgram.bias[c, 0] - math.log(1 - math.exp(-time * law))

    total = 0
    for i, c in zip(inputs.tolist(), labels.tolist(), strict=True):
        total = total - torch.log(torch.sigmoid(score(i, c)))
        for k in negatives.tolist():
            if k != c:
                total = total - torch.log(torch.sigmoid(-score(i, k)))
    return total / len(inputs)


@FORMS
def test_value_and_gradients_equal_a_loop_over_pairs_and_negatives(nce):
    skipgram, table = skipgram_of(nce)
    inputs, labels = skipgram.pairs.batch(0, 0)
    negatives, time = skipgram.noise.draw(skipgram.seed)
    assert torch.isin(negatives, labels).any() and not torch.isin(negatives, labels).all()  # both kinds of negative
    expected = loss_loop(skipgram, table, inputs, labels, negatives, time)
    value = skipgram.mean(lambda ids: table[ids], inputs, labels, negatives, time)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(skipgram.loss(lambda ids: table[ids], 0, 0), expected, rtol=0, atol=1e-12)
    parameters = [table, *skipgram.parameters()]
    wanted = torch.autograd.grad(expected, parameters)
    for found, grad in zip(torch.autograd.grad(value, parameters), wanted, strict=True):
        torch.testing.assert_close(found.to_dense(), grad, rtol=0, atol=1e-12)


@FORMS
def test_only_the_rows_looked_up_have_a_gradient_and_move(nce):
    model = model_of(nce=nce)
    (task,) = model.auxiliary_tasks()
    inputs, labels = model.skipgram.pairs.batch(0, 0)
    negatives, _ = model.skipgram.noise.draw(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for optimizer in (optimizers := task.make_optimizers()):
        assert isinstance(optimizer, torch.optim.SparseAdam)
    train._update(task.loss(0, 0), optimizers)
    touched = {"table": inputs.unique(), "skipgram.theta": torch.cat([labels, negatives]).unique()}
    touched["skipgram.bias"] = touched["skipgram.theta"]
    for name, value in model.state_dict().items():
        moved = (value != before[name]).reshape(len(value), -1).any(1).nonzero()[:, 0]
        assert torch.equal(moved, touched.get(name, moved[:0])), name
    assert 0 < len(touched["table"]) < V and len(touched["skipgram.theta"]) < V


def model_of(seed=0, **arguments):
    """A small LGSR with dropout, prepared."""
    torch.manual_seed(seed)
    sizes = {"rounds": 2, "length": 9, "window": 3, "negatives": 6, "pairs": 16, "pairs_per_pass": 0.1}
    model = build("lgsr", V, dim=8, **sizes | arguments)
    model.prepare(TRAIN)
    return model


CONFIG = TrainConfig(epochs=2, batch_size=64, lr=0.02, lr_every=1, l2=1e-5, seed=7)
WINDOWS = TRAIN.prefixes()


def quietly(model, config=CONFIG, **more):
    return fit(model, WINDOWS, config, progress=False, **more)


def timeless(epochs):
    return [{k: v for k, v in epoch.items() if k not in ("seconds", "examples_per_second")} for epoch in epochs]


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n): the n-th step of skip-gram from now on raises, then all is as it was."""

    def set_up(steps):
        left, loss = iter(range(steps)), SkipGramTask.loss

        def limited(task, epoch, step):
            if next(left, None) is None:
                monkeypatch.setattr(SkipGramTask, "loss", loss)
                raise InterruptedError
            return loss(task, epoch, step)

        monkeypatch.setattr(SkipGramTask, "loss", limited)

    return set_up


@pytest.mark.parametrize("decays", [False, True])
def test_training_is_g_passes_of_pairs_and_then_the_examples(decays):
    """The rate of skip-gram stays as it is while the recommender's falls, or falls with it."""
    model, plain = (model_of(skipgram_decays=decays) for _ in range(2))
    torch.manual_seed(5)
    epochs = quietly(model)
    torch.manual_seed(5)
    plain.train()
    (task,) = plain.auxiliary_tasks()
    sparse, state = task.make_optimizers(), train.Run(plain, WINDOWS, CONFIG, None, {}, 0.0)
    steps = 2 * math.ceil(0.1 * len(plain.skipgram.pairs) / 16)
    for epoch, lr in enumerate((0.02, 0.002)):
        total = 0.0
        sparse[0].param_groups[0]["lr"] = 1e-3 * (lr / 0.02 if decays else 1)
        for number in range(steps):
            value = plain.skipgram.loss(plain.embed, 2 * epoch + number // (steps // 2), number % (steps // 2))
            sparse[0].zero_grad()
            value.backward()
            sparse[0].step()
            total += value.item()
        assert epochs[epoch]["auxiliary"] == {"skip-gram": pytest.approx(total / steps, rel=1e-6)}
        state.optimizers[0].param_groups[0]["lr"] = lr
        for batch in train.make_order(WINDOWS, CONFIG, epoch).batches(WINDOWS):
            train_step(plain, state.loss, state.optimizers, batch)
    assert same(model.state_dict(), plain.state_dict())
    assert epochs[1]["auxiliary"]["skip-gram"] < epochs[0]["auxiliary"]["skip-gram"]


CODE = {"nce": True, "residual": True, "hard_sigmoid": True, "off_by_one": True}


@pytest.mark.parametrize(
    "steps, form", [(5, {}), (13, {}), (31, {}), (43, {}), (10, CODE), (31, {"recommender": "sr-gnn"})], ids=str
)
def test_a_run_that_stops_inside_skip_gram_and_resumes_ends_with_the_same_bits(
    steps, form, stop_after, tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "CHECK_EVERY", 4)
    straight = model_of(**form)
    steps_of_epoch = straight.auxiliary_tasks()[0].steps([])
    assert 20 < steps_of_epoch < 30  # so two of the stops are in the second epoch
    expected = quietly(straight)
    stop_after(steps)
    with pytest.raises(InterruptedError):
        quietly(model_of(**form), output=tmp_path, checkpoint_seconds=-1.0)
    tensors, info = checkpoints.read(tmp_path / "state.safetensors")
    assert info["task_steps"]["skip-gram"] == steps % steps_of_epoch // 4 * 4 and info["step"] == 0
    resumed = model_of(seed=99, **form)  # another initialisation: the checkpoint brings all
    assert timeless(quietly(resumed, output=tmp_path, checkpoint_seconds=-1.0)) == timeless(expected)
    assert same(resumed.state_dict(), straight.state_dict())


def test_skip_gram_stops_for_good_once_a_pass_changes_nothing():
    model = model_of()
    (task,) = model.auxiliary_tasks()
    every = task.steps([])

    def after(*losses):
        return task.steps([{"auxiliary": {"skip-gram": loss}} for loss in losses])

    assert every == after(3.0) == after(3.0, 2.0) == after(3.0, 2.9989) == after(2.0, 2.1)
    assert after(3.0, 2.9991) == after(3.0, 3.0) == after(3.0, 2.9999, 0.0, 0.0) == 0  # 2 passes: 0.0005 each
    assert after(3.0, 2.9999, 0.0) == 0
    one = SkipGramTask(model, 1, 0.1, 1e-3)
    assert one.steps([{"auxiliary": {"skip-gram": loss}} for loss in (3.0, 2.9994)]) == every // 2
    assert one.steps([{"auxiliary": {"skip-gram": loss}} for loss in (3.0, 2.9996)]) == 0


def test_a_run_goes_on_without_skip_gram_when_it_has_stopped(monkeypatch):
    monkeypatch.setattr("sbr_core.skipgram.TOLERANCE", 1e9)
    model = model_of()
    thetas = []
    config = TrainConfig(epochs=4, batch_size=64, lr=0.02)
    epochs = quietly(model, config, after_epoch=lambda m, _: thetas.append(m.skipgram.theta.detach().clone()))
    assert [epoch["auxiliary"]["skip-gram"] > 0 for epoch in epochs] == [True, True, False, False]
    assert not torch.equal(thetas[0], thetas[1]) and torch.equal(thetas[1], thetas[2])
    assert epochs[3]["loss"] < epochs[1]["loss"]


def test_a_share_of_the_pairs_is_that_of_the_first_walks():
    for share in (1.0, 0.5, 0.01):
        model = model_of(pairs_per_pass=share, g=3)
        (task,) = model.auxiliary_tasks()
        total = len(model.skipgram.pairs)
        assert task.steps_of_pass == math.ceil(share * total / 16) and task.steps([]) == 3 * task.steps_of_pass
    walks = model.skipgram.pairs.walks.tolist()
    assert total == sum(len(pairs_loop([n for n in walk if n != V], 3, 3)) for walk in walks)


def test_steps_of_a_pass_go_on_with_the_next_pass():
    model = model_of()
    (task,) = model.auxiliary_tasks()
    for epoch, step, number, inner in ((0, 0, 0, 0), (0, task.steps_of_pass, 1, 0), (2, task.steps_of_pass + 3, 5, 3)):
        assert torch.equal(task.loss(epoch, step), model.skipgram.loss(model.embed, number, inner))


def test_sessions_without_a_transition_have_no_steps_of_skip_gram():
    flat = Sessions.from_lists([[3, 3, 3], [5, 5]], V)
    model = build("lgsr", V, dim=8)
    model.prepare(flat)
    epochs = fit(model, flat.prefixes(), TrainConfig(epochs=1, batch_size=2), progress=False)
    assert epochs[0]["auxiliary"] == {"skip-gram": 0.0} and math.isfinite(epochs[0]["loss"])


def test_a_model_that_has_not_walked_is_refused():
    with pytest.raises(ValueError, match=r"call prepare\(train\) first, or set g=0"):
        build("lgsr", V, dim=8).auxiliary_tasks()


@pytest.mark.parametrize("name", ["rounds", "length", "window", "negatives", "size"])
def test_sizes_below_one_are_refused_by_name(name):
    shown = "pairs" if name == "size" else name
    with pytest.raises(ValueError, match=f"at least 1: .*{shown}=0"):
        SkipGram(V, D, **SMALL | {name: 0})


def test_label_bias_without_biases_is_refused():
    with pytest.raises(ValueError, match="label_bias=True .* nce=True"):
        build("lgsr", V, dim=D, label_bias=True)


def test_neighbours_on_walks_become_neighbours_in_the_table():
    """Two islands of items: after skip-gram, an item's most similar items are of its own island."""
    draw = random.Random(0)
    islands = [[draw.randrange(12) + 12 * (number % 2) for _ in range(6)] for number in range(200)]
    sessions = Sessions.from_lists(islands, V)
    model = build("lgsr", V, dim=8, rounds=20, length=20, negatives=6, pairs=256, skipgram_lr=0.03, nce=True)
    model.prepare(sessions)
    (task,) = model.auxiliary_tasks()
    optimizers = task.make_optimizers()
    for step in range(100):
        train._update(task.loss(0, step), optimizers)
    rows = torch.nn.functional.normalize(model.table[:V].detach(), dim=1)
    alike = (rows @ rows.T).fill_diagonal_(-1)
    nearest = alike.topk(5).indices
    assert (nearest // 12 == (torch.arange(V) // 12)[:, None]).all()


def test_a_step_has_the_same_loss_on_any_device(device):
    model = model_of()
    expected = model.auxiliary_tasks()[0].loss(0, 1).item()
    moved = model_of(seed=3).to(device)
    moved.load_state_dict(model.state_dict())
    moved.prepare(TRAIN.to(device))
    assert moved.auxiliary_tasks()[0].loss(0, 1).item() == pytest.approx(expected, rel=1e-5)
