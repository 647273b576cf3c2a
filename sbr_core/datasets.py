"""Datasets by name: a training and a test split, checked against the counts that the literature agrees on.

``load("demo")`` needs nothing. The public data are looked for in ``$SBR_DATA`` and then in the cache folder of the
platform; any folder in the field's own form, and any click log of your own (`from_log`), loads in the same way.

Shapes: S sessions, E examples, V items.
"""
import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sbr_core import cache, pickles, readers, splits, synthetic
from sbr_core.pickles import DataError
from sbr_core.preprocess import Prepared, Protocol, Step, as_protocol, by_time, preprocess, repeated
from sbr_core.sessions import Sessions, Windows
from sbr_core.sources import EXPECTED, RAW, TIES, TRAIN_FILES, URLS, VOCABULARY

ENTRY = "own logs by time, repeated rows first in the funnel"  # of the cache: say so here if what it holds changes


@dataclass(frozen=True)
class Dataset:
    """A training and a test split over one numbering of the items.

    Args:
        name: how it was asked for.
        train, test: sessions in order of time, ids 0..V-1.
        item_ids: (V,) the raw id of every row of the item table.
        fingerprint: sha256 of the arrays; two datasets with one fingerprint are the same data.
        protocol: which preprocessing made it.
        law: the `synthetic.Shop` the sessions were drawn from, where the data are synthetic.
        rows: the test examples of a file whose rows are not all prefixes of all its sessions, else None.
        funnel: what was left of a raw log after every step of its preparation, else None.
        repeated: its rows that an earlier row equals in session, item and time, else None.
    """

    name: str
    train: Sessions
    test: Sessions
    item_ids: np.ndarray
    fingerprint: str
    protocol: str
    law: object | None = None
    rows: Windows | None = None
    funnel: list[Step] | None = None
    repeated: Step | None = None

    @property
    def num_items(self) -> int:
        """V, the size of the catalogue."""
        return len(self.item_ids)

    def test_windows(self) -> Windows:
        """The test examples: all prefixes of the test sessions, or the rows of the file where it holds others."""
        return self.test.prefixes() if self.rows is None else self.rows

    def index_of(self, raw_ids) -> np.ndarray:
        """Rows 0..V-1 of raw item ids (numbers may also come as text).

        Raises:
            DataError: an id that the dataset does not know.
        """
        raw = pd.Series(np.asarray(raw_ids).ravel())
        if self.item_ids.dtype.kind == "U":
            raw = raw.astype(str)
        elif raw.dtype.kind not in "iu":
            raw = pd.to_numeric(raw, errors="coerce")
        rows = self._index.get_indexer(raw)
        if (rows < 0).any():
            unknown = np.asarray(raw_ids).ravel()[rows < 0][0]
            raise DataError(f"{self.name}: item {unknown} is not among its {self.num_items} items; leave out items "
                            "that training does not know")
        return rows

    @cached_property
    def _index(self) -> pd.Index:
        return pd.Index(self.item_ids)

    def statistics(self) -> dict[str, int | float | str]:
        """The counts that papers print: sessions, clicks, examples, items, lengths, unknown test items.

        ``mean_length_*`` counts input and label, over examples; ``test_targets_unknown`` counts test examples whose
        label never occurs in training, ``test_items_unknown`` distinct items; ``items_as_input``, ``items_as_label``
        are of training; ``test_sessions_in_train`` counts test sessions that are a training session, click by click.
        """
        train, test = self.train.prefixes(), self.test_windows()
        items = (self.train.clicks, self.test.clicks, train.items[train.target - 1], train.labels)
        seen, met, inputs, labels = (torch.bincount(part, minlength=self.num_items) > 0 for part in items)
        lengths = [train.lengths.double() + 1, test.lengths.double() + 1]
        means = [float(part.mean()) if len(part) else 0.0 for part in (*lengths, torch.cat(lengths))]
        return {
            "name": self.name, "protocol": self.protocol, "fingerprint": self.fingerprint, "items": self.num_items,
            "train_sessions": len(self.train), "train_clicks": self.train.num_clicks, "train_examples": len(train),
            "test_sessions": len(self.test), "test_clicks": self.test.num_clicks, "test_examples": len(test),
            "items_in_train": int(seen.sum()), "items_in_test": int(met.sum()),
            "items_as_input": int(inputs.sum()), "items_as_label": int(labels.sum()),
            "test_sessions_in_train": int((self.test.among(self.train) & (self.test.lengths > 1)).sum()),
            "test_items_unknown": int((met & ~seen).sum()),
            "test_targets_unknown": int((~seen[test.labels.long()]).sum()),
            "longest_input_train": int(lengths[0].max()) - 1 if len(train) else 0,
            "longest_input_test": int(lengths[1].max()) - 1 if len(test) else 0,
            "mean_length_train": means[0], "mean_length_test": means[1], "mean_length": means[2],
        }


