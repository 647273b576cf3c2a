"""GC-SAN against its equations in a loop, what remains of it at the ends of its switches, and its size."""

import math

import pytest
import torch
from torch.nn import functional as F
from toys import random_sessions

from sbr_core.batches import Batch, gather
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.gcsan import GCSAN
from sbr_core.models.srgnn import SRGNN

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [1, 2, 3, 2, 4], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]


def model_of(**arguments) -> GCSAN:
    torch.manual_seed(3)
    model = GCSAN(V, D, **{"dropout": 0.0} | arguments).double()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # neither 1 nor 0, or a forgotten gain or shift would not be seen
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def shared(model, **arguments) -> GCSAN:
    """Another variant with the parameters of `model`."""
    other = model_of(**arguments)
    other.load_state_dict({name: value for name, value in model.state_dict().items() if name in other.state_dict()})
    return other


def affine(layer, x):
    return layer.weight @ x + (0 if layer.bias is None else layer.bias)


def graph_loop(model, session):
    """States of the clicks after the graph: a node hears the mean of its predecessors and of its successors."""
    graph, steps = model.graph, list(zip(session, session[1:], strict=False))
    if graph.steps == 0:
        return [model.table[item] for item in session]
    W_in, W_out = graph.edges.weight.split(D)
    b_in, b_out = graph.edges.bias.split(D)
    W, b = graph.input.weight.split(D), graph.input.bias.split(D)
    U, d = graph.hidden.weight.split(D), graph.hidden.bias.split(D)
    states = {item: model.table[item] for item in session}
    for _ in range(graph.steps):
        after = {}
        for item, h in states.items():
            before, behind = {u for u, v in steps if v == item}, {v for u, v in steps if u == item}
            a_in = sum((W_in @ states[u] + b_in for u in sorted(before)), torch.zeros(D).double()) / max(len(before), 1)
            a_out = sum((W_out @ states[v] + b_out for v in sorted(behind)), torch.zeros(D).double())
            a = torch.cat([a_in, a_out / max(len(behind), 1)]) + graph.edge_bias
            r = torch.sigmoid(W[0] @ a + b[0] + U[0] @ h + d[0])
            z = torch.sigmoid(W[1] @ a + b[1] + U[1] @ h + d[1])
            after[item] = (1 - z) * torch.tanh(W[2] @ a + b[2] + r * (U[2] @ h + d[2])) + z * h
        states = after
    return [states[item] for item in session]


def normalised(norm, x):
    centred = x - x.mean()
    return norm.weight * centred / (centred.square().mean() + norm.eps).sqrt() + norm.bias


def block_loop(block, x, causal):
    """Equations 3.1 and 3.2 for every click."""
    after = []
    for i, asking in enumerate(x):
        q, e, values = affine(block.attention.Q, asking), [], []
        for other in x[: i + 1] if causal else x:
            key, value = affine(block.attention.KV, other).split(D)
            e.append((q @ key / math.sqrt(D)).exp())
            values.append(value)
        y = sum(weight * value for weight, value in zip(e, values, strict=True)) / sum(e)
        if block.layer_norm:
            y = normalised(block.norms[0], y + asking)
        y = affine(block.W2, affine(block.W1, y).clamp(min=0)) + y
        after.append(normalised(block.norms[1], y) if block.layer_norm else y)
    return after


def forward_loop(model, session, share=False):
    h = x = graph_loop(model, session)
    for number in range(model.rounds):
        x = block_loop(model.blocks[0 if share else number], x, model.causal)
    return model.omega * x[-1] + (1 - model.omega) * h[-1]


VARIANTS = [
    {}, {"blocks": 0}, {"blocks": 2}, {"blocks": 3, "share_blocks": True}, {"blocks": 2, "causal": True},
    {"layer_norm": True}, {"blocks": 3, "layer_norm": True, "causal": True}, {"steps": 0}, {"steps": 3, "blocks": 2},
    {"omega": 0.0}, {"omega": 1.0, "blocks": 4, "share_blocks": True, "layer_norm": True},
]  # fmt: skip
EVERY_VARIANT = pytest.mark.parametrize("arguments", VARIANTS, ids=str)


