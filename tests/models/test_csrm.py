"""CSRM against its equations in a loop, the figures printed in the specs, and its invariants."""

import copy
from collections import deque

import pytest
import torch
from toys import random_sessions, same

from sbr_core import checkpoints
from sbr_core.batches import Batch, gather
from sbr_core.config import TrainConfig
from sbr_core.evaluate import evaluate
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.csrm import CSRM, SessionMemory
from sbr_core.optim import make_optimizers
from sbr_core.recipes import recipe
from sbr_core.train import fit, train_step

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8], [6, 4, 2]]
STILL = {"input_dropout": 0.0, "dropout": 0.0}
SMALL = STILL | {"neighbours": 3, "capacity": 7}
VARIANTS = [
    SMALL, SMALL | {"layer_norm": True}, SMALL | {"strength": 2.5}, SMALL | {"hidden": 3},
    SMALL | {"layer_norm": True, "hidden": 6, "strength": 0.5}, SMALL | {"neighbours": 7},
]  # fmt: skip


def model_of(**arguments) -> CSRM:
    """A double-precision model with parameters large enough to see every term, in training mode."""
    torch.manual_seed(3)
    model = CSRM(V, D, **arguments).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


def batch_of(*sessions) -> Batch:
    return Batch.of([list(session) for session in sessions], V)


def memory_of(rows, capacity=None) -> SessionMemory:
    memory = SessionMemory(capacity or len(rows), len(rows[0])).double()
    memory.write(torch.tensor(rows).double())
    return memory


def gru_loop(gru, x) -> list[torch.Tensor]:
    """The states of one session, gate by gate."""
    W, U, b, c = gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0
    size, states = gru.hidden_size, [x[0].new_zeros(gru.hidden_size)]
    for x_t in x:
        h, (W_r, W_z, W_n), (U_r, U_z, U_n) = states[-1], W.split(size), U.split(size)
        (b_r, b_z, b_n), (c_r, c_z, c_n) = b.split(size), c.split(size)
        r = torch.sigmoid(W_r @ x_t + b_r + U_r @ h + c_r)
        z = torch.sigmoid(W_z @ x_t + b_z + U_z @ h + c_z)
        n = torch.tanh(W_n @ x_t + b_n + r * (U_n @ h + c_n))
        states.append((1 - z) * n + z * h)
    return states[1:]


def softmax_loop(energy):
    total = sum(torch.exp(e) for e in energy)
    return [torch.exp(e) / total for e in energy]


def norm_loop(x):
    mean = sum(x) / len(x)
    variance = sum((x_i - mean) ** 2 for x_i in x) / len(x)
    return torch.stack([(x_i - mean) / (variance + 1e-10).sqrt() for x_i in x])


def read_loop(query, memory, neighbours, strength):
    """The mean of the rows (numbers) most like the query."""
    if not memory:
        return query
    cosines = [(query @ row) / (query.norm() * row.norm()) for row in memory]
    best = sorted(range(len(memory)), key=lambda p: -cosines[p].item())[:neighbours]
    weights = softmax_loop([strength * cosines[p] for p in best])
    return sum(w * memory[p] for w, p in zip(weights, best, strict=True))


