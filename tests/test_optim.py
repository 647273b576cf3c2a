"""Optimizers against hand loops, and the learning-rate schedule."""

import dataclasses

import pytest
import torch
from torch import nn
from toys import chain, same

from sbr_core import checkpoints
from sbr_core.cli_options import config_fields
from sbr_core.config import TrainConfig
from sbr_core.models import build
from sbr_core.optim import learning_rate, make_clip, make_optimizers, set_learning_rate
from sbr_core.run_state import Run
from sbr_core.table import lookup
from sbr_core.train import fit


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 3, dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))

    def loss(self, ids):
        return (lookup(self.table, ids) @ self.weight).square().sum()


def adam_loop(start, grads, lr, l2=0.0, corrected_eps=False):
    """Adam with coupled L2, as its paper prints it; torch's SparseAdam corrects epsilon along with the moment."""
    x, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, grad in enumerate(grads, 1):
        g = grad + l2 * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        eps = 1e-8 / (1 - 0.999**step) ** 0.5 if corrected_eps else 1e-8
        x = x - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + eps)
    return x


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_adam_with_coupled_l2_equals_a_hand_loop(l2):
    model = Small()
    starts = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: [torch.randn_like(p) for _ in range(3)] for name, p in starts.items()}
    grads["table"][1].zero_()  # with L2, a parameter without gradient moves all the same
    (optimizer,) = make_optimizers(model, lr=0.01, l2=l2)
    for step in range(3):
        for name, p in model.named_parameters():
            p.grad = grads[name][step].clone()
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), adam_loop(starts[name], grads[name], 0.01, l2), rtol=0, atol=1e-12)


def test_sparse_adam_leaves_untouched_rows_alone_bit_for_bit():
    model = Small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = make_optimizers(model, lr=0.1, sparse_table=True)
    assert [type(o).__name__ for o in optimizers] == ["SparseAdam", "Adam"]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        model.loss(torch.tensor([[1, 4], [1, 1]])).backward()
        assert model.table.grad.is_sparse
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(model.table.detach()[[0, 2, 3, 5]], before["table"][[0, 2, 3, 5]])
    assert (model.table.detach()[[1, 4]] != before["table"][[1, 4]]).all()
    assert (model.weight.detach() != before["weight"]).all()


def test_sparse_adam_moves_touched_rows_as_adam_would():
    model = Small()
    start, grads = model.table.detach().clone(), []
    optimizers = make_optimizers(model, lr=0.1, sparse_table=True)
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        model.loss(torch.arange(6)).backward()
        grads.append(model.table.grad.to_dense().clone())
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(
        model.table.detach(), adam_loop(start, grads, 0.1, corrected_eps=True), rtol=0, atol=1e-12
    )


def test_every_parameter_is_in_one_optimizer():
    model = Small()
    for sparse in (False, True):
        optimizers = make_optimizers(model, sparse_table=sparse)
        held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    only = nn.Module()
    only.table = nn.Parameter(torch.zeros(3, 2))
    assert [type(o).__name__ for o in make_optimizers(only, sparse_table=True)] == ["SparseAdam"]


def test_l2_is_refused_for_a_sparse_table():
    with pytest.raises(ValueError, match="l2=1e-05 cannot reach the untouched rows"):
        make_optimizers(Small(), l2=1e-5, sparse_table=True)


@pytest.mark.parametrize("lr, l2", [(0.0, 0.0), (-1e-3, 0.0), (1e-3, -1e-5)])
def test_bad_rates_are_refused(lr, l2):
    with pytest.raises(ValueError, match="lr must be positive and l2 not negative"):
        make_optimizers(Small(), lr=lr, l2=l2)


SCHEDULES = [
    ({}, [1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5]),
    ({"offset": 1}, [1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5, 1e-5]),
    ({"every": None}, [1e-3] * 8),
    ({"every": 1, "decay": 0.5}, [1e-3 / 2**e for e in range(8)]),
]


@pytest.mark.parametrize("arguments, rates", SCHEDULES)
def test_the_schedule_epoch_by_epoch(arguments, rates):
    assert [learning_rate(epoch, 1e-3, **arguments) for epoch in range(8)] == pytest.approx(rates, rel=1e-12)


def test_the_shortened_schedule_is_that_of_torch_stepped_at_the_start_of_an_epoch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    rates = []
    for _ in range(8):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert [learning_rate(epoch, 1e-3, offset=1) for epoch in range(8)] == pytest.approx(rates, rel=1e-9)


def test_a_new_rate_reaches_every_group():
    optimizers = make_optimizers(Small(), sparse_table=True)
    set_learning_rate(optimizers, 0.5)
    assert [group["lr"] for o in optimizers for group in o.param_groups] == [0.5, 0.5]


RATES = [
    {"sparse_table": True},
    {"sparse_table": True, "table_optimizer": "rowwise-adam"},
    {"optimizer": "adam", "l2": 0.1},
    {"optimizer": "adamw", "l2": 0.1},
    {"optimizer": "adagrad", "sparse_table": True},
]


