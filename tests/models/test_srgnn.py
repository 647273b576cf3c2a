"""SR-GNN against its equations, written as loops over a Python list of nodes; its invariants; its size."""

import math

import pytest
import torch
from torch.nn import functional as F
from toys import random_sessions

from sbr_core.batches import Batch, gather
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.srgnn import SRGNN

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [1, 2, 3, 2, 4], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]


def model_of(**arguments) -> SRGNN:
    torch.manual_seed(3)
    return SRGNN(V, D, **arguments).double()


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def shared(model, **arguments) -> SRGNN:
    """Another variant with the parameters of `model`."""
    other = model_of(**arguments)
    other.load_state_dict({name: value for name, value in model.state_dict().items() if name in other.state_dict()})
    return other


def edges_of(session, nodes, weight):
    """{(u, v): weight} by node number."""
    edges = {}
    for a, b in zip(session, session[1:], strict=False):
        pair = nodes.index(a), nodes.index(b)
        edges[pair] = edges.get(pair, 0) + 1 if weight == "count" else 1
    return edges


def states_loop(model: SRGNN, session: list[int], nodes: list[int]):
    """The states of the nodes after the rounds, node by node."""
    graph, states = model.graph, [model.table[node] for node in nodes]
    if graph.steps == 0:
        return states
    W_in, W_out = graph.edges.weight[:D], graph.edges.weight[D:]
    b_in, b_out, c_in, c_out = graph.edges.bias[:D], graph.edges.bias[D:], graph.edge_bias[:D], graph.edge_bias[D:]
    (W_r, W_z, W_n), (b_r, b_z, b_n) = graph.input.weight.split(D), graph.input.bias.split(D)
    (U_r, U_z, U_n), (d_r, d_z, d_n) = graph.hidden.weight.split(D), graph.hidden.bias.split(D)
    edges = edges_of(session, nodes, model.edge_weight)
    for _ in range(graph.steps):
        after = []
        for j, h in enumerate(states):
            a_in, a_out = c_in, c_out
            for (u, v), weight in edges.items():
                if v == j:  # u comes before j
                    share = weight / sum(w for (_, other), w in edges.items() if other == j)
                    a_in = a_in + share * (W_in @ states[u] + b_in)
                if u == j:  # v comes after j
                    share = weight / sum(w for (other, _), w in edges.items() if other == j)
                    a_out = a_out + share * (W_out @ states[v] + b_out)
            a = torch.cat([a_in, a_out])
            r = torch.sigmoid(W_r @ a + b_r + U_r @ h + d_r)
            z = torch.sigmoid(W_z @ a + b_z + U_z @ h + d_z)
            new = torch.tanh(W_n @ a + b_n + r * (U_n @ h + d_n))
            after.append((1 - z) * new + z * h)
        states = after
    return states


def forward_loop(model: SRGNN, session: list[int]):
    """The query of one session, equation by equation."""
    nodes = list(dict.fromkeys(session))
    states = states_loop(model, session, nodes)
    clicks = [states[nodes.index(item)] for item in session]
    if model.readout == "last":
        return clicks[-1]
    if model.readout == "mean":
        return sum(clicks) / len(clicks)
    attention, total = model.attention, 0
    for h in clicks:
        inner = attention.W1.weight @ clicks[-1] + attention.W1.bias + attention.W2.weight @ h + attention.W2.bias
        total = total + (attention.q.weight[0] @ torch.sigmoid(inner)) * h
    return model.W3.weight @ torch.cat([total, clicks[-1]]) + model.W3.bias if model.hybrid else total


VARIANTS = [
    {}, {"steps": 0}, {"steps": 2}, {"steps": 3, "edge_weight": "count"}, {"edge_weight": "count"}, {"hybrid": False},
    {"readout": "last"}, {"readout": "mean"}, {"readout": "mean", "steps": 0},
]  # fmt: skip


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    model, exact = model_of(**arguments), 1e-12 if arguments.get("edge_weight") is None else 1e-7  # a third in float32
    parameters = list(model.parameters())
    expected = torch.stack([forward_loop(model, session) for session in SESSIONS])
    torch.testing.assert_close(query(model, *SESSIONS), expected, rtol=0, atol=exact)
    targets = torch.arange(len(SESSIONS))
    loss = F.cross_entropy(expected @ model.table[:-1].T, targets)
    wanted = torch.autograd.grad(loss, parameters, allow_unused=True)
    value = FullSoftmax()(Scores(model, query(model, *SESSIONS)), targets)
    value.backward()
    assert value.item() == pytest.approx(loss.item(), abs=exact)
    for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
        grad = torch.zeros_like(parameter) if grad is None else grad
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(mine, grad, rtol=0, atol=exact, msg=lambda text, name=name: f"{name}: {text}")


