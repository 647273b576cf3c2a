"""The Transformer against its equations in a loop, its invariants, and the states of all positions."""

import inspect
import math

import pytest
import torch
from torch.nn import functional as F
from toys import random_sessions

from sbr_core.batches import Batch, gather
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.transformer import Transformer

V, D = 9, 4
SESSIONS = [[3], [5, 5], [1, 2, 1, 3], [1, 2, 3, 2, 4], [7, 7, 7, 0, 7], [0, 1, 2, 0, 1, 2, 0, 8]]


def model_of(**arguments) -> Transformer:
    torch.manual_seed(3)
    model = Transformer(V, D, **{"dropout": 0.0} | arguments).double()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # neither 1 nor 0, or a forgotten gain or shift would not be seen
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def query(model, *sessions):
    return model.encode(Batch.of([list(session) for session in sessions], V))


def affine(layer, x):
    return layer.weight @ x + layer.bias


def normalised(norm, x):
    centred = x - x.mean()
    return norm.weight * centred / (centred.square().mean() + norm.eps).sqrt() + norm.bias


def attend_loop(attention, x, causal):
    """Multi-head attention of every position, head by head."""
    size, after = D // attention.heads, []
    for i, asking in enumerate(x):
        q, joined = affine(attention.Q, asking).split(size), []
        for head in range(attention.heads):
            parts = [affine(attention.KV, other).split(size) for other in (x[: i + 1] if causal else x)]
            e = [(q[head] @ part[head] / math.sqrt(size)).exp() for part in parts]
            values = [part[attention.heads + head] for part in parts]
            joined.append(sum(a * v for a, v in zip(e, values, strict=True)) / sum(e))
        after.append(affine(attention.O, torch.cat(joined)))
    return after


def states_loop(model, session, kept=1.0):
    """Equations 9.1 to 9.3 for every click that is read; `kept` is what dropout leaves of an entry."""
    session = session[-model.max_positions :]
    x = [model.table[item] for item in session]
    if model.counted_from != "none":
        rows = range(len(x)) if model.counted_from == "start" else reversed(range(len(x)))
        x = [e + model.positions.table[row] for e, row in zip(x, rows, strict=True)]
    x = [kept * state for state in x]
    for block in model.blocks:
        found = attend_loop(block.attention, [normalised(block.norm1, state) for state in x], model.causal)
        x = [state + kept * y for state, y in zip(x, found, strict=True)]
        inner = [kept * affine(block.W1, normalised(block.norm2, state)).clamp(min=0) for state in x]
        x = [state + kept * affine(block.W2, y) for state, y in zip(x, inner, strict=True)]
    return [normalised(model.norm, state) for state in x]


VARIANTS = [
    {}, {"blocks": 0}, {"blocks": 2}, {"heads": 1, "causal": False}, {"heads": 4, "blocks": 2, "causal": False},
    {"positions": "start", "blocks": 2}, {"positions": "none"}, {"positions": "none", "blocks": 0},
    {"max_positions": 3, "blocks": 2}, {"max_positions": 3, "positions": "start", "causal": False, "blocks": 2},
    {"max_positions": 1},
]  # fmt: skip
EVERY_VARIANT = pytest.mark.parametrize("arguments", VARIANTS, ids=str)


