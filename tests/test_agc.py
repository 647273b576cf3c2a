"""Adaptive gradient clipping against its definition, unit by unit in a loop."""

import itertools

import pytest
import torch
from torch import nn

from sbr_core.agc import MODES, agc, clip_gradients, units
from sbr_core.config import CHOICES, TrainConfig
from sbr_core.models import build
from sbr_core.optim import make_clip

SHAPES = [(3, 5), (7,), (4, 2, 3), (1, 6), (), (2, 2)]


def parameters(scale=1.0, seed=0, dtype=torch.float64) -> list[nn.Parameter]:
    """Weights of very different sizes with gradients of very different sizes; some rows of either are zero."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in SHAPES:
        weight, grad = (torch.randn(shape, dtype=dtype, generator=generator) for _ in "wg")
        size = 10 ** (4 * torch.rand(shape[:1] or (1,), dtype=dtype, generator=generator) - 4)
        grad = grad * (size.view(-1, *[1] * (len(shape) - 1)) if shape else size[0]) * scale
        made.append(nn.Parameter(weight))
        made[-1].grad = grad
    with torch.no_grad():
        made[0][1] = 0.0
        made[0].grad[2] = 0.0
        made[5].grad.zero_()
    return made


def expected(parameter: nn.Parameter, mode: str, limit=0.01, eps=1e-3) -> torch.Tensor:
    """Equation 7.5 of the specs, one unit after the other."""
    weight, grad = parameter.detach(), parameter.grad.clone()
    if weight.ndim < 2:
        places = [...]
    elif mode == "nfnet":
        places = range(len(weight))  # rows
    else:
        places = [(slice(None), *index) for index in itertools.product(*map(range, weight.shape[1:]))]
    for place in places:
        size, threshold = grad[place].norm().item(), limit * max(weight[place].norm().item(), eps)
        if mode == "nfnet" and size > threshold:
            grad[place] *= threshold / size
        if mode == "sbr_inverted_axis0" and size < threshold:
            grad[place] *= threshold / max(size, 1e-6)
    return grad


@pytest.mark.parametrize("mode", ["nfnet", "sbr_inverted_axis0"])
@pytest.mark.parametrize("limit, eps", [(0.01, 1e-3), (0.3, 0.5), (1e-5, 1e-3)])
def test_every_gradient_is_what_the_definition_says(mode, limit, eps):
    made = parameters()
    wanted = [expected(parameter, mode, limit, eps) for parameter in made]
    changed = [not torch.equal(parameter.grad, grad) for parameter, grad in zip(made, wanted, strict=True)]
    assert any(changed)
    clip_gradients(made, mode, limit, eps)
    for parameter, grad in zip(made, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-12, atol=0)


def test_after_clipping_no_row_is_longer_than_its_limit_and_directions_stay():
    made, before = parameters(), [p.grad.clone() for p in parameters()]
    clip_gradients(made, "nfnet")
    rows, seen = 0, 0
    for parameter, old in zip(made[:2], before[:2], strict=True):
        for weight, grad, was in zip(*(x.reshape(len(x) if x.ndim > 1 else 1, -1) for x in (parameter.detach(),
                                     parameter.grad, old)), strict=True):  # fmt: skip
            limit = 0.01 * max(weight.norm().item(), 1e-3)
            assert grad.norm() <= limit * (1 + 1e-6)
            rows += 1
            if was.norm() <= limit:
                assert torch.equal(grad, was)  # bit for bit
                seen += 1
            else:
                torch.testing.assert_close(grad / grad.norm(), was / was.norm(), rtol=0, atol=1e-12)
    assert 0 < seen < rows


def test_the_inverted_form_raises_short_columns_to_the_limit_and_leaves_long_ones():
    parameter = nn.Parameter(torch.tensor([[3.0, 0.0, 6.0], [4.0, 0.0, 8.0]]))
    parameter.grad = torch.tensor([[0.0, 3e-6, 3.0], [1e-3, 4e-6, 4.0]])
    clip_gradients([parameter], "sbr_inverted_axis0")
    torch.testing.assert_close(parameter.grad.norm(dim=0), torch.tensor([0.05, 1e-5, 5.0]))
    assert parameter.grad[0, 0] == 0 and torch.equal(parameter.grad[:, 2], torch.tensor([3.0, 4.0]))


def test_a_gradient_of_zero_stays_zero():
    for mode in ("nfnet", "sbr_inverted_axis0"):
        parameter = nn.Parameter(torch.ones(3, 2))
        parameter.grad = torch.zeros(3, 2)
        clip_gradients([parameter], mode)
        assert parameter.grad.eq(0).all()


def test_off_and_parameters_without_a_gradient_are_left_alone():
    made, before = parameters(), [p.grad.clone() for p in parameters()]
    clip_gradients(made, "off")
    assert all(torch.equal(p.grad, grad) for p, grad in zip(made, before, strict=True))
    clip_gradients([nn.Parameter(torch.ones(2))], "nfnet")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))
        self.map, self.norm = nn.Linear(4, 3), nn.LayerNorm(3)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_which_parameters_are_clipped():
    model = Small()
    assert [p.shape for p in units(model, "nfnet")] == [(3, 4)]
    assert len(units(model, "sbr_inverted_axis0")) == 5 and units(model, "off") == []


def test_the_function_of_a_model_clips_its_units_alone():
    model = Small()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip = agc(model, "nfnet")
    clip()
    wanted = 0.01 * model.map.weight.norm(dim=1)
    torch.testing.assert_close(model.map.weight.grad.norm(dim=1), wanted.detach())
    assert model.table.grad.eq(1).all() and model.map.bias.grad.eq(1).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"mode": "clip"}, "agc is one of off, nfnet, sbr_inverted_axis0, got 'clip'"),
        ({"limit": 0.0}, "must be positive, got limit=0.0 and eps=0.001"),
        ({"eps": -1.0}, "must be positive, got limit=0.01 and eps=-1.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        clip_gradients([], **arguments)
    if "mode" in arguments:
        with pytest.raises(ValueError, match=message):
            agc(Small(), **arguments)


def test_a_sparse_gradient_is_refused():
    table = nn.Parameter(torch.ones(4, 2))
    nn.functional.embedding(torch.tensor([1]), table, sparse=True).sum().backward()
    with pytest.raises(ValueError, match="a sampled loss has a sparse one: use loss='full'"):
        clip_gradients([table], "sbr_inverted_axis0")


@pytest.mark.parametrize("mode", ["nfnet", "sbr_inverted_axis0"])
def test_a_model_with_a_table_of_sparse_gradients_is_refused_before_its_first_step(mode):
    model = build("gru4rec-2018", 9, dim=4, embedding="separate")
    with pytest.raises(ValueError, match=f"agc='{mode}' reads whole gradients, and that of GRU4Rec2018's inputs is"):
        make_clip(model, TrainConfig(agc=mode))
    assert make_clip(build("gru4rec-2018", 9, dim=4), TrainConfig(agc=mode)) is not None


def test_the_configuration_of_a_run_names_the_mode():
    assert CHOICES["agc"] == MODES and make_clip(Small(), TrainConfig()) is None
    with pytest.raises(ValueError, match="agc is off or nfnet or sbr_inverted_axis0, got 'on'"):
        TrainConfig(agc="on")
    with pytest.raises(ValueError, match="clip_grad=1.0 and agc='nfnet' both clip"):
        TrainConfig(agc="nfnet", clip_grad=1.0)
    model = Small()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    make_clip(model, TrainConfig(agc="nfnet"))()
    torch.testing.assert_close(model.map.weight.grad.norm(dim=1), 0.01 * model.map.weight.detach().norm(dim=1))
