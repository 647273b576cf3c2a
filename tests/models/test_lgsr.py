"""LGSR against its equations in a loop; its invariants, size and ablations."""

import copy
import inspect
import math

import pytest
import torch
from torch.nn import functional as F
from toys import random_sessions, same

from sbr_core.batches import Batch, gather
from sbr_core.config import TrainConfig
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.lgsr import LGSR
from sbr_core.models.srgnn import SRGNN
from sbr_core.optim import make_optimizers
from sbr_core.train import fit, train_step

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]
CODE = {"residual": True, "hard_sigmoid": True, "nce": True, "off_by_one": True}
VARIANTS = [
    {}, {"residual": True}, {"hard_sigmoid": True}, CODE, {"pooling": False}, {"pooling": False, "residual": True},
    {"max_positions": 3}, CODE | {"max_positions": 1},
]  # fmt: skip


def model_of(**arguments) -> LGSR:
    """A double-precision model without dropout and without walks, all of whose parts show."""
    torch.manual_seed(3)
    model = LGSR(V, D, **{"g": 0, "dropout": 0.0} | arguments).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def normalised(x, norm):
    """LayerNorm, term by term."""
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    rows = [(value - mean) / torch.sqrt(variance + 1e-8) for value in x]
    return torch.stack(rows) * norm.weight + norm.bias


def states_loop(model: LGSR, session: list[int], kept: float = 1.0):
    """f_1 ... f_L of the clicks that are read, one after another; `kept` is what dropout leaves of an entry."""
    part, block = model.recommender, model.recommender.block
    W_q, (W_k, W_v) = block.attention.Q.weight, block.attention.KV.weight.split(D)
    session = session[-model.max_positions :]
    x = [kept * (model.table[item] + part.positions.table[len(session) - 1 - i]) for i, item in enumerate(session)]
    states = []
    for i, asking in enumerate(x):
        e = [((W_q @ asking) @ (W_k @ key) / math.sqrt(D)).exp() for key in x[: i + 1]]
        y = sum(weight / sum(e) * (W_v @ value) for weight, value in zip(e, x, strict=False))
        if len(block.norms):
            y = normalised(y + asking, block.norms[0])
        inner = kept * torch.relu(block.W1.weight @ y + block.W1.bias)
        f = kept * (block.W2.weight @ inner + block.W2.bias)
        states.append(normalised(f + y, block.norms[1]) if len(block.norms) else f)
    return states


def forward_loop(model: LGSR, session: list[int], kept: float = 1.0):
    """The query of one session."""
    part, f = model.recommender, states_loop(model, session, kept)
    if part.q is None:
        return part.W3.weight @ (kept * f[-1])
    logits = []
    for f_i in f:
        inner = part.W1.weight @ f[-1] + part.W2.weight @ f_i
        if part.hard_sigmoid:
            inner = torch.stack([(0.2 * value + 0.5).clip(0, 1) for value in inner])
        else:
            inner = 1 / (1 + (-inner).exp())
        logits.append(part.q.weight[0] @ inner)
    e = [logit.exp() for logit in logits]
    pooled = sum(weight / sum(e) * f_i for weight, f_i in zip(e, f, strict=True))
    return part.W3.weight @ (kept * torch.cat([f[-1], pooled]))


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    model = model_of(**arguments)
    expected = torch.stack([forward_loop(model, session) for session in SESSIONS])
    torch.testing.assert_close(query(model, *SESSIONS), expected, rtol=0, atol=1e-12)
    targets = torch.arange(len(SESSIONS))
    loss = F.cross_entropy(expected @ model.table[:-1].T, targets)
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(loss, parameters, allow_unused=True)
    FullSoftmax()(Scores(model, query(model, *SESSIONS)), targets).backward()
    for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        grad = torch.zeros_like(parameter) if grad is None else grad
        torch.testing.assert_close(mine, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


def test_the_hard_sigmoid_is_cut_on_both_sides_somewhere():
    """So the loop above sees all three pieces of it."""
    model = model_of(hard_sigmoid=True)
    with torch.no_grad():
        model.recommender.W1.weight.mul_(30)
    batch = Batch.of(SESSIONS, V)
    f = model.recommender.states(model.embed(batch.items), batch)
    inner = 0.2 * (model.recommender.W1(f) + model.recommender.W2(f)) + 0.5
    assert inner.min() < 0 and inner.max() > 1 and ((inner > 0) & (inner < 1)).any()
    expected = torch.stack([forward_loop(model, session) for session in SESSIONS])
    torch.testing.assert_close(query(model, *SESSIONS), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arguments", [{}, CODE], ids=str)
def test_a_state_does_not_depend_on_later_clicks(arguments):
    """But for its position, which is counted from the end: sessions of one length are compared."""
    model = model_of(**arguments)
    one, two = (Batch.of([session], V) for session in ([1, 4, 6, 2, 2], [1, 4, 6, 8, 3]))
    f, g = (model.recommender.states(model.embed(batch.items), batch) for batch in (one, two))
    torch.testing.assert_close(f[:, :3], g[:, :3], rtol=0, atol=1e-12)
    assert not torch.allclose(f[:, 3], g[:, 3])


def test_an_older_click_in_front_leaves_the_positions_of_the_others_alone():
    model = model_of()
    batch = Batch.of([[1, 4, 6], [8, 1, 4, 6]], V)
    places = model.recommender.positions(batch.lengths, 4)
    assert torch.equal(places[0, :3], places[1, 1:])
    torch.testing.assert_close(places[0, 2], model.recommender.positions.table[0])


def test_only_the_last_clicks_are_read():
    model = model_of()
    long = [number % V for number in range(19)]
    assert torch.equal(query(model, [8, 8, 3, *long]), query(model, long))
    assert not torch.allclose(query(model, [3, *long[1:]]), query(model, long))


def test_weights_sum_to_one_over_the_clicks_and_a_single_click_has_all():
    model, batch = model_of(), Batch.of(SESSIONS, V)
    weights = model.recommender.weights(model.recommender.states(model.embed(batch.items), batch), batch)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(SESSIONS)).double())
    assert weights[~batch.mask].eq(0).all() and weights[0, 0] == 1 and weights[batch.mask].gt(0).all()


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_number_of_parameters_is_the_published_one():
    """92,700 without the item tables in the public code; 100 of them are a row of positions that is always zero."""
    assert size(LGSR(50, g=0, **CODE).recommender) == 92_700 - 100
    assert size(LGSR(50, g=0).recommender) == 92_700 - 100 - 400  # without the two normalisations
    assert size(LGSR(50, g=0, pooling=False).recommender) == 92_700 - 100 - 400 - 30_100  # W3 is d x d
    assert size(LGSR(50, nce=True).skipgram) == 50 * 100 + 50 and size(LGSR(50).skipgram) == 50 * 100