def forward_loop(model: CSRM, session: list[int], memory: list):
    """Query and c^l of one session, reading a memory that is a plain list of vectors."""
    x = [model.table[item] for item in session]
    c_g, h = gru_loop(model.gru_g, x)[-1], gru_loop(model.gru_l, x)
    inner = [model.W_enc.weight @ h_i + model.W_dec.weight @ h[-1] for h_i in h]
    alpha = softmax_loop([model.v.weight[0] @ torch.sigmoid(each) for each in inner])
    c_l = sum(a * h_i for a, h_i in zip(alpha, h, strict=True))
    c_o = read_loop(c_l, memory, model.neighbours, model.strength)
    stored = c_l.detach()
    if model.layer_norm:
        c_l, c_g, c_o = norm_loop(c_l), norm_loop(c_g), norm_loop(c_o)
    w_l, w_o, w_g = model.gate.weight[0].chunk(3)
    f = torch.sigmoid(w_l @ c_l + w_o @ c_o + w_g @ c_g)
    return model.B.weight @ torch.cat([f * c_l + (1 - f) * c_o, f * c_g + (1 - f) * c_o]), stored


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    """Four batches in training: nothing in memory, a few vectors, full, and over the brim."""
    model, memory = model_of(**arguments), deque(maxlen=7)
    for sessions in (SESSIONS[:2], SESSIONS[2:5], SESSIONS[1:], SESSIONS[::-1]):
        pairs = [forward_loop(model, session, list(memory)) for session in sessions]
        memory.extend(stored for _, stored in pairs)
        expected, targets = torch.stack([query for query, _ in pairs]), torch.arange(len(sessions)) + 2
        loss = torch.nn.functional.cross_entropy(expected @ model.table[:-1].T, targets)
        wanted = torch.autograd.grad(loss, list(model.parameters()))
        query = model.encode(batch_of(*sessions))
        torch.testing.assert_close(query, expected, rtol=0, atol=1e-12)
        model.zero_grad()
        FullSoftmax()(Scores(model, query), targets).backward()
        for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
            torch.testing.assert_close(
                parameter.grad, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_a_large_batch_of_all_lengths_is_encoded_as_it_would_be_whole():
    model, batch = model_of(**STILL), batch_of(*[session * (1 + i % 4) for i, session in enumerate(SESSIONS * 15)])
    assert len(batch) == 90 and batch.lengths.unique().numel() > 6
    c_g, c_l = model.inner(batch)
    whole = model.B(model.fuse(c_l, c_g, c_l))  # the memory is empty: it gives back c^l
    query = model.encode(batch)
    torch.testing.assert_close(query, whole, rtol=0, atol=1e-12)
    names = [name for name, _ in model.named_parameters() if name != "table"]
    weights = torch.linspace(-1, 1, query.numel()).double().view_as(query)
    for value in (query, whole):
        model.zero_grad()
        (value * weights).sum().backward(retain_graph=True)
        grads = [model.get_parameter(name).grad.clone() for name in names]
        if value is query:
            wanted = grads
    for name, left, right in zip(names, wanted, grads, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_the_figures_of_the_specs():
    memory, query = memory_of([[2.0, 0], [0, 3], [1, 1]]), torch.tensor([[1.0, 0]]).double()
    cosine, index, _ = memory.nearest(query, 2)
    found = dict(zip(index[0].tolist(), cosine[0].tolist(), strict=True))
    assert found == {0: pytest.approx(1, abs=1e-6), 2: pytest.approx(0.707107, abs=1e-6)}
    expected = torch.tensor([[1.572704, 0.427296]]).double()
    torch.testing.assert_close(memory.read(query, 2), expected, rtol=0, atol=1e-6)
    weights = torch.softmax(cosine[0].sort(descending=True).values, 0)
    torch.testing.assert_close(weights, torch.tensor([0.572704, 0.427296]).double(), rtol=0, atol=1e-6)


def test_an_empty_memory_gives_back_the_query_and_a_half_full_one_only_what_is_in_it():
    query = torch.randn(5, 3).double()
    assert torch.equal(SessionMemory(8, 3).double().read(query, 4), query)
    two = torch.randn(2, 3).double()
    for capacity in (2, 8):
        memory = memory_of(two.tolist(), capacity)
        expected = torch.stack([read_loop(q, list(two), 4, 1.0) for q in query])
        torch.testing.assert_close(memory.read(query, min(4, capacity)), expected, rtol=0, atol=1e-12)


def test_reading_an_empty_memory_trains():
    model = model_of(**SMALL)
    model.encode(batch_of(*SESSIONS)).sum().backward()
    assert all(p.grad.isfinite().all() for name, p in model.named_parameters() if name != "table")


def test_the_memory_is_a_queue_of_fixed_length():
    memory, queue, number = SessionMemory(7, 2), deque(maxlen=7), 0
    for size in (3, 1, 5, 7, 2, 20, 4, 6):
        vectors = torch.arange(number, number + size)[:, None] * torch.tensor([1, -1])
        memory.write(vectors.float())
        queue.extend(vectors.tolist())
        number += size
        held = memory.rows[: min(number, 7)].int().tolist()
        assert sorted(held) == sorted(queue) and len(memory.rows) == 7 and memory.written == number
    assert memory.rows.untyped_storage().data_ptr() == memory.rows.data_ptr()  # written in place, never grown


def test_no_gradient_reaches_the_memory():
    memory, query = memory_of([[2.0, 0], [0, 3], [1, 1]]), torch.randn(4, 2).double().requires_grad_()
    read = memory.read(query, 2)
    memory.write(query * 2)  # after the read, before the backward pass: what was read is not what is there now
    read.sum().backward()
    assert not memory.rows.requires_grad and memory.rows.grad is None
    slow = query.detach().clone().requires_grad_()
    rows = [torch.tensor(row).double() for row in ([2.0, 0], [0, 3], [1, 1])]
    sum(read_loop(q, rows, 2, 1.0).sum() for q in slow).backward()
    torch.testing.assert_close(query.grad, slow.grad, rtol=0, atol=1e-12)


def test_the_order_of_the_rows_does_not_matter():
    rows, query = torch.randn(7, 3).double(), torch.randn(5, 3).double()
    shuffled = rows[torch.tensor([3, 0, 6, 1, 5, 2, 4])]
    left, right = memory_of(rows.tolist()).read(query, 3), memory_of(shuffled.tolist()).read(query, 3)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_a_longer_row_weighs_the_same_and_brings_more():
    rows, query = [[2.0, 0], [0, 3], [1, 1]], torch.tensor([[1.0, 0.2]]).double()
    before, after = memory_of(rows), memory_of([[10.0, 0], *rows[1:]])
    for left, right in zip(before.nearest(query, 3)[:2], after.nearest(query, 3)[:2], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    cosine, index, _ = before.nearest(query, 3)
    weight = cosine.softmax(1)[0, index[0].tolist().index(0)]
    torch.testing.assert_close(
        after.read(query, 3) - before.read(query, 3), weight * torch.tensor([[8.0, 0]]).double(), rtol=0, atol=1e-12
    )


def test_the_strength_sharpens():
    rows = [[1.0, 0], [1, 0.2], [0, 1]]
    query = torch.tensor([[1.0, 0]]).double()
    torch.testing.assert_close(memory_of(rows).read(query, 3, 2000.0), query, rtol=0, atol=1e-12)
    flat = torch.tensor(rows).double().mean(0, keepdim=True)
    torch.testing.assert_close(memory_of(rows).read(query, 3, 1e-9), flat, rtol=0, atol=1e-8)


def test_layer_normalisation_leaves_mean_zero_and_variance_one():
    model, seen = model_of(**SMALL | {"layer_norm": True, "hidden": 6}), {}
    model.gate.register_forward_hook(lambda module, inputs, out: seen.update(c=inputs[0].unflatten(1, (3, 6))))
    model.encode(batch_of(*SESSIONS))
    torch.testing.assert_close(seen["c"].mean(-1), torch.zeros(6, 3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen["c"].var(-1, unbiased=False), torch.ones(6, 3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_open_gate_leaves_narms_decoder_and_a_shut_one_the_memory_alone(layer_norm):
    model = model_of(**SMALL | {"layer_norm": layer_norm})
    c_l, c_g, c_o = (torch.randn(2, D).double() for _ in range(3))
    normal = [torch.stack([norm_loop(row) for row in c]) if layer_norm else c for c in (c_l, c_g, c_o)]
    for bias, pair in ((1e4, normal[:2]), (-1e4, [normal[2]] * 2)):
        hook = model.gate.register_forward_hook(lambda module, inputs, out, bias=bias: out + bias)
        torch.testing.assert_close(model.fuse(c_l, c_g, c_o), torch.cat(pair, dim=1), rtol=0, atol=1e-12)
        hook.remove()


def test_an_empty_memory_without_a_gate_is_the_sessions_own_vector_twice():
    """c^o = c^l: the first half of c is c^l wherever the gate stands."""
    model, seen = model_of(**SMALL), {}
    model.B.register_forward_hook(lambda module, inputs, out: seen.update(c=inputs[0]))
    model.encode(batch_of(*SESSIONS))
    torch.testing.assert_close(seen["c"][:, :D], model.memory.rows[:6], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["input_dropout", "dropout"])
def test_each_dropout_acts_alone_and_in_training_only(name):
    """Equal sessions, read before any of them is in the memory."""
    model, batch = model_of(**SMALL | {name: 0.5}), batch_of(*[[1, 2, 1, 3]] * 50)
    assert model.encode(batch).std(0).min() > 0.01
    assert model.eval().encode(batch).std(0).max() < 1e-12


def test_evaluation_reads_what_training_left_and_writes_nothing():
    model = model_of(**SMALL)
    model.encode(batch_of(*SESSIONS))
    before = copy.deepcopy(model.state_dict())
    model.eval()
    alone = torch.cat([model.encode(batch_of(session)) for session in SESSIONS])
    torch.testing.assert_close(model.encode(batch_of(*SESSIONS)), alone, rtol=0, atol=1e-12)
    evaluate(model, random_sessions(20, V).prefixes())
    assert same(model.state_dict(), before) and before["memory.written"] == 6
    fresh = model_of(**SMALL).eval()
    assert not torch.allclose(fresh.encode(batch_of(*SESSIONS)), alone)  # the memory does matter


def test_a_stream_remembers_test_sessions_until_training_goes_on():
    model = model_of(**SMALL | {"memory_at_test": "streaming"})
    model.encode(batch_of(*SESSIONS))
    before = copy.deepcopy(model.state_dict())
    model.eval()
    first, second = (model.encode(batch_of([1, 2], [8])) for _ in range(2))
    assert model.memory.written == 10 and not torch.allclose(first, second)
    model.eval()  # no news: the stream goes on
    assert model.memory.written == 10
    model.train()
    assert same(model.state_dict(), before)
    model.eval()
    torch.testing.assert_close(model.encode(batch_of([1, 2], [8])), first, rtol=0, atol=1e-12)


def test_a_stream_finds_the_session_itself():
    """A longer prefix of the session, answer included, is the nearest row there is."""
    model = model_of(**STILL, neighbours=1, capacity=50, memory_at_test="streaming").eval()
    model.encode(batch_of(*SESSIONS, [4, 1, 8, 2]))
    c_l = {}
    model.W_enc.register_forward_hook(lambda module, inputs, out: c_l.update(h=inputs[0]))
    batch = batch_of([4, 1, 8, 2])
    model.encode(batch)
    own = (model.attention(c_l["h"], batch)[:, None] @ c_l["h"]).squeeze(1)
    cosine, index, _ = model.memory.nearest(own, 1)
    assert index.item() in (6, 7) and cosine.item() == pytest.approx(1)


def test_a_run_continued_from_its_state_has_the_same_memory_and_ends_the_same():
    windows = random_sessions(60, V, seed=4).prefixes()
    batches = [gather(windows, torch.arange(start, start + 13)) for start in range(0, 104, 13)]
    torch.manual_seed(0)
    model = CSRM(V, D, neighbours=5, capacity=40)
    optimizers, loss = make_optimizers(model, lr=0.01), FullSoftmax()
    for batch in batches[:4]:
        train_step(model, loss, optimizers, batch)
    kept = {name: tensor.clone() for name, tensor in checkpoints.training_state(model, optimizers).items()}
    assert kept["model.memory.written"] == 52
    for batch in batches[4:]:
        train_step(model, loss, optimizers, batch)
    other = CSRM(V, D, neighbours=5, capacity=40)
    others = make_optimizers(other, lr=0.01)
    checkpoints.restore_training_state(kept, other, others)
    for batch in batches[4:]:
        train_step(other, FullSoftmax(), others, batch)
    assert same(model.state_dict(), other.state_dict()) and model.memory.written == 104


def test_in_the_order_of_the_log_the_memory_ends_with_the_latest_sessions():
    sessions, model = random_sessions(30, V, seed=2), model_of(**SMALL)
    windows = sessions.prefixes()
    fit(model, windows, TrainConfig(epochs=2, batch_size=8, lr=1e-9, l2=0.0, batches="chronological"), progress=False)
    assert model.memory.written == 2 * len(windows)
    last = Batch.of([sessions.items[s:t].tolist() for s, t in zip(windows.start, windows.target, strict=True)][-7:], V)
    model.memory.written.zero_()
    model.encode(last)  # writes the seven latest anew, to slots 0..6
    expected = model.memory.rows.roll(2 * len(windows) % 7, 0)
    model_again = model_of(**SMALL)
    fit(
        model_again,
        windows,
        TrainConfig(epochs=2, batch_size=8, lr=1e-9, l2=0.0, batches="chronological"),
        progress=False,
    )
    torch.testing.assert_close(model_again.memory.rows, expected, rtol=0, atol=1e-6)


def test_the_number_of_parameters_is_the_published_one():
    """The recurrent layers have a second bias, of 3 H each."""
    model = CSRM(50, 100)
    assert sum(p.numel() for p in model.parameters()) == 51 * 100 + 161_000 + 2 * 300
    assert model.memory.rows.shape == (10_000, 100) and model.neighbours == 512


def test_the_initialisation_is_the_public_codes():
    model = CSRM(2000, 60, hidden=150, capacity=600)
    wanted = {
        "table": (2 / 2001) ** 0.5, "W_enc.weight": (2 / 150) ** 0.5, "W_dec.weight": (2 / 150) ** 0.5,
        "v.weight": 2**0.5, "gate.weight": (2 / 150) ** 0.5, "B.weight": (2 / 60) ** 0.5,
    }  # fmt: skip
    for name, std in wanted.items():
        assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.2), name
    for gru in (model.gru_g, model.gru_l):
        for weight in (gru.weight_ih_l0, gru.weight_hh_l0):
            assert weight[:300].abs().max().item() == pytest.approx((6 / 510) ** 0.5, rel=0.01)
            assert weight[300:].abs().max().item() == pytest.approx((6 / 360) ** 0.5, rel=0.01)
        assert gru.bias_ih_l0[:300].eq(1).all() and gru.bias_ih_l0[300:].eq(0).all() and gru.bias_hh_l0.eq(0).all()
    gates = torch.sigmoid(torch.tensor(1.0))
    assert gates.item() == pytest.approx(0.731, abs=1e-3)  # the share of the old state that a fresh cell keeps


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"hidden": 0}, "hidden must be at least 1, or None for dim, got 0"),
        ({"neighbours": 8, "capacity": 7}, "neighbours must lie in 1..capacity, got neighbours=8 and capacity=7"),
        ({"neighbours": 0}, "neighbours must lie in 1..capacity, got neighbours=0"),
        ({"strength": 0.0}, "strength must be positive, got 0.0"),
        ({"memory_at_test": "on"}, "memory_at_test is 'off' or 'streaming', got 'on'"),
        ({"dropout": 1.0}, "dropout must lie in 0 <= dropout < 1, got 1.0"),
        ({"input_dropout": -0.1}, "input_dropout must lie in 0 <= input_dropout < 1, got -0.1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CSRM(V, D, **arguments)


@pytest.mark.parametrize("dataset", ["yoochoose1_64", "diginetica"])
def test_the_recipe_is_the_public_codes(dataset):
    found = recipe("csrm", dataset)
    model, config = CSRM(V, **found.arguments), found.config
    assert (model.dim, model.neighbours, len(model.memory.rows), model.strength) == (100, 512, 10_000, 1.0)
    assert (model.layer_norm, model.memory_at_test, model.input_dropout.p, model.dropout.p) == (True, "off", 0.25, 0.5)
    assert (config.batch_size, config.lr, config.lr_every, config.l2) == (512, 5e-4, None, 0.0)
    assert (config.batches, config.clip_grad) == ("chronological", None)


def test_on_the_demo_shop_too_the_memory_is_filled_in_the_order_of_the_log():
    assert recipe("csrm", "demo").config.batches == "chronological"
