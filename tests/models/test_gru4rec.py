"""GRU4Rec, sequence to one, against an explicit recurrence; the cell's figures of the specs."""

import math

import pytest
import torch
from torch.nn import functional as F
from toys import random_sessions

from sbr_core.batches import Batch, gather
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.gru4rec import GRU4Rec

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]


def model_of(hidden=None, **arguments) -> GRU4Rec:
    torch.manual_seed(3)
    model = GRU4Rec(V, D, hidden, **arguments).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def cell(gru, x, h):
    """One step: reset after the linear map, z keeps the old state."""
    W_r, W_z, W_n = gru.weight_ih_l0.chunk(3)
    U_r, U_z, U_n = gru.weight_hh_l0.chunk(3)
    (b_r, b_z, b_n), (d_r, d_z, d_n) = gru.bias_ih_l0.chunk(3), gru.bias_hh_l0.chunk(3)
    r = torch.sigmoid(W_r @ x + b_r + U_r @ h + d_r)
    z = torch.sigmoid(W_z @ x + b_z + U_z @ h + d_z)
    n = torch.tanh(W_n @ x + b_n + r * (U_n @ h + d_n))
    return (1 - z) * n + z * h


def forward_loop(model: GRU4Rec, session: list[int]):
    h = torch.zeros(model.gru.hidden_size, dtype=torch.float64)
    for item in session:
        h = cell(model.gru, model.table[item], h)
    return model.out.weight @ h if model.gru.hidden_size != D else h


@pytest.mark.parametrize("hidden", [None, 4, 3, 7])
def test_value_and_gradients_equal_the_recurrence_in_a_loop(hidden):
    model = model_of(hidden)
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


def test_the_cell_has_the_figures_of_the_specs():
    """Width 1, all weights 1, no biases, x = 1, h = 0.5: z = r = 0.8175745; the old state is kept by z: 0.5706418."""
    gru = torch.nn.GRU(1, 1)
    for name, parameter in gru.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if "bias" in name else 1.0)
    _, state = gru(torch.ones(1, 1, 1), torch.full((1, 1, 1), 0.5))
    assert state.item() == pytest.approx(0.5706418, abs=1e-6)
    assert cell(gru, torch.ones(1), torch.full((1,), 0.5)).item() == pytest.approx(0.5706418, abs=1e-6)


def test_the_reset_gate_acts_after_the_linear_map():
    """The specs' two-dimensional check: U swaps the state (1, 0), r = (0.25, 0.75): candidate (0, 0.6351490)."""
    model = GRU4Rec(1, 2).double().eval()
    gru = model.gru
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        gru.weight_hh_l0[4:] = torch.tensor([[0.0, 1], [1, 0]])
        gru.bias_hh_l0[:2] = torch.logit(torch.tensor([0.25, 0.75]))
        gru.bias_hh_l0[2:4] = -60  # z = 0: the new state is the candidate
    state = gru(torch.zeros(1, 1, 2).double(), torch.tensor([[[1.0, 0]]]).double())[1]
    torch.testing.assert_close(state[0, 0], torch.tensor([0, 0.6351490]).double(), rtol=0, atol=1e-6)


def test_every_click_and_its_place_matter():
    model = model_of()
    queries = query(model, [1, 2, 3], [2, 1, 3], [1, 2, 4], [3], [1, 1, 2, 3])
    assert (torch.cdist(queries, queries) + torch.eye(5) > 1e-3).all()


def test_dropout_acts_in_training_only_and_on_the_inputs():
    model = model_of(dropout=0.5)
    assert torch.equal(query(model, *SESSIONS), query(model, *SESSIONS))
    model.train()
    one, two = query(model, *SESSIONS), query(model, *SESSIONS)
    assert not torch.allclose(one, two)
    still = model_of(dropout=0.0).train()
    assert torch.equal(query(still, *SESSIONS), query(still.eval(), *SESSIONS))


def test_the_number_of_parameters_and_their_initialisation():
    model = GRU4Rec(500, 60, hidden=80)
    assert sum(p.numel() for p in model.parameters()) == 501 * 60 + 3 * 80 * (60 + 80) + 6 * 80 + 80 * 60
    assert sum(p.numel() for p in GRU4Rec(500, 60).parameters()) == 501 * 60 + 6 * 60 * 60 + 6 * 60
    assert model.table.std().item() == pytest.approx(math.sqrt(2 / (501 + 60)), rel=0.05)
    for block, inputs in [(b, 60) for b in model.gru.weight_ih_l0.chunk(3)] + [
        (b, 80) for b in model.gru.weight_hh_l0.chunk(3)
    ]:
        bound = math.sqrt(6 / (80 + inputs))  # of each gate for itself, not of the three stacked
        assert 0.95 * bound < block.abs().max() <= bound
    assert all(bias.eq(0).all() for bias in (model.gru.bias_ih_l0, model.gru.bias_hh_l0))
    assert model.out.weight.abs().max() <= math.sqrt(6 / 140)


def test_the_first_loss_is_about_ln_v():
    windows = random_sessions(200, num_items=3000).prefixes()
    model = GRU4Rec(3000)
    loss = FullSoftmax()(Scores(model, model.encode(gather(windows, torch.arange(100)))), windows.labels[:100].long())
    assert loss.item() == pytest.approx(math.log(3000), abs=0.1)


@pytest.mark.parametrize("hidden", [0, -3])
def test_a_state_without_width_is_refused(hidden):
    with pytest.raises(ValueError, match=f"hidden must be at least 1, or None for dim, got {hidden}"):
        GRU4Rec(V, D, hidden)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_out_of_range_is_refused(dropout):
    with pytest.raises(ValueError, match=f"dropout must lie in .* got {dropout}"):
        GRU4Rec(V, dropout=dropout)
