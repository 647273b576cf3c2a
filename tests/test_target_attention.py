"""Target attention in blocks against a vector for every session and candidate; what it may hold in memory."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sbr_core import target_attention
from sbr_core.table import Buffers, lookup
from sbr_core.target_attention import Slots, score_all, score_some, softmax_loss, weights

B, L, D, V = 7, 5, 6, 41
EMPTY = -torch.inf


@pytest.fixture(autouse=True, params=["one block", "many blocks", "many blocks, made anew"])
def blocks(request, monkeypatch):
    """Every test runs with all items in one block and with blocks of four, kept or made anew."""
    if request.param.endswith("made anew"):
        monkeypatch.setattr(target_attention, "KEPT_BYTES", 0)
    if request.param.startswith("many blocks"):
        monkeypatch.setattr(target_attention, "NARROWEST", 4)
        monkeypatch.setattr(target_attention, "BLOCK_BYTES", {"cpu": 1, "cuda": 1})


def problem(dtype=torch.float64, sessions=B, seed=0):
    """Slots, a table and targets; some slots are empty, some count more than once."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(sessions, L, D, generator=generator, dtype=dtype) for _ in "ku")
    clicks = torch.randint(0, 4, (sessions, L), generator=generator).to(dtype)
    clicks[:, 1] = 1 + clicks[:, 1]
    table = torch.randn(V + 1, D, generator=generator, dtype=dtype)
    return Slots(keys, values, clicks.log()), table, torch.randint(V, (sessions,), generator=generator)


def naive(slots: Slots, table):
    """A vector for every session and candidate, (B, V, D)."""
    items = table[:-1]
    e = torch.exp(torch.einsum("bld,vd->bvl", slots.keys, items)) * slots.log_weight.exp()[:, None]
    beta = e / e.sum(-1, keepdim=True)
    return torch.einsum("bvd,vd->bv", torch.einsum("bvl,bld->bvd", beta, slots.values), items)


def leaves(slots, table):
    return [x.clone().requires_grad_() for x in (slots.keys, slots.values, table)]


def assert_close(left, right, atol=1e-12):
    torch.testing.assert_close(left, right, rtol=0, atol=atol)


def test_scores_and_their_gradients_equal_the_naive_ones():
    slots, table, _ = problem()
    factor, found = torch.randn(B, V, dtype=torch.float64), []
    for function in (score_all, naive):
        k, u, t = leaves(slots, table)
        scores = function(Slots(k, u, slots.log_weight), t)
        found.append((scores.detach(), *torch.autograd.grad((scores * factor).sum(), (k, u, t))))
    for mine, textbook in zip(*found, strict=True):
        assert_close(mine, textbook)


def test_scores_of_some_items_are_columns_with_the_same_gradients():
    slots, table, _ = problem()
    for ids in (torch.tensor([3, 0, 3]), torch.randint(V, (B, 4))):
        found = []
        for some in (True, False):
            k, u, t = leaves(slots, table)
            own = Slots(k, u, slots.log_weight)
            scores = score_some(own, t, ids) if some else naive(own, t).gather(1, ids.expand(B, -1))
            grads = torch.autograd.grad(scores.square().sum(), (k, u, t))
            found.append((scores.detach(), *(grad.to_dense() for grad in grads)))
        for mine, textbook in zip(*found, strict=True):
            assert_close(mine, textbook)


def test_a_slot_that_counts_three_times_is_three_equal_slots():
    slots, table, _ = problem()
    once = torch.zeros(B, L + 2, dtype=torch.float64)
    keys, values = (torch.cat([x, x[:, :1], x[:, :1]], dim=1) for x in slots[:2])
    heavy = torch.zeros(B, L, dtype=torch.float64)
    heavy[:, 0] = torch.tensor(3.0).double().log()
    assert_close(score_all(Slots(keys, values, once), table), score_all(slots._replace(log_weight=heavy), table))


def test_empty_slots_and_their_order_do_not_matter():
    slots, table, _ = problem()
    full = slots._replace(log_weight=torch.zeros(B, L, dtype=torch.float64))
    wide = Slots(
        *(torch.cat([torch.randn_like(x), x], 1) for x in full[:2]), F.pad(full.log_weight, (L, 0), value=EMPTY)
    )
    assert_close(score_all(wide, table), score_all(full, table))
    order = torch.randperm(L)
    assert_close(score_all(Slots(*(x[:, order] for x in slots)), table), score_all(slots, table))


