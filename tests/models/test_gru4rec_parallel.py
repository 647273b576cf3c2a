"""GRU4Rec of 2016 and 2018: the cells, one step of training, the carried state, exact resume, and what is refused."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import chain, random_sessions, same

from sbr_core import bench, train
from sbr_core.batches import Batch, gather
from sbr_core.evaluate import evaluate
from sbr_core.losses import Scores, make_loss
from sbr_core.models import MODELS, build
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.models.gru4rec_parallel import GRU4Rec2016, GRU4Rec2018, ResetBeforeGRU
from sbr_core.optim import make_optimizers
from sbr_core.recommend import Recommender
from sbr_core.session_parallel import ParallelBatch, parallel_order
from sbr_core.train import TrainConfig, fit, make_order, train_step

V, H = 12, 5
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]
KINDS = [
    {},
    {"cell": "reset-before"},
    {"embedding": "separate"},
    {"embedding": "separate", "cell": "reset-before"},
    {"embedding": "none", "cell": "reset-before"},
]
ALL_KINDS = pytest.mark.parametrize("arguments", KINDS, ids=str)


def model_of(num_items=V, dim=H, **arguments) -> GRU4Rec2018:
    torch.manual_seed(3)
    model = GRU4Rec2018(num_items, dim, **arguments).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.6)
    return model


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def cell_loop(model, item: int, h):
    """One step, unit by unit, in either convention."""
    source = model.table[:, :-1] if model.embedding == "constrained" else model.inputs
    x, gru = source[item], model.gru
    if isinstance(gru, nn.GRU):
        W, U = gru.weight_ih_l0 @ x + gru.bias_ih_l0, gru.weight_hh_l0 @ h + gru.bias_hh_l0
        r, z = sigmoid(W[:H] + U[:H]), sigmoid(W[H : 2 * H] + U[H : 2 * H])
        c = torch.tanh(W[2 * H :] + r * U[2 * H :])
        return (1 - z) * c + z * h
    W = (x if model.embedding == "none" else gru.W.weight @ x) + gru.bias
    r, z = sigmoid(W[:H] + gru.U.weight[:H] @ h), sigmoid(W[H : 2 * H] + gru.U.weight[H:] @ h)
    c = torch.tanh(W[2 * H :] + gru.U_c.weight @ (r * h))
    return (1 - z) * h + z * c


def state_loop(model, session):
    h = torch.zeros(H, dtype=torch.float64)
    for item in session:
        h = cell_loop(model, item, h)
    return h


def scores_loop(model, h):
    return torch.stack([h @ model.table[item, :-1] + model.table[item, -1] for item in range(model.num_items)])


def scores_of(model, *sessions):
    return model.score(model.encode(Batch.of([list(session) for session in sessions], model.num_items)))


def assert_close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def grads_of(model):
    return [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()]


@ALL_KINDS
def test_a_prefix_is_read_as_a_loop_would_forward_and_backward(arguments):
    model, targets = model_of(**arguments), [4, 1, 8, 0, 11]
    expected = torch.stack([scores_loop(model, state_loop(model, session)) for session in SESSIONS])
    assert_close(scores_of(model, *SESSIONS), expected)
    wanted = torch.autograd.grad(nn.functional.cross_entropy(expected, torch.tensor(targets)), list(model.parameters()))
    batch = Batch.of(SESSIONS, V, targets)
    make_loss(model, TrainConfig(), random_sessions(num_items=V).prefixes())(
        Scores(model, model.encode(batch)), batch.target
    ).backward()
    for found, grad in zip(grads_of(model), wanted, strict=True):
        assert_close(found, grad)


def step_by_hand(model, loss, batch, carried):
    """The loss of one session-parallel step as a function of the parameters, and the states after it."""
    states = {}
    for row, slot in enumerate(batch.slot.tolist()):
        before = torch.zeros(H).double() if batch.fresh[row] else carried[slot].detach()
        states[slot] = cell_loop(model, int(batch.items[row, 0]), before)
    drawn = loss.sampler.draw() if loss.sampler else batch.target[:0]
    ids = torch.cat([batch.target, drawn]).tolist()
    r = torch.stack([torch.stack([scores_loop(model, h)[i] for i in ids]) for h in states.values()])
    return loss.rows(loss.corrected(r, torch.tensor(ids))).sum() / 3, carried | states


@ALL_KINDS
@pytest.mark.parametrize("name", ["xe", "bpr-max", "top1-max"])
def test_steps_of_training_equal_a_loop_with_a_state_that_is_cut_off(name, arguments):
    """Values and gradients along a whole epoch, the shrinking end included: no gradient through the inherited state."""
    model, windows = model_of(**arguments), random_sessions(7, V, longest=5, seed=2).prefixes()
    config = TrainConfig(batch_size=3, l2=0.0, batches="session-parallel", loss=name, loss_arguments={"negatives": 4})
    loss, plain = make_loss(model, config, windows), make_loss(model, config, windows)
    model.carry(3)
    carried = {}
    for batch in make_order(windows, config, 0).batches(windows):
        expected, carried = step_by_hand(model, plain, batch, carried)
        wanted = torch.autograd.grad(expected, list(model.parameters()))
        model.zero_grad()
        found = loss(Scores(model, model.encode(batch)), batch.target)
        found.backward()
        assert_close(found, expected)
        for grad, other in zip(grads_of(model), wanted, strict=True):
            assert_close(grad, other)
        assert all(torch.equal(model.state[slot], model.state[slot].detach()) for slot in carried)
        assert_close(model.state[list(carried)], torch.stack(list(carried.values())).detach())


def test_the_cells_have_the_figures_of_the_specs():
    """Width 1, all weights 1, x = 1, h = 0.5: z = r = 0.8175745, c = 0.8872363; z is the new share: 0.8165945."""
    gru = ResetBeforeGRU(1, 1)
    for parameter in gru.parameters():
        nn.init.constant_(parameter, 0.0 if parameter.ndim == 1 else 1.0)
    states, last = gru(torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.5))
    assert states.item() == last.item() == pytest.approx(0.8165945, abs=1e-6)


def test_the_reset_gate_acts_before_the_product():
    """U swaps the state (1, 0), r = (0.25, 0.75): candidate (0, 0.2449187)."""
    gru = ResetBeforeGRU(None, 2).double()
    with torch.no_grad():
        gru.U.weight.zero_()
        gru.U_c.weight.copy_(torch.tensor([[0.0, 1], [1, 0]]))
        gru.bias[:2] = torch.logit(torch.tensor([0.25, 0.75]))
        gru.bias[2:4] = 60  # z = 1: the new state is the candidate
    state = gru(torch.zeros(1, 1, 6).double(), torch.tensor([[[1.0, 0]]]).double())[1]
    torch.testing.assert_close(state[0, 0], torch.tensor([0, 0.2449187]).double(), rtol=0, atol=1e-6)


def parallel(model, sessions, slots, steps=None):
    """Yield (batch, query) along an epoch."""
    windows = sessions.prefixes()
    model.carry(slots)
    for batch in parallel_order(windows, slots).batches(windows):
        yield batch, model.encode(batch)


@ALL_KINDS
def test_walking_side_by_side_gives_the_queries_of_whole_prefixes(arguments):
    model, sessions = model_of(30, **arguments), random_sessions(40, seed=6)
    windows = sessions.prefixes()
    order = parallel_order(windows, 6)
    queries = torch.cat([query for _, query in parallel(model, sessions, 6)])
    assert_close(queries, model.encode(gather(windows, order.index)))


def test_a_session_begins_cold_whatever_its_slot_held():
    model, cold = model_of(30), model_of(30)
    sessions = random_sessions(40, seed=6)
    fresh = 0
    for number, (batch, query) in enumerate(parallel(model, sessions, 6)):
        alone = cold.encode(Batch(batch.items, batch.lengths, batch.target))
        assert_close(query[batch.fresh], alone[batch.fresh])
        fresh += int(batch.fresh.sum()) * (number > 0)
        model.state[5 if batch.fresh.all() else 0] += 0.0
    assert fresh == len([1 for s in range(40) if len(sessions[s]) > 1]) - 6


def test_no_gradient_reaches_what_was_read_before():
    """Items 1 and 2 are read one after another: the second step's loss moves row 2 and not row 1."""
    model = model_of(embedding="separate")
    windows = random_sessions(1, V).prefixes()
    model.carry(1)
    one = torch.ones(1, dtype=torch.long)
    for item, begins in ((1, True), (2, False)):
        model.zero_grad()
        busy = {"slot": one - 1, "fresh": torch.tensor([begins])}
        query = model.encode(ParallelBatch(one[None] * item, one, one * 5, **busy))
        make_loss(model, TrainConfig(), windows)(Scores(model, query), one * 5).backward()
    touched = model.inputs.grad.to_dense().abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [2] and not model.state.requires_grad