def test_scores_are_products_with_the_input_table():
    model = model_of()
    torch.testing.assert_close(model.score(query(model, [1, 2])), query(model, [1, 2]) @ model.table[:V].T)


def test_without_rounds_there_is_nothing_to_learn_in_the_graph():
    assert not list(model_of(steps=0).graph.parameters()) and list(model_of().graph.parameters())
    assert all(parameter.grad is not None for parameter in after_a_step(model_of(steps=0)).parameters())


def after_a_step(model):
    """The model with the gradients of one batch."""
    FullSoftmax()(Scores(model, query(model, *SESSIONS)), torch.arange(len(SESSIONS))).backward()
    return model


def test_without_rounds_the_states_are_the_table_rows():
    model = model_of(steps=0, readout="last")
    assert torch.equal(query(model, [1, 2, 1, 3], [5]), model.table[[3, 5]])


def test_a_query_that_passes_the_last_state_through():
    model = model_of()
    plain = shared(model, readout="last")
    with torch.no_grad():
        model.W3.weight.copy_(torch.cat([torch.zeros(D, D), torch.eye(D)], dim=1))
        model.W3.bias.zero_()
    torch.testing.assert_close(query(model, *SESSIONS), query(plain, *SESSIONS), rtol=0, atol=1e-12)


def test_the_attention_is_linear_in_q_and_not_normalised():
    model = model_of(hybrid=False)
    before = query(model, *SESSIONS)
    with torch.no_grad():
        model.attention.q.weight.mul_(2)
    torch.testing.assert_close(query(model, *SESSIONS), 2 * before, rtol=0, atol=1e-12)
    with torch.no_grad():
        model.attention.q.weight.zero_()
    assert query(model, *SESSIONS).eq(0).all()


def test_attention_of_a_single_click_is_that_clicks_state():
    model, batch = model_of(hybrid=False), Batch.of([[6]], V)
    h = shared(model, readout="last").encode(batch)
    alpha = model.attention.weights(h[:, None], h, batch.mask)
    torch.testing.assert_close(query(model, [6]), alpha[0] * h, rtol=0, atol=1e-12)


def test_positions_that_keep_graph_multiset_and_last_click_do_not_matter():
    """Two ways round the triangle: the same edges, the same clicks, another order."""
    model = model_of(steps=2)
    one, two = [0, 1, 0, 2, 0, 1, 0], [0, 2, 0, 1, 0, 1, 0]
    torch.testing.assert_close(query(model, one), query(model, two), rtol=0, atol=1e-12)
    assert not torch.allclose(query(model, one), query(model, [0, 1, 0, 2, 0, 2, 0]))


def test_a_repeated_transition_counts_only_where_it_is_asked_to():
    once, twice = [0, 1, 2, 0, 1], [0, 1, 0, 1, 2, 0, 1]
    for weight, same in (("binary", False), ("count", False)):
        assert (
            torch.allclose(query(model_of(edge_weight=weight), once), query(model_of(edge_weight=weight), twice))
            == same
        )
    session = [0, 1, 0, 1, 2]  # 1 is followed by 0 and by 2, once each; 0 is entered once, 1 twice
    binary, count = query(model_of(), session), query(model_of(edge_weight="count"), session)
    assert torch.allclose(binary, count)
    session = [1, 0, 1, 0, 1, 2]
    assert not torch.allclose(query(model_of(), session), query(model_of(edge_weight="count"), session))


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_number_of_parameters_is_the_published_one():
    """16 d^2 + 15 d, less the edge map of d^2 + d that the public code owns and never uses."""
    for d in (6, 100):
        assert size(SRGNN(50, d)) - 51 * d == 15 * d * d + 14 * d
    assert size(SRGNN(43_097)) == 4_471_300 - 10_100
    assert size(SRGNN(37_483)) == 3_909_900 - 10_100
    assert size(SRGNN(50, 100)) - 5100 == 151_400


def test_the_initialisation_fills_its_range():
    model = SRGNN(500, 100)
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= 0.1, name
        assert parameter.abs().max() > 0.095 and abs(parameter.mean()) < 0.03, name
    assert model.table[-1].abs().max() > 0.05  # the padding row too


def test_the_first_loss_is_about_ln_v():
    windows = random_sessions(200, num_items=3000).prefixes()
    model = SRGNN(3000)
    loss = FullSoftmax()(Scores(model, model.encode(gather(windows, torch.arange(100)))), windows.labels[:100].long())
    assert loss.item() == pytest.approx(math.log(3000), abs=0.1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"readout": "max"}, "attention, last, mean, got 'max'"),
        ({"dim": 0}, "num_items and dim must be at least 1, got 9 and 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SRGNN(V, **arguments)


def test_an_unknown_edge_weight_is_refused():
    with pytest.raises(ValueError, match="edge_weight is 'binary' or 'count', got 'sum'"):
        query(SRGNN(V, edge_weight="sum"), [1, 2])