def test_the_defaults_are_the_papers():
    wanted = {
        "dim": 100, "g": 2, "dropout": 0.3, "max_positions": 19, "rounds": 13, "length": 50, "window": 8,
        "negatives": 512, "pairs": 8192, "skipgram_lr": 1e-3,
    }  # fmt: skip
    taken = inspect.signature(LGSR).parameters
    assert {name: taken[name].default for name in wanted} == wanted


def test_the_initialisation_has_the_published_widths():
    model = LGSR(500, 100, **CODE)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        elif "norms" in name:
            assert parameter.eq(1).all(), name
        else:
            bound = math.sqrt(6 / 200) if ".block.W" in name else 0.1
            assert 0.95 * bound < parameter.abs().max() <= bound and parameter.mean().abs() < 0.02, name


def test_the_first_loss_is_about_ln_v():
    windows = random_sessions(200, num_items=3000).prefixes()
    for arguments in ({}, CODE):
        model = LGSR(3000, **arguments).eval()
        scores = Scores(model, model.encode(gather(windows, torch.arange(100))))
        assert FullSoftmax()(scores, windows.labels[:100].long()).item() == pytest.approx(math.log(3000), abs=0.3)


def test_dropout_is_for_training_only():
    model = model_of(dropout=0.5)
    assert not torch.equal(query(model, [1, 2, 3]), query(model, [1, 2, 3]))
    model.eval()
    assert torch.equal(query(model, [1, 2, 3]), query(model, [1, 2, 3]))


