"""What a training and a test file must keep: ids that a table can have, and a test that was held out."""
import pickle
import random

import pytest
import torch
from toys import random_sessions

from sbr_core import datasets, splits
from sbr_core.pickles import DataError
from sbr_core.sessions import Sessions


def folder(path, train, test):
    path.mkdir(parents=True, exist_ok=True)
    rows = [(session[:end], session[end]) for session in test for end in range(len(session) - 1, 0, -1)]
    (path / "all_train_seq.txt").write_bytes(pickle.dumps(train))
    (path / "test.txt").write_bytes(pickle.dumps(tuple(map(list, zip(*rows, strict=True)))))
    return path


@pytest.mark.parametrize("where", ["all_train_seq.txt", "test.txt"])
def test_an_absurd_id_is_refused_and_named(tmp_path, where):
    parts = {"all_train_seq.txt": [[1, 2], [3, 1, 4], [2, 2]], "test.txt": [[1, 2], [4, 3, 1]]}
    parts[where][1][1] = 2_000_000_000
    path = folder(tmp_path / "a", *parts.values())
    most = splits.SPARE + 12 * splits.PER_CLICK
    said = rf"a/{where}: session 1 holds item 2000000000, but ids must lie in 1..{most} .the files hold 12 clicks"
    with pytest.raises(DataError, match=said):
        datasets.load(path)
    with pytest.raises(DataError, match=rf"{where}: session 1 holds item 2000000000, but ids must lie in 1..9; number"):
        datasets.from_folder(path, num_items=9)


@pytest.mark.parametrize("train, test", [([[1, 2], [3, 10]], [[1, 2]]), ([[1, 2]], [[1, 2], [3, 10]])])
def test_an_id_that_is_one_too_large_for_the_catalogue_is_refused(tmp_path, train, test):
    path = folder(tmp_path, train, test)
    with pytest.raises(DataError, match="session 1 holds item 10, but ids must lie in 1..9; number"):
        datasets.from_folder(path, num_items=9)
    assert datasets.from_folder(path, num_items=10).num_items == 10


def test_a_large_catalogue_with_few_clicks_is_read(tmp_path):
    data = datasets.load(folder(tmp_path / "meli", [[1, 2], [1_279_791, 3]], [[1, 2]]))
    assert data.num_items == 1_279_791 and data.train[1] == [1_279_790, 2]


def sessions_of(lengths, seed):
    draw = random.Random(seed)
    return [[draw.randint(1, 50) for _ in range(length)] for length in lengths]


def test_a_test_that_is_a_copy_of_training_sessions_is_refused(tmp_path):
    train, fresh = sessions_of([6] * 40, 0), sessions_of([6] * 20, 1)
    with pytest.raises(DataError, match=r"test.txt: 20 of its 40 sessions of 5 clicks .* first is session 20.*by time"):
        datasets.load(folder(tmp_path / "half", train, fresh + train[:20]))
    with pytest.raises(DataError, match="20 of its 20 sessions"):
        datasets.load(folder(tmp_path / "all", train, train[:20]))
    data = datasets.load(folder(tmp_path / "less", train, fresh + train[:19]))  # fewer than half
    assert data.statistics()["test_sessions_in_train"] == 19
    assert datasets.load(folder(tmp_path / "few", train, train[:19])).statistics()["test_sessions_in_train"] == 19


def test_short_sessions_that_recur_are_counted_and_kept(tmp_path):
    train = sessions_of([2] * 60, 2)
    assert datasets.load(folder(tmp_path / "short", train, train)).statistics()["test_sessions_in_train"] == 60


@pytest.mark.parametrize("name, equal, long", [
    ("diginetica", 752, 0), ("yoochoose1_64", 4196, 24), ("yoochoose1_64_dgtn", 4123, 20),
])
def test_real_sessions_in_both_splits(real_data, name, equal, long):
    data = datasets.load(name, real_data)
    known = {tuple(data.train[number]) for number in range(len(data.train))}
    copied = torch.tensor([tuple(data.test[number]) in known for number in range(len(data.test))])
    assert torch.equal(data.test.among(data.train), copied)
    assert data.statistics()["test_sessions_in_train"] == int(copied.sum()) == equal
    assert int((copied & (data.test.lengths >= splits.LONG)).sum()) == long


def test_a_part_of_a_log_is_among_the_whole():
    log = random_sessions(30)
    early, late = log.select(0, 20), log.select(20, 30)
    assert early.among(log).all() and late.among(log).all()
    assert log.among(Sessions.from_lists([], 3)).sum() == 0 and len(Sessions.from_lists([], 3).among(log)) == 0
