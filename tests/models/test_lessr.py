"""LESSR against its equations, written as loops over lists of nodes; its invariants; its size."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sbr_core.batches import Batch
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.lessr import EOPA, LESSR, ListGRU, PReLU
from sbr_core.multigraph import Multigraph
from sbr_core.norms import NodeNorm

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [1, 2, 3, 2, 4, 2], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]


class Third(nn.Module):
    """Stands for dropout, to see where it acts: a third of everything."""

    def forward(self, x):
        return x / 3


def model_of(training=False, **arguments) -> LESSR:
    """A double-precision model whose normalisations and slopes are of no special value, a third for dropout."""
    torch.manual_seed(3)
    model = LESSR(V, D, **arguments).double().train(training)
    for module in model.modules():
        if isinstance(module, NodeNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, PReLU):
            nn.init.uniform_(module.weight, -1, 1)
        if hasattr(module, "dropout"):
            module.dropout = Third()
    return model


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def normalise(norm: NodeNorm, rows):
    """The rows (a list of lists of vectors), normalised."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        every = torch.stack([vector for row in rows for vector in row])
        mean, var = every.mean(0), every.var(0, unbiased=False)
    return [[(v - mean) / torch.sqrt(var + 1e-5) * norm.weight + norm.bias for v in row] for row in rows]


def prelu(module, v):
    return torch.where(v > 0, v, module.weight * v)


def gru_loop(gru: ListGRU, vectors):
    """The last state, gate by gate, from a state of zeros."""
    W = gru.hidden.weight.shape[1]
    (W_r, W_z, W_n), (b_r, b_z, b_n) = gru.input.weight.split(W), gru.input.bias.split(W)
    (U_r, U_z, U_n), (d_r, d_z, d_n) = gru.hidden.weight.split(W), gru.hidden.bias.split(W)
    h = torch.zeros(W, dtype=torch.double)
    for x in vectors:
        r, z = torch.sigmoid(W_r @ x + b_r + U_r @ h + d_r), torch.sigmoid(W_z @ x + b_z + U_z @ h + d_z)
        h = (1 - z) * torch.tanh(W_n @ x + b_n + r * (U_n @ h + d_n)) + z * h
    return h


def eopa_loop(layer: EOPA, session, nodes, hat):
    """The outputs of all nodes of a session; hat are their normalised vectors."""
    out = []
    for i, node in enumerate(nodes):
        steps = zip(session, session[1:], strict=False)
        before = [hat[nodes.index(u)] / 3 for u, v in steps if v == node]  # one for every step, oldest first
        if layer.aggregator == "gru":
            c = gru_loop(layer.gru, before)
        else:
            c = sum(before, torch.zeros_like(hat[0]))
            c = c / len(before) if before and layer.aggregator == "mean" else c
        out.append(prelu(layer.prelu, layer.W_self.weight @ hat[i] + layer.W_nb.weight @ c))
    return out


def sgat_loop(layer, session, nodes, hat):
    out, hat = [], [v / 3 for v in hat]
    for i, node in enumerate(nodes):
        edges = set()
        for a, u in enumerate(session):
            for b, v in enumerate(session):
                if v == node and (u == v or (a <= b if layer.graph == "shortcut" else a == b - 1)):
                    edges.add(nodes.index(u))
        edges = sorted(edges)
        inner = [layer.W_q.weight @ hat[j] + layer.W_q.bias + layer.W_k.weight @ hat[i] for j in edges]
        a = torch.softmax(torch.stack([layer.p.weight[0] @ torch.sigmoid(e) for e in inner]), 0)
        out.append(prelu(layer.prelu, sum(w * (layer.W_v.weight @ hat[j]) for w, j in zip(a, edges, strict=True))))
    return out


def forward_loop(model: LESSR, sessions):
    """The queries of some sessions, node by node (in training, the normalisation joins them)."""

    def row(item):
        v = model.table[item]
        return v / v.norm().clamp(min=1) if model.clip == "forward" else v

    nodes = [list(dict.fromkeys(session)) for session in sessions]
    x = [[row(item) for item in own] for own in nodes]
    for layer in model.layers:
        loop = eopa_loop if isinstance(layer, EOPA) else sgat_loop
        o = [loop(layer, *each) for each in zip(sessions, nodes, normalise(layer.norm, x), strict=True)]
        x = [
            [torch.cat([new, old]) if model.dense else new for new, old in zip(*each, strict=True)]
            for each in zip(o, x, strict=True)
        ]
    r, joined = model.readout, []
    for session, own, raw, hat in zip(sessions, nodes, x, normalise(r.norm, x), strict=True):
        hat, last = [v / 3 for v in hat], own.index(session[-1])
        inner = [r.W_u.weight @ v + r.W_nu.weight @ hat[last] + r.W_nu.bias for v in hat]
        a = torch.softmax(torch.stack([r.r.weight[0] @ torch.sigmoid(e) for e in inner]), 0)
        s_g = prelu(r.prelu, r.W_o.weight @ sum(w * v for w, v in zip(a, hat, strict=True)))
        joined.append([torch.cat([raw[last], s_g])])
    return torch.stack([r.W_h.weight @ (row[0] / 3) for row in normalise(r.out_norm, joined)])