@pytest.mark.parametrize("arguments", [{}, CODE, {"pooling": False}], ids=str)
def test_dropout_acts_on_inputs_both_layers_and_what_the_last_map_reads(arguments, monkeypatch):
    """A third of everything stands for it, to see where it acts."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda dropout, x: x / 3)
    model = model_of(**arguments)
    expected = torch.stack([forward_loop(model, session, kept=1 / 3) for session in SESSIONS])
    torch.testing.assert_close(query(model, *SESSIONS), expected, rtol=0, atol=1e-12)


def test_the_attention_has_a_dropout_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda dropout, x: x)
    assert query(model_of(dropout=0.5), *[[1, 2, 1, 3]] * 50).std(0).min() > 0.01


TOYS = random_sessions(60, V, seed=4, shortest=2)
CONFIG = TrainConfig(epochs=2, batch_size=32, lr=0.02, l2=1e-4)
WALKS = {"rounds": 2, "length": 9, "window": 2, "negatives": 3, "pairs": 64}


def trained(model, **more):
    torch.manual_seed(6)
    return fit(model, TOYS.prefixes(), CONFIG, progress=False, **more)


def test_without_skip_gram_it_is_lgsr_c_and_the_output_table_is_left_alone(monkeypatch):
    """g = 0 has no task; g = 2 whose task has no steps learns the same bits, and neither loss nor decay move theta."""
    torch.manual_seed(1)
    ablation = LGSR(V, 8, g=0)
    torch.manual_seed(1)
    full = LGSR(V, 8, g=2, nce=True, **WALKS)
    assert ablation.auxiliary_tasks() == [] and ablation.skipgram is None
    ablation.prepare(TOYS)
    full.prepare(TOYS)
    monkeypatch.setattr("sbr_core.skipgram.SkipGramTask.steps", lambda task, epochs: 0)
    before = copy.deepcopy(full.skipgram.state_dict())
    epochs = trained(ablation)
    assert [epoch["loss"] for epoch in trained(full)] == [epoch["loss"] for epoch in epochs]
    learned = {name: value for name, value in full.state_dict().items() if not name.startswith("skipgram.")}
    assert same(learned, ablation.state_dict()) and same(full.skipgram.state_dict(), before)
    assert "auxiliary" not in epochs[0]


def test_skip_gram_changes_what_is_learned():
    learned = []
    for g in (0, 1, 2):
        torch.manual_seed(1)
        model = LGSR(V, 8, g=g, **WALKS)
        model.prepare(TOYS)
        trained(model)
        learned.append(model.table.detach())
    assert not torch.equal(learned[0], learned[1]) and not torch.equal(learned[1], learned[2])


def test_with_another_recommender_it_is_sr_gnn_on_the_same_table():
    """LGSR-H with g = 0 starts, answers and learns like SR-GNN, bit for bit."""
    torch.manual_seed(1)
    plain = SRGNN(V, 8)
    torch.manual_seed(1)
    model = LGSR(V, 8, g=0, recommender="sr-gnn")

    def renamed():
        return {name.removeprefix("recommender."): value for name, value in model.state_dict().items()}

    assert list(model.state_dict())[0] == "table" and same(renamed(), plain.state_dict())
    assert torch.equal(query(model, *SESSIONS), query(plain, *SESSIONS))
    assert [epoch["loss"] for epoch in trained(model)] == [epoch["loss"] for epoch in trained(plain)]
    assert same(renamed(), plain.state_dict())


def test_the_other_recommender_shares_its_table_with_skip_gram():
    model = LGSR(V, 8, recommender="sr-gnn", **WALKS)
    model.prepare(TOYS)
    before = query(model, *SESSIONS)
    (task,) = model.auxiliary_tasks()
    (optimizer,) = task.make_optimizers()
    task.loss(0, 0).backward()
    optimizer.step()
    assert not torch.allclose(query(model, *SESSIONS), before)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.table.zero_()
    assert torch.equal(query(twin, *SESSIONS), query(copy.deepcopy(twin), *SESSIONS))
    assert not torch.equal(query(twin, *SESSIONS), query(model, *SESSIONS))


def test_both_optimizers_work_on_the_one_table():
    """Skip-gram's sees a sparse gradient, the recommender's a dense one, whichever came before."""
    model = LGSR(V, 8, dropout=0.0, **WALKS)
    model.prepare(TOYS)
    (task,) = model.auxiliary_tasks()
    (sparse,), dense = task.make_optimizers(), make_optimizers(model, 0.01, 1e-5)
    batch = gather(TOYS.prefixes(), torch.arange(32))
    for number in range(4):
        sparse.zero_grad()
        task.loss(0, number).backward()
        assert model.table.grad.is_sparse and model.skipgram.theta.grad.is_sparse
        sparse.step()
        train_step(model, FullSoftmax(), dense, batch)
        assert not model.table.grad.is_sparse and model.skipgram.theta.grad is None
    assert sparse.state[model.table]["step"] == 4 == dense[0].state[model.table]["step"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"g": -1}, "g must be 0 or more.* got g=-1"),
        ({"dropout": 1.0}, "0 <= dropout < 1.* got .*dropout=1.0"),
        ({"pairs_per_pass": 0.0}, "0 < pairs_per_pass <= 1.* got .*pairs_per_pass=0.0"),
        ({"pairs_per_pass": 1.5}, "pairs_per_pass=1.5"),
        ({"skipgram_lr": 0.0}, "skipgram_lr positive.* got .*skipgram_lr=0.0"),
        ({"max_positions": 0}, "a table of positions needs at least one row, got 0"),
        ({"window": 0}, "all of these must be at least 1: .*window=0"),
        ({"recommender": "gru4rec"}, "recommender is 'attention' or 'sr-gnn', got 'gru4rec'"),
        ({"recommender": "sr-gnn", "pooling": False}, "recommender='sr-gnn' has no part .* got pooling=False"),
        ({"recommender": "sr-gnn", "residual": True}, "recommender='sr-gnn' has no part .*residual=True"),
        ({"recommender": "sr-gnn", "hard_sigmoid": True}, "recommender='sr-gnn' .*hard_sigmoid=True"),
        ({"recommender": "sr-gnn", "max_positions": 5}, "recommender='sr-gnn' .*max_positions=5: leave them out"),
        ({"g": 0, "skipgram_decays": True}, "g=0 has no skip-gram .* got label_bias=False and skipgram_decays=True"),
        ({"g": 0, "nce": True, "label_bias": True}, "g=0 has no skip-gram .* got label_bias=True .*: leave them out"),
        ({"dim": 0}, "num_items and dim must be at least 1, got 9 and 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LGSR(V, **arguments)