def test_the_dropped_state_is_the_one_that_is_carried_on():
    model = model_of(30, 40, dropout_hidden=0.5).train()
    for batch, query in parallel(model, random_sessions(20), 4):
        assert torch.equal(model.state[batch.slot], query[:, :-1].detach())
        assert 0.2 < (query[:, :-1] == 0).double().mean() < 0.8
    model.eval()
    assert not any((query[:, :-1] == 0).any() for _, query in parallel(model, random_sessions(20), 4))


def test_dropout_of_the_input_leaves_the_scored_vectors_alone():
    model = model_of(dropout_embed=0.9).train()
    query = torch.randn(2, H + 1).double()
    assert torch.equal(model.score(query), model.score(query))
    batch = Batch.of([[1, 2]], V)
    assert not torch.equal(model.encode(batch), model.encode(batch))


def test_evaluation_between_steps_leaves_the_carried_state_alone():
    model, sessions = model_of(30), random_sessions(20)
    for _ in parallel(model, sessions, 4):
        before = model.state.clone()
        evaluate(model, sessions.prefixes()[:9])
        assert torch.equal(model.state, before)


@pytest.mark.parametrize("n, dim", [(500, 60), (37483, 100)])
def test_parameters_are_counted_as_in_the_specs(n, dim):
    """n (H + 1) + 6 H^2 + 6 H with the library's cell, 3 H with the other; ours adds the row of the padding."""
    for cell, biases in (("reset-after", 6), ("reset-before", 3)):
        count = sum(p.numel() for p in GRU4Rec2018(n, dim, cell=cell).parameters())
        assert count - (dim + 1) == n * (dim + 1) + 6 * dim**2 + biases * dim
    count = sum(p.numel() for p in GRU4Rec2016(n, dim).parameters())
    assert count - (4 * dim + 1) == n * (4 * dim + 1) + 3 * dim**2 + 3 * dim