def test_what_all_slots_share_may_stand_outside_the_sum():
    slots, table, _ = problem()
    a = torch.randn(B, D, dtype=torch.float64)
    assert_close(
        score_all(slots._replace(values=slots.values + a[:, None]), table), score_all(slots, table) + a @ table[:-1].T
    )


def test_weights_sum_to_one_and_are_zero_on_empty_slots():
    slots, table, _ = problem()
    beta = weights(slots, table[:-1])
    assert_close(beta.sum(1), torch.ones(B, V, dtype=torch.float64))
    assert beta[slots.log_weight == EMPTY].eq(0).all() and beta[slots.log_weight > EMPTY].gt(0).all()
    assert_close(weights(slots, table[:-1].expand(B, -1, -1)), beta)


def test_the_groups_of_a_cpu_and_the_rectangle_of_a_gpu_give_the_same(monkeypatch):
    slots, table, target = problem()
    expected = score_all(slots, table), softmax_loss(slots, table.requires_grad_(), target)
    monkeypatch.setattr(target_attention, "_sorted_slots", target_attention._all_slots)
    assert_close(score_all(slots, table), expected[0])
    assert_close(softmax_loss(slots, table, target), expected[1])


def losses(problem, form, buffers=None, dtype=None):
    """Loss and gradients of keys, values and table; some rows of the table are looked up as well, as in a model."""
    slots, table, target = problem
    k, u, t = leaves(slots, table)
    if form == "fused":
        rows = lookup(t, target)
        loss = softmax_loss(Slots(k + rows[:, None], u, slots.log_weight), t, target, dtype, buffers)
    else:
        loss = F.cross_entropy(naive(Slots(k + t[target][:, None], u, slots.log_weight), t), target)
    loss.backward()
    return loss.detach(), k.grad, u.grad, t.grad


def test_the_fused_loss_and_its_gradients_equal_the_textbook():
    for mine, textbook in zip(losses(problem(), "fused"), losses(problem(), "textbook"), strict=True):
        assert_close(mine, textbook)


def test_kept_buffers_serve_batches_of_changing_size():
    buffers = Buffers()
    for step, sessions in enumerate((6, 6, 3, 7, 1, 6)):
        given = problem(sessions=sessions, seed=step)
        for mine, textbook in zip(losses(given, "fused", buffers), losses(given, "textbook"), strict=True):
            assert_close(mine, textbook)


def test_the_table_gradient_is_written_into_one_buffer_and_its_padding_row_is_zero():
    (slots, table, target), buffers, places = problem(), Buffers(), set()
    table.requires_grad_()
    for _ in range(3):
        table.grad = None
        softmax_loss(slots, table, target, buffers=buffers).backward()
        assert table.grad[-1].eq(0).all() and table.grad[:-1].ne(0).all()
        places.add(table.grad.data_ptr())
        once = table.grad.clone()
        buffers.held["grad"].fill_(7.0)  # what a reused buffer may hold
    assert len(places) == 1
    table.grad = once.clone()
    softmax_loss(slots, table, target, buffers=buffers).backward()
    assert_close(table.grad, 2 * once)


def test_an_outer_factor_scales_every_gradient():
    slots, table, target = problem()
    found = []
    for factor in (1.0, -2.5):
        k, u, t = leaves(slots, table)
        (softmax_loss(Slots(k, u, slots.log_weight), t, target) * factor).backward()
        found.append([x.grad / factor for x in (k, u, t)])
    for one, other in zip(*found, strict=True):
        assert_close(one, other)


def test_backward_can_be_repeated_while_its_buffers_live():
    (slots, table, target), keys = problem(), problem()[0].keys.requires_grad_()
    loss = softmax_loss(slots._replace(keys=keys), table.requires_grad_(), target)
    loss.backward(retain_graph=True)
    once = keys.grad.clone(), table.grad.clone()
    loss.backward()
    assert_close(keys.grad, 2 * once[0])
    assert_close(table.grad, 2 * once[1])


