"""STAMP against its equations in a loop, the figures printed in the specs, and its invariants."""

import math

import pytest
import torch
from torch.nn import functional as F
from toys import random_sessions

from sbr_core.batches import Batch, gather
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.stamp import STAMP

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]
PAPER, CODE = {"add_mean": False, "biases": True}, {"add_mean": True, "biases": False}
VARIANTS = [PAPER, CODE, CODE | {"clip_norm": 0.7}, PAPER | {"clip_norm": 1.5}, {"add_mean": True, "biases": True}]


def model_of(**arguments) -> STAMP:
    """A double-precision model with parameters large enough to see every term."""
    torch.manual_seed(3)
    model = STAMP(V, D, **arguments).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def forward_loop(model: STAMP, session: list[int]):
    """The query of one session, term by term."""

    def affine(layer, x):
        return layer.weight @ x + (0 if layer.bias is None else layer.bias)

    x = []
    for item in session:
        row = model.table[item]
        norm = row.square().sum().sqrt()
        x.append(row / norm * model.clip_norm if model.clip_norm is not None and norm > model.clip_norm else row)
    m_t, m_s, m_a = x[-1], sum(x) / len(x), 0
    for x_i in x:
        inner = affine(model.W1, x_i) + model.W2.weight @ m_t + model.W3.weight @ m_s
        m_a = m_a + (model.w0.weight[0] @ torch.sigmoid(inner)) * x_i
    if model.add_mean:
        m_a = m_a + m_s
    return torch.tanh(affine(model.Ws, m_a)) * torch.tanh(affine(model.Wt, m_t))


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


def by_hand(add_mean: bool) -> STAMP:
    """Two-dimensional, all matrices the identity, w0 = (1, 1), items (0, 0), (1, 0), (0, 1), (1, 1)."""
    model = STAMP(4, 2, add_mean=add_mean, biases=False).double()
    with torch.no_grad():
        for layer in (model.W1, model.W2, model.W3, model.Ws, model.Wt):
            layer.weight.copy_(torch.eye(2))
        model.w0.weight.fill_(1)
        model.table.copy_(torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [9, 9]]))
    return model


@pytest.mark.parametrize("add_mean, product", [(True, 0.736596), (False, 0.695505)])
def test_the_figures_of_the_specs(add_mean, product):
    model, batch = by_hand(add_mean), Batch.of([[1, 2]], 4)
    alpha = model.attention(model.embed(batch.items), batch)
    torch.testing.assert_close(alpha[0], torch.tensor([1.635149, 1.546601]).double(), rtol=0, atol=1e-6)
    scores = model.score(model.encode(batch))
    torch.testing.assert_close(scores[0, 1:], torch.tensor([0.0, product, product]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_only_the_last_position_matters_for_the_order(arguments):
    model = model_of(**arguments)
    torch.testing.assert_close(query(model, [1, 4, 1, 8, 2]), query(model, [8, 1, 4, 1, 2]), rtol=0, atol=1e-12)
    assert not torch.allclose(query(model, [1, 4, 1, 8, 2]), query(model, [1, 4, 1, 2, 8]))


def test_without_attention_the_code_form_is_left_with_the_mean_and_the_paper_with_nothing():
    for arguments, add_mean in ((CODE, True), ({"add_mean": False, "biases": False}, False)):
        model = model_of(**arguments)
        with torch.no_grad():
            model.w0.weight.zero_()
        mean, final = model.table[[1, 2, 1, 3]].mean(0), model.table[3]
        expected = torch.tanh(model.Ws(mean)) * torch.tanh(model.Wt(final)) if add_mean else torch.zeros(D).double()
        torch.testing.assert_close(query(model, [1, 2, 1, 3])[0], expected, rtol=0, atol=1e-12)


def test_without_a_view_of_the_last_click_every_score_is_zero():
    model = model_of(**CODE)
    with torch.no_grad():
        model.Wt.weight.zero_()
    assert model.score(query(model, *SESSIONS)).eq(0).all()


def test_clipping_is_on_the_way_in_only():
    model, batch = model_of(**CODE, clip_norm=0.5), Batch.of([[1, 2]], V)
    before = model.table.detach().clone()
    norms = model._clipped(model.embed(batch.items)).norm(dim=-1)
    torch.testing.assert_close(norms, model.table[batch.items].norm(dim=-1).clamp(max=0.5))
    scores = model.score(model.encode(batch))
    torch.testing.assert_close(scores, model.encode(batch) @ model.table[:-1].T)
    assert torch.equal(model.table, before) and model.table.norm(dim=-1).max() > 0.5


def test_a_zero_row_is_clipped_without_a_gradient_that_is_not_a_number():
    model = model_of(**CODE, clip_norm=0.5)
    with torch.no_grad():
        model.table[2] = 0
    FullSoftmax()(Scores(model, query(model, [2], [1, 2])), torch.tensor([0, 1])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_number_of_parameters_is_the_published_one():
    """V d + 50,100 in the public code; our table has a padding row, and the paper's three biases add 3 d."""
    assert size(STAMP(700, **CODE)) == 701 * 100 + 50_100
    assert size(STAMP(700, **PAPER)) == 701 * 100 + 50_100 + 300


def test_the_initialisation_has_the_published_widths():
    model = STAMP(2000)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.002 if name == "table" else 0.05, rel=0.25), name


def test_the_first_loss_is_ln_v():
    windows = random_sessions(200, num_items=3000).prefixes()
    for arguments in (PAPER, CODE):
        model = STAMP(3000, **arguments)
        loss = FullSoftmax()(
            Scores(model, model.encode(gather(windows, torch.arange(100)))), windows.labels[:100].long()
        )
        assert loss.item() == pytest.approx(math.log(3000), abs=1e-3)


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_clip_that_is_not_positive_is_refused(clip):
    with pytest.raises(ValueError, match=f"clip_norm must be positive or None, got {clip}"):
        STAMP(V, clip_norm=clip)
