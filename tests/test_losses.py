"""The full softmax: closed forms, the fused against the plain form."""

import math

import pytest
import torch
from torch.nn import functional as F

from sbr_core import losses
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.base import SessionModel


class Given(SessionModel):
    """A model whose queries are given: its scores are their product with the table."""

    def __init__(self, table: torch.Tensor):
        super().__init__(len(table) - 1, table.shape[1])
        self.table = torch.nn.Parameter(table.clone())


class Sphere(Given):
    """Their product with the rows of the table scaled to length 1."""

    def __init__(self, table: torch.Tensor):
        super().__init__(table)
        self.compare_by(normalise=True, scale=3.0)


class Opaque(Given):
    """The same scores, but not declared as a plain product."""

    def linear(self, query):
        return None


def test_closed_form_of_a_case_made_by_hand():
    model = Given(torch.tensor([[0.0], [math.log(2)], [math.log(5)], [9.0]]))  # scores 0, ln 2, ln 5: p = 1/8, 2/8, 5/8
    loss = FullSoftmax()(Scores(model, torch.ones(2, 1)), torch.tensor([2, 0]))
    assert loss.item() == pytest.approx((math.log(8 / 5) + math.log(8)) / 2, rel=1e-6)
    loss.backward()
    expected = torch.tensor([(1 / 8 + 1 / 8 - 1) / 2, (2 / 8 + 2 / 8) / 2, (5 / 8 + 5 / 8 - 1) / 2, 0])
    torch.testing.assert_close(model.table.grad[:, 0], expected)


def test_the_score_vector_of_the_specs():
    """Rows [2, 0] and [1, 3] with the diagonal as targets lose 0.126928 each."""
    model = Given(torch.tensor([[2.0, 1.0], [0.0, 3.0], [0.0, 0.0]]))
    for form in FORMS:
        loss = FullSoftmax(form=form)(Scores(model, torch.eye(2)), torch.tensor([0, 1]))
        assert loss.item() == pytest.approx(0.126928, abs=1e-6)


FORMS = ("auto", "kept", "blocked", "chunked", "plain")


@pytest.mark.parametrize("kind", [Given, Opaque, Sphere])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_value_and_gradients(form, kind):
    """The query comes from looked-up rows of the same table, as in every model."""
    model, ids, target = (
        kind(torch.randn(12, 4)).double(),
        torch.tensor([[0, 3], [3, 3], [9, 11]]),
        torch.tensor([3, 0, 3]),
    )
    loss = FullSoftmax(form=form)(Scores(model, model.embed(ids).sum(1)), target)
    loss.backward()
    table = model.table.detach().clone().requires_grad_()
    query, items = table[ids].sum(1), table[:-1]
    if kind is Sphere:
        query, items = 3 * F.normalize(query, dim=1), F.normalize(items, dim=1)
    expected = F.cross_entropy(query @ items.T, target)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    grad = model.table.grad.to_dense() if model.table.grad.is_sparse else model.table.grad
    torch.testing.assert_close(grad, table.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [Given, Sphere])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_accumulates_and_trains_alike(form, kind):
    torch.manual_seed(1)
    start, ids, target = torch.randn(12, 4), torch.tensor([[0, 3], [3, 3], [9, 11]]), torch.tensor([3, 0, 3])
    models = [kind(start), kind(start)]
    for model, loss in zip(models, (FullSoftmax(form=form), FullSoftmax(form="plain")), strict=True):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            for rows in (slice(0, 3), slice(1, 3)):
                loss(Scores(model, model.embed(ids[rows]).sum(1)), target[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(models[0].table, models[1].table, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Given, Sphere])
def test_auto_holds_the_scores_whole_up_to_a_size_and_then_no_longer(monkeypatch, kind):
    calls, blocked = [], losses.blocked_softmax
    monkeypatch.setattr(losses, "blocked_softmax", lambda *a, **k: calls.append(1) or blocked(*a, **k))
    scores = Scores(kind(torch.randn(12, 4)), torch.randn(5, 4))
    for limit, used in ((5 * 11 * 4, 0), (5 * 11 * 4 - 1, 2)):
        monkeypatch.setattr(losses, "KEPT_BYTES", limit)
        FullSoftmax()(scores, torch.arange(5))
        FullSoftmax("bf16")(scores, torch.arange(5))
        assert len(calls) == used


def test_equal_scores_lose_ln_v():
    for precision in ("fp32", "bf16"):
        loss = FullSoftmax(precision)(Scores(Given(torch.zeros(1025, 3)), torch.randn(7, 3)), torch.arange(7))
        assert loss.item() == pytest.approx(math.log(1024), rel=1e-6)  # 1/1024 is exact in bfloat16


@pytest.mark.parametrize("kind", [Given, Sphere])
@pytest.mark.parametrize("form", ["kept", "blocked"])
def test_bf16_is_close_to_fp32(form, kind):
    torch.manual_seed(2)
    table, query, target = torch.randn(200, 16), torch.randn(64, 16), torch.randint(199, (64,))
    found = {}
    for precision in ("fp32", "bf16"):
        model = kind(table)
        loss = FullSoftmax(precision, form)(Scores(model, query), target)
        loss.backward()
        found[precision] = loss.item(), model.table.grad
    (exact, grad), (rough, rough_grad) = found["fp32"], found["bf16"]
    assert rough != exact and rough == pytest.approx(exact, rel=0.01)
    assert (rough_grad - grad).norm() < 0.02 * grad.norm()


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="precision is 'fp32' or 'bf16', got 'fp16'"):
        FullSoftmax("fp16")


@pytest.mark.parametrize("form", ["chunked", "plain"])
def test_bf16_is_refused_where_it_is_not_written(form):
    with pytest.raises(
        ValueError, match=f"precision='bf16' is written for form='kept' and 'blocked', not for form='{form}'"
    ):
        FullSoftmax("bf16", form)


def test_bf16_is_refused_where_a_model_has_neither_a_product_nor_a_softmax_of_its_own():
    scores = Scores(Opaque(torch.randn(12, 4)), torch.randn(3, 4))
    with pytest.raises(ValueError, match="precision='bf16' wants a model .* with a softmax of its own; use 'fp32'"):
        FullSoftmax("bf16")(scores, torch.arange(3))


def test_a_form_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="'auto', 'kept', 'blocked', 'chunked' or 'plain', got 'fused'"):
        FullSoftmax(form="fused")


def test_a_loss_sees_scores_of_all_or_of_some():
    model, query = Given(torch.randn(9, 3)), torch.randn(4, 3)
    scores = Scores(model, query)
    every = query @ model.table[:-1].T
    assert torch.equal(scores(), every)
    torch.testing.assert_close(scores(torch.tensor([3, 0, 3])), every[:, [3, 0, 3]])
    ids = torch.randint(8, (4, 2))
    torch.testing.assert_close(scores(ids), every.gather(1, ids))
    assert scores.linear()[0] is query and FullSoftmax.full_catalogue
