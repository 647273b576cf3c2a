"""Batches against loops, and the order of an epoch."""

import pytest
import torch
from toys import as_lists, random_sessions

from sbr_core.batches import Batch, by_length, chronological_order, epoch_order, gather, length_order

V = 30


def gather_loop(windows, index, width=None):
    """Items, lengths and targets of a batch, example by example."""
    rows = [as_lists(windows)[i] for i in index]
    width = width or max(len(prefix) for prefix, _ in rows)
    items = [prefix + [windows.num_items] * (width - len(prefix)) for prefix, _ in rows]
    return items, [len(prefix) for prefix, _ in rows], [label for _, label in rows]


def as_loops(batch):
    return batch.items.tolist(), batch.lengths.tolist(), batch.target.tolist()


CUTS = {
    "whole": lambda w: w,
    "last": lambda w: w.last(3),
    "first": lambda w: w.first(3),
    "head 1": lambda w: w.first(1),
}


@pytest.mark.parametrize("width", [None, 9, 14])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["prefixes", "suffixes"])
def test_gather_equals_a_loop(kind, cut, width):
    windows = CUTS[cut](getattr(random_sessions(40).select(3, 37), kind)())
    index = torch.randperm(len(windows))[:25]
    batch = gather(windows, index, width)
    assert as_loops(batch) == gather_loop(windows, index.tolist(), width)
    assert batch.mask.tolist() == [
        [column < n for column in range(batch.items.shape[1])] for n in batch.lengths.tolist()
    ]
    assert (batch.items.dtype, batch.target.dtype, len(batch)) == (torch.long, torch.long, 25)


def test_a_part_of_a_batch_is_the_batch_of_its_rows():
    windows = random_sessions(40).prefixes()
    index, rows = torch.randperm(len(windows))[:25], torch.tensor([7, 3, 11])
    part, alone = gather(windows, index).part(rows), gather(windows, index[rows])
    assert as_loops(part) == as_loops(alone) and part.session.tolist() == alone.session.tolist()


@pytest.mark.parametrize("rows", [1, 4, 25, 64])
def test_by_length_asks_for_every_session_once_in_narrow_pieces_and_keeps_the_order(rows):
    batch, asked = gather(random_sessions(40).prefixes(), torch.arange(25)), []

    def ends(piece):
        asked.append((len(piece), piece.items.shape[1], int(piece.lengths.max())))
        return piece.items[torch.arange(len(piece)), piece.lengths - 1], piece.lengths[:, None] * torch.ones(2)

    last_click, lengths = by_length(ends, batch, rows)
    assert last_click.tolist() == [items[n - 1] for items, n in zip(batch.items.tolist(), batch.lengths, strict=True)]
    assert lengths.tolist() == [[float(n)] * 2 for n in batch.lengths]
    assert sum(size for size, _, _ in asked) == 25 and max(size for size, _, _ in asked) == min(rows, 25)
    assert all(width == longest for _, width, longest in asked)


def test_gather_at_the_very_end_of_the_log_stays_inside_it():
    windows = random_sessions(4, shortest=3).prefixes()
    index = torch.tensor([len(windows) - 1])
    assert as_loops(gather(windows, index, 40)) == gather_loop(windows, index.tolist(), 40)


@pytest.mark.parametrize("make", [lambda w: epoch_order(w, 8, seed=1, epoch=2), lambda w: length_order(w, 8)])
def test_orders_and_batches_on_a_device_equal_those_on_the_host(make, device):
    windows = random_sessions(60).prefixes()
    host, there = make(windows), make(windows.to(device))
    assert there.index.device.type == device.type
    assert there.index.tolist() == host.index.tolist() and there.widths == host.widths
    for ours, theirs in zip(host.batches(windows), there.batches(windows.to(device)), strict=True):
        assert as_loops(ours) == as_loops(theirs.to("cpu"))


def test_a_batch_of_lists_is_padded_on_the_right():
    batch = Batch.of([[1, 2, 3], [4]], V, target=[5, 6])
    assert as_loops(batch) == ([[1, 2, 3], [4, V, V]], [3, 1], [5, 6])
    assert Batch.of([[1]], V).target.tolist() == [0]


@pytest.mark.parametrize("prefixes", [[], [[]], [[1], []]])
def test_a_batch_without_clicks_is_refused(prefixes):
    with pytest.raises(ValueError, match="at least one session, and every session at least one click"):
        Batch.of(prefixes, V)


