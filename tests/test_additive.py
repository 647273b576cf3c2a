"""Additive attention of all pairs against a loop, and in pieces of any size."""

import pytest
import torch

from sbr_core import additive
from sbr_core.additive import additive_energy, masked_softmax


def random_input(B=3, L=5, D=4):
    return [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in ((B, L, D), (B, L, D), (D,))]


@pytest.mark.parametrize("budget", [1, 150, 1 << 20])
def test_value_and_gradients_equal_a_loop_whatever_is_held_at_a_time(budget, monkeypatch):
    monkeypatch.setitem(additive.BUDGET, "cpu", budget)
    source, receiver, p = inputs = random_input()
    expected = torch.zeros(3, 5, 5, dtype=torch.double)
    for b in range(3):
        for i in range(5):
            for j in range(5):
                expected[b, i, j] = p @ torch.sigmoid(source[b, j] + receiver[b, i])
    found, weight = additive_energy(*inputs), torch.randn(3, 5, 5, dtype=torch.double)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad((weight * expected).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad((weight * found).sum(), inputs), wanted, rtol=0, atol=1e-12)


def test_pieces_hold_no_more_than_the_budget(monkeypatch):
    monkeypatch.setitem(additive.BUDGET, "cpu", 250)
    source, receiver, p = random_input(B=7)
    sizes, real = [], additive._sigmoids
    monkeypatch.setattr(additive, "_sigmoids", lambda *parts: sizes.append(real(*parts).numel()) or real(*parts))
    additive_energy(source, receiver, p).sum().backward()
    assert sizes == 2 * [200, 200, 200, 100]


def test_a_masked_softmax_is_the_softmax_of_what_is_left():
    x = torch.tensor([[1.0, 2.0, 30.0], [5.0, -1.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    found = masked_softmax(x, mask)
    torch.testing.assert_close(found[0, :2], torch.softmax(x[0, :2], 0))
    assert found[0, 2] == 0 and found[1].eq(0).all()
    found[0, 0].backward()
    assert x.grad.isfinite().all() and x.grad[1].eq(0).all() and x.grad[0, 2] == 0
