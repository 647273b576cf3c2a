"""Optimizers of rows against hand loops; lazy L2; resuming; what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import chain, same

from sbr_core import train
from sbr_core.config import TrainConfig
from sbr_core.models import build
from sbr_core.optim import make_clip, make_optimizers
from sbr_core.rowwise import EveryRowAdam, RowwiseAdagrad, RowwiseAdam, SparseAdam
from sbr_core.table import lookup
from sbr_core.train import fit

KINDS = {"sparse-adam": SparseAdam, "rowwise-adam": RowwiseAdam, "rowwise-adagrad": RowwiseAdagrad}
V, D = 7, 3
STEPS = [[1, 4, 1], [4], [1, 2, 2], [5, 1]]  # rows that are looked up; some twice


def loop(kind, table, grads, lr, l2):
    """Row by row and number by number, from the equations. `grads`: row -> gradient, one dict a step."""
    table, m, v = table.clone(), torch.zeros_like(table), torch.zeros_like(table)
    G = torch.zeros(len(table), dtype=table.dtype)
    for t, step in enumerate(grads, 1):
        for row, g in step.items():
            g = g + l2 * table[row]
            if kind == "sparse-adam":
                m[row], v[row] = 0.9 * m[row] + 0.1 * g, 0.999 * v[row] + 0.001 * g * g
                rate = lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
                table[row] -= rate * m[row] / (v[row].sqrt() + 1e-8)
            elif kind == "rowwise-adam":
                G[row] = 0.999 * G[row] + 0.001 * (g * g).mean()
                table[row] -= lr * g / ((G[row] / (1 - 0.999**t)).sqrt() + 1e-8)
            else:
                G[row] += (g * g).mean()
                table[row] -= lr * g / (G[row].sqrt() + 1e-8)
    return table


def trained(kind, l2=0.0, dense=False):
    """(table before, table after, loop's table) of a few steps with random gradients."""
    table = nn.Parameter(torch.randn(V, D, dtype=torch.float64))
    before, grads = table.detach().clone(), []
    optimizer = KINDS[kind]([table], lr=0.1, l2=l2)
    for rows in STEPS:
        factor = torch.randn(len(rows), D, dtype=torch.float64)
        grads.append({row: sum(f for f, r in zip(factor, rows, strict=True) if r == row) for row in set(rows)})
        table.grad = None
        (lookup(table, torch.tensor(rows)) * factor).sum().backward()
        if dense:
            table.grad = table.grad.to_dense()
            grads[-1] = {row: table.grad[row].clone() for row in range(V)}
        optimizer.step()
    return before, table.detach(), loop(kind, before, grads, 0.1, l2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_named_rows_move_as_the_equations_say_and_the_others_not_at_all(kind, l2):
    before, after, expected = trained(kind, l2)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)
    assert torch.equal(after[[0, 3, 6]], before[[0, 3, 6]]) and (after[[1, 2, 4, 5]] != before[[1, 2, 4, 5]]).all()


@pytest.mark.parametrize("kind", ["rowwise-adam", "rowwise-adagrad"])
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_a_dense_gradient_names_every_row(kind, l2):
    before, after, expected = trained(kind, l2, dense=True)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)
    assert (after[0] != before[0]).any() == (l2 > 0)


