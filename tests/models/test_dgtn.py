"""DGTN against its equations in a loop over nodes and edges; its invariants; who may be whose neighbour."""

import math

import numpy as np
import pytest
import torch
from test_retrieval import slow_neighbours
from torch.nn import functional as F
from toys import random_clicks

from sbr_core.batches import Batch, gather
from sbr_core.evaluate import evaluate
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.dgtn import DGTN
from sbr_core.models.srgnn import SRGNN
from sbr_core.recommend import Recommender
from sbr_core.sessions import Sessions

V, D = 12, 4
LOG = random_clicks(40, V, longest=6, seed=4)
TRAIN = Sessions.from_lists(LOG, V)
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]


def model_of(prepared=True, **arguments) -> DGTN:
    torch.manual_seed(3)
    model = DGTN(V, D, **arguments).double().eval()
    if prepared:
        model.prepare(TRAIN)
    return model


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def channel_loop(model, theta, session, others):
    """{item: vector} after two hops on the graph of a session and others, and the linear map."""
    edges = set()
    for clicks in [*others, session]:
        edges |= {(u, v) for u, v in zip(clicks, clicks[1:], strict=False)} | {(u, u) for u in clicks}
    side = 0 if model.norm == "out" else 1
    degree = {u: sum(edge[side] == u for edge in edges) for u, _ in edges}
    x = {u: model.table[u] for u in degree}
    for _ in range(2):
        x = {v: sum(x[u] / math.sqrt(degree[u] * degree[v]) for u, w in edges if w == v) for v in x}
    return {u: theta.weight @ vector + theta.bias for u, vector in x.items()}


def fuse_loop(fusion, a, b):
    """a intra, b inter."""
    if fusion.kind in ("intra", "inter", "max", "mean"):
        return {"intra": a, "inter": b, "max": torch.where(a > b, a, b), "mean": (a + b) / 2}[fusion.kind]
    if fusion.kind == "gru":
        (W_r, W_z, W_n), (U_r, U_z, U_n) = fusion.map.weight_ih.split(D), fusion.map.weight_hh.split(D)
        (b_r, b_z, b_n), (d_r, d_z, d_n) = fusion.map.bias_ih.split(D), fusion.map.bias_hh.split(D)
        r, z = torch.sigmoid(W_r @ a + b_r + U_r @ b + d_r), torch.sigmoid(W_z @ a + b_z + U_z @ b + d_z)
        return (1 - z) * torch.tanh(W_n @ a + b_n + r * (U_n @ b + d_n)) + z * b
    if fusion.kind == "affine":
        return fusion.map.weight[0, 0] * a + fusion.map.weight[0, 1] * b + fusion.map.bias
    left, right = fusion.map.weight.split(D, dim=1)
    if fusion.kind == "concat":
        return left @ a + right @ b
    gate = torch.sigmoid(left @ a + right @ b + fusion.map.bias)
    return gate * a + (1 - gate) * b


def forward_loop(model: DGTN, session):
    near = slow_neighbours(LOG, session, len(LOG), model.k, model.threshold, model.sample_size)
    plain = {u: model.table[u] for u in session}
    intra = channel_loop(model, model.theta_intra, session, []) if model.theta_intra is not None else plain
    others = [LOG[s] for s, _ in near]
    inter = channel_loop(model, model.theta_inter, session, others) if model.theta_inter is not None else plain
    h = [fuse_loop(model.fusion, intra[u], inter[u]) for u in session]
    att, total = model.attention, 0
    for v in h:
        inner = att.W1.weight @ h[-1] + att.W1.bias + att.W2.weight @ v + att.W2.bias
        total = total + (att.q.weight[0] @ torch.sigmoid(inner) + att.q.bias) * v
    return model.W3.weight @ torch.cat([h[-1], total]) + model.W3.bias