@EVERY_VARIANT
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    model = model_of(**arguments)
    expected = torch.stack([forward_loop(model, session, arguments.get("share_blocks")) for session in SESSIONS])
    torch.testing.assert_close(query(model, *SESSIONS), expected, rtol=0, atol=1e-12)
    targets = torch.arange(len(SESSIONS))
    loss = F.cross_entropy(expected @ model.table[:-1].T, targets)
    wanted = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    FullSoftmax()(Scores(model, query(model, *SESSIONS)), targets).backward()
    for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
        mine, grad = (torch.zeros_like(parameter) if g is None else g for g in (parameter.grad, grad))
        torch.testing.assert_close(mine, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("arguments", [{"omega": 0.0, "blocks": 2}, {"blocks": 0, "omega": 0.6}], ids=str)
def test_without_attention_it_is_sr_gnn_with_its_last_state(arguments, steps):
    model = model_of(**arguments, steps=steps)
    plain = SRGNN(V, D, steps=steps, readout="last").double()
    hybrid = SRGNN(V, D, steps=steps).double()
    plain.graph, plain.table, hybrid.graph, hybrid.table = model.graph, model.table, model.graph, model.table
    with torch.no_grad():
        hybrid.W3.weight.copy_(torch.cat([torch.zeros(D, D), torch.eye(D)], dim=1))
        hybrid.W3.bias.zero_()
    torch.testing.assert_close(query(model, *SESSIONS), query(plain, *SESSIONS), rtol=0, atol=1e-12)
    torch.testing.assert_close(query(model, *SESSIONS), query(hybrid, *SESSIONS), rtol=0, atol=1e-12)


def test_without_graph_and_attention_the_query_is_the_last_click():
    model = model_of(steps=0, blocks=0)
    assert torch.equal(query(model, [1, 2, 1, 3], [5]), model.table[[3, 5]])


def test_without_a_graph_the_clicks_before_the_last_have_no_order():
    graph = model_of(blocks=2)
    model = shared(graph, steps=0, blocks=2)
    torch.testing.assert_close(query(model, [1, 2, 4, 3]), query(model, [4, 1, 2, 3]), rtol=0, atol=1e-12)
    assert not torch.allclose(query(model, [1, 2, 4, 3]), query(model, [1, 2, 3, 4]))
    assert not torch.allclose(query(graph, [1, 2, 4, 3]), query(graph, [4, 1, 2, 3]))


@pytest.mark.parametrize("blocks", [1, 3])
def test_attention_without_values_leaves_a_share_of_the_last_state(blocks):
    model = model_of(blocks=blocks)
    h_last = query(shared(model, omega=0.0, blocks=blocks), *SESSIONS)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.KV.weight[D:] = 0
            block.W1.bias.zero_()
            block.W2.bias.zero_()
    torch.testing.assert_close(query(model, *SESSIONS), (1 - model.omega) * h_last, rtol=0, atol=1e-12)


def test_the_mixture_is_linear_in_omega():
    model = model_of(omega=0.0)
    ends = [query(shared(model, omega=omega), *SESSIONS) for omega in (0.0, 1.0)]
    for omega in (0.3, 0.52, 0.6):
        expected = (1 - omega) * ends[0] + omega * ends[1]
        torch.testing.assert_close(query(shared(model, omega=omega), *SESSIONS), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(*ends)


def test_a_single_click_attends_to_itself():
    model, batch = model_of(omega=1.0), Batch.of([[6], [1, 2]], V)
    states, block = model.graph_states(batch), model.blocks[0]
    assert block.attention.weights(states, batch.mask)[0, 0, 0].tolist() == [1, 0]
    y = states[0, 0] @ block.attention.KV.weight[D:].T
    expected = block.W2(torch.relu(block.W1(y))) + y
    torch.testing.assert_close(query(model, [6])[0], expected, rtol=0, atol=1e-12)


@EVERY_VARIANT
def test_more_padding_changes_nothing(arguments):
    model, batch = model_of(**arguments), Batch.of(SESSIONS, V)
    wider = Batch(F.pad(batch.items, (0, 6), value=V), batch.lengths, batch.target)
    torch.testing.assert_close(model.encode(wider), model.encode(batch), rtol=0, atol=1e-12)
    alone = torch.cat([query(model, session) for session in SESSIONS])
    torch.testing.assert_close(alone, model.encode(batch), rtol=0, atol=1e-12)


def test_causality_changes_only_blocks_below_the_topmost():
    for blocks, same in ((1, True), (2, False)):
        model = model_of(blocks=blocks)
        other = query(shared(model, blocks=blocks, causal=True), *SESSIONS)
        assert torch.allclose(query(model, *SESSIONS), other, rtol=0, atol=1e-12) == same


def test_a_shared_block_is_as_many_equal_blocks():
    model, many = model_of(blocks=3, share_blocks=True), model_of(blocks=3)
    many.graph, many.table = model.graph, model.table
    for block in many.blocks:
        block.load_state_dict(model.blocks[0].state_dict())
    torch.testing.assert_close(query(model, *SESSIONS), query(many, *SESSIONS), rtol=0, atol=1e-12)
    assert len(model.blocks) == 1 and not torch.allclose(query(model, *SESSIONS), query(model_of(blocks=3), *SESSIONS))


def test_dropout_acts_on_the_maps_in_training_only():
    model, plain = model_of(dropout=0.5, omega=1.0), model_of(omega=1.0)
    assert torch.equal(query(model.eval(), *SESSIONS), query(plain, *SESSIONS))
    model.train()
    torch.manual_seed(0)
    drawn = query(model, *[[1, 2, 1, 3]] * 20_000)
    torch.testing.assert_close(drawn.mean(0), query(plain, [1, 2, 1, 3])[0], rtol=0, atol=0.01)
    assert drawn.std(0).min() > 0.01
    with torch.no_grad():
        model.blocks[0].W2.weight.zero_()
        model.blocks[0].W2.bias.zero_()
    assert torch.equal(query(model, *SESSIONS), query(model, *SESSIONS))  # nothing but the maps' output is dropped


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("d", [6, 120])
def test_a_block_has_five_square_matrices_and_two_biases(d):
    graph = 11 * d * d + 10 * d  # edges 2 d^2 + 4 d, gates 9 d^2 + 6 d
    for blocks in (0, 1, 4):
        assert size(GCSAN(50, d, blocks=blocks)) - 51 * d == graph + blocks * (5 * d * d + 2 * d)
    assert size(GCSAN(50, d, blocks=4, share_blocks=True)) == size(GCSAN(50, d))
    assert size(GCSAN(50, d, layer_norm=True)) == size(GCSAN(50, d)) + 4 * d


def test_the_initialisation_fills_its_range_and_normalisations_start_as_nothing():
    model = GCSAN(500, 100, layer_norm=True)
    for name, parameter in model.named_parameters():
        if "norms" in name:
            assert parameter.eq(1 if name.endswith("weight") else 0).all()
        else:
            assert 0.095 < parameter.abs().max() <= 0.1 and abs(parameter.mean()) < 0.03, name


def test_the_first_loss_is_about_ln_v():
    windows, model = random_sessions(200, num_items=3000).prefixes(), GCSAN(3000)
    loss = FullSoftmax()(Scores(model, model.encode(gather(windows, torch.arange(100)))), windows.labels[:100].long())
    assert loss.item() == pytest.approx(math.log(3000), abs=0.1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"blocks": -1}, "blocks must be 0 or more.* got blocks=-1"),
        ({"omega": 1.1}, "omega lie in 0 <= omega <= 1.* omega=1.1"),
        ({"omega": -0.1}, "omega=-0.1"),
        ({"dropout": 1.0}, "dropout in 0 <= dropout < 1.* dropout=1.0"),
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"blocks": 0, "omega": 0.0}, "blocks=0 has no attention that omega, .* got omega=0.0, share_blocks=False and"),
        ({"blocks": 0, "omega": 0.52}, "blocks=0 has no attention .* got omega=0.52"),
        ({"blocks": 0, "share_blocks": True}, "blocks=0 has no .*share_blocks=True and layer_norm=False: leave"),
        ({"blocks": 0, "layer_norm": True}, "blocks=0 has no .*share_blocks=False and layer_norm=True: leave"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GCSAN(V, D, **arguments)
