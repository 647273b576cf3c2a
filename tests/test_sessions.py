"""Windows on a click log: a Python double loop is the oracle; nothing is copied."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import as_lists, prefix_loop, random_clicks, random_sessions, suffix_loop

from sbr_core.sessions import Sessions

V = 12
lists_of_sessions = st.lists(st.lists(st.integers(0, V - 1), max_size=7), min_size=1, max_size=8)


@settings(max_examples=100)
@given(lists_of_sessions)
def test_prefixes_and_suffixes_are_those_of_a_double_loop(clicks):
    sessions = Sessions.from_lists(clicks, V)
    assert as_lists(sessions.prefixes()) == prefix_loop(clicks)
    assert as_lists(sessions.suffixes()) == suffix_loop(clicks)


@settings(max_examples=100)
@given(lists_of_sessions, lists_of_sessions)
def test_sessions_among_others_are_those_of_a_set(clicks, others):
    found = Sessions.from_lists(clicks, V).among(Sessions.from_lists(others, V))
    assert found.tolist() == [session in others for session in clicks]


@settings(max_examples=100)
@given(lists_of_sessions)
def test_there_is_an_example_for_every_click_but_the_first_of_a_session(clicks):
    sessions = Sessions.from_lists(clicks, V)
    expected = sum(max(len(session) - 1, 0) for session in clicks)
    assert len(sessions.prefixes()) == len(sessions.suffixes()) == expected
    assert sessions.num_clicks == sum(map(len, clicks)) == len(sessions.clicks)
    assert sessions.lengths.tolist() == [len(session) for session in clicks]
    assert [sessions[number] for number in range(len(sessions))] == clicks


def test_prefixes_and_suffixes_have_the_same_lengths_as_often():
    sessions = random_sessions(200)
    prefixes, suffixes = sessions.prefixes(), sessions.suffixes()
    assert Counter(prefixes.lengths.tolist()) == Counter(suffixes.lengths.tolist())
    assert Counter(prefixes.session.tolist()) == Counter(suffixes.session.tolist())


def test_labels_and_sessions_of_a_session_by_hand():
    windows = Sessions.from_lists([[4, 7], [5], [1, 2, 1]], V).prefixes()
    assert windows.labels.tolist() == [7, 2, 1]
    assert windows.session.tolist() == [0, 2, 2]
    assert windows.lengths.tolist() == [1, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_last_keeps_the_most_recent_clicks_and_first_the_oldest(count):
    clicks = random_clicks(80)
    windows = Sessions.from_lists(clicks, 30).prefixes()
    assert as_lists(windows.last(count)) == [(prefix[-count:], label) for prefix, label in prefix_loop(clicks)]
    assert as_lists(windows.first(count)) == [(prefix[:count], label) for prefix, label in prefix_loop(clicks)]
    for part in (windows.last(count), windows.first(count)):
        assert part.lengths.tolist() == [len(prefix) for prefix, _ in as_lists(part)]
        assert torch.equal(part.labels, windows.labels)


def test_a_window_of_no_clicks_is_refused():
    windows = random_sessions(5).prefixes()
    for cut in (windows.last, windows.first):
        with pytest.raises(ValueError, match="at least one click, got 0"):
            cut(0)


def test_indexing_windows_selects_examples():
    windows = random_sessions(20).prefixes()
    every, index = as_lists(windows), torch.tensor([5, 0, 5, 17])
    assert as_lists(windows[index]) == [every[i] for i in index.tolist()]
    assert as_lists(windows[3:9]) == every[3:9]
    short = windows.lengths == 1
    assert as_lists(windows[short]) == [row for row in every if len(row[0]) == 1]


def test_selections_and_splits_share_the_clicks():
    sessions = random_sessions(50)
    part = sessions.select(10, 20)
    early, late = sessions.split_latest(0.1)
    for view in (part, early, late):
        assert view.items.data_ptr() == sessions.items.data_ptr()
        assert view.offsets.untyped_storage().data_ptr() == sessions.offsets.untyped_storage().data_ptr()
        assert view.times.untyped_storage().data_ptr() == sessions.times.untyped_storage().data_ptr()
        assert view.clicks.untyped_storage().data_ptr() == sessions.items.untyped_storage().data_ptr()
        for windows in (view.prefixes(), view.suffixes()):
            for again in (windows, windows.last(3), windows.first(2), windows[:5]):
                assert again.items.data_ptr() == sessions.items.data_ptr()


def test_the_examples_of_a_part_are_those_of_its_sessions():
    clicks = random_clicks(50)
    sessions = Sessions.from_lists(clicks, 30, times=range(50))
    part = sessions.select(10, 20)
    assert as_lists(part.prefixes()) == prefix_loop(clicks[10:20])
    assert as_lists(part.suffixes()) == suffix_loop(clicks[10:20])
    assert part.prefixes().session.unique().tolist() == [s for s in range(10) if len(clicks[10 + s]) > 1]
    assert part.times.tolist() == list(range(10, 20))
    assert part.clicks.tolist() == [item for session in clicks[10:20] for item in session]
    assert (len(part), part[0], part[-1]) == (10, clicks[10], clicks[19])


@pytest.mark.parametrize("begin, end", [(0, 0), (7, 3), (40, 60), (-5, 50), (50, 50)])
def test_selecting_follows_python_slices(begin, end):
    clicks = random_clicks(50)
    part = Sessions.from_lists(clicks, 30).select(begin, end)
    assert [part[i] for i in range(len(part))] == clicks[begin:end]
    assert as_lists(part.prefixes()) == prefix_loop(clicks[begin:end])


@pytest.mark.parametrize("fraction, held", [(0.1, 5), (0.5, 25), (0.001, 1), (0.99, 50)])
def test_the_latest_part_has_the_share_that_was_asked_for_and_at_least_one_session(fraction, held):
    clicks = random_clicks(50)
    early, late = Sessions.from_lists(clicks, 30).split_latest(fraction)
    assert len(late) == held and len(early) == 50 - held
    assert [early[i] for i in range(len(early))] + [late[i] for i in range(len(late))] == clicks


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {fraction}"):
        random_sessions(10).split_latest(fraction)


@pytest.mark.parametrize("item", [V, -1, V + 1000])
def test_an_item_outside_the_catalogue_is_refused(item):
    with pytest.raises(ValueError, match=rf"0\.\.{V - 1}, found .*{item}"):
        Sessions.from_lists([[0, 1], [2, item]], V)


def test_a_session_that_is_not_there_is_an_index_error():
    sessions = random_sessions(3)
    assert sessions[-3] == sessions[0]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"session {index} of 3"):
            sessions[index]


def test_no_sessions_make_no_examples():
    sessions = Sessions.from_lists([], V)
    assert (len(sessions), sessions.num_clicks, len(sessions.prefixes()), len(sessions.suffixes())) == (0, 0, 0, 0)


def test_times_follow_the_sessions():
    assert random_sessions(4).times.tolist() == [1000, 1001, 1002, 1003]
    assert Sessions.from_lists([[1]], V).times is None


def test_moving_keeps_sessions_and_windows(device):
    sessions = random_sessions(10)
    moved = sessions.to(device)
    assert moved.items.device.type == device.type and moved.times.tolist() == sessions.times.tolist()
    assert as_lists(moved.prefixes()) == as_lists(sessions.prefixes())
    assert as_lists(sessions.prefixes().first(2).to(device)) == as_lists(sessions.prefixes().first(2))
    assert moved.prefixes().device.type == device.type


def test_nbytes_counts_every_tensor():
    windows = Sessions.from_lists([[1, 2, 3], [4, 5]], V).prefixes()  # 5 clicks, 3 examples, 4 bytes each
    assert windows.nbytes == 4 * 5 + 3 * 4 * 3


@pytest.mark.slow
def test_the_examples_of_diginetica_take_less_than_60_megabytes(real_data):
    from sbr_core import datasets

    if not (real_data / "diginetica").is_dir():
        pytest.skip(f"no diginetica in {real_data}")
    windows = datasets.load("diginetica", real_data).train.prefixes()
    assert len(windows) == 719_470
    assert windows.nbytes < 60e6


@pytest.mark.parametrize("first, last", [(5, 2), (2, 5), (3, 3), (1, 4)])
def test_cuts_can_be_combined_in_either_order(first, last):
    windows = random_sessions(40, longest=12, seed=6).prefixes()
    whole = as_lists(windows)
    assert as_lists(windows.first(first).last(last)) == [(clicks[:first][-last:], label) for clicks, label in whole]
    assert as_lists(windows.last(last).first(first)) == [(clicks[-last:][:first], label) for clicks, label in whole]
