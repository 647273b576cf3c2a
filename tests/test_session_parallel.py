"""Session-parallel batches: the schedule against slots that are filled by hand, step by step."""

import pytest
import torch
from toys import as_lists, random_sessions

from sbr_core.session_parallel import parallel_order
from sbr_core.sessions import Sessions

FOUR = Sessions.from_lists([[1, 2, 3], [4, 5], [6, 7, 8], [9, 10]], 11).prefixes()


def schedule_loop(sessions, slots, end="shrink", least=1):
    """By step: {slot: (click, next click, first?)}. One slot after another, as a reader of the paper would do it."""
    waiting = [session for session in sessions if len(session) > 1]
    slots = min(slots, len(waiting))
    running = {slot: [waiting.pop(0), 0] for slot in range(slots)}
    steps = []
    while len(running) >= min(least, slots) and running:
        steps.append({b: (session[at], session[at + 1], at == 0) for b, (session, at) in running.items()})
        for b in range(slots):
            if b not in running:
                continue
            running[b][1] += 1
            if running[b][1] + 1 < len(running[b][0]):
                continue
            if waiting:
                running[b] = [waiting.pop(0), 0]
            elif end == "cut":
                return steps
            else:
                del running[b]
    return steps


def steps_of(order, windows):
    """The batches of an order in the loop's form."""
    found = []
    for batch in order.batches(windows):
        rows = zip(batch.items[:, 0], batch.target, batch.fresh, strict=True)
        found.append({int(b): (int(x), int(y), bool(f)) for b, (x, y, f) in zip(batch.slot, rows, strict=True)})
        assert batch.slot.tolist() == sorted(batch.slot.tolist()) and batch.lengths.tolist() == [1] * len(batch)
    return found


def test_the_schedule_of_the_specs():
    steps = steps_of(parallel_order(FOUR, slots=2), FOUR)
    assert steps == [
        {0: (1, 2, True), 1: (4, 5, True)},
        {0: (2, 3, False), 1: (6, 7, True)},
        {0: (9, 10, True), 1: (7, 8, False)},
    ]
    assert sum(map(len, steps)) == 6


def test_the_early_end_of_2016_as_the_specs_have_it():
    windows = Sessions.from_lists([[1, 2, 3, 4, 5], [6, 7]], 8).prefixes()
    assert len(parallel_order(windows, 2, end="cut")) == 1
    shrunk = parallel_order(windows, 2)
    assert shrunk.bounds == [0, 2, 3, 4, 5]  # four steps, the last three with one row
    assert parallel_order(windows, 2, least=2).bounds == [0, 2]


@pytest.mark.parametrize("slots", [1, 2, 7, 60, 100])
@pytest.mark.parametrize("end, least", [("shrink", 1), ("shrink", 2), ("cut", 1)])
def test_the_schedule_equals_slots_filled_by_hand(slots, end, least):
    sessions = random_sessions(60, seed=slots)
    windows = sessions.prefixes()
    order = parallel_order(windows, slots, end=end, least=least)
    expected = schedule_loop([sessions[i] for i in range(60)], slots, end, least)
    assert steps_of(order, windows) == expected
    assert len(order) == len(expected) and order.widths == [1] * len(order)


def test_no_transition_is_lost_and_none_comes_twice():
    windows = random_sessions(80).prefixes()
    for order in ("chronological", "shuffled"):
        index = parallel_order(windows, 8, order=order).index
        assert sorted(index.tolist()) == list(range(len(windows)))


def test_rows_name_the_examples_of_a_step():
    windows = random_sessions(40).prefixes()
    order, examples = parallel_order(windows, 6), as_lists(windows)
    for step, batch in enumerate(order.batches(windows)):
        for row, x, y in zip(order.rows(step).tolist(), batch.items[:, 0].tolist(), batch.target.tolist(), strict=True):
            assert (examples[row][0][-1], examples[row][1]) == (x, y)


def test_an_epoch_can_begin_in_its_middle():
    windows = random_sessions(40).prefixes()
    order = parallel_order(windows, 6, order="shuffled", seed=3)
    assert [len(b) for b in order.batches(windows, first=5)] == [len(b) for b in order.batches(windows)][5:]
    late, all_of_them = order.batches(windows, first=5), list(order.batches(windows))[5:]
    for one, two in zip(late, all_of_them, strict=True):
        assert torch.equal(one.items, two.items) and torch.equal(one.fresh, two.fresh)


def test_sessions_are_shuffled_whole_by_seed_and_epoch():
    windows = random_sessions(40).prefixes()
    same = [parallel_order(windows, 6, seed=1, epoch=2, order="shuffled").index for _ in range(2)]
    assert torch.equal(*same)
    others = [parallel_order(windows, 6, seed=s, epoch=e, order="shuffled").index for s, e in ((1, 3), (2, 2))]
    assert not any(torch.equal(same[0], other) for other in others)
    chronological = [parallel_order(windows, 6, seed=s, epoch=s).index for s in (0, 1)]
    assert torch.equal(*chronological)


def test_a_part_of_a_log_gives_its_own_sessions():
    sessions = random_sessions(50, seed=4)
    late = sessions.select(20, 50)
    windows = late.prefixes()
    assert steps_of(parallel_order(windows, 5), windows) == schedule_loop([late[i] for i in range(30)], 5)


@pytest.mark.parametrize(
    "change", [lambda s: s.suffixes(), lambda s: s.prefixes().last(2), lambda s: s.prefixes().first(2)]
)
def test_examples_that_are_not_whole_sessions_are_refused(change):
    with pytest.raises(ValueError, match="wants augmentation='prefix' and max_len=None"):
        parallel_order(change(random_sessions(20)), 4)


@pytest.mark.parametrize("arguments", [{"order": "random"}, {"end": "early"}])
def test_unknown_orders_and_ends_are_refused(arguments):
    with pytest.raises(ValueError, match="order is chronological or shuffled and end is shrink or cut, got"):
        parallel_order(FOUR, 2, **arguments)


def test_a_step_moves_to_another_device(device):
    windows = FOUR.to(device)
    batch = next(parallel_order(windows, 2).batches(windows)).to("cpu")
    assert batch.slot.tolist() == [0, 1] and batch.fresh.all() and batch.target.tolist() == [2, 5] and len(batch) == 2
