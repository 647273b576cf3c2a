"""Batches of whole sessions against the prefixes that they stand for: the same examples, losses and gradients."""

import signal

import pytest
import torch
from toys import as_lists, chain, random_sessions, same

from sbr_core.batches import gather
from sbr_core.bench import bench_training
from sbr_core.config import TrainConfig
from sbr_core.every_position import queries, rows_of, session_order
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.srgnn import SRGNN
from sbr_core.models.transformer import Transformer
from sbr_core.sessions import Sessions
from sbr_core.studies import every_position_study
from sbr_core.train import fit

V = 30
WINDOWS = {
    "prefixes": lambda sessions: sessions.prefixes(),
    "last 4": lambda sessions: sessions.prefixes().last(4),
    "last 1": lambda sessions: sessions.prefixes().last(1),
    "suffixes": lambda sessions: sessions.suffixes(),
    "a part of the log": lambda sessions: sessions.select(7, 33).prefixes(),
    "some of the prefixes": lambda sessions: sessions.prefixes()[torch.arange(0, 150, 4).repeat_interleave(2) + 1],
}
KINDS = pytest.mark.parametrize("kind", WINDOWS)


def windows_of(kind="prefixes", count=60):
    sessions = random_sessions(count)
    return WINDOWS[kind](sessions)