VARIANTS = [
    {}, {"norm": "in"}, {"inter": "none"}, {"inter": "none", "fusion": "max"}, {"fusion": "max"}, {"fusion": "mean"},
    {"fusion": "gate"}, {"fusion": "gru"}, {"fusion": "concat"}, {"fusion": "intra"}, {"fusion": "inter"},
    {"k": 2, "threshold": 0.2}, {"sample_size": 3, "threshold": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    model = model_of(**arguments)
    parameters, found = list(model.parameters()), query(model, *SESSIONS)
    expected = torch.stack([forward_loop(model, session) for session in SESSIONS])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    targets = torch.arange(len(SESSIONS))
    wanted = torch.autograd.grad(F.cross_entropy(expected @ model.table[:-1].T, targets), parameters, allow_unused=True)
    FullSoftmax()(Scores(model, found), targets).backward()
    for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(
            parameter.grad, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def shared(model, prepared=True, **arguments) -> DGTN:
    """Another variant with the parameters of `model`, but sessions of its own."""
    other = model_of(prepared, **arguments)
    mine = {name: value for name, value in model.named_parameters() if name in dict(other.named_parameters())}
    other.load_state_dict(mine, strict=False)
    return other


def test_as_the_public_code_computes_it_neighbours_never_reach_a_score():
    model = model_of(inter="none", fusion="max")
    other = model_of(inter="none", fusion="max")
    other.prepare(Sessions.from_lists(random_clicks(90, V, 7, seed=77), V))
    assert torch.equal(query(model, *SESSIONS), query(other, *SESSIONS))
    one, two = model_of(), model_of(prepared=False)
    two.prepare(Sessions.from_lists(random_clicks(90, V, 7, seed=77), V))
    assert not torch.allclose(query(one, *SESSIONS), query(two, *SESSIONS))


def test_without_neighbours_both_channels_see_the_same_graph():
    for fusion in ("max", "mean"):
        model = model_of(prepared=False, fusion=fusion)
        model.theta_inter.load_state_dict(model.theta_intra.state_dict())
        intra = shared(model, prepared=False, fusion="intra")
        torch.testing.assert_close(query(model, *SESSIONS), query(intra, *SESSIONS), rtol=0, atol=1e-12)


def test_affine_fusion_is_two_weights_and_a_constant_and_can_be_the_mean():
    model, mean = model_of(), shared(model_of(), fusion="mean")
    with torch.no_grad():
        model.fusion.map.weight.fill_(0.5)
        model.fusion.map.bias.zero_()
    torch.testing.assert_close(query(model, *SESSIONS), query(mean, *SESSIONS), rtol=0, atol=1e-12)


def test_without_either_graph_it_is_sr_gnn_without_rounds():
    model, plain = model_of(inter="none", fusion="inter"), SRGNN(V, D, steps=0).double()
    with torch.no_grad():
        model.attention.q.bias.zero_()
        plain.table.copy_(model.table)
        plain.attention.load_state_dict({k: v for k, v in model.attention.state_dict().items() if k != "q.bias"})
        plain.W3.bias.copy_(model.W3.bias)
        plain.W3.weight.copy_(torch.cat(model.W3.weight.chunk(2, dim=1)[::-1], dim=1))  # the two halves swapped
    torch.testing.assert_close(query(model, *SESSIONS), query(plain, *SESSIONS), rtol=0, atol=1e-12)


def test_a_single_click_alone_keeps_its_own_vector():
    model = model_of(prepared=False, fusion="intra")
    torch.testing.assert_close(model.items_of(Batch.of([[6]], V))[0, 0], model.theta_intra(model.table[6]))


def found_of(model, batch) -> list[list[int]]:
    found = model.neighbours(batch)
    return [found.session[found.row == row].tolist() for row in range(len(batch))]


def test_in_training_a_session_finds_earlier_sessions_only_never_itself():
    model, windows = model_of(threshold=0.0), TRAIN.prefixes()
    batch = gather(windows, torch.randperm(len(windows), generator=torch.Generator().manual_seed(0)))
    model.train()
    found = found_of(model, batch)
    assert all(max(row, default=-1) < session for row, session in zip(found, batch.session.tolist(), strict=True))
    prefixes = [items[:length] for items, length in zip(batch.items.tolist(), batch.lengths.tolist(), strict=True)]
    for row, prefix, session in zip(found, prefixes, batch.session.tolist(), strict=True):
        assert row == [s for s, _ in slow_neighbours(LOG, prefix, session, model.k, 0.0, model.sample_size)]
    model.eval()  # asked later, the same clicks find their own session too: all of training lies in the past
    assert any(session in row for row, session in zip(found_of(model, batch), batch.session.tolist(), strict=True))


def test_a_training_batch_that_does_not_know_its_sessions_is_refused():
    model = model_of().train()
    with pytest.raises(ValueError, match="in training, a session must not be its own neighbour"):
        query(model, [1, 2])
    assert query(model.eval(), [1, 2]).isfinite().all()
    assert query(model_of(prepared=False).train(), [1, 2]).isfinite().all()


def test_the_public_codes_transduction_is_a_switch():
    test = Sessions.from_lists([[1, 2, 3], [4, 5], [1, 2, 6]], V)
    windows = test.prefixes()
    batch, S = gather(windows, torch.arange(len(windows))), len(LOG)
    model = model_of(prepared=False, transductive=True)
    model.prepare(TRAIN, test)
    found, plain = found_of(model, batch), found_of(model_of(), batch)
    assert [[s for s in row if s < S] for row in found] == plain
    assert [[s - S for s in row if s >= S] for row in found] == [[], [], [], [0], [0]]
    assert found_of(model, Batch.of([[1, 2]], V))[0][-2:] == [S, S + 2]  # nobody says when: after all of them
    for wrong in (lambda: model.prepare(TRAIN), lambda: model_of().prepare(TRAIN, test)):
        with pytest.raises(ValueError, match="transductive=True finds neighbours among earlier test sessions"):
            wrong()


def test_padding_and_neighbours_in_the_batch_change_nothing():
    model, batch = model_of(), Batch.of(SESSIONS, V)
    wider = Batch(F.pad(batch.items, (0, 5), value=V), batch.lengths, batch.target)
    torch.testing.assert_close(model.encode(wider), model.encode(batch), rtol=0, atol=1e-12)
    alone = torch.cat([query(model, session) for session in SESSIONS])
    torch.testing.assert_close(alone, model.encode(batch), rtol=0, atol=1e-12)
    FullSoftmax()(Scores(model, model.encode(wider)), batch.target).backward()
    assert model.table.grad[V].eq(0).all()


def test_the_sessions_are_saved_with_the_model(tmp_path):
    model = model_of().float()
    before = Recommender(model, np.arange(V), torch.ones(V))
    before.save(tmp_path, "dgtn", {"dim": D})
    after = Recommender.load(tmp_path)
    assert after.recommend_batch(SESSIONS, k=5) == before.recommend_batch(SESSIONS, k=5)
    assert len(after.model.neighbour_distinct) == len(LOG)
    other = model_of(prepared=False).float()
    other.load_state_dict(dict(model.named_parameters()), strict=False)
    assert Recommender(other, np.arange(V), torch.ones(V)).recommend_batch(SESSIONS, k=5) != before.recommend_batch(
        SESSIONS, k=5
    )


def test_it_is_ranked_on_sessions_it_has_not_indexed():
    result = evaluate(model_of(), Sessions.from_lists(random_clicks(9, V, 5, seed=8), V).prefixes())
    assert result.ranks.min() >= 1 and result.ranks.max() <= V


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_number_of_parameters_follows_the_switches():
    readout = 2 * (D * D + D) + (D + 1) + (2 * D * D + D)
    for arguments, more in (
        ({}, 2 * (D * D + D) + 3),
        ({"inter": "none"}, D * D + D + 3),
        ({"fusion": "intra"}, D * D + D),
        ({"fusion": "concat"}, 2 * (D * D + D) + 2 * D * D),
        ({"fusion": "gate"}, 2 * (D * D + D) + 2 * D * D + D),
        ({"fusion": "gru"}, 2 * (D * D + D) + 6 * D * D + 6 * D),
    ):
        assert size(DGTN(V, D, **arguments)) == (V + 1) * D + readout + more, arguments


def test_the_initialisation_fills_its_range():
    for name, parameter in DGTN(500, 100, fusion="gru").named_parameters():
        assert parameter.abs().max() <= 0.1, name
        assert parameter.numel() == 1 or parameter.abs().max() > 0.09, name


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inter": "code"}, "inter is 'sgc' or 'none', got 'code'"),
        ({"norm": "both"}, "norm is 'out' or 'in', got 'both'"),
        ({"fusion": "cnn"}, "fusion is one of affine, max, mean, gate, gru, concat, intra, inter, got 'cnn'"),
        ({"k": 0}, "got 0, 1000 and 0.5"),
        ({"threshold": 1.5}, "got 120, 1000 and 1.5"),
        ({"transductive": True, "inter": "none"}, "with inter='none' no .*: leave transductive out"),
        ({"transductive": True, "inter": "none", "fusion": "max"}, "with inter='none' no .* or set inter='sgc'"),
        ({"transductive": True, "fusion": "intra"}, "transductive=True .* with fusion='intra' no .* another fusion"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DGTN(V, D, **arguments)


def test_sessions_of_another_catalogue_are_refused():
    with pytest.raises(ValueError, match="the model is for 12 items, the sessions have 9"):
        model_of().prepare(Sessions.from_lists([[1, 2]], 9))
