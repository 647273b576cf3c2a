"""NARM against its equations in a loop, the figures printed in the specs, its invariants and its nearest relative."""

import math

import pytest
import torch
from torch.nn import functional as F
from toys import random_sessions

from sbr_core.batches import Batch, gather
from sbr_core.layers import last
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.models.narm import NARM, GRUCell
from sbr_core.sessions import Sessions
from sbr_core.train import TrainConfig

V, D, H = 9, 4, 3
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]
CODE = {"attention": "softmax", "cell": "code", "hard": True}
VARIANTS = [{}, CODE, {"attention": "softmax"}, {"cell": "code"}, {"cell": "code", "hard": True}]


def model_of(hidden=H, **arguments) -> NARM:
    """A double-precision model with parameters large enough to see every term, the flat ends of a hard gate too."""
    torch.manual_seed(3)
    model = NARM(V, D, hidden, **arguments).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    return model


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def gate(x, hard):
    if not hard:
        return 1 / (1 + torch.exp(-x))
    return torch.where(x < -2.5, 0.0 * x, torch.where(x > 2.5, 0.0 * x + 1, 0.2 * x + 0.5))


def library_cell(gru, x, h):
    """Reset after the linear map, z keeps the old state, two biases per gate."""
    (W_r, W_z, W_n), (U_r, U_z, U_n) = gru.weight_ih_l0.chunk(3), gru.weight_hh_l0.chunk(3)
    (b_r, b_z, b_n), (d_r, d_z, d_n) = gru.bias_ih_l0.chunk(3), gru.bias_hh_l0.chunk(3)
    r, z = (gate(W @ x + b + U @ h + d, False) for W, b, U, d in ((W_r, b_r, U_r, d_r), (W_z, b_z, U_z, d_z)))
    return (1 - z) * torch.tanh(W_n @ x + b_n + r * (U_n @ h + d_n)) + z * h


def code_cell(gru, x, h, hard):
    """Reset before the linear map, z admits the new state, one bias per gate."""
    (W_r, W_z, W_c), (b_r, b_z, b_c) = gru.input.weight.chunk(3), gru.input.bias.chunk(3)
    U_r, U_z = gru.gates.weight.chunk(2)
    r, z = gate(W_r @ x + U_r @ h + b_r, hard), gate(W_z @ x + U_z @ h + b_z, hard)
    return (1 - z) * h + z * torch.tanh(W_c @ x + gru.candidate.weight @ (r * h) + b_c)