@ALL_KINDS
def test_every_matrix_is_drawn_within_its_own_bound(arguments):
    model = GRU4Rec2018(500, 60, **arguments)
    bounds = {name: math.sqrt(6 / (120 if "gru" in name else 560)) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.eq(0).all(), name
            continue
        blocks = [parameter[:, :-1]] if name == "table" else parameter.chunk(3)
        for block in blocks:
            assert 0.95 * bounds[name] < block.abs().max() <= bounds[name], name
    assert model.table[:, -1].eq(0).all()
    assert math.sqrt(6 / (37483 + 100)) == pytest.approx(0.0126, abs=1e-4)


def test_of_2016_is_the_one_with_its_switches():
    torch.manual_seed(1)
    old = GRU4Rec2016(V, H)
    torch.manual_seed(1)
    same_thing = GRU4Rec2018(V, H, "none", "reset-before", dropout_hidden=0.5)
    assert same(old.state_dict(), same_thing.state_dict()) and old.dropout_hidden.p == 0.5
    assert MODELS["gru4rec-2016"] is GRU4Rec2016 and MODELS["gru4rec-2018"] is GRU4Rec2018


def test_read_as_prefixes_it_is_the_plain_form_with_a_bias():
    """NARM's and the plain GRU4Rec's lattice: a zero bias and the same cell give the same scores."""
    model, plain = model_of(), GRU4Rec(V, H).double().eval()
    with torch.no_grad():
        model.table[:, -1] = 0
        plain.table.copy_(model.table[:, :-1])
    plain.gru.load_state_dict(model.gru.state_dict())
    batch = Batch.of(SESSIONS, V)
    assert_close(model.score(model.encode(batch)), plain.score(plain.encode(batch)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"embedding": "shared"}, "embedding is one of constrained, separate, none .* got 'shared'"),
        ({"cell": "lstm"}, "cell one of reset-after, reset-before, got .*'lstm'"),
        ({"embedding": "none"}, "embedding='none' is written for cell='reset-before', not for cell='reset-after'"),
        ({"dropout_embed": 1.0}, "dropout_embed must lie in 0 <= dropout_embed < 1, got 1.0"),
        ({"dropout_hidden": -0.1}, "dropout_hidden must lie in .* got -0.1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GRU4Rec2018(V, H, **arguments)


# Training


WINDOWS = chain(V, count=30, length=6).prefixes()  # 150 examples, 19 steps an epoch and some with fewer rows


def config_of(loss="xe", **more):
    defaults = dict(epochs=2, batch_size=8, lr=0.1, lr_every=None, l2=0.0, seed=7, momentum=0.2, optimizer="adagrad")
    arguments = {} if loss in ("full", "bpr", "top1", "in-batch") else {"negatives": 6}
    defaults |= dict(batches="session-parallel", loss=loss, loss_arguments=arguments)
    return TrainConfig(**defaults | more)


def new_model(seed=0, **arguments):
    torch.manual_seed(seed)
    return GRU4Rec2018(V, 16, dropout_hidden=0.1, **arguments)


def quietly(model, config, **more):
    return fit(model, WINDOWS, config, progress=False, **more)


@pytest.mark.parametrize("loss", ["full", "xe", "bpr", "top1", "top1-max", "bpr-max"])
@pytest.mark.parametrize("arguments", [{}, {"embedding": "none", "cell": "reset-before"}], ids=("2018", "2016"))
def test_every_loss_learns_the_chain(loss, arguments):
    model = new_model(**arguments)
    quietly(model, config_of(loss, epochs=7, lr=0.3))
    assert evaluate(model, WINDOWS).metric("HR@1") > 90


@pytest.mark.parametrize(
    "batches, loss, optimizer", [("session-parallel", "full", "adamw"), ("examples", "xe", "adam")]
)
@pytest.mark.parametrize("arguments", [{}, {"embedding": "none", "cell": "reset-before"}], ids=("2018", "2016"))
def test_other_optimizers_learn_it_too_and_so_does_the_form_of_examples(batches, loss, optimizer, arguments):
    model = new_model(**arguments)
    quietly(model, config_of(loss, epochs=5, lr=0.03, optimizer=optimizer, momentum=0.0, batches=batches))
    assert evaluate(model, WINDOWS).metric("HR@1") > 90


def test_the_optimizer_leaves_rows_alone_that_no_step_has_met():
    """Five of many items are clicked or drawn: the others keep their bits."""
    windows = chain(5, 20).prefixes()
    wide = torch.where(windows.items < 5, windows.items * 7, windows.items)
    windows = type(windows)(wide, windows.start, windows.target, windows.session, 100)
    for arguments in ({}, {"embedding": "none", "cell": "reset-before"}):
        model = GRU4Rec2018(100, 8, **arguments)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        fit(model, windows, config_of(), progress=False)
        others = [row for row in range(101) if row not in range(0, 35, 7)]
        for name in {"table", "inputs"} & before.keys():
            assert torch.equal(dict(model.named_parameters())[name][others], before[name][others])
        assert not torch.equal(model.table, before["table"])


class Stop(Exception):
    """The power goes off."""


@pytest.mark.parametrize("steps", [5, 19, 31])
@pytest.mark.parametrize("order", ["chronological", "shuffled"])
def test_a_run_that_stops_in_mid_epoch_and_resumes_ends_with_the_same_bits(steps, order, tmp_path, monkeypatch):
    """State of the slots, samples, dropout, moments of the optimizer: all are found again."""
    monkeypatch.setattr(train, "CHECK_EVERY", 4)
    config = config_of(batches_arguments={"order": order})
    straight = new_model()
    expected = quietly(straight, config)
    left = iter(range(steps))

    def step(*arguments):
        if next(left, None) is None:
            raise Stop
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", step)
    with pytest.raises(Stop):
        quietly(new_model(), config, output=tmp_path, checkpoint_seconds=-1.0)
    monkeypatch.setattr(train, "train_step", train_step)
    resumed = new_model(seed=99)
    found = quietly(resumed, config, output=tmp_path, checkpoint_seconds=-1.0)
    assert [epoch["loss"] for epoch in found] == [epoch["loss"] for epoch in expected]
    assert same(resumed.state_dict(), straight.state_dict()) and "state" in resumed.state_dict()


def test_fit_is_a_plain_loop_over_steps():
    config, model, plain = config_of("bpr-max"), new_model(), new_model()
    torch.manual_seed(5)
    quietly(model, config)
    torch.manual_seed(5)
    plain.carry(8)
    loss = make_loss(plain, config, WINDOWS)
    optimizers = make_optimizers(plain, 0.1, sparse_table=True, optimizer="adagrad", momentum=0.2)
    plain.train()
    for epoch in range(2):
        loss.seek(epoch, 0)
        for batch in parallel_order(WINDOWS, 8).batches(WINDOWS):
            train_step(plain, loss, optimizers, batch)
    assert same(model.state_dict(), plain.state_dict())


def test_where_the_other_targets_are_all_the_negatives_the_epoch_ends_with_two_rows():
    for loss, rows in (("top1", 2), ("xe", 1)):
        model = new_model()
        run = train.Run(model, WINDOWS, config_of(loss), None, {}, 0.0)
        order = make_order(WINDOWS, run.config, 0, train.least_rows(run.loss))
        assert min(order.bounds[i + 1] - order.bounds[i] for i in range(len(order))) >= rows


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: config_of(augmentation="suffix"), "'session-parallel' reads whole .* got 'suffix' and None"),
        (lambda: config_of(max_len=10), "'session-parallel' reads whole sessions .* got 'prefix' and 10"),
        (lambda: config_of(optimizer="adam"), "momentum=0.2 is for optimizer='adagrad', not for 'adam'"),
        (lambda: config_of(batches_arguments={"end": "early"}), "'session-parallel' has no end='early'"),
        (lambda: config_of(batches="examples", batches_arguments={"end": "cut"}), "'examples' has no end='cut'"),
        (lambda: fit(GRU4Rec(V, 8), WINDOWS, config_of()), "'session-parallel' wants a model .* GRU4Rec does not"),
        (lambda: fit(new_model(), WINDOWS, config_of(l2=0.1)), "optimizer='adagrad' is written without l2"),
        (
            lambda: fit(new_model(embedding="separate"), WINDOWS, TrainConfig(l2=0.1)),
            "l2=0.1 cannot reach the untouched rows of a sparse item table: set l2=0",
        ),
        (lambda: fit(new_model(), WINDOWS, config_of(precision="bf16")), "precision='bf16' is written for loss='full'"),
        (
            lambda: fit(new_model(), WINDOWS, config_of(loss_arguments={"samples": 3})),
            "loss='xe' has no argument 'samples'; it has negatives, alpha, activation, mask_hits, logq",
        ),
        (lambda: fit(new_model(), WINDOWS, config_of(loss_arguments={"seed": 3})), "has no argument 'seed'"),
    ],
)
def test_combinations_without_meaning_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_form_is_built_by_name():
    assert build("gru4rec-2018", V, dim=4, cell="reset-before", embedding="separate").inputs.shape == (V + 1, 4)
    assert build("gru4rec-2016", V).inputs.shape == (V + 1, 300)


def test_the_benchmark_times_steps_of_either_form(monkeypatch):
    """Events a second follow from the steps timed; the floor has as many rows as the loss has candidates."""
    shapes, mm = [], torch.mm
    monkeypatch.setattr(bench, "timed", lambda work, device: (work(), 4.0)[1])
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: shapes.append((*a.shape, *b.shape)) or mm(a, b, **more))
    found = bench.bench_training(new_model(), WINDOWS, config_of(), steps=12, warmup=0)
    assert found["examples_per_second"] == pytest.approx(8 / 4e-3) and found["mean_width"] == 1
    assert (8, 17, 17, 14) in shapes  # 8 rows, width 16 and the bias; 8 targets and 6 samples


def test_a_model_trained_side_by_side_is_saved_and_recommends_the_same(tmp_path):
    model = new_model()
    quietly(model, config_of(epochs=1))
    before = Recommender(model, np.arange(V), torch.ones(V))
    before.save(tmp_path, "gru4rec-2018", {"dim": 16, "dropout_hidden": 0.1})
    after = Recommender.load(tmp_path)
    assert after.recommend_batch([[1, 2], [5]], k=4) == before.recommend_batch([[1, 2], [5]], k=4)
    assert same(after.model.state_dict(), model.state_dict())