VARIANTS = [
    {}, {"layers": 1}, {"layers": 2}, {"aggregator": "mean"}, {"aggregator": "sum"}, {"sgat": "ordinary"},
    {"sgat": "off", "layers": 3}, {"dense": False}, {"clip": "forward"}, {"clip": "off", "layers": 2},
    {"dense": False, "aggregator": "sum", "sgat": "ordinary"},
]  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments, training):
    model = model_of(training, **arguments)
    parameters, before = list(model.parameters()), model.table.detach().clone()
    found = query(model, *SESSIONS)
    shorter = torch.stack([v / v.norm().clamp(min=1) for v in before])
    wanted = shorter if arguments.get("clip", "table") == "table" else before
    torch.testing.assert_close(model.table.detach(), wanted, rtol=0, atol=2e-7)  # torch stays 1e-7 below 1
    expected = forward_loop(model, SESSIONS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    targets = torch.arange(len(SESSIONS))
    table = torch.stack([v / v.norm().clamp(min=1) for v in model.table]) if model.clip == "forward" else model.table
    wanted = torch.autograd.grad(F.cross_entropy(expected @ table[:-1].T, targets), parameters, allow_unused=True)
    FullSoftmax()(Scores(model, found), targets).backward()
    for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
        grad = torch.zeros_like(parameter) if grad is None else grad
        torch.testing.assert_close(
            parameter.grad, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_order_of_the_in_edges_matters_to_the_gru_alone():
    one, two = [1, 3, 2, 3], [2, 3, 1, 3]
    for aggregator, same in (("gru", False), ("mean", True), ("sum", True)):
        layer = model_of(layers=1, aggregator=aggregator).layers[0]
        x, out = torch.randn(V, D, dtype=torch.double), []
        for session in (one, two):
            items = torch.tensor([session])
            out.append(layer(x[items], Multigraph(items, items > 0))[0, 1])  # node 3 is in slot 1 of both
        assert torch.allclose(*out, rtol=0, atol=1e-12) == same


def test_sessions_that_one_graph_cannot_tell_apart_have_queries_of_their_own():
    """The same graph, the same clicks, the same last click: SR-GNN sees no difference (chapter 02)."""
    one, two = [0, 1, 0, 2, 0, 1, 0], [0, 2, 0, 1, 0, 1, 0]
    first, second = query(model_of(), one, two)
    assert (first - second).abs().max() > 1e-5
    first, second = query(model_of(aggregator="mean", sgat="ordinary"), one, two)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


def test_a_single_click_has_no_neighbour_and_sees_itself_alone():
    model, items = model_of(), torch.tensor([[6]])
    graph, x = Multigraph(items, items > 0), torch.randn(1, 1, D, dtype=torch.double)
    assert model.layers[0].gru(x, graph.in_lists).eq(0).all()
    wide = torch.randn(1, 1, 2 * D, dtype=torch.double)
    assert model.layers[1].weights(wide, graph).tolist() == [[[1.0]]]
    torch.testing.assert_close(query(model, [6]), forward_loop(model, [[6]]), rtol=0, atol=1e-12)


def test_shortcut_weights_sum_to_one_over_what_came_before():
    session = [1, 2, 1, 3]
    items = torch.tensor([session])
    graph = Multigraph(items, items > 0)
    weights = model_of().layers[1].weights(torch.randn(1, 4, 2 * D, dtype=torch.double), graph)[0]
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1, 0, 1]).double())  # slot 2 holds no node
    assert weights[0, 3] == 0 and weights[0, 1] > 0 and weights[1, 0] > 0 and (weights[3, [0, 1, 3]] > 0).all()


def test_no_item_vector_is_longer_than_one_after_a_pass():
    model = model_of()
    assert model.table.norm(dim=1).max() > 1
    query(model, [1, 2])
    once = model.table.detach().clone()
    assert once.norm(dim=1).max() <= 1
    query(model, [3])
    assert torch.equal(model.table, once)  # clipping what is clipped changes nothing
    model = model_of(clip="forward")
    before = model.table.detach().clone()
    assert model.embed(torch.arange(V)).norm(dim=1).max() <= 1 + 1e-12
    query(model, [1, 2])
    assert torch.equal(model.table, before)


