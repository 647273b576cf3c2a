"""Self-attention and positions against loops over heads and positions, with gradients; padding; causality."""

import math

import pytest
import torch

from sbr_core.attention import Positions, SelfAttention, latest, positions_from_end, visible
from sbr_core.batches import Batch
from sbr_core.layers import last

D, L = 6, 5
LENGTHS = torch.tensor([5, 1, 3])
MASK = torch.arange(L) < LENGTHS[:, None]
FORMS = [
    {"heads": 1}, {"heads": 2}, {"heads": 3, "bias": True}, {"heads": 2, "bias": True, "project": True},
    {"heads": 6, "project": True},
]  # fmt: skip
EVERY_FORM = pytest.mark.parametrize("form", FORMS, ids=str)
EITHER = pytest.mark.parametrize("causal", [False, True])


def attention_of(**form) -> SelfAttention:
    torch.manual_seed(4)
    return SelfAttention(D, **form).double()


def clicks():
    torch.manual_seed(5)
    return torch.randn(len(LENGTHS), L, D, dtype=torch.float64, requires_grad=True)


def affine(layer, x, begin, end):
    return layer.weight[begin:end] @ x + (0 if layer.bias is None else layer.bias[begin:end])


def loop(attention, x, causal, queries=None):
    """One session of real clicks: (outputs, weights by head, query and position), one number after another."""
    size, outputs, weights = D // attention.heads, [], []
    for i, asking in enumerate(x if queries is None else queries):
        seen = x[: i + 1] if causal else x
        joined, rows = [], []
        for head in range(attention.heads):
            part = head * size, (head + 1) * size
            q = affine(attention.Q, asking, *part)
            keys = [affine(attention.KV, other, *part) for other in seen]
            values = [affine(attention.KV, other, D + part[0], D + part[1]) for other in seen]
            e = [((q * k).sum() / math.sqrt(size)).exp() for k in keys]
            joined.append(sum(a * v for a, v in zip(e, values, strict=True)) / sum(e))
            rows.append([(a / sum(e)).item() for a in e] + [0.0] * (L - len(seen)))
        y = torch.cat(joined)
        projects = isinstance(attention.O, torch.nn.Linear)
        outputs.append(affine(attention.O, y, 0, D) if projects else y)
        weights.append(rows)
    return torch.stack(outputs), torch.tensor(weights, dtype=torch.float64).transpose(0, 1)


@EITHER
@EVERY_FORM
def test_value_weights_and_gradients_equal_a_loop(form, causal):
    attention, x = attention_of(**form), clicks()
    mine, weights = attention(x, MASK, causal), attention.weights(x, MASK, causal)
    real = [loop(attention, x[row, :n], causal) for row, n in enumerate(LENGTHS.tolist())]
    for row, (expected, expected_weights) in enumerate(real):
        n = len(expected)
        torch.testing.assert_close(mine[row, :n], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights[row, :, :n], expected_weights, rtol=0, atol=1e-12)
    leaves = [x, *attention.parameters()]
    wanted = torch.autograd.grad(sum(y.sin().sum() for y, _ in real), leaves)
    got = torch.autograd.grad(mine[MASK].sin().sum(), leaves)
    for left, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@EVERY_FORM
def test_queries_of_their_own_equal_a_loop(form):
    attention, x, queries = attention_of(**form), clicks(), torch.randn(len(LENGTHS), 2, D, dtype=torch.float64)
    mine, weights = attention(x, MASK, query=queries), attention.weights(x, MASK, query=queries)
    for row, n in enumerate(LENGTHS.tolist()):
        expected, expected_weights = loop(attention, x[row, :n], False, queries[row])
        torch.testing.assert_close(mine[row], expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(weights[row], expected_weights, rtol=0, atol=1e-12)


@EITHER
@EVERY_FORM
def test_the_last_click_may_ask_alone(form, causal):
    attention, x = attention_of(**form), clicks()
    alone = attention(x, MASK, query=last(x, LENGTHS)[:, None])[:, 0]
    torch.testing.assert_close(alone, last(attention(x, MASK, causal), LENGTHS), rtol=0, atol=1e-12)


@EITHER
def test_weights_are_a_distribution_over_what_is_seen(causal):
    weights, seen = attention_of(heads=2).weights(clicks(), MASK, causal), visible(MASK, causal)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, L).double(), rtol=0, atol=1e-12)
    assert torch.equal(weights.ne(0), seen[:, None].expand_as(weights))
    assert weights[1, :, 0].tolist() == [[1, 0, 0, 0, 0]] * 2  # a single click looks at itself


def test_what_is_visible():
    mask = torch.tensor([[True, True, False]])
    assert visible(mask).int().tolist() == [[[1, 1, 0]]]
    assert visible(mask, causal=True).int().tolist() == [[[1, 0, 0], [1, 1, 0], [1, 1, 0]]]


@EITHER
def test_padding_is_not_looked_at_and_gets_no_gradient(causal):
    attention, x = attention_of(heads=2, bias=True), clicks()
    y = attention(x, MASK, causal)
    other = torch.where(MASK[..., None], x, 1e3 * torch.randn_like(x))
    torch.testing.assert_close(attention(other, MASK, causal)[MASK], y[MASK], rtol=0, atol=1e-12)
    wider = torch.nn.functional.pad(x, (0, 0, 0, 3), value=7.0), torch.nn.functional.pad(MASK, (0, 3))
    torch.testing.assert_close(attention(*wider, causal)[:, :L][MASK], y[MASK], rtol=0, atol=1e-12)
    (grad,) = torch.autograd.grad(y[MASK].sin().sum(), x)
    assert grad[~MASK].eq(0).all() and grad[MASK].ne(0).all()