@EVERY_VARIANT
def test_value_and_gradients_equal_the_equations_in_a_loop(arguments):
    model = model_of(**arguments)
    expected = torch.stack([states_loop(model, session)[-1] for session in SESSIONS])
    torch.testing.assert_close(query(model, *SESSIONS), expected, rtol=0, atol=1e-12)
    targets = torch.arange(len(SESSIONS))
    loss = F.cross_entropy(expected @ model.table[:-1].T, targets)
    wanted = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    FullSoftmax()(Scores(model, query(model, *SESSIONS)), targets).backward()
    for (name, parameter), grad in zip(model.named_parameters(), wanted, strict=True):
        mine, grad = (torch.zeros_like(parameter) if g is None else g for g in (parameter.grad, grad))
        torch.testing.assert_close(mine, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("arguments", [{"positions": "start", "blocks": 2}, {"positions": "none"}], ids=str)
def test_the_states_of_all_positions_are_the_queries_of_all_prefixes(arguments):
    model, batch = model_of(**arguments), Batch.of(SESSIONS, V)
    states = model.states(batch)
    for row, session in enumerate(SESSIONS):
        loop = torch.stack(states_loop(model, session))
        torch.testing.assert_close(states[row, : len(session)], loop, rtol=0, atol=1e-12)
        prefixes = [session[:n] for n in range(1, len(session) + 1)]
        torch.testing.assert_close(states[row, : len(session)], query(model, *prefixes), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal, positions", [(False, "start"), (True, "end"), (False, "end"), (False, "none")])
def test_states_that_would_depend_on_what_follows_are_refused(causal, positions):
    model = model_of(causal=causal, positions=positions)
    with pytest.raises(ValueError, match=f"causal=True and positions='start'.* got causal={causal} and .*{positions}"):
        model.states(Batch.of(SESSIONS, V))
    first = [query(model, session)[0] for session in ([1, 2], [1, 2, 3])]  # and they would indeed
    inner = model.norm(model.blocks[0](model.inputs(Batch.of([[1, 2, 3]], V)), Batch.of([[1, 2, 3]], V).mask, causal))
    assert not torch.allclose(inner[0, 1], first[0])


def test_states_of_sessions_longer_than_the_table_are_refused():
    with pytest.raises(ValueError, match="max_positions=7 is less than a width of 8"):
        model_of(positions="start", max_positions=7).states(Batch.of(SESSIONS, V))


def test_without_blocks_and_positions_a_score_is_the_normalised_last_click_times_the_item():
    model = model_of(blocks=0, positions="none")
    items = model.table[[session[-1] for session in SESSIONS]]
    expected = F.layer_norm(items, (D,), model.norm.weight, model.norm.bias) @ model.table[:V].T
    torch.testing.assert_close(model.score(query(model, *SESSIONS)), expected, rtol=0, atol=1e-12)
    zero = model_of(blocks=0)
    zero.load_state_dict(model.state_dict() | {"positions.table": torch.zeros(50, D)})
    torch.testing.assert_close(query(zero, *SESSIONS), query(model, *SESSIONS), rtol=0, atol=1e-12)


def test_without_positions_and_causality_the_clicks_before_the_last_have_no_order():
    model = model_of(positions="none", causal=False, blocks=2)
    one, two = [1, 4, 1, 8, 2], [8, 1, 4, 1, 2]
    torch.testing.assert_close(query(model, one), query(model, two), rtol=0, atol=1e-12)
    assert not torch.allclose(query(model, one), query(model, [1, 4, 1, 2, 8]))
    for arguments in ({"positions": "end"}, {"positions": "start"}, {"causal": True}):
        other = model_of(**{"positions": "none", "causal": False, "blocks": 2} | arguments)
        assert not torch.allclose(query(other, one), query(other, two))


def test_a_table_of_equal_positions_is_a_shift():
    """Counted from the end or from the start, equal rows are the same constant."""
    models = [model_of(positions=positions) for positions in ("end", "start")]
    for model in models:
        with torch.no_grad():
            model.positions.table.copy_(torch.arange(4.0))
    torch.testing.assert_close(query(models[0], *SESSIONS), query(models[1], *SESSIONS), rtol=0, atol=1e-12)


def test_positions_from_the_end_and_from_the_start_agree_on_full_sessions_read_backwards():
    end, start = model_of(max_positions=4), model_of(max_positions=4, positions="start")
    with torch.no_grad():
        end.positions.table.copy_(start.positions.table.flip(0))
    torch.testing.assert_close(query(end, [1, 2, 1, 3]), query(start, [1, 2, 1, 3]), rtol=0, atol=1e-12)
    assert not torch.allclose(query(end, [1, 2, 3]), query(start, [1, 2, 3]))


@pytest.mark.parametrize("positions", ["end", "start", "none"])
def test_of_a_long_session_the_last_clicks_are_read(positions):
    model = model_of(max_positions=5, positions=positions, blocks=2)
    long = list(range(9)) * 20
    torch.testing.assert_close(query(model, long, [1]), query(model, long[-5:], [1]), rtol=0, atol=1e-12)
    torch.testing.assert_close(query(model, long, [1])[1], query(model, [1])[0], rtol=0, atol=1e-12)


@EVERY_VARIANT
def test_more_padding_changes_nothing(arguments):
    model, batch = model_of(**arguments), Batch.of(SESSIONS, V)
    wider = Batch(F.pad(batch.items, (0, 6), value=V), batch.lengths, batch.target)
    torch.testing.assert_close(model.encode(wider), model.encode(batch), rtol=0, atol=1e-12)
    alone = torch.cat([query(model, session) for session in SESSIONS])
    torch.testing.assert_close(alone, model.encode(batch), rtol=0, atol=1e-12)


def test_causality_changes_only_blocks_below_the_topmost():
    for blocks, same in ((1, True), (2, False)):
        one, two = (query(model_of(blocks=blocks, causal=causal), *SESSIONS) for causal in (True, False))
        assert torch.allclose(one, two, rtol=0, atol=1e-12) == same


def test_attention_is_a_distribution_over_the_clicks():
    model, batch = model_of(), Batch.of(SESSIONS, V)
    block = model.blocks[0]
    weights = block.attention.weights(block.norm1(model.inputs(batch)), batch.mask, causal=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 2, 8).double(), rtol=0, atol=1e-12)
    assert weights[0, :, 0].tolist() == [[1] + [0] * 7] * 2


def test_dropout_acts_in_training_only():
    model, plain = model_of(dropout=0.3), model_of()
    assert torch.equal(query(model.eval(), *SESSIONS), query(plain, *SESSIONS))
    drawn = query(model.train(), *[[1, 2, 1, 3]] * 50)
    assert drawn.std(0).min() > 0.01


@pytest.mark.parametrize("arguments", [{}, {"blocks": 2}, {"positions": "none"}], ids=str)
def test_dropout_acts_on_inputs_both_halves_and_the_inner_layer(arguments, monkeypatch):
    """A third of everything stands for it, to see where it acts."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda dropout, x: x / 3)
    model = model_of(**arguments)
    expected = torch.stack([states_loop(model, session, kept=1 / 3)[-1] for session in SESSIONS])
    torch.testing.assert_close(query(model, *SESSIONS), expected, rtol=0, atol=1e-12)


def test_the_defaults_are_those_of_the_specs():
    """For dropout they give a range, 0.1 to 0.3: its middle."""
    taken = inspect.signature(Transformer).parameters
    wanted = {"dim": 100, "blocks": 1, "heads": 2, "dropout": 0.2, "positions": "end", "max_positions": 50}
    assert {name: taken[name].default for name in wanted} == wanted


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("d", [6, 100])
def test_a_block_has_twelve_square_matrices(d):
    """Attention 4 d^2 + 4 d, maps 8 d^2 + 5 d, normalisations 4 d; one normalisation 2 d after the last block."""
    for blocks in (0, 1, 3):
        expected = 2 * d + 50 * d + blocks * (12 * d * d + 13 * d)
        assert size(Transformer(20, d, blocks)) - 21 * d == expected
        assert size(Transformer(20, d, blocks, positions="none")) - 21 * d == expected - 50 * d
    assert size(Transformer(20, d, max_positions=7)) == size(Transformer(20, d)) - 43 * d


def test_the_initialisation_fills_its_range_and_normalisations_start_as_nothing():
    model = Transformer(500, 100)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert parameter.eq(1 if name.endswith("weight") else 0).all()
        else:
            assert 0.095 < parameter.abs().max() <= 0.1 and abs(parameter.mean()) < 0.03, name


def test_the_first_loss_is_about_ln_v_and_the_variance_of_normalised_queries():
    """A query has D entries of variance 1, an item vector those of variance 1/(3 D): scores have variance 1/3."""
    windows, model = random_sessions(200, num_items=3000).prefixes(), Transformer(3000)
    loss = FullSoftmax()(Scores(model, model.encode(gather(windows, torch.arange(100)))), windows.labels[:100].long())
    assert loss.item() == pytest.approx(math.log(3000) + 1 / 6, abs=0.15)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"blocks": -1}, "blocks must be 0 or more.* got blocks=-1"),
        ({"max_positions": 0}, "max_positions 1 or more.* max_positions=0"),
        ({"dropout": 1.0}, "dropout lie in 0 <= dropout < 1.* dropout=1.0"),
        ({"heads": 3}, "heads must divide dim, got heads=3 and dim=4"),
        ({"positions": "both"}, "positions is one of end, start, none, got 'both'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Transformer(V, D, **arguments)
