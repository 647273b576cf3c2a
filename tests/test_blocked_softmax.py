"""The softmax in blocks of items: value and gradients equal the textbook's, for any size of block."""

import pytest
import torch
from toys import softmax_loop

from sbr_core import blocked_softmax as blocked
from sbr_core.blocked_softmax import blocked_softmax
from sbr_core.similarity import unit
from sbr_core.table import Buffers, lookup

V, D = 333, 5


@pytest.fixture(params=[1, 4 * 6 * 100, 2**20])
def block(request, monkeypatch):
    """Blocks of 64 items (the least), of 100, and one of all."""
    monkeypatch.setattr(blocked, "BLOCK_BYTES", {"cpu": request.param})


def problem(dtype=torch.float64, batch=6):
    table = torch.randn(V + 1, D, dtype=dtype)
    table[7] = 0  # without direction
    target = torch.randint(V, (batch,))
    target[:2] = 7
    target[-1] = V - 1
    return table, torch.randint(V, (batch, 3)), target


def textbook(table, ids, target, is_unit):
    query = table[ids].sum(1)
    if not is_unit:
        return softmax_loop(query, table, target)
    return torch.nn.functional.cross_entropy(query @ unit(table[:-1]).T, target)


@pytest.mark.parametrize("is_unit", [False, True])
def test_value_and_gradients_equal_the_textbook(block, is_unit):
    table, ids, target = problem()
    one, two = table.clone().requires_grad_(), table.clone().requires_grad_()
    buffers = Buffers()
    for rows, factor in ((slice(0, 6), 1.0), (slice(0, 4), -2.5)):  # the second adds to the first
        found = blocked_softmax(lookup(one, ids[rows]).sum(1), one, target[rows], None, buffers, is_unit) * factor
        expected = textbook(two, ids[rows], target[rows], is_unit) * factor
        found.backward()
        expected.backward()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-12)


def test_step_after_step_the_gradient_is_written_into_one_buffer(block):
    table, ids, target = problem()
    one, buffers, places = table.clone().requires_grad_(), Buffers(), set()
    for _ in range(3):
        one.grad = None
        blocked_softmax(lookup(one, ids).sum(1), one, target, None, buffers).backward()
        places.add(one.grad.data_ptr())
        buffers.held["grad"][-1].fill_(7.0)  # what a reused buffer may hold
    two = table.clone().requires_grad_()
    textbook(two, ids, target, False).backward()
    torch.testing.assert_close(one.grad[:-1], two.grad[:-1], rtol=0, atol=1e-12)
    assert len(places) == 1


def test_nothing_as_large_as_the_scores_is_held(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK_BYTES", {"cpu": 1})
    sizes, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **more: sizes.append(shape) or empty(*shape, **more))
    query, table = torch.randn(50, D, requires_grad=True), torch.randn(V + 1, D, requires_grad=True)
    buffers = Buffers()
    blocked_softmax(query, table, torch.arange(50), None, buffers).backward()
    assert {name: tuple(held.shape) for name, held in buffers.held.items()} == {
        "block": (1, 50 * 64), "grad": (V + 1, D)
    }  # fmt: skip
    assert all(rows * columns <= max(50 * 64, (V + 1) * D) for rows, columns in sizes)


def test_large_scores_are_exact():
    """No probability of the truth underflows: the value is a difference of logarithms."""
    table = torch.zeros(3, 1)
    table[0] = 1.0
    query = torch.tensor([[1e4]], requires_grad=True)
    loss = blocked_softmax(query, table.requires_grad_(), torch.tensor([1]))
    loss.backward()
    assert loss.item() == 1e4 and query.grad.item() == 1.0


@pytest.mark.parametrize("is_unit", [False, True])
def test_bf16_is_within_two_percent_of_the_exact_gradients(block, is_unit):
    table, ids, target = problem(torch.float32, 40)
    one, two = table.clone().requires_grad_(), table.clone().requires_grad_()
    for _ in range(2):
        found = blocked_softmax(lookup(one, ids).sum(1), one, target, torch.bfloat16, Buffers(), is_unit)
        expected = textbook(two, ids, target, is_unit)
        found.backward()
        expected.backward()
        assert found.dtype == torch.float32 and abs(found.item() / expected.item() - 1) < 0.01
        assert ((one.grad - two.grad).norm() / two.grad.norm()).item() < 0.02


def test_a_table_changed_between_forward_and_backward_raises():
    table, ids, target = problem()
    table.requires_grad_()
    loss = blocked_softmax(lookup(table, ids).sum(1), table, target)
    with torch.no_grad():
        table.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