def test_a_second_forward_pass_on_the_same_buffers_invalidates_the_first():
    slots, table, target = problem()
    buffers, keys = Buffers(), slots.keys.clone().requires_grad_()
    first, _ = (softmax_loss(slots._replace(keys=keys), table, target, buffers=buffers) for _ in range(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.backward()


def test_large_products_neither_overflow_nor_lose_the_gradient():
    slots, table, target = problem(torch.float32)
    slots = slots._replace(keys=1e3 * slots.keys)
    k, u, t = leaves(slots, table)
    softmax_loss(Slots(k, u, slots.log_weight), t, target).backward()
    double = Slots(*(x.double() for x in slots))
    k2, u2, t2 = leaves(double, table.double())
    F.cross_entropy(score_all(Slots(k2, u2, double.log_weight), t2), target).backward()
    for mine, exact in (k, k2), (u, u2), (t, t2):
        assert mine.grad.isfinite().all() and ((mine.grad - exact.grad).norm() / exact.grad.norm()).item() < 1e-2


def test_a_target_far_below_the_best_item_saturates_the_value_and_keeps_its_gradient():
    keys, values = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    slots, table = Slots(keys, values, torch.zeros(2, 1)), torch.tensor([[200.0], [0.0], [5.0]], requires_grad=True)
    loss = softmax_loss(slots, table, torch.tensor([1, 1]))
    assert loss.item() == pytest.approx(87.33655)  # log of the smallest normal float32
    loss.backward()
    assert table.grad[:, 0].tolist() == pytest.approx([1, -1, 0])


def test_float32_equals_double_to_seven_digits():
    for mine, textbook in zip(losses(problem(torch.float32), "fused"), losses(problem(torch.float32), "textbook"),
                              strict=True):  # fmt: skip
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, textbook, rtol=1e-4, atol=1e-6)


def test_bf16_is_within_two_percent_and_accumulates():
    slots, table, target = problem(torch.float32)
    slots, table = Slots(0.5 * slots.keys, 0.5 * slots.values, slots.log_weight), 0.7 * table
    rough, exact = (losses((slots, table, target), "fused", dtype=dtype) for dtype in (torch.bfloat16, None))
    assert rough[0].dtype == torch.float32 and rough[0] != exact[0]
    assert rough[0].item() == pytest.approx(exact[0].item(), rel=0.01)
    for mine, right in zip(rough[1:], exact[1:], strict=True):
        assert mine.dtype == torch.float32 and ((mine - right).norm() / right.norm()).item() < 0.02
    table.requires_grad_()
    for times in (1, 2):
        softmax_loss(slots, table, target, torch.bfloat16).backward()
        once = table.grad.clone() if times == 1 else once
        torch.testing.assert_close(table.grad, times * once, rtol=1e-5, atol=1e-6)


def test_products_are_kept_up_to_a_size_and_then_made_once(monkeypatch, blocks):
    made, fill = [], target_attention._fill
    monkeypatch.setattr(target_attention, "_fill", lambda *args: (made.append(1), fill(*args)))
    slots, table, target = problem()
    score_all(slots, table)
    number = len(made)
    made.clear()
    loss = softmax_loss(slots._replace(keys=slots.keys.requires_grad_()), table, target)
    for times in (1, 2):
        loss.backward(retain_graph=True)
        assert len(made) == number * (times + (target_attention.KEPT_BYTES == 0))


class Largest(TorchDispatchMode):
    """Notes the numbers of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


def test_no_tensor_is_larger_than_the_scores_in_training_and_in_inference(monkeypatch):
    items = 1000
    monkeypatch.setattr(target_attention, "NARROWEST", 64)
    monkeypatch.setattr(target_attention, "BLOCK_BYTES", {"cpu": 1})
    monkeypatch.setattr(target_attention, "KEPT_BYTES", 0)
    slots, _, target = problem()
    table = torch.randn(items + 1, D, dtype=torch.float64, requires_grad=True)
    with Largest() as seen:
        softmax_loss(Slots(*leaves(slots, table)[:2], slots.log_weight), table, target).backward()
        with torch.no_grad():
            score_all(slots, table)
    assert seen.entries == B * items > 2 * B * L * 64  # the scores; not even a block, least of all (B, V, D)
    with Largest() as seen:
        naive(slots, table)
    assert seen.entries == B * items * D
