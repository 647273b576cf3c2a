"""The full softmax: closed forms, the fused against the plain form."""

import math

import pytest
import torch
from torch.nn import functional as F

from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.base import SessionModel


class Given(SessionModel):
    """A model whose queries are given: its scores are their product with the table."""

    def __init__(self, table: torch.Tensor):
        super().__init__(len(table) - 1, table.shape[1])
        self.table = torch.nn.Parameter(table.clone())


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
    for fused in (True, False):
        loss = FullSoftmax(fused=fused)(Scores(model, torch.eye(2)), torch.tensor([0, 1]))
        assert loss.item() == pytest.approx(0.126928, abs=1e-6)


@pytest.mark.parametrize("kind, fused", [(Given, True), (Given, False), (Opaque, True), (Opaque, False)])
def test_every_path_gives_the_same_value_and_gradient(kind, fused):
    model = kind(torch.randn(12, 4))
    query, target = torch.randn(5, 4, requires_grad=True), torch.randint(11, (5,))
    loss = FullSoftmax(fused=fused)(Scores(model, query), target)
    loss.backward()
    table, plain = model.table.detach().clone().requires_grad_(), query.detach().clone().requires_grad_()
    expected = F.cross_entropy(plain @ table[:-1].T, target)
    expected.backward()
    for mine, theirs in ((loss, expected), (model.table.grad, table.grad), (query.grad, plain.grad)):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_equal_scores_lose_ln_v():
    for precision in ("fp32", "bf16"):
        loss = FullSoftmax(precision)(Scores(Given(torch.zeros(1025, 3)), torch.randn(7, 3)), torch.arange(7))
        assert loss.item() == pytest.approx(math.log(1024), rel=1e-6)  # 1/1024 is exact in bfloat16


def test_bf16_is_close_to_fp32():
    model, query, target = Given(torch.randn(200, 16)), torch.randn(64, 16), torch.randint(199, (64,))
    exact, rough = (FullSoftmax(p)(Scores(model, query), target).item() for p in ("fp32", "bf16"))
    assert rough != exact and rough == pytest.approx(exact, rel=0.01)


def test_a_precision_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="precision is 'fp32' or 'bf16', got 'fp16'"):
        FullSoftmax("fp16")


def test_a_loss_sees_scores_of_all_or_of_some():
    model, query = Given(torch.randn(9, 3)), torch.randn(4, 3)
    scores = Scores(model, query)
    every = query @ model.table[:-1].T
    assert torch.equal(scores(), every)
    torch.testing.assert_close(scores(torch.tensor([3, 0, 3])), every[:, [3, 0, 3]])
    ids = torch.randint(8, (4, 2))
    torch.testing.assert_close(scores(ids), every.gather(1, ids))
    assert scores.linear()[0] is query and FullSoftmax.full_catalogue
