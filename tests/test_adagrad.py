"""Adagrad against a loop over entries, dense and sparse."""

import copy
import math

import pytest
import torch

from sbr_core.adagrad import Adagrad
from sbr_core.table import lookup


def adagrad_loop(start, grads, lr, momentum, eps=1e-6):
    """One number after another; a gradient of None leaves the number alone for that step."""
    x, squares, velocity = start, 0.0, 0.0
    for g in grads:
        if g is None:
            continue
        squares += g * g
        velocity = momentum * velocity - lr * g / math.sqrt(squares + eps)
        x += velocity
    return x


@pytest.mark.parametrize("rate", [{"lr": 0.1}, {}])
def test_the_figures_of_the_specs(rate):
    x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = Adagrad([x], momentum=0.2, **rate)
    for expected in (0.9000002, 0.8092896):
        x.grad = torch.full_like(x, 0.5)
        optimizer.step()
        assert x.item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_dense_gradients_equal_a_loop(momentum):
    x = torch.nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    start, grads = x.detach().clone(), torch.randn(4, 3, 2, dtype=torch.float64)
    optimizer = Adagrad([x], lr=0.1, momentum=momentum)
    for g in grads:
        x.grad = g.clone()
        optimizer.step()
    for at in [(i, j) for i in range(3) for j in range(2)]:
        expected = adagrad_loop(start[at].item(), grads[(slice(None), *at)].tolist(), 0.1, momentum)
        assert x[at].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_sparse_gradients_move_the_rows_met_and_no_others(momentum):
    """Rows met several times in a step have their gradients added up first."""
    table = torch.nn.Parameter(torch.randn(6, 2, dtype=torch.float64))
    start, optimizer = table.detach().clone(), Adagrad([table], lr=0.1, momentum=momentum)
    seen = [[1, 4, 1], [4], [0, 1, 0, 0], [4, 1]]
    weights, grads = [torch.randn(len(ids), 2, dtype=torch.float64) for ids in seen], []
    for ids, weight in zip(seen, weights, strict=True):
        table.grad = None
        (lookup(table, torch.tensor(ids)) * weight).sum().backward()
        assert table.grad.is_sparse
        optimizer.step()
        grads.append({i: sum(w for j, w in zip(ids, weight, strict=True) if j == i) for i in set(ids)})
    for row in range(6):
        for column in range(2):
            history = [g[row][column].item() if row in g else None for g in grads]
            expected = adagrad_loop(start[row, column].item(), history, 0.1, momentum)
            assert table[row, column].item() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(table.detach()[[2, 3, 5]], start[[2, 3, 5]])


def test_all_rows_met_once_is_the_dense_step():
    start, grad = torch.randn(5, 3), torch.randn(5, 3)
    moved = []
    for sparse in (False, True):
        x = torch.nn.Parameter(start.clone())
        optimizer = Adagrad([x], lr=0.2, momentum=0.1)
        for _ in range(3):
            x.grad = grad.to_sparse(1) if sparse else grad.clone()
            optimizer.step()
        moved.append(x.detach())
    torch.testing.assert_close(*moved)


def test_its_state_goes_through_a_state_dict():
    one, two = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    first, second = (Adagrad([x], lr=0.1, momentum=0.5) for x in (one, two))
    one.grad = two.grad = torch.arange(4.0)
    first.step()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    two.data.copy_(one.data)
    first.step()
    second.step()
    assert torch.equal(one, two) and set(first.state[one]) == {"squares", "velocity"}


def test_a_closure_is_called_and_a_parameter_without_gradient_stays():
    x, y = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))

    def closure():
        x.grad = None
        value = (x**2).sum()
        value.backward()
        return value

    assert Adagrad([x, y], lr=0.1).step(closure).item() == 2 and torch.equal(y, torch.ones(2)) and (x < 1).all()


@pytest.mark.parametrize("arguments", [{"lr": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}, {"eps": 0.0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="Adagrad wants lr > 0, 0 <= momentum < 1 and eps > 0, got"):
        Adagrad([torch.nn.Parameter(torch.ones(1))], **arguments)