def load(name: str | Path, root: Path | str | None = None, **log) -> Dataset:
    """Load a dataset by name, folder or file, and check it against the counts the literature agrees on.

    Args:
        name: demo; large:N (synthetic, N items); diginetica, diginetica_lessr, yoochoose1_64, yoochoose1_64_dgtn,
            yoochoose1_4 or meli2020; or a folder with a training file (all_train_seq.txt, unaug_train.txt or train.txt)
            and test.txt; or a click log of your own: a CSV, TSV or Parquet file, or a folder of Parquet shards.
        root: the folder that holds the named datasets, each in a folder of its name or as its raw file (default:
            ``$SBR_DATA``, then the cache folder, into which what has an open URL is downloaded).
        log: for a click log: arguments of `from_log`, such as the names of its columns.

    Raises:
        DataError: nothing of that name (the message says which file to put where), an unreadable file, or counts other
            than expected.
    """
    name = str(name)
    if log and (name in ("demo", *RAW) or name.startswith("large:")) and not Path(name).exists():
        raise DataError(f"{name} is a dataset by name: --log, here {', '.join(log)}, is for the file of a log of yours")
    if log or _is_log(name):
        return from_log(name, **log)
    if name == "demo":
        shop, train, test = synthetic.demo()
        return _dataset("demo", train, test, np.arange(shop.num_items), "synthetic", law=shop)
    if name.startswith("large:"):
        sessions = synthetic.large_catalogue(_count(name))
        return _dataset(name, *sessions.split_latest(0.01), np.arange(sessions.num_items), "synthetic")
    if name not in RAW:
        return from_folder(name)
    roots = [Path(root)] if root else [Path(p) for p in (os.environ.get("SBR_DATA"), cache.folder() / "data") if p]
    found = next(filter(None, (_place(place, name) for place in roots)), None)
    if found is None and name in URLS and not root:
        found = roots[-1] / name
        cache.download(URLS[name], found)
    if found is None:
        raise DataError(_wanted(name, roots))
    return _checked(_from_raw(name, found) if found.is_file() else _from_copy(name, found), found)


def catalogue() -> list[dict[str, str]]:
    """Every named dataset: name, status ("ready", "to download", "missing") and a note on where it comes from."""
    roots = [Path(p) for p in (os.environ.get("SBR_DATA"), cache.folder() / "data") if p]
    rows = [{"name": "demo", "status": "ready", "note": "a synthetic shop with a known law, made on the spot"}]
    rows.append({"name": "large:N", "status": "ready", "note": "a synthetic log over N items, made on the spot"})
    for name, (_, _, origin) in RAW.items():
        found = next(filter(None, (_place(root, name) for root in roots)), None)
        status = "ready" if found else "to download" if name in URLS else "missing"
        note = f"fetched at first use, or prepared from {origin}" if name in URLS else f"put in place {origin}"
        rows.append({"name": name, "status": status, "note": str(found) if found else note})
    return rows


def from_log(path: Path | str, session: str = "session", item: str = "item", time: str = "time",
             protocol: Protocol | str = "srgnn", session_gap: int | float | None = None,
             test_seconds: int | float | None = None, sep: str | None = None) -> Dataset:
    """Load a click log of your own (CSV, TSV, Parquet, or a folder of Parquet shards) under any protocol.

    The order of the rows does not matter: they are sorted by time first, unless the protocol has ``order="file"``.

    Args:
        session, item, time: names of its columns, see `readers.read_log`.
        protocol: a name of `preprocess.PROTOCOLS`, or your own `Protocol`.
        session_gap: if `session` names users rather than sessions: seconds without a click that end a session (1800 is
            common).
        test_seconds: the last so many seconds are the test (default: the protocol's, seven days).

    Raises:
        DataError: an unreadable file, or nothing left for training or test.
    """
    protocol = as_protocol(protocol)
    if test_seconds is not None:
        protocol = replace(protocol, test_seconds=test_seconds)

    def read():
        clicks = readers.read_log(path, session, item, time, sep)
        clicks = by_time(clicks) if protocol.order == "time" else clicks
        return clicks if session_gap is None else clicks.cut_by_gap(session_gap)

    path = Path(path)
    shards = [(file.stat().st_size, file.stat().st_mtime_ns) for file in readers.shards(path)]
    return _prepared(path.name, path, read, protocol, (session, item, time, session_gap, sep, shards))


def _is_log(name: str) -> bool:
    """A file, or a folder of Parquet shards, whose path is not a dataset's name or a folder in the field's form."""
    path = Path(name)
    if name in ("demo", *RAW) or any((path / file).is_file() for file in TRAIN_FILES):
        return False
    return path.is_file() or path.is_dir() and bool(readers.shards(path))


def _prepared(name: str, path: Path, read, protocol: Protocol, how: tuple = ()) -> Dataset:
    def build() -> Prepared:
        data = preprocess(clicks := read(), protocol)
        return data._replace(funnel=[repeated(clicks), *data.funnel])

    if not path.exists():
        raise DataError(f"{path}: no such file")
    train, test, item_ids, (again, *funnel) = cache.prepared(cache.key(path, protocol, ENTRY, *how), build)
    return _dataset(name, train, test, item_ids, protocol.name, funnel=funnel, repeated=again)


