"""Small shared operations against loops, with gradients."""

import torch

from sbr_core.layers import last, masked_mean, take, uniform_

LENGTHS = torch.tensor([3, 1, 4])
MASK = torch.arange(4) < LENGTHS[:, None]


def states():
    return torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)


def grad_of(value, x):
    return torch.autograd.grad(value.square().sum(), x)[0]


def test_last_is_the_last_real_position():
    x = states()
    expected = torch.stack([x[row, n - 1] for row, n in enumerate(LENGTHS.tolist())])
    assert torch.equal(last(x, LENGTHS), expected)
    assert torch.equal(grad_of(last(x, LENGTHS), x), grad_of(expected, x))


def test_take_reads_rows_session_by_session():
    x, index = states(), torch.tensor([[0, 1, 0, 3], [2, 2, 2, 2], [3, 0, 1, 1]])
    expected = torch.stack([torch.stack([x[row, i] for i in index[row].tolist()]) for row in range(3)])
    assert torch.equal(take(x, index), expected)
    torch.testing.assert_close(grad_of(take(x, index), x), grad_of(expected, x), rtol=0, atol=1e-12)


def test_masked_mean_is_the_mean_of_real_positions():
    x = states()
    expected = torch.stack([x[row, :n].mean(0) for row, n in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(masked_mean(x, MASK), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad_of(masked_mean(x, MASK), x), grad_of(expected, x), rtol=0, atol=1e-12)
    assert grad_of(masked_mean(x, MASK), x)[~MASK].eq(0).all()


def test_uniform_reaches_every_parameter_and_fills_its_range():
    module = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.LayerNorm(40))
    uniform_(module, 0.25)
    for parameter in module.parameters():
        assert parameter.abs().max() <= 0.25 and parameter.abs().max() > 0.2
        assert abs(parameter.mean().item()) < 0.1 and parameter.min() < 0 < parameter.max()