def examples_of(batch):
    """(input, label) of every example of a batch, position by position."""
    width = batch.items.shape[1]
    return [
        (batch.items[place // width, : place % width + 1].tolist(), target)
        for place, target in zip(batch.place.tolist(), batch.target.tolist(), strict=True)
    ]


def rows_loop(windows):
    """Rows as lists of example numbers: an example joins the row of the one before it, if it is one click longer."""
    rows = []
    for number, (start, target) in enumerate(zip(windows.start.tolist(), windows.target.tolist(), strict=True)):
        if rows and start == rows[-1][-1][1] and target == rows[-1][-1][2] + 1:
            rows[-1].append((number, start, target))
        else:
            rows.append([(number, start, target)])
    return rows


@KINDS
def test_rows_equal_a_loop(kind):
    windows = windows_of(kind)
    final, count = rows_of(windows)
    rows = rows_loop(windows)
    assert final.tolist() == [row[-1][0] for row in rows] and count.tolist() == [len(row) for row in rows]


def test_every_session_of_two_clicks_or_more_is_one_row():
    sessions = random_sessions(60)
    assert rows_of(sessions.prefixes())[1].tolist() == [n - 1 for n in sessions.lengths.tolist() if n > 1]


@pytest.mark.parametrize("batch_size", [1, 7, 32, 10_000])
@KINDS
def test_each_example_occurs_exactly_once_an_epoch(kind, batch_size):
    windows = windows_of(kind)
    for epoch in range(2):
        order = session_order(windows, batch_size, seed=1, epoch=epoch, block=4)
        batches = list(order.batches(windows))
        assert sorted(pair for batch in batches for pair in examples_of(batch)) == sorted(as_lists(windows))
        assert [len(batch) for batch in batches] == order.sizes and len(batches) == len(order)
        assert [batch.items.shape[1] for batch in batches] == order.widths


@pytest.mark.parametrize("block", [0, 1, 4, 256])
def test_batches_are_near_their_size(block):
    windows, longest = windows_of(count=400), 8
    order = session_order(windows, 50, seed=0, epoch=0, block=block)
    assert abs(len(order) - len(windows) / 50) <= 1 and sum(order.sizes) == len(windows)
    assert sorted(order.sizes)[1] > 50 - longest and max(order.sizes) < 50 + longest  # one batch may be what is left


def test_rows_are_right_padded_and_as_wide_as_the_longest():
    windows = windows_of()
    for batch in session_order(windows, 20, seed=0, epoch=0).batches(windows):
        assert batch.items.shape[1] == int(batch.lengths.max())
        assert batch.items[~batch.mask].eq(V).all() and batch.items[batch.mask].lt(V).all()
        assert (batch.items.dtype, batch.target.dtype, batch.place.dtype) == (torch.long,) * 3


def test_a_row_longer_than_a_batch_is_not_cut():
    windows = Sessions.from_lists([list(range(20)), [1, 2, 3]], V).prefixes()
    order = session_order(windows, 5, seed=0, epoch=0)
    assert sorted(order.sizes) in ([2, 19], [21])


def test_the_order_depends_on_seed_and_epoch_alone():
    windows = windows_of()
    before, order = torch.get_rng_state(), session_order(windows, 8, seed=3, epoch=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(17)
    again = session_order(windows, 8, seed=3, epoch=1)
    assert torch.equal(order.final, again.final) and order.bounds == again.bounds
    for seed, epoch in ((3, 2), (4, 1)):
        assert not torch.equal(order.final, session_order(windows, 8, seed, epoch).final)


@pytest.mark.parametrize("first", [0, 1, 10, 10_000])
def test_an_epoch_resumes_in_its_middle(first):
    windows = windows_of()
    order = session_order(windows, 8, seed=0, epoch=0)
    whole = [examples_of(batch) for batch in order.batches(windows)]
    assert [examples_of(batch) for batch in order.batches(windows, first)] == whole[first:]


def test_sorting_inside_blocks_saves_padding():
    windows = random_sessions(600, longest=20).prefixes()

    def padding(block):
        batches = list(session_order(windows, 30, 0, 0, block).batches(windows))
        return 1 - sum(int(b.lengths.sum()) for b in batches) / sum(b.items.numel() for b in batches)

    assert padding(32) < 0.5 * padding(1)


def test_batches_are_shuffled_among_themselves():
    order = session_order(random_sessions(600, longest=20).prefixes(), 30, seed=0, epoch=0, block=256)
    assert order.widths != sorted(order.widths) and sorted(order.widths)[-1] == 19


def test_the_rows_of_a_batch_are_its_longest_examples():
    windows = windows_of()
    order, lists = session_order(windows, 8, seed=0, epoch=0), as_lists(windows)
    for step, batch in enumerate(order.batches(windows)):
        longest = [lists[number][0] for number in order.rows(step).tolist()]
        assert [row[:n] for row, n in zip(batch.items.tolist(), batch.lengths.tolist(), strict=True)] == longest


def test_orders_and_batches_on_a_device_equal_those_on_the_host(device):
    windows = windows_of()
    host, there = session_order(windows, 8, 1, 2), session_order(windows.to(device), 8, 1, 2)
    assert there.final.device.type == device.type and there.bounds == host.bounds
    for ours, theirs in zip(host.batches(windows), there.batches(windows.to(device)), strict=True):
        assert examples_of(ours) == examples_of(theirs)


MODELS = [
    {"positions": "start", "blocks": 2}, {"positions": "none", "heads": 1}, {"positions": "start", "max_positions": 4},
]  # fmt: skip


@pytest.mark.parametrize("arguments", MODELS, ids=str)
def test_a_step_has_the_loss_and_the_gradients_of_the_expanded_prefixes(arguments):
    """Sessions longer than the table too: their prefixes are cut to their last clicks one by one."""
    torch.manual_seed(0)
    model = Transformer(V, 6, dropout=0.0, **arguments).double()
    prefixes = random_sessions(60).prefixes()
    windows, loss = prefixes.last(model.max_positions), FullSoftmax()
    order = session_order(windows, 40, seed=0, epoch=0)
    for step, batch in enumerate(order.batches(windows)):
        one = value_and_gradients(model, loss, queries(model, batch), batch.target)
        counts = order.count[order.bounds[step] : order.bounds[step + 1]].tolist()
        index = [last - k for last, n in zip(order.rows(step).tolist(), counts, strict=True) for k in range(n)]
        expanded = gather(prefixes, torch.tensor(index))
        two = value_and_gradients(model, loss, model.encode(expanded), expanded.target)
        for key in one:
            torch.testing.assert_close(
                one[key], two[key], rtol=0, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}"
            )


def value_and_gradients(model, loss, query, target):
    model.zero_grad(set_to_none=True)
    value = loss(Scores(model, query), target)
    value.backward()
    return {"loss": value.detach()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def test_inputs_cut_to_their_first_clicks_are_refused():
    with pytest.raises(ValueError, match="want keep='last'"):
        session_order(windows_of().first(3), 8, 0, 0)


def test_a_batch_keeps_its_fields_on_the_way_to_a_device(device):
    windows = windows_of()
    batch = next(session_order(windows, 8, 0, 0).batches(windows))
    there = batch.to(device)
    assert there.place.device.type == device.type and examples_of(there) == examples_of(batch)


CONFIG = {"epochs": 2, "batch_size": 40, "max_len": 8, "batches": "every-position", "lr_every": None}


def transformer(seed=0, **arguments):
    torch.manual_seed(seed)
    return Transformer(V, 6, **{"dropout": 0.0, "positions": "start"} | arguments)


def test_training_sees_every_example_and_reports_the_mean_loss_of_the_expanded_prefixes():
    """With a rate so small that nothing moves, an epoch's loss is the mean over the prefixes, to the last digit."""
    prefixes, model = random_sessions(60).prefixes().last(8), transformer().double()
    record = fit(model, prefixes, TrainConfig(**CONFIG | {"lr": 1e-30, "l2": 0.0}), progress=False)[0]
    batch = gather(prefixes, torch.arange(len(prefixes)))
    expected = FullSoftmax()(Scores(model, model.encode(batch)), batch.target).item()
    assert record["loss"] == pytest.approx(expected, abs=1e-9)


def test_training_learns_what_the_prefixes_teach():
    sessions, losses = chain(count=60), {}
    for batches in ("every-position", "examples"):
        torch.manual_seed(0)
        model = Transformer(20, 16, dropout=0.0, positions="start")
        config = TrainConfig(**CONFIG | {"epochs": 10, "lr": 0.02, "l2": 0.0, "batches": batches})
        losses[batches] = fit(model, sessions.prefixes(), config, progress=False)[-1]["loss"]
    assert max(losses.values()) < 0.2


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    windows, config = random_sessions(60).prefixes().last(8), TrainConfig(**CONFIG)
    whole = transformer(dropout=0.0)
    fit(whole, windows, config, progress=False)
    broken = transformer(dropout=0.0)
    encode, calls = broken.states, []

    def interrupting(batch):
        calls.append(1)
        if len(calls) == 9:  # in the middle of the second epoch
            signal.raise_signal(signal.SIGINT)
        return encode(batch)

    broken.states = interrupting
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2 after step"):
        fit(broken, windows, config, output=tmp_path, progress=False)
    again = transformer(seed=1)
    fit(again, windows, config, output=tmp_path, progress=False)
    assert same(again.state_dict(), whole.state_dict())


def test_a_loss_that_is_not_finite_names_sessions_of_its_batch():
    windows, model = random_sessions(60).prefixes().last(8), transformer()
    with torch.no_grad():
        model.table[3] = float("nan")
    with pytest.raises(FloatingPointError, match="epoch 1 at step 1 .*sessions"):
        fit(model, windows, TrainConfig(**CONFIG), progress=False)


def test_the_bench_counts_examples():
    windows = random_sessions(60).prefixes().last(8)
    order = session_order(windows, 40, TrainConfig().seed, 0)
    result = bench_training(transformer(), windows, TrainConfig(**CONFIG), steps=3, warmup=0)
    rate = sum(order.sizes[1:4]) / 3 / result["mean_step_ms"] * 1e3
    assert result["examples_per_second"] == pytest.approx(rate) and order.sizes[0] > 32


@pytest.mark.parametrize(
    "model, change, message",
    [
        (lambda: SRGNN(V, 6), {}, "wants a model with a query for every position; SRGNN has none"),
        (transformer, {"max_len": None}, "at most the model's max_positions=50, got max_len=None"),
        (lambda: transformer(max_positions=7), {}, "max_positions=7, got max_len=8"),
        (lambda: transformer(positions="end"), {}, "causal=True and positions='start'.* positions='end'"),
        (lambda: transformer(causal=False), {}, "causal=True and positions='start'.* got causal=False"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(model, change, message):
    config = TrainConfig(**CONFIG | change)
    with pytest.raises(ValueError, match=message):
        fit(model(), config.examples(random_sessions(60)), config, progress=False)


def test_the_study_measures_both_forms_at_one_and_two_blocks():
    rows = every_position_study(["demo"], steps=1)["every_position"]
    forms = [(row["blocks"], row["batches"]) for row in rows]
    assert forms == [(1, "examples"), (1, "every-position"), (2, "examples"), (2, "every-position")]
    assert {(row["dataset"], row["items"], row["steps"]) for row in rows} == {("demo", 280, 1)}
    assert all(row["examples_per_second"] > 0 for row in rows)