def test_what_comes_later_is_not_seen_if_causal_and_seen_otherwise():
    attention, x = attention_of(heads=2), clicks().detach()
    changed = x.clone()
    changed[0, 3] += 1
    for causal in (True, False):
        same = (attention(x, MASK, causal) == attention(changed, MASK, causal)).all(-1)
        assert same[0].tolist() == ([True] * 3 + [False] * 2 if causal else [False] * 5) and same[1:].all()


def test_without_causality_the_order_of_the_clicks_does_not_matter():
    attention, x = attention_of(heads=2, project=True), clicks()
    order = torch.tensor([2, 0, 1, 3, 4])  # the first three: all real in sessions 0 and 2
    y = attention(x, MASK)
    torch.testing.assert_close(attention(x[:, order], MASK)[::2], y[::2, order], rtol=0, atol=1e-12)


def test_dropout_thins_the_weights_in_training_only():
    attention, x = attention_of(dropout=0.5), clicks()
    assert torch.equal(attention.eval()(x, MASK), attention_of()(x, MASK))
    torch.manual_seed(0)
    drawn = torch.stack([attention.train()(x, MASK) for _ in range(4000)])
    assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.mean(0), attention.eval()(x, MASK), rtol=0, atol=0.05)
    one = drawn[:, 1, 0] / attention(x, MASK)[1, 0]  # one weight of 1: dropped, or doubled
    assert one.round(decimals=9).unique().tolist() == [0, 2]


def test_attention_equals_the_one_of_torch():
    """Another independent implementation: `torch.nn.MultiheadAttention`, with our weights."""
    attention, x = attention_of(heads=3, bias=True, project=True), clicks()
    theirs = torch.nn.MultiheadAttention(D, 3, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([attention.Q.weight, attention.KV.weight]))
        theirs.in_proj_bias.copy_(torch.cat([attention.Q.bias, attention.KV.bias]))
        theirs.out_proj.load_state_dict(attention.O.state_dict())
    later = torch.ones(L, L).triu(1).bool()
    for causal, hidden in ((False, None), (True, later)):
        y, weights = theirs(x, x, x, key_padding_mask=~MASK, attn_mask=hidden, average_attn_weights=False)
        torch.testing.assert_close(attention(x, MASK, causal), y, rtol=0, atol=1e-12)
        torch.testing.assert_close(attention.weights(x, MASK, causal), weights, rtol=0, atol=1e-12)


def test_the_number_of_parameters_is_3_or_4_square_matrices():
    sizes = [sum(p.numel() for p in attention_of(**form).parameters()) for form in FORMS]
    assert sizes == [3 * D * D, 3 * D * D, 3 * D * D + 3 * D, 4 * D * D + 4 * D, 4 * D * D]


def test_positions_count_from_the_end():
    expected = [[n - 1 - i if i < n else 0 for i in range(L)] for n in LENGTHS.tolist()]
    assert positions_from_end(LENGTHS, L).tolist() == expected
    assert positions_from_end(LENGTHS, L)[0].tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("counted_from", ["end", "start"])
def test_a_position_has_its_row_and_its_gradient(counted_from):
    positions = Positions(D, 7, counted_from).double()
    torch.nn.init.normal_(positions.table)
    vectors, expected, uses = positions(LENGTHS, L), {}, torch.zeros(7)
    for row, n in enumerate(LENGTHS.tolist()):
        for i in range(n):
            number = n - 1 - i if counted_from == "end" else i
            expected[row, i], uses[number] = positions.table[number], uses[number] + 1
    assert all(torch.equal(vectors[place], vector) for place, vector in expected.items())
    (grad,) = torch.autograd.grad(vectors[MASK].sum(), positions.table)
    assert torch.equal(grad, uses.double()[:, None].expand(7, D))


def test_an_older_click_in_front_leaves_the_positions_of_the_others_as_they_are():
    longer, shorter = (positions_from_end(torch.tensor([n]), n)[0].tolist() for n in (4, 3))
    assert longer[1:] == shorter


def test_the_latest_clicks_of_every_session():
    sessions = [[1, 2, 3, 4, 5], [6], [7, 8, 9], [1, 2, 3, 4]]
    batch = Batch.of(sessions, 20, target=[3, 4, 5, 6])
    cut, expected = latest(batch, 3), Batch.of([session[-3:] for session in sessions], 20)
    assert torch.equal(cut.items, expected.items) and torch.equal(cut.lengths, expected.lengths)
    assert cut.target.tolist() == [3, 4, 5, 6] and latest(batch, 5) is batch and latest(batch, 9) is batch


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_latest_clicks_equal_a_loop_whatever_the_padding(count):
    sessions = [list(range(n)) for n in (1, 2, 3, 4, 5, 6)]
    batch = Batch.of(sessions, 20)
    wide = Batch(torch.nn.functional.pad(batch.items, (0, 5), value=20), batch.lengths, batch.target)
    for items in (latest(batch, count), latest(wide, count)):
        assert [row[:n] for row, n in zip(items.items.tolist(), items.lengths.tolist(), strict=True)] == [
            session[-count:] for session in sessions
        ]
        assert items.items.shape[1] == count and items.items[~items.mask].eq(20).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SelfAttention(6, heads=4), "heads must divide dim, got heads=4 and dim=6"),
        (lambda: SelfAttention(6, heads=0), "heads must divide dim, got heads=0 and dim=6"),
        (lambda: attention_of()(clicks(), MASK, True, clicks()), "have no place in the order of the clicks"),
        (lambda: Positions(6, 0), "at least one row, got 0"),
        (lambda: Positions(6, 3, "middle"), "counted from the 'end' or the 'start', got 'middle'"),
        (lambda: Positions(6, 3)(LENGTHS, 5), "there are 3 positions, the sessions have up to 5: cut them first"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