def _from_raw(name: str, path: Path) -> Dataset:
    reader, protocol, _ = RAW[name]
    return _prepared(name, path, lambda: reader(path), protocol)


def _from_copy(name: str, folder: Path) -> Dataset:
    cache.verify(folder)
    return replace(from_folder(folder, VOCABULARY.get(name), RAW[name][1].name), name=name)


def _place(root: Path, name: str) -> Path | None:
    """The folder of prepared files of a dataset under `root`, or else its raw file, or None."""
    file = RAW[name][2].split(",")[0]
    places = [root / name / source for source in TRAIN_FILES] + [root / name / file, root / "raw" / file, root / file]
    found = next((place for place in places if place.is_file()), None)
    return found.parent if found and found.name in TRAIN_FILES else found


def _wanted(name: str, roots: list[Path]) -> str:
    prepared = f", or all_train_seq.txt and test.txt as shared in the field in {roots[0] / name}"
    return (f"{name} is not in {' or '.join(map(str, roots))}, and no open address serves it. Put its raw file at "
            f"{roots[0] / name / RAW[name][2].split(',')[0]} (it is {RAW[name][2]}){prepared}")


def _count(name: str) -> int:
    """The N of large:N."""
    digits = name.removeprefix("large:").replace("_", "")
    if not digits.isdecimal() or int(digits) < 2:
        raise DataError(f"{name!r}: write large:N with a number of items N >= 2, e.g. large:1_000_000")
    return int(digits)


def from_folder(folder: Path | str, num_items: int | None = None, protocol: str = "folder") -> Dataset:
    """Read a folder in the field's own form: a training file and test.txt.

    Args:
        num_items: V; default the largest id in the two files. Ids 1..V of the files become rows 0..V-1.
        protocol: what the preparation that made the files is called.

    Raises:
        DataError: no such folder, a missing or damaged file, an id above `num_items` (or absurd beside the number of
            clicks), or a test that was not held out (see `splits`).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no dataset, folder or file {str(folder)!r}; known are demo, large:N, {', '.join(RAW)}")
    source = next((folder / file for file in TRAIN_FILES if (folder / file).is_file()), None)
    if source is None:
        raise DataError(f"{folder}: no training file; put one of {', '.join(TRAIN_FILES)} there")
    train, test = pickles.read_runs(source), pickles.read_runs(folder / "test.txt")
    if train.session is not None:
        raise DataError(f"{source}: its {len(train.session)} rows are not all prefixes of whole sessions (shuffled, or "
                        "cut short); put the sessions themselves, a list of lists, in all_train_seq.txt")
    largest = splits.largest_id({source: train, folder / "test.txt": test}, num_items)
    num_items = num_items or largest
    parts = [Sessions(torch.from_numpy((part.items - 1).astype(np.int32)), torch.from_numpy(part.offsets), num_items)
             for part in (train, test)]
    splits.refuse_copy(*parts, folder / "test.txt")
    return _dataset(folder.name, *parts, np.arange(1, num_items + 1), protocol, rows=splits.windows_of(parts[1], test))


def _dataset(name: str, train: Sessions, test: Sessions, item_ids: np.ndarray, protocol: str, **more) -> Dataset:
    return Dataset(name, train, test, item_ids, _fingerprint(train, test, item_ids), protocol, **more)


def _fingerprint(train: Sessions, test: Sessions, item_ids: np.ndarray) -> str:
    """sha256 of the prepared arrays (clicks, offsets, raw ids), in one fixed byte order."""
    digest = hashlib.sha256(f"{train.num_items}".encode())
    for part in (train, test):
        for array in (part.clicks.numpy(), (part.offsets - part.offsets[0]).numpy()):
            digest.update(np.ascontiguousarray(array, dtype="<i8").data)
    for begin in range(0, len(item_ids), 2**16):  # ten million ids at once would be a gigabyte of text
        digest.update(("\n" * (begin > 0) + "\n".join(map(str, item_ids[begin : begin + 2**16].tolist()))).encode())
    return digest.hexdigest()


def _checked(dataset: Dataset, where: Path) -> Dataset:
    """The dataset, if its counts are those that the literature agrees on."""
    found, wanted = dataset.statistics(), EXPECTED.get(dataset.name, {})
    loose = TIES if dataset.funnel is not None and RAW[dataset.name][1].fraction_rule == "examples_by_date" else ()
    for figure, expected in wanted.items():
        counted = round(found[figure], 3) if isinstance(expected, float) else found[figure]
        if counted != expected and (figure not in loose or dataset.name == "diginetica"):
            raise DataError(f"{where}: {figure} of {dataset.name} should be {expected}, found {counted}; this is "
                            "another copy or another protocol: use it by its path (load a folder, from_log a log), not "
                            "by this name")
    return dataset