def forward_loop(model: NARM, session: list[int]):
    """The query of one session, term by term."""
    h, states = torch.zeros(model.v.in_features, dtype=torch.float64), []
    for item in session:
        x = model.table[item]
        h = library_cell(model.gru, x, h) if isinstance(model.gru, torch.nn.GRU) else code_cell(
            model.gru, x, h, model.hard
        )  # fmt: skip
        states.append(h)
    alpha = [
        model.v.weight[0] @ gate(model.A1.weight @ states[-1] + model.A2.weight @ state, model.hard) for state in states
    ]
    if model.attention == "softmax":
        total = sum(torch.exp(a) for a in alpha)
        alpha = [torch.exp(a) / total for a in alpha]
    local = sum(a * state for a, state in zip(alpha, states, strict=True))
    return model.B.weight @ torch.cat([local, states[-1]])


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    model = model_of(**arguments)
    expected = torch.stack([forward_loop(model, session) for session in SESSIONS])
    torch.testing.assert_close(query(model, *SESSIONS), expected, rtol=0, atol=1e-12)
    targets = torch.arange(len(SESSIONS))
    loss = F.cross_entropy(expected @ model.table[:-1].T, targets)
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    FullSoftmax()(Scores(model, query(model, *SESSIONS)), targets).backward()
    for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(
            parameter.grad, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    "arguments, weights",
    [
        ({}, [1.462117, 1.380797]),
        ({"attention": "softmax"}, [0.520319, 0.479681]),
        ({"cell": "code", "hard": True}, [1.4, 1.4]),
        (CODE, [0.5, 0.5]),
    ],
)
def test_the_attention_has_the_figures_of_the_specs(arguments, weights):
    """States (1, 0), (0, 1), A1 = A2 = I, v = (1, 1); the weighted sum of these states is the weights themselves."""
    model = NARM(4, 2, 2, **arguments).double()
    with torch.no_grad():
        model.A1.weight.copy_(torch.eye(2)), model.A2.weight.copy_(torch.eye(2)), model.v.weight.fill_(1)
    states = torch.tensor([[[1.0, 0], [0, 1], [5, 5]]]).double()
    mask = torch.tensor([[True, True, False]])
    alpha = model.weights(states, last(states, torch.tensor([2])), mask)
    torch.testing.assert_close(alpha, torch.tensor([[*weights, 0.0]]).double(), rtol=0, atol=1e-6)
    local = (alpha[:, None] @ states).squeeze(1)
    torch.testing.assert_close(local, torch.tensor([weights]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("hard, state", [(False, 0.8165945), (True, 0.8082813)])
def test_the_cell_of_the_code_has_the_figures_of_the_specs(hard, state):
    """Width 1, all weights 1, no biases, x = 1, h = 0.5; the first step of a pair is arranged to leave h = 0.5."""
    cell = GRUCell(1, 1, hard).double()
    for name, parameter in cell.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if "bias" in name else 1.0)
    h = code_cell(cell, torch.ones(1).double(), torch.full((1,), 0.5).double(), hard)
    assert h.item() == pytest.approx(state, abs=1e-6)
    x = torch.tensor([[0.3], [1.0]]).double()
    by_hand = code_cell(cell, x[1], code_cell(cell, x[0], torch.zeros(1).double(), hard), hard)
    assert cell(x[None])[0, 1].item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_the_reset_gate_of_the_code_acts_before_the_linear_map():
    """The specs' two-dimensional check: U swaps the state (1, 0), r = (0.25, 0.75): candidate (0, 0.2449187)."""
    cell = GRUCell(2, 2, hard=False).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.candidate.weight.copy_(torch.tensor([[0.0, 1], [1, 0]]))
        cell.input.weight[4:] = 40 * torch.eye(2)  # the first click makes the state (1, 0)
        cell.input.bias[:2] = torch.logit(torch.tensor([0.25, 0.75]))
        cell.input.bias[2:4] = 60  # z = 1: the new state is the candidate
    states = cell(torch.tensor([[[1.0, 0], [0, 0]]]).double())
    torch.testing.assert_close(states[0, 0], torch.tensor([1.0, 0]).double())
    torch.testing.assert_close(states[0, 1], torch.tensor([0, 0.2449187]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arguments", [{"attention": "softmax"}, CODE], ids=str)
def test_without_v_the_local_half_is_the_mean_of_the_states(arguments):
    model = model_of(**arguments)
    torch.nn.init.zeros_(model.v.weight)
    assert model.attention == "softmax"
    alpha = model.weights(
        torch.randn(1, 5, H).double(), torch.randn(1, H).double(), torch.tensor([[True] * 4 + [False]])
    )
    torch.testing.assert_close(alpha, torch.tensor([[0.25] * 4 + [0.0]]).double())


def test_without_v_the_paper_form_has_no_local_half():
    model = model_of()
    torch.nn.init.zeros_(model.v.weight)
    alpha = model.weights(torch.randn(1, 5, H).double(), torch.randn(1, H).double(), torch.ones(1, 5).bool())
    assert alpha.eq(0).all()


@pytest.mark.parametrize("arguments", [{"attention": "softmax"}, CODE], ids=str)
def test_of_one_click_both_halves_are_its_state(arguments):
    model = model_of(**arguments)
    swapped = model_of(**arguments)
    with torch.no_grad():
        swapped.B.weight.copy_(model.B.weight.roll(H, dims=1))
    torch.testing.assert_close(query(model, [4]), query(swapped, [4]), rtol=0, atol=1e-12)
    assert not torch.allclose(query(model, [4, 2]), query(swapped, [4, 2]))


@pytest.mark.parametrize("attention", ["plain", "softmax"])
@pytest.mark.parametrize("hidden", [3, 4])
def test_without_its_local_half_it_is_gru4rec_with_the_global_half_as_output(hidden, attention):
    """D of the sequence-to-one form is B's global half (the second one: c is local, then global)."""
    model = model_of(hidden, attention=attention)
    relative = GRU4Rec(V, D, hidden).double().eval()
    with torch.no_grad():
        model.B.weight[:, :hidden] = 0
        relative.table.copy_(model.table)
        relative.gru.load_state_dict(model.gru.state_dict())
        if hidden == D:  # there the relative's output is the identity
            model.B.weight[:, hidden:] = torch.eye(D)
        else:
            relative.out.weight.copy_(model.B.weight[:, hidden:])
    batch = Batch.of(SESSIONS, V)
    expected = relative.score(relative.encode(batch))
    torch.testing.assert_close(model.score(model.encode(batch)), expected, rtol=0, atol=1e-12)


def test_a_cut_to_the_first_clicks_is_what_the_public_code_feeds():
    """A prefix of 25 clicks in "first" mode equals its own first 19; in "last" mode its latest 19."""
    session = [i % V for i in range(26)]
    windows = Sessions.from_lists([session], V).prefixes()
    assert int(windows.lengths[-1]) == 25
    model, longest = model_of(**CODE), torch.tensor([len(windows) - 1])
    for keep, kept in (("first", session[:19]), ("last", session[6:25])):
        batch = gather(TrainConfig(max_len=19, keep=keep).truncate(windows), longest)
        torch.testing.assert_close(model.encode(batch), query(model, kept), rtol=0, atol=1e-12)
        assert batch.target.item() == session[25]


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_every_click_and_its_place_matter(arguments):
    queries = query(model_of(**arguments), [1, 2, 3], [2, 1, 3], [1, 2, 4], [3], [1, 1, 2, 3])
    assert (torch.cdist(queries, queries) + torch.eye(5) > 1e-3).all()


def test_both_dropouts_act_in_training_only():
    for arguments in ({"dropout": 0.5, "dropout_context": 0.0}, {"dropout": 0.0, "dropout_context": 0.5}):
        model = model_of(**arguments)
        assert torch.equal(query(model, *SESSIONS), query(model, *SESSIONS))
        model.train()
        assert not torch.allclose(query(model, *SESSIONS), query(model, *SESSIONS))
    still = model_of(dropout=0.0, dropout_context=0.0).train()
    assert torch.equal(query(still, *SESSIONS), query(still.eval(), *SESSIONS))


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_number_of_parameters_is_the_published_one():
    """V d + 75,400 with one bias per gate; our table has a padding row, and the library's cell two biases per gate."""
    assert size(NARM(700, **CODE)) == 701 * 50 + 75_400
    assert size(NARM(700)) == 701 * 50 + 75_400 + 300


@pytest.mark.parametrize("arguments", [{}, CODE], ids=str)
def test_the_initialisation_has_the_published_widths(arguments):
    model = NARM(2000, **arguments)
    widths = {
        "table": math.sqrt(2 / 2001),
        "B": 0.2,
        "A1": 0.1414,
        "A2": 0.1414,
        "v": 0.1414 if not arguments else 1.414,
    }
    for name, width in widths.items():
        weight = model.table if name == "table" else getattr(model, name).weight
        assert weight.std().item() == pytest.approx(width, rel=0.25 if name == "v" else 0.03), name
    inputs = model.gru.weight_ih_l0 if not arguments else model.gru.input.weight
    assert inputs.std().item() == pytest.approx(0.2, rel=0.03)
    recurrent = (
        model.gru.weight_hh_l0.chunk(3)
        if not arguments
        else [*model.gru.gates.weight.chunk(2), model.gru.candidate.weight]
    )
    for block in recurrent:
        torch.testing.assert_close(block @ block.T, torch.eye(100), rtol=0, atol=1e-5)
    assert all(p.eq(0).all() for name, p in model.named_parameters() if "bias" in name)


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_the_first_loss_is_about_ln_v(arguments):
    windows = random_sessions(200, num_items=3000).prefixes()
    torch.manual_seed(0)
    model = NARM(3000, **arguments)
    loss = FullSoftmax()(Scores(model, model.encode(gather(windows, torch.arange(100)))), windows.labels[:100].long())
    assert loss.item() == pytest.approx(math.log(3000), abs=0.3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"attention": "soft"}, "attention is one of plain, softmax, got 'soft'"),
        ({"cell": "gru"}, "cell is one of library, code, got 'gru'"),
        ({"hard": True}, "hard=True has no meaning with cell='library'.*set cell='code'"),
        ({"dropout": 1.0}, "dropout and dropout_context lie in .* got 100, 1.0, 0.5"),
        ({"dropout_context": -0.1}, "dropout and dropout_context lie in .* got 100, 0.25, -0.1"),
        ({"hidden": 0}, "hidden must be at least 1"),
    ],
)
def test_settings_without_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        NARM(V, **arguments)