@pytest.mark.parametrize("block", [0, 1, 4, 32])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_an_epoch_is_a_permutation_and_keeps_the_last_partial_batch(batch_size, block):
    windows = random_sessions(60).prefixes()
    order = epoch_order(windows, batch_size, seed=0, epoch=0, block=block)
    assert sorted(order.index.tolist()) == list(range(len(windows)))
    sizes = [len(batch) for batch in order.batches(windows)]
    full, rest = divmod(len(windows), batch_size)
    assert sizes == [batch_size] * full + [rest] * bool(rest)
    assert len(order) == len(sizes)


def test_every_batch_is_as_wide_as_its_longest_input():
    windows = random_sessions(60).prefixes()
    for order in (epoch_order(windows, 7, 0, 0), length_order(windows, 7)):
        for batch, width in zip(order.batches(windows), order.widths, strict=True):
            assert batch.items.shape[1] == width == int(batch.lengths.max())


def test_the_order_depends_on_seed_and_epoch_alone():
    windows = random_sessions(60).prefixes()
    order = epoch_order(windows, 8, seed=3, epoch=1)
    torch.rand(17)  # the global generator is none of its business
    again = epoch_order(windows, 8, seed=3, epoch=1)
    assert torch.equal(order.index, again.index) and order.widths == again.widths
    others = [epoch_order(windows, 8, seed, epoch) for seed, epoch in ((3, 2), (4, 1), (4, 0), (2, 2), (1, 3))]
    assert all(not torch.equal(order.index, other.index) for other in others)


def test_making_an_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    epoch_order(random_sessions(20).prefixes(), 8, seed=3, epoch=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("first", [0, 1, 10, 10_000])
def test_an_epoch_resumes_in_its_middle(first):
    windows = random_sessions(60).prefixes()
    order = epoch_order(windows, 8, seed=0, epoch=0)
    whole = [as_loops(batch) for batch in order.batches(windows)]
    assert [as_loops(batch) for batch in order.batches(windows, first)] == whole[first:]


def padding_share(order, windows):
    batches = list(order.batches(windows))
    return 1 - sum(int(b.lengths.sum()) for b in batches) / sum(b.items.numel() for b in batches)


def test_sorting_inside_blocks_saves_padding():
    windows = random_sessions(400, longest=20).prefixes()
    shares = [padding_share(epoch_order(windows, 16, 0, 0, block), windows) for block in (1, 32)]
    assert shares[1] < 0.5 * shares[0]
    assert padding_share(length_order(windows, 16), windows) <= shares[1]


def test_batches_come_from_one_block_of_the_shuffle_and_are_shuffled_among_themselves():
    windows = random_sessions(400, longest=20).prefixes()
    order = epoch_order(windows, 16, seed=0, epoch=5, block=4)
    shuffled = torch.randperm(len(windows), generator=torch.Generator().manual_seed(5))
    blocks = [set(part.tolist()) for part in shuffled.split(4 * 16)]
    drawn_from = []
    for rows in order.index[: len(windows) // 16 * 16].view(-1, 16).tolist():
        (block,) = [number for number, block in enumerate(blocks) if set(rows) <= block]
        assert windows.lengths[rows].diff().min() >= 0
        drawn_from.append(block)
    assert drawn_from != sorted(drawn_from)


def test_length_order_is_sorted_and_stable():
    windows = random_sessions(60).prefixes()
    expected = sorted(range(len(windows)), key=lambda i: int(windows.lengths[i]))
    assert length_order(windows, 16).index.tolist() == expected


def test_chronological_batches_follow_the_log():
    sessions = random_sessions(30, seed=4)
    windows = sessions.prefixes()
    order = chronological_order(windows, 8)
    read = []
    for batch in order.batches(windows):
        inputs = [[item for item in row if item < windows.num_items] for row in batch.items.tolist()]
        read += list(zip(inputs, batch.target.tolist(), strict=True))
    assert read == as_lists(windows)
    assert order.widths == [max(windows.lengths[i : i + 8].tolist()) for i in range(0, len(windows), 8)]


def test_a_gathered_batch_knows_the_sessions_of_its_rows_and_a_typed_one_does_not(toy_sessions):
    windows, index = toy_sessions.prefixes(), torch.tensor([9, 0, 4])
    batch = gather(windows, index)
    assert batch.session.tolist() == [windows.session[i].item() for i in index]
    assert torch.equal(batch.to("cpu").session, batch.session)
    assert Batch.of([[1, 2]], 7).session is None and Batch.of([[1, 2]], 7).to("cpu").session is None