@pytest.mark.parametrize("arguments", RATES)
def test_a_table_with_a_rate_of_its_own_moves_by_it_and_the_rest_as_before(arguments):
    moved = []
    for lr, table_lr in ((0.1, None), (0.1, 0.3), (0.3, None)):
        torch.manual_seed(1)
        model = Small()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizers = make_optimizers(model, lr=lr, table_lr=table_lr, **arguments)
        held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
        loss = model.loss(torch.tensor([[1, 4], [1, 1]]))
        (loss if arguments.get("sparse_table") else loss + model.table.square().sum()).backward()
        for optimizer in optimizers:
            optimizer.step()
        moved.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    slow, mixed, fast = moved
    torch.testing.assert_close(mixed["weight"], slow["weight"], rtol=0, atol=0)
    torch.testing.assert_close(mixed["table"], fast["table"], rtol=1e-12, atol=0)
    assert (slow["table"] != fast["table"]).any()


def test_the_rate_of_the_table_falls_by_the_schedule_of_the_others():
    optimizers = make_optimizers(Small(), lr=0.1, sparse_table=True, table_lr=0.3)
    assert [group["lr"] for o in optimizers for group in o.param_groups] == pytest.approx([0.3, 0.1])
    set_learning_rate(optimizers, 0.01)
    assert [group["lr"] for o in optimizers for group in o.param_groups] == pytest.approx([0.03, 0.01])


def test_every_further_table_of_a_model_has_the_rate_of_the_item_table():
    model = build("gru4rec-2018", 6, dim=3, embedding="separate")
    groups = [group for o in make_optimizers(model, lr=0.1, table_lr=0.3) for group in o.param_groups]
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    of_tables = {name for name, p in model.named_parameters() if rates[id(p)] == pytest.approx(0.3)}
    assert of_tables == {"table", "inputs"} and sorted(set(rates.values())) == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize("loss", ["full", "triplet"])
def test_a_run_with_a_rate_for_the_table_resumes_to_the_same_bits_and_not_with_another_rate(loss, tmp_path):
    fields = {"loss": loss, "l2": 0.0} | config_fields(["table_lr=0.06", "lr=0.02", "lr_every=1"])
    config, windows = TrainConfig(epochs=2, batch_size=16, **fields), chain(20, 30).prefixes()

    def trained(config, output=None):
        torch.manual_seed(0)
        model = build("stamp", 20, dim=6)
        return model, fit(model, windows, config, progress=False, output=output)

    straight, _ = trained(config)
    trained(dataclasses.replace(config, epochs=1), tmp_path)
    resumed, _ = trained(config, tmp_path)
    assert same(resumed.state_dict(), straight.state_dict())
    assert not same(straight.state_dict(), trained(dataclasses.replace(config, table_lr=None))[0].state_dict())
    with pytest.raises(ValueError, match="belongs to another run: table_lr differ"):
        trained(dataclasses.replace(config, table_lr=0.05), tmp_path)


def test_a_checkpoint_without_a_rate_for_the_table_goes_on_as_one_with_the_common_rate(tmp_path):
    windows, config = chain(20, 30).prefixes(), TrainConfig(epochs=1, batch_size=16)
    run = Run(build("stamp", 20, dim=6), windows, config, tmp_path, {}, 0.0)
    del run.identity["config"]["table_lr"]  # as it was written before there was such a field
    run.save()
    assert "table_lr" not in checkpoints.read(tmp_path / "state.safetensors")[1]["run"]["config"]
    Run(build("stamp", 20, dim=6), windows, config, tmp_path, {}, 0.0).resume()
    other = dataclasses.replace(config, table_lr=0.5)
    with pytest.raises(ValueError, match="table_lr differ"):
        Run(build("stamp", 20, dim=6), windows, other, tmp_path, {}, 0.0).resume()


def test_decoupled_decay_reaches_matrices_and_no_vector():
    model = Small()
    model.bias = nn.Parameter(torch.ones(3).double())
    starts = {name: p.detach().clone() for name, p in model.named_parameters()}
    (optimizer,) = make_optimizers(model, lr=0.1, l2=0.5, optimizer="adamw")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # only the decay moves anything
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), factor * starts[name], rtol=0, atol=1e-15)


def test_a_bad_rate_of_the_table_is_refused():
    with pytest.raises(ValueError, match="table_lr must be positive, or None .* got -0.1"):
        make_optimizers(Small(), table_lr=-0.1)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer is .*'adam'.*, got 'sgd'"):
        make_optimizers(Small(), optimizer="sgd")


def test_a_long_gradient_is_scaled_to_the_length_that_is_allowed_and_a_short_one_is_left_alone():
    model = Small()
    clip = make_clip(model, TrainConfig(clip_grad=2.0))
    for length, after in ((5.0, 2.0), (1.5, 1.5)):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        flat = torch.cat([p.grad.flatten() for p in model.parameters()])
        for p in model.parameters():
            p.grad.mul_(length / flat.norm())
        clip()
        clipped = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(clipped, flat / flat.norm() * after, rtol=0, atol=1e-5)
    assert make_clip(model, TrainConfig()) is None