def test_sparse_adam_is_torchs():
    tables = [nn.Parameter(torch.linspace(-1, 1, V * D).double().view(V, D)) for _ in range(2)]
    optimizers = [SparseAdam([tables[0]], lr=0.1), torch.optim.SparseAdam([tables[1]], lr=0.1)]
    for rows in STEPS:
        for table, optimizer in zip(tables, optimizers, strict=True):
            table.grad = None
            lookup(table, torch.tensor(rows)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(*tables, rtol=0, atol=1e-14)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_adam_of_every_row_takes_a_sparse_gradient_for_a_dense_one(l2):
    """A row that was named once goes on by its momentum; one that never was, by its decay alone."""
    tables = [nn.Parameter(torch.linspace(1, 2, V * D).double().view(V, D)) for _ in range(2)]
    before = tables[0].detach().clone()
    optimizers = [EveryRowAdam([tables[0]], lr=0.1, l2=l2), torch.optim.Adam([tables[1]], lr=0.1, weight_decay=l2)]
    for step, rows in enumerate(STEPS):
        for table, optimizer in zip(tables, optimizers, strict=True):
            table.grad = None
            lookup(table, torch.tensor(rows)).square().sum().backward()
            if table is tables[1]:
                table.grad = table.grad.to_dense()
            held = table.detach().clone()
            optimizer.step()
            assert step < 2 or (table[4] != held[4]).all()  # looked up in the first two steps only
    torch.testing.assert_close(*tables, rtol=0, atol=1e-12)
    assert (tables[0][0] != before[0]).all() == (l2 > 0)


def test_the_state_is_one_number_a_row():
    table = nn.Parameter(torch.randn(V, D))
    for kind, count in ((RowwiseAdam, V), (RowwiseAdagrad, V), (SparseAdam, 2 * V * D)):
        optimizer = kind([table])
        table.grad = None
        lookup(table, torch.tensor([1, 2])).sum().backward()
        optimizer.step()
        assert sum(s.numel() for s in optimizer.state[table].values() if torch.is_tensor(s)) == count


def test_lazy_l2_decays_a_row_as_often_as_it_is_looked_up():
    """Without another gradient, rows that are named shrink and the others do not."""
    table = nn.Parameter(torch.ones(V, D, dtype=torch.float64))
    optimizer = RowwiseAdagrad([table], lr=0.1, l2=0.5)
    for rows in ([1, 2], [1]):
        table.grad = None
        (lookup(table, torch.tensor(rows)) * 0).sum().backward()
        optimizer.step()
    assert table[1, 0] < table[2, 0] < table[0, 0] == 1


SESSIONS = chain(20, 40)
CONFIG = TrainConfig(
    epochs=2, batch_size=32, block=1, l2=0.0, loss="negative-sampling", loss_arguments={"negatives": 8}
)


@pytest.mark.parametrize("kind", ["auto", *KINDS])
@pytest.mark.parametrize("loss", ["negative-sampling", "sampled-softmax", "triplet"])
def test_a_run_that_is_stopped_and_continued_ends_with_the_same_bits(kind, loss, tmp_path, monkeypatch):
    def model():
        torch.manual_seed(0)
        return build("stamp", 20, dim=6, normalise=True)

    config = replace(CONFIG, table_optimizer=kind, loss=loss, l2=1e-3, table_l2="touched")
    whole, parts = model(), model()
    fit(whole, SESSIONS.prefixes(), config, progress=False)

    steps, step = [], train.train_step

    def until(*arguments):
        if len(steps) == 9 and (tmp_path / "state.safetensors").exists():
            steps.append(None)
            raise OSError("killed")
        steps.append(1)
        return step(*arguments)

    monkeypatch.setattr(train, "CHECK_EVERY", 4)
    monkeypatch.setattr(train, "train_step", until)
    with pytest.raises(OSError, match="killed"):
        fit(parts, SESSIONS.prefixes(), config, output=tmp_path, checkpoint_seconds=0.0, progress=False)
    again = model()
    fit(again, SESSIONS.prefixes(), config, output=tmp_path, checkpoint_seconds=0.0, progress=False)
    assert not same(parts.state_dict(), whole.state_dict()) and same(again.state_dict(), whole.state_dict())


def test_the_optimizers_of_a_configuration():
    model = build("stamp", 20, dim=6)

    def kinds(**arguments):
        return [type(o) for o in make_optimizers(model, **arguments)]

    assert (
        kinds(sparse_table=True)
        == kinds(sparse_table=True, table_optimizer="sparse-adam")
        == [SparseAdam, torch.optim.Adam]
    )
    for sparse in (True, False):
        assert kinds(sparse_table=sparse, table_optimizer="rowwise-adam") == [RowwiseAdam, torch.optim.Adam]
        assert (
            kinds(sparse_table=sparse, table_optimizer="rowwise-adagrad", l2=0.1, table_l2="touched")[0]
            is RowwiseAdagrad
        )
    assert kinds(table_optimizer="rowwise-adam", l2=0.1) == [RowwiseAdam, torch.optim.Adam]  # all rows are touched
    (table,) = make_optimizers(model, sparse_table=True, l2=0.1, table_l2="touched")[0].param_groups
    (rest,) = make_optimizers(model, sparse_table=True, l2=0.1, table_l2="touched")[1].param_groups
    assert kinds(sparse_table=True, table_optimizer="adam", l2=0.1) == [EveryRowAdam, torch.optim.Adam]
    assert table["l2"] == rest["weight_decay"] == 0.1 and table["params"] == [model.table]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"table_optimizer": "sparse-adam"}, "table_optimizer='sparse-adam' wants a sparse gradient .*full softmax"),
        ({"sparse_table": True, "l2": 0.1}, "l2=0.1 cannot reach the untouched rows .*l2=0 .*table_l2='touched'"),
        ({"sparse_table": True, "table_optimizer": "rowwise-adam", "l2": 0.1}, "cannot reach the untouched rows"),
        ({"table_optimizer": "sgd"}, "table_optimizer is 'auto' or one of sparse-adam, .*got 'sgd'"),
        ({"table_l2": "some"}, "table_l2 all or touched; got 'auto' and 'some'"),
        ({"optimizer": "adagrad", "table_optimizer": "rowwise-adam"}, "moves the tables itself"),
    ],
)
def test_combinations_without_a_meaning_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_optimizers(build("stamp", 20, dim=6), **arguments)


@pytest.mark.parametrize("kind", [RowwiseAdam, RowwiseAdagrad, SparseAdam])
@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"l2": -1.0}])
def test_rates_out_of_range_are_refused(kind, bad):
    with pytest.raises(ValueError, match="lr > 0, l2 >= 0 and eps > 0, got"):
        kind([nn.Parameter(torch.zeros(2, 2))], **bad)


def test_sparse_adam_refuses_a_dense_gradient():
    table = nn.Parameter(torch.zeros(2, 2))
    table.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="this gradient is dense: use Adam"):
        SparseAdam([table]).step()


def test_a_sparse_gradient_is_clipped_together_with_the_others():
    model = build("stamp", 20, dim=6).double()
    clip = make_clip(model, TrainConfig(clip_grad=2.0))
    factor = torch.randn(3, 6).double() * 9
    (lookup(model.table, torch.tensor([3, 3, 5])) * factor).sum().backward()
    model.w0.weight.grad = torch.randn_like(model.w0.weight) * 9
    before = torch.cat([model.table.grad.to_dense().flatten(), model.w0.weight.grad.flatten()])
    clip()
    after = torch.cat([model.table.grad.to_dense().flatten(), model.w0.weight.grad.flatten()])
    torch.testing.assert_close(after, before / before.norm() * 2, rtol=0, atol=1e-5)
