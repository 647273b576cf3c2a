"""Datasets by name and by folder, the cache of prepared arrays, downloads: counts, and what bad files do."""
import json
import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbr_core import cache, datasets, pickles, readers, sources
from sbr_core.batches import gather
from sbr_core.pickles import DataError
from sbr_core.preprocess import PROTOCOLS, preprocess


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test has a cache of its own, and no data but what it makes."""
    monkeypatch.setenv("SBR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SBR_DATA", raising=False)
    return tmp_path / "cache"


def folder(path: Path, train, test, name="all_train_seq.txt") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(pickle.dumps(train))
    (path / "test.txt").write_bytes(pickle.dumps(test))
    return path


def examples(windows) -> list[tuple]:
    """(input clicks, label) of every example, with the padding cut off."""
    batch = gather(windows, torch.arange(len(windows)))
    rows = zip(batch.items.tolist(), batch.lengths.tolist(), batch.target.tolist(), strict=True)
    return [(tuple(items[:length]), label) for items, length, label in rows]


def log_file(path: Path, sessions: int = 60, seed: int = 0) -> Path:
    """A CSV of sessions of three clicks on items a..f, one session an hour."""
    items = np.array(list("abcdef"))[np.random.default_rng(seed).integers(0, 6, (sessions, 3))]
    rows = [f"s{s},{items[s, n]},{s * 3600 + n}" for s in range(sessions) for n in range(3)]
    path.write_text("visit,product,when\n" + "\n".join(rows) + "\n")
    return path


COLUMNS = {"session": "visit", "item": "product", "time": "when", "test_seconds": 10 * 3600}

# ---- by name


@pytest.mark.parametrize("name, means", [
    ("diginetica", (5.133, 5.035, 5.125)), ("yoochoose1_64", (6.115, 6.445, 6.158)),
    ("yoochoose1_64_dgtn", (6.024, 6.390, 6.071)),
])
def test_real_data_have_the_published_counts(real_data, name, means):
    data = datasets.load(name, real_data)
    found, expected = data.statistics(), sources.EXPECTED[name]
    assert {figure: found[figure] for figure in expected} == pytest.approx(expected, abs=5e-4)
    assert tuple(round(found[f"mean_length{part}"], 3) for part in ("_train", "_test", "")) == means
    assert data.rows is None and len(data.test_windows()) == found["test_examples"]
    assert data.item_ids.tolist() == list(range(1, data.num_items + 1)) and data.train.times is None
    assert data.protocol == ("dgtn" if name.endswith("dgtn") else "srgnn") and len(data.fingerprint) == 64
    assert data.index_of([1, data.num_items]).tolist() == [0, data.num_items - 1]


@pytest.mark.parametrize("name, hit, last", [("diginetica", 20.51, 9.14), ("yoochoose1_64", 26.57, 14.94)])
def test_targets_that_occur_in_the_input(real_data, name, hit, last):
    windows = datasets.load(name, real_data).test_windows()
    batch = gather(windows, torch.arange(len(windows)))
    within = ((batch.items == batch.target[:, None]) & batch.mask).any(1)
    final = batch.items.gather(1, batch.lengths[:, None] - 1)[:, 0] == batch.target
    assert round(100 * within.double().mean().item(), 2) == hit and round(100 * final.double().mean().item(), 2) == last


def test_test_examples_are_the_rows_of_the_file(real_data):
    prefixes, labels = pickle.loads((real_data / "diginetica" / "test.txt").read_bytes())
    rows = sorted((tuple(i - 1 for i in prefix), label - 1) for prefix, label in zip(prefixes, labels, strict=True))
    assert sorted(examples(datasets.load("diginetica", real_data).test_windows())) == rows


def test_other_counts_are_refused(tmp_path):
    folder(tmp_path / "diginetica", [[1, 2]], ([[1]], [2]))
    with pytest.raises(DataError, match="train_sessions of diginetica should be 186670, found 1; .* by its path"):
        datasets.load("diginetica", tmp_path)
    assert datasets.load(tmp_path / "diginetica").statistics()["train_sessions"] == 1


def test_a_mean_length_other_than_published_is_refused(monkeypatch, real_data):
    monkeypatch.setitem(sources.EXPECTED, "yoochoose1_64", {"items": 37_483, "mean_length_test": 6.444})
    with pytest.raises(DataError, match="mean_length_test of yoochoose1_64 should be 6.444, found 6.445"):
        datasets.load("yoochoose1_64", real_data)


def test_the_test_half_of_diginetica_as_dgtn_cut_it(real_data):
    """Its training half is not at hand; the test half has the counts that its name expects."""
    runs, expected = pickles.read_runs(real_data / "diginetica_dgtn" / "test.txt"), sources.EXPECTED["diginetica_dgtn"]
    lengths = np.diff(runs.offsets)
    found = len(lengths), len(runs.items), int((lengths - 1).sum())
    assert found == tuple(expected[f"test_{figure}"] for figure in ("sessions", "clicks", "examples"))
    means = np.concatenate([np.arange(2, length + 1) for length in lengths]).mean()
    assert round(means, 3) == expected["mean_length_test"] and runs.items.max() == expected["items"]


def test_demo_and_large():
    demo, again = datasets.load("demo"), datasets.load("demo")
    assert demo.fingerprint == again.fingerprint and demo.law.num_items == demo.num_items == demo.train.num_items
    large = datasets.load("large:5_000")
    assert large.num_items == 5000 and len(large.test) == round(0.01 * (len(large.train) + len(large.test)))
    assert large.train.times.max() <= large.test.times.min() and large.law is None
    for name in ("large:", "large:x", "large:1"):
        with pytest.raises(DataError, match="write large:N with a number of items N >= 2"):
            datasets.load(name)


def test_missing_data_are_told_where_to_go(tmp_path, monkeypatch):
    monkeypatch.setenv("SBR_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match=r"yoochoose1_4 is not in .*data.*RecSys Challenge 2015") as error:
        datasets.load("yoochoose1_4")
    assert str(tmp_path / "data" / "yoochoose1_4" / "yoochoose-clicks.dat") in str(error.value)
    with pytest.raises(DataError, match="train_dataset.jl.gz.*MeLi Data Challenge 2020"):
        datasets.load("meli2020")
    with pytest.raises(DataError, match="no dataset, folder or file 'amazon'; known are demo, large:N, diginetica"):
        datasets.load("amazon")


def test_a_raw_file_serves_a_name(tmp_path, real_data, monkeypatch):
    (tmp_path / "raw").mkdir()
    sample = (real_data / "raw" / "diginetica_sample_train-item-views.csv").read_bytes()
    (tmp_path / "raw" / "train-item-views.csv").write_bytes(sample)
    counts = {"train_examples": 1205, "test_examples": 99, "items": 309}
    monkeypatch.setitem(sources.EXPECTED, "diginetica", counts)
    data = datasets.load("diginetica", tmp_path)
    assert {figure: data.statistics()[figure] for figure in counts} == counts
    assert data.protocol == "srgnn" and data.funnel[0].clicks == 12_391


# ---- folders


def test_a_folder_in_each_form(tmp_path):
    sessions, test = [[3, 1, 2], [2, 5]], ([[4, 1], [4], [2]], [3, 1, 2])
    pairs = ([[3, 1], [3], [2]], [2, 1, 5])
    forms = {"all_train_seq.txt": sessions, "unaug_train.txt": (sessions, [0, 2]), "train.txt": pairs}
    prints = set()
    for number, (name, train) in enumerate(forms.items()):
        data = datasets.load(folder(tmp_path / str(number), train, test, name))
        assert [data.train[0], data.train[1]] == [[2, 0, 1], [1, 4]] and data.num_items == 5
        assert [data.test[0], data.test[1]] == [[3, 0, 2], [1, 1]] and data.protocol == "folder"
        prints.add(data.fingerprint)
    found = data.statistics()
    assert len(prints) == 1 and data.name == "2"
    assert (found["test_items_unknown"], found["test_targets_unknown"], found["longest_input_test"]) == (1, 0, 2)
    assert (found["mean_length_train"], found["mean_length"]) == (pytest.approx(7 / 3), pytest.approx(14 / 6))


def test_unknown_test_targets_are_counted(tmp_path):
    found = datasets.load(folder(tmp_path / "a", [[1, 2]], ([[1], [9]], [9, 1]))).statistics()
    assert (found["items"], found["test_items_unknown"], found["test_targets_unknown"]) == (9, 1, 1)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=5), min_size=1, max_size=10))
def test_any_test_file_keeps_its_rows(tmp_path_factory, rows):
    path = folder(tmp_path_factory.mktemp("f"), [[1, 2, 3]], ([r[:-1] for r in rows], [r[-1] for r in rows]))
    data = datasets.load(path)
    expected = sorted((tuple(i - 1 for i in row[:-1]), row[-1] - 1) for row in rows)
    assert sorted(examples(data.test_windows())) == expected
    assert data.statistics()["test_examples"] == len(rows)


def test_bad_folders_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no training file; put one of all_train_seq.txt, unaug_train.txt, train.txt"):
        datasets.load(tmp_path / "empty")
    path = folder(tmp_path / "a", [[1, 2]], ([[1]], [2]))
    (path / "test.txt").unlink()
    with pytest.raises(DataError, match="test.txt: no such file"):
        datasets.load(path)
    path = folder(tmp_path / "b", ([[1, 2], [3]], [2, 3, 1]), ([[1]], [2]), "train.txt")
    with pytest.raises(DataError, match="train.txt: 2 prefixes but 3 labels"):
        datasets.load(path)
    path = folder(tmp_path / "c", ([[1, 2], [3, 1, 2]], [9, 9]), ([[1]], [2]), "train.txt")
    with pytest.raises(DataError, match="train.txt: its 2 rows are not all prefixes of whole sessions"):
        datasets.load(path)


def test_index_of_refuses_strangers(tmp_path):
    data = datasets.from_log(log_file(tmp_path / "log.csv"), **COLUMNS)
    assert data.item_ids[data.index_of(["c", "a"])].tolist() == ["c", "a"]
    with pytest.raises(DataError, match="item zebra is not among its 6 items"):
        data.index_of(["a", "zebra"])
    whole = datasets.load(folder(tmp_path / "n", [[1, 2]], ([[1]], [2])))
    for wrong in ([3], [0], [-1], ["x"], [1.5]):
        with pytest.raises(DataError, match="is not among its 2 items"):
            whole.index_of(wrong)
    assert whole.index_of(["2", "1"]).tolist() == [1, 0] and whole.index_of([]).tolist() == []


def test_two_logs_have_two_fingerprints(tmp_path):
    first, second = (datasets.from_log(log_file(tmp_path / f"{seed}.csv", seed=seed), **COLUMNS) for seed in (0, 1))
    assert first.fingerprint != second.fingerprint


# ---- logs of one's own


def test_a_log_of_your_own(tmp_path):
    path = log_file(tmp_path / "log.csv")
    data = datasets.from_log(path, protocol=replace(PROTOCOLS["srgnn"], boundary="test"), **COLUMNS)
    protocol = replace(PROTOCOLS["srgnn"], boundary="test", test_seconds=36_000)
    expected = preprocess(readers.read_log(path, "visit", "product", "when"), protocol)
    assert torch.equal(data.train.items, expected.train.items) and torch.equal(data.test.offsets, expected.test.offsets)
    assert data.train.times.tolist() == [s * 3600 + 2 for s in range(49)] and len(data.test) == 11
    assert data.funnel == expected.funnel and data.name == "log.csv"


@pytest.mark.parametrize("more", [{}, {"protocol": "dgtn"}, {"session_gap": 3 * 86_400}])
def test_any_order_of_the_rows_gives_the_same_dataset(tmp_path, more):
    draw = np.random.default_rng(0)  # sessions of days, so that many go on after the cut; whole seconds, so with ties
    session = np.repeat(np.arange(500), 6)
    time = (draw.integers(0, 300_000, 500)[session] + draw.integers(0, 600, (500, 6)).cumsum(1).ravel() * 600)
    log = pd.DataFrame({"session": session, "item": draw.integers(0, 40, 3000), "time": time // 600 * 600})
    log = log.drop_duplicates(["session", "time"])
    last = log.groupby("session").time.max()
    orders = {"by session": log, "oldest first": log.sort_values("time"), "newest first": log.sort_values("time")[::-1],
              "shuffled": log.sample(frac=1, random_state=1)}
    prints = {}
    for name, rows in orders.items():
        rows.to_csv(tmp_path / "log.csv", index=False)
        data = datasets.from_log(tmp_path / "log.csv", test_seconds=500_000, **more)
        prints[name] = data.fingerprint
        cut = log.time.max() - 500_000
        if not more:
            assert (len(data.train), len(data.test)) == ((last < cut).sum(), (last > cut).sum()), name
    assert len(set(prints.values())) == 1 and min(len(data.train), len(data.test)) > 50


def test_file_order_is_kept_where_the_protocol_asks_for_it(tmp_path):
    path = log_file(tmp_path / "log.csv")
    rows = pd.read_csv(path)
    rows.iloc[::-1].to_csv(tmp_path / "back.csv", index=False)
    as_it_is = preprocess(readers.read_log(tmp_path / "back.csv", "visit", "product", "when"),
                          replace(PROTOCOLS["narm"], test_seconds=36_000))
    found = datasets.from_log(tmp_path / "back.csv", protocol="narm", **COLUMNS)
    assert torch.equal(found.train.items, as_it_is.train.items)
    assert not torch.equal(found.train.items, datasets.from_log(path, protocol="narm", **COLUMNS).train.items)


def test_repeated_rows_are_counted(tmp_path):
    path = log_file(tmp_path / "log.csv")
    rows = pd.read_csv(path)
    assert datasets.from_log(path, **COLUMNS).repeated[1:] == (0, 0, 0)
    pd.concat([rows, rows]).to_csv(path, index=False)
    for _ in range(2):  # read, and then from the cache
        data = datasets.from_log(path, **COLUMNS)
        assert data.repeated[1:] == (60, 180, 6) and data.funnel[0][:3] == ("log", 60, 360)
    assert datasets.load("demo").repeated is None


def test_a_log_may_lie_in_subfolders(tmp_path):
    rows = pd.read_csv(log_file(tmp_path / "log.csv"))
    for hour, part in enumerate(np.array_split(np.arange(len(rows)), 3)):
        (tmp_path / f"log/hour={hour}").mkdir(parents=True)
        rows.iloc[part].to_parquet(tmp_path / f"log/hour={hour}/0.parquet")
    data = datasets.load(tmp_path / "log", **COLUMNS)
    assert data.fingerprint == datasets.load(tmp_path / "log.csv", **COLUMNS).fingerprint
    with pytest.raises(DataError, match="no column session"):  # a log also where no column is named
        datasets.load(tmp_path / "log")
    rows.iloc[part[6:]].to_parquet(tmp_path / "log/hour=2/0.parquet")  # a shard below changes: the cache is not asked
    assert datasets.load(tmp_path / "log", **COLUMNS).funnel[0].clicks == len(rows) - 6


@pytest.mark.parametrize("name", ["demo", "large:100", "diginetica"])
def test_columns_are_for_files(name):
    with pytest.raises(DataError, match=f"{name} is a dataset by name: --log, here session, is for the file"):
        datasets.load(name, session="visit")


def test_a_path_may_stand_where_a_name_is_asked_for(tmp_path):
    path = log_file(tmp_path / "log.csv")
    assert datasets.load(path, **COLUMNS).fingerprint == datasets.from_log(path, **COLUMNS).fingerprint
    (tmp_path / "shards").mkdir()
    pd.read_csv(path).to_parquet(tmp_path / "shards" / "0.parquet")
    assert datasets.load(tmp_path / "shards", **COLUMNS).fingerprint == datasets.load(path, **COLUMNS).fingerprint
    folder(tmp_path / "shards", [[1, 2]], ([[1]], [2]))  # the field's files go first
    assert datasets.load(tmp_path / "shards").protocol == "folder"


def test_users_are_cut_into_sessions(tmp_path):
    rows = [(u, i, day * 86_400 + n) for day in range(20) for u in (1, 2) for n, i in enumerate([7, 8])]
    path = tmp_path / "log.csv"
    path.write_text("session,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    data = datasets.from_log(path, session_gap=1800)
    assert len(data.train) == 2 * 12 and len(data.test) == 2 * 7  # twenty days: the eighth from the end is dropped
    assert data.item_ids.tolist() == [7, 8] and data.train[0] == [0, 1]
    with pytest.raises(DataError, match="no training sessions are left"):
        datasets.from_log(path)  # as it stands, each user is one session of the last day


def test_a_missing_log_is_told(tmp_path):
    with pytest.raises(DataError, match="none.csv: no such file"):
        datasets.from_log(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no column session, item, time; the columns found .* visit, product, when"):
        datasets.from_log(log_file(tmp_path / "log.csv"))
    with pytest.raises(ValueError, match="no protocol 'x'"):
        datasets.from_log(tmp_path / "log.csv", protocol="x")


# ---- the cache


def kept(own_cache) -> list[Path]:
    return sorted((own_cache / "prepared").iterdir())


def test_the_second_load_reads_the_cache(tmp_path, own_cache, monkeypatch):
    path = log_file(tmp_path / "log.csv")
    first = datasets.from_log(path, **COLUMNS)
    monkeypatch.setattr(readers, "read_log", None)
    again = datasets.from_log(path, **COLUMNS)
    assert again.fingerprint == first.fingerprint and again.funnel == first.funnel
    assert again.item_ids.tolist() == first.item_ids.tolist() and torch.equal(again.test.times, first.test.times)
    assert [file.suffix for file in kept(own_cache)] == [".safetensors"]
    with pytest.raises(TypeError):  # another protocol is another entry: it must read the log
        datasets.from_log(path, protocol="dgtn", **COLUMNS)


def test_the_form_of_the_cache_changes_with_the_steps_of_the_preparation(tmp_path):
    """An entry keeps its funnel: whoever renames a step raises FORMAT, or old entries tell the old names."""
    steps = [step.step for step in datasets.from_log(log_file(tmp_path / "log.csv"), **COLUMNS).funnel]
    assert (cache.FORMAT, steps) == (2, [
        "log", "sessions of 2 clicks or more", "items of 5 clicks or more", "still sessions of 2 clicks or more",
        "training: before the cut", "test: after the cut", "test: items known from training",
    ])


def test_a_changed_log_is_read_again(tmp_path):
    first = datasets.from_log(log_file(tmp_path / "log.csv"), **COLUMNS)
    second = datasets.from_log(log_file(tmp_path / "log.csv", sessions=70), **COLUMNS)
    assert (len(first.train), len(second.train)) == (49, 59)


def test_logs_of_one_size_and_date_in_two_folders_are_two_logs(tmp_path):
    found = []
    for seed in (0, 1):
        (tmp_path / f"{seed}").mkdir()
        path = log_file(tmp_path / f"{seed}" / "log.csv", seed=seed)
        os.utime(path, (1e9, 1e9))
        found.append((path.stat().st_size, datasets.from_log(path, **COLUMNS).fingerprint))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_entry_is_built_again(tmp_path, own_cache, damage):
    path = log_file(tmp_path / "log.csv")
    first = datasets.from_log(path, **COLUMNS)
    entry = kept(own_cache)[0]
    whole = entry.read_bytes()
    at = whole.index(b'"a"') + 1  # inside the raw ids
    flipped = whole[:at] + b"q" + whole[at + 1 :]
    entry.write_bytes({"cut": whole[:-7], "flip": flipped, "empty": b"", "text": b"x" * 99}[damage])
    assert datasets.from_log(path, **COLUMNS).fingerprint == first.fingerprint
    assert cache._read(entry).item_ids.tolist() == first.item_ids.tolist() and len(kept(own_cache)) == 1


def test_nothing_is_left_of_a_failure(tmp_path, own_cache, monkeypatch):
    def half(arrays, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    path = log_file(tmp_path / "log.csv")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            datasets.from_log(path, **COLUMNS)
    assert kept(own_cache) == []
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="could not be kept .no space"):
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no space")))
        assert len(datasets.from_log(path, **COLUMNS).train) == 49
    assert kept(own_cache) == []  # what is not whole never has the name
    old = own_cache / "prepared" / "x.unfinished"  # of a process that was killed two hours ago
    old.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    datasets.from_log(path, **COLUMNS)
    assert [file.suffix for file in kept(own_cache)] == [".safetensors"]


def test_what_another_process_is_writing_is_left_to_it(tmp_path, own_cache):
    (own_cache / "prepared").mkdir(parents=True)
    fresh = own_cache / "prepared" / "x.unfinished"
    fresh.write_bytes(b"half")
    datasets.from_log(log_file(tmp_path / "log.csv"), **COLUMNS)
    assert fresh in kept(own_cache) and len(kept(own_cache)) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SBR_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept .* set SBR_CACHE"):
        data = datasets.from_log(log_file(tmp_path / "log.csv"), **COLUMNS)
    assert len(data.train) == 49


def load_often(path, queue):
    for _ in range(15):
        data = datasets.from_log(path, **COLUMNS)
        for entry in (cache.folder() / "prepared").glob("*.safetensors"):
            entry.unlink(missing_ok=True)
    queue.put(data.fingerprint)


def test_two_processes_share_the_cache(tmp_path):
    path = log_file(tmp_path / "log.csv")
    expected = datasets.from_log(path, **COLUMNS).fingerprint
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=load_often, args=(path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [expected] * 2
    for worker in workers:
        worker.join()


def write_for_ever(path, started):
    clicks = readers.read_log(path, "visit", "product", "when")
    data = preprocess(clicks, replace(PROTOCOLS["srgnn"], test_seconds=36_000))
    started.set()
    while True:
        cache._write(cache.folder() / "prepared" / "entry.safetensors", data)


def test_a_kill_leaves_nothing_that_is_read(tmp_path, own_cache):
    context = multiprocessing.get_context("fork")
    for delay in (0.0, 0.003, 0.01):
        started = context.Event()
        worker = context.Process(target=write_for_ever, args=(log_file(tmp_path / "log.csv"), started))
        worker.start()
        assert started.wait(30)
        time.sleep(delay)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        entry = own_cache / "prepared" / "entry.safetensors"
        assert not entry.exists() or len(cache._read(entry).train) == 49


# ---- downloads


def serve(monkeypatch, files: dict[str, bytes]):
    """Pretend that these files lie at these addresses."""

    def retrieve(url, known_hash, fname, path, progressbar):
        if url not in files:
            raise OSError("no network")
        place = Path(path) / fname
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_file():
            place.write_bytes(files[url])
        if known_hash not in (None, pooch.file_hash(str(place))):
            raise ValueError("SHA256 hash of downloaded file does not match")
        return str(place)

    monkeypatch.setattr(pooch, "retrieve", retrieve)


def test_a_download_is_remembered(monkeypatch, own_cache):
    content = {"all_train_seq.txt": pickle.dumps([[1, 2]]), "test.txt": pickle.dumps(([[1]], [2]))}
    monkeypatch.setitem(sources.EXPECTED, "diginetica", {"train_sessions": 1})
    monkeypatch.setitem(sources.URLS, "diginetica", {name: f"http://x/{name}" for name in content})
    serve(monkeypatch, {f"http://x/{name}": data for name, data in content.items()})
    assert datasets.load("diginetica").name == "diginetica"
    place = own_cache / "data" / "diginetica"
    noted = json.loads((place / "checksums.json").read_text())
    assert noted == {name: pooch.file_hash(str(place / name)) for name in content}
    serve(monkeypatch, {})  # the network goes; the data stay
    assert datasets.load("diginetica").num_items == 2
    (place / "test.txt").write_bytes(pickle.dumps(([[2]], [1])))
    with pytest.raises(DataError, match=r"test.txt: changed since its download .* delete it to download it again"):
        datasets.load("diginetica")
    (place / "all_train_seq.txt").unlink()
    with pytest.raises(DataError, match=r"http://x/all_train_seq.txt: download failed \(no network\)"):
        datasets.load("diginetica")


def test_no_network_is_told(monkeypatch, own_cache):
    serve(monkeypatch, {})
    with pytest.raises(DataError, match="download failed .no network.; get the file in another way") as error:
        datasets.load("yoochoose1_64")
    assert str(own_cache / "data" / "yoochoose1_64" / "all_train_seq.txt") in str(error.value)


@pytest.mark.parametrize("protocol", ["srgnn", "dgtn", "lessr", "scalable", "narm"])
def test_shards_give_the_sessions_and_the_counts_of_one_file(tmp_path, protocol):
    draw = np.random.default_rng(1)
    session = draw.integers(0, 300, 4000)
    time = session * 9000 + draw.integers(0, 900, 4000)
    log = pd.DataFrame({"session": session, "item": draw.zipf(1.5, 4000) % 60, "time": time})
    log.to_parquet(tmp_path / "log.parquet")
    (tmp_path / "shards").mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(log)), 5)):
        log.iloc[part].to_parquet(tmp_path / "shards" / f"{number}.parquet")
    one, many = (datasets.from_log(tmp_path / name, protocol=protocol) for name in ("log.parquet", "shards"))
    assert one.fingerprint == many.fingerprint and one.funnel == many.funnel and len(one.train) > 0