def test_the_norm_of_nodes_is_batch_normalisation_of_the_real_rows():
    x, real = torch.randn(5, 6, 3), torch.rand(5, 6) < 0.6
    mine, torchs = NodeNorm(3), nn.BatchNorm1d(3)
    for _ in range(2):
        torch.testing.assert_close(mine(x, real)[real], torchs(x[real]))
    for name, buffer in mine.named_buffers():
        torch.testing.assert_close(buffer, torchs.state_dict()[name])
    torch.testing.assert_close(mine.eval()(x, real), torchs.eval()(x.flatten(0, 1)).view_as(x))


def test_a_batch_of_one_click_can_be_trained_on():
    model = LESSR(V, D)
    FullSoftmax()(Scores(model, query(model, [3])), torch.tensor([1])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_the_recurrent_weights_have_a_gradient_where_no_node_has_two_in_edges():
    """It is zero, and an optimizer with momentum goes on."""
    model = model_of(training=True)
    query(model, [1, 2, 3], [4, 5]).sum().backward()
    recurrent = [layer.gru.hidden.weight for layer in model.layers if isinstance(layer, EOPA)]
    assert len(recurrent) == 2 and all(weight.grad is not None and weight.grad.eq(0).all() for weight in recurrent)


def test_slopes_belong_to_the_last_dimension():
    x, mine = torch.randn(2, 5, 3), PReLU(3)
    nn.init.uniform_(mine.weight)
    torch.testing.assert_close(mine(x), torch.where(x > 0, x, mine.weight * x))


def test_list_gru_has_the_gates_of_torch():
    gru, items = ListGRU(3), torch.tensor([[1, 3, 2, 3]])
    torchs = nn.GRU(3, 3, batch_first=True)
    torchs.load_state_dict(
        {
            "weight_ih_l0": gru.input.weight, "bias_ih_l0": gru.input.bias,
            "weight_hh_l0": gru.hidden.weight, "bias_hh_l0": gru.hidden.bias,
        }
    )  # fmt: skip
    x = torch.randn(1, 4, 3)
    found = gru(x, Multigraph(items, items > 0).in_lists)
    torch.testing.assert_close(found[0, 1], torchs(x[:, [0, 2]])[1][0, 0])  # node 3, slot 1, from slots 0 and 2


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_number_of_parameters_is_the_published_one():
    """The padding row is ours."""
    assert size(LESSR(42_596, 32)) - 32 == 1_475_104
    assert size(LESSR(42_596, 32)) - 42_597 * 32 == 112_032


def test_the_initialisation_is_that_of_torch():
    model = LESSR(500, 32)
    assert model.table.std().item() == pytest.approx(1, abs=0.03) and model.table[-1].abs().max() > 0.5
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in module.parameters():
                assert 0.8 * bound < parameter.abs().max() <= bound, name
        if isinstance(module, PReLU):
            assert module.weight.eq(0.25).all() and len(module.weight) == 32
        if isinstance(module, NodeNorm):
            assert module.weight.eq(1).all() and module.bias.eq(0).all()


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = LESSR(V, D, dropout=0.5).eval()
    assert torch.equal(query(model, [1, 2, 3]), query(model, [1, 2, 3]))
    model.train()
    assert not torch.equal(query(model, [1, 2, 3], [4]), query(model, [1, 2, 3], [4]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"layers": 0}, "layers must be at least 1 and dropout lie in 0 <= dropout < 1, got 0, 0.2"),
        ({"dropout": 1.0}, "got 4, 1.0"),
        ({"aggregator": "max"}, "aggregator is one of gru, mean, sum, got 'max'"),
        ({"sgat": "none"}, "sgat is one of shortcut, ordinary, off, got 'none'"),
        ({"clip": "yes"}, "clip is one of table, forward, off, got 'yes'"),
        ({"layers": 1, "sgat": "ordinary"}, "layers=1 has no SGAT .* sgat='ordinary' .*: leave sgat out"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LESSR(V, D, **arguments)


def test_the_vectors_that_are_searched_are_those_that_are_scored_from_the_first_session_on():
    model = model_of()
    model.compare_by(similarity="distance")
    assert model.table.norm(dim=1).max() > 1
    before = model.search_items()
    x = query(model, [1, 2])
    assert torch.equal(before, model.search_items())
    order = model.score(x).argsort(stable=True)
    assert torch.equal((model.search_query(x) @ before.T).argsort(stable=True), order)
