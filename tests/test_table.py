"""Look-up and full softmax on an item table: value and gradients equal the textbook's, whatever buffers are reused."""

import pytest
import torch
from torch.nn import functional as F
from toys import softmax_loop

from sbr_core import table as table_module
from sbr_core.table import Buffers, LinearSoftmax, lookup

V, D = 23, 5


def problem(batch=6, dtype=torch.float64, seed=0):
    """A table, a map from looked-up rows to queries, ids with repeats and padding, and targets with repeats."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(V + 1, D, dtype=dtype, generator=generator)
    weight = torch.randn(D, D, dtype=dtype, generator=generator)
    ids = torch.randint(V + 1, (batch, 3), generator=generator)
    target = torch.randint(V, (batch,), generator=generator)
    ids[0] = target[0]  # a row that is looked up three times and is a target
    target[-1] = target[0]  # and twice a target
    return table, weight, ids, target


def ours(softmax, table, weight, ids, target, dtype=None, unit=False):
    return softmax(lookup(table, ids).sum(1) @ weight, table, target, dtype, unit)


def textbook(table, weight, ids, target):
    return softmax_loop(F.embedding(ids, table).sum(1) @ weight, table, target)


def leaves(table, weight):
    return table.clone().requires_grad_(), weight.clone().requires_grad_()


@pytest.mark.parametrize("block", [None, 7, V, 100])
@pytest.mark.parametrize("batch", [1, 2, 6, 40])
def test_value_and_every_gradient_equal_the_textbook(batch, block, monkeypatch):
    monkeypatch.setattr(table_module, "NARROW_VECTORS", block is not None)
    monkeypatch.setattr(table_module, "BLOCK_ITEMS", block)
    table, weight, ids, target = problem(batch)
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    loss, expected = ours(LinearSoftmax(), t1, w1, ids, target), textbook(t2, w2, ids, target)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(t1.grad, t2.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(w1.grad, w2.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("batch", [1, 6, 40])
def test_on_the_unit_sphere_as_well_also_twice_over_and_for_a_row_without_length(batch, block, monkeypatch):
    monkeypatch.setattr(table_module, "NARROW_VECTORS", block is not None)
    monkeypatch.setattr(table_module, "BLOCK_ITEMS", block)
    table, weight, ids, target = problem(batch)
    table[(target[0] + 1) % V] = 0
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    softmax = LinearSoftmax()
    for factor in (1.0, -2.5):  # the second adds to the first
        loss = ours(softmax, t1, w1, ids, target, unit=True) * factor
        rows = t2[:-1] / t2[:-1].norm(dim=1, keepdim=True).where(t2[:-1].detach().any(1, keepdim=True), 1)
        expected = softmax_loop(F.embedding(ids, t2).sum(1) @ w2, torch.cat([rows, rows[:1]]), target) * factor
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(w1.grad, w2.grad, rtol=0, atol=1e-12)
        known = t2[:-1].detach().any(1)
        torch.testing.assert_close(t1.grad[:-1][known], t2.grad[:-1][known], rtol=0, atol=1e-12)
        assert t1.grad.isfinite().all()


def test_the_gradient_of_the_query_alone_equals_the_textbook():
    table, _, _, target = problem()
    query = torch.randn(6, D, dtype=torch.float64, requires_grad=True)
    LinearSoftmax()(query, table.requires_grad_(), target).backward()
    (expected,) = torch.autograd.grad(softmax_loop(query, table, target), query)
    torch.testing.assert_close(query.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("narrow", [False, True])
def test_calls_add_up_in_blocks_as_in_one_piece(narrow, monkeypatch):
    monkeypatch.setattr(table_module, "NARROW_VECTORS", narrow)
    monkeypatch.setattr(table_module, "BLOCK_ITEMS", 7)
    (table, weight, ids, target), softmax = problem(), LinearSoftmax()
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    for factor in (1.0, 3.0):
        (ours(softmax, t1, w1, ids, target) * factor).backward()
        (textbook(t2, w2, ids, target) * factor).backward()
    torch.testing.assert_close(t1.grad, t2.grad, rtol=0, atol=1e-12)


def test_an_outer_factor_scales_every_gradient():
    table, weight, ids, target = problem()
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    (ours(LinearSoftmax(), t1, w1, ids, target) * -2.5).backward()
    (textbook(t2, w2, ids, target) * -2.5).backward()
    torch.testing.assert_close(t1.grad, t2.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(w1.grad, w2.grad, rtol=0, atol=1e-12)


def test_two_backward_passes_accumulate():
    table, weight, ids, target = problem()
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    softmax = LinearSoftmax()
    for rows in (slice(0, 6), slice(0, 4)):  # the second batch is smaller
        ours(softmax, t1, w1, ids[rows], target[rows]).backward()
        textbook(t2, w2, ids[rows], target[rows]).backward()
    torch.testing.assert_close(t1.grad, t2.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(w1.grad, w2.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_many_steps_of_changing_size_equal_the_textbook(set_to_none):
    table, weight, *_ = problem()
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    softmax, optimizers = LinearSoftmax(), [torch.optim.Adam(pair, lr=0.05) for pair in ((t1, w1), (t2, w2))]
    for step, batch in enumerate((6, 6, 3, 7, 1, 6)):
        _, _, ids, target = problem(batch, seed=step)
        losses = ours(softmax, t1, w1, ids, target), textbook(t2, w2, ids, target)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(*losses, rtol=0, atol=1e-11)
        torch.testing.assert_close(t1, t2, rtol=0, atol=1e-10)


def test_the_padding_row_gets_nothing_from_the_softmax():
    table, weight, ids, target = problem()
    t, w = leaves(table, weight)
    softmax = LinearSoftmax()
    for _ in range(2):
        t.grad = None
        ours(softmax, t, w, ids.clamp(max=V - 1), target).backward()
        assert t.grad.shape == t.shape and t.grad[-1].eq(0).all()
        softmax.buffers.held["grad"].fill_(7.0)  # what a reused buffer may hold


def test_the_padding_row_gets_its_share_of_the_lookup():
    table, weight, ids, target = problem()
    ids[1, 2] = V
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    ours(LinearSoftmax(), t1, w1, ids, target).backward()
    textbook(t2, w2, ids, target).backward()
    assert t1.grad[-1].ne(0).any()
    torch.testing.assert_close(t1.grad[-1], t2.grad[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_loss_on_looked_up_rows_adds_its_gradient(order):
    table, weight, ids, target = problem()
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    for t, w, main, look in ((t1, w1, ours, lookup), (t2, w2, textbook, lambda t, i: F.embedding(i, t))):
        first = look(t, ids[:2]).square().sum() if order == "before" else 0
        arguments = (LinearSoftmax(),) if main is ours else ()
        loss = main(*arguments, t, w, ids, target)
        (loss + (first if order == "before" else look(t, ids[:2]).square().sum())).backward()
    torch.testing.assert_close(t1.grad, t2.grad, rtol=0, atol=1e-12)


def test_buffers_are_reused_where_they_fit():
    buffers, like = Buffers(), torch.zeros(1)
    first = buffers.matrix("a", 6, 4, like)
    assert buffers.matrix("a", 3, 4, like).data_ptr() == first.data_ptr()
    assert buffers.matrix("a", 6, 4, like).data_ptr() == first.data_ptr()
    assert buffers.matrix("b", 6, 4, like).data_ptr() != first.data_ptr()
    for rows, columns, dtype in ((7, 4, None), (7, 5, None), (7, 5, torch.bfloat16)):
        held = buffers.matrix("a", rows, columns, like, dtype)
        assert (tuple(held.shape), held.dtype) == ((rows, columns), dtype or torch.float32)


def test_the_gradient_is_written_into_one_buffer_step_after_step():
    table, weight, ids, target = problem()
    t, w = leaves(table, weight)
    softmax, places = LinearSoftmax(), set()
    for _ in range(3):
        t.grad = None
        ours(softmax, t, w, ids, target).backward()
        places.add(t.grad.data_ptr())
    assert len(places) == 1


def test_a_second_forward_pass_before_the_first_backward_raises():
    table, weight, ids, target = problem()
    t, w = leaves(table, weight)
    softmax = LinearSoftmax()
    first = ours(softmax, t, w, ids, target)
    second = ours(softmax, t, w, ids[:3], target[:3])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()
    second.backward()
    assert t.grad.isfinite().all()


def test_a_table_changed_between_forward_and_backward_raises():
    table, weight, ids, target = problem()
    t, w = leaves(table, weight)
    loss = ours(LinearSoftmax(), t, w, ids, target)
    with torch.no_grad():
        t.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_large_scores_stay_exact_up_to_the_stated_limit():
    table = torch.zeros(3, 1, dtype=torch.float32)
    table[0] = 1.0
    for score, expected in ((50.0, 50.0), (80.0, 80.0), (1e4, 87.33655)):  # log of the smallest normal float32
        query = torch.tensor([[score]], requires_grad=True)
        t = table.clone().requires_grad_()
        loss = LinearSoftmax()(query, t, torch.tensor([1]))
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-6)
        assert query.grad.item() == pytest.approx(1.0, rel=1e-6)  # P - Y at the wrong favourite, times its row
        torch.testing.assert_close(t.grad, torch.tensor([[score], [-score], [0.0]]))


def test_bf16_is_within_two_percent_of_the_exact_gradients():
    table, weight, ids, target = problem(40, torch.float32)
    (t1, w1), (t2, w2) = leaves(table, weight), leaves(table, weight)
    loss, expected = ours(LinearSoftmax(), t1, w1, ids, target, torch.bfloat16), textbook(t2, w2, ids, target)
    loss.backward()
    expected.backward()
    assert loss.dtype == t1.grad.dtype == w1.grad.dtype == torch.float32
    assert abs(loss.item() / expected.item() - 1) < 0.01
    for mine, exact in ((t1.grad, t2.grad), (w1.grad, w2.grad)):
        assert ((mine - exact).norm() / exact.norm()).item() < 0.02


def test_bf16_accumulates_too():
    table, weight, ids, target = problem(40, torch.float32)
    t, w = leaves(table, weight)
    softmax = LinearSoftmax()
    ours(softmax, t, w, ids, target, torch.bfloat16).backward()
    once = t.grad.clone()
    ours(softmax, t, w, ids, target, torch.bfloat16).backward()
    torch.testing.assert_close(t.grad, 2 * once, rtol=1e-5, atol=1e-6)


def test_rows_of_a_lookup_and_its_sparse_gradient_without_a_softmax():
    table, _, ids, _ = problem()
    t1, t2 = table.clone().requires_grad_(), table.clone().requires_grad_()
    assert torch.equal(lookup(t1, ids), table[ids])
    factor = torch.randn(*ids.shape, D, dtype=torch.float64)
    (lookup(t1, ids) * factor).sum().backward()
    (F.embedding(ids, t2) * factor).sum().backward()
    assert t1.grad.is_sparse and sorted(t1.grad.coalesce().indices()[0].tolist()) == sorted(set(ids.flatten().tolist()))
    torch.testing.assert_close(t1.grad.to_dense(), t2.grad)


def test_the_sparse_gradients_of_two_backward_passes_add_up():
    table, _, ids, _ = problem()
    t1, t2 = table.clone().requires_grad_(), table.clone().requires_grad_()
    for rows, factor in ((ids, 1.0), (ids[:4], -2.5)):
        (lookup(t1, rows).square().sum() * factor).backward()
        (F.embedding(rows, t2).square().sum() * factor).backward()
    assert t1.grad.is_sparse
    torch.testing.assert_close(t1.grad.to_dense(), t2.grad, rtol=0, atol=1e-12)


def test_a_lookup_passes_no_gradient_to_a_second_order():
    table, _, ids, _ = problem()
    (grad,) = torch.autograd.grad(lookup(table.requires_grad_(), ids).square().sum(), table, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.to_dense().sum().backward()
