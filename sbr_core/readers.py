"""Raw click logs as compact arrays, read in chunks: the 33 million clicks of YOOCHOOSE fit in a laptop's memory.

Every reader gives the same thing, `Clicks`: numbers of sessions and items in order of first appearance, times in whole
milliseconds since 1970 (UTC), rows in the order of the file. Strings never outlive their chunk.

Shapes: N clicks, S sessions, V items.
"""
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sbr_core import log_columns
from sbr_core.pickles import DataError

CHUNK = 1_000_000  # rows read at a time
PARQUET = (".parquet", ".pq")
BEYOND = "\0beyond the last column"  # our name for what a row of a CSV file holds there
COPY_AGAIN = "copy it again from its source"
TOO_MANY = "put text that holds the separator in quotes, or delete the row"


@dataclass(frozen=True)
class Clicks:
    """A click log, one row per click, in the order of the file.

    Args:
        session: (N,) number of the session, 0..S-1 in order of first appearance.
        item: (N,) number of the item, 0..V-1 in order of first appearance.
        time: (N,) milliseconds since 1970, UTC; of the day only, where the log knows no more (Diginetica).
        session_ids: (S,) raw ids.
        item_ids: (V,) raw ids.
        offset: (N,) milliseconds to be added to `time`, where the log keeps them apart (Diginetica), else None.
    """

    session: np.ndarray
    item: np.ndarray
    time: np.ndarray
    session_ids: np.ndarray
    item_ids: np.ndarray
    offset: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.session)

    @property
    def exact(self) -> np.ndarray:
        """(N,) milliseconds since 1970 of each click, as exactly as the log knows."""
        return self.time if self.offset is None else self.time + self.offset

    def cut_by_gap(self, seconds: int | float) -> "Clicks":
        """Cut each user's clicks into sessions wherever more than `seconds` pass without a click.

        For logs that have users where sessions should be. Rows come out grouped by user and sorted by time; the raw id
        of a session is its user's.
        """
        if not seconds > 0:
            raise ValueError(f"session_gap is a number of seconds above 0, got {seconds}")
        order = np.lexsort((self.exact, self.session))
        user, time = self.session[order], self.exact[order]
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(user) != 0) | (np.diff(time) > seconds * 1000)
        session = (new.cumsum() - 1).astype(np.int32)
        return Clicks(session, self.item[order], time, self.session_ids[user[new]], self.item_ids)


def read_log(path: Path | str, session: str = "session", item: str = "item", time: str = "time", sep: str | None = None,
             chunk: int = CHUNK) -> Clicks:
    """Read a click log of your own: CSV, TSV (also compressed) or Parquet, with a column each for session, item, time.

    Args:
        path: the file; or a folder of Parquet shards, also in subfolders (names that begin with "_" or "." are left
            out), which are read in the order of their paths as if they were one file.
        session, item: names of columns of ids: any text or whole numbers (also kept as floats).
        time: name of a column of seconds since 1970, or of ISO 8601 dates and times (UTC where no zone is given).
        sep: the character that separates the columns; default a tab in ``*.tsv*``, else a comma.
        chunk: rows read at a time.

    Raises:
        DataError: a missing, empty, truncated or unreadable file, a missing column (the columns found are listed), an
            empty id, an unreadable time or a field too many (the row is named).
    """
    path = Path(path)
    columns = {"session": session, "item": item, "time": time}
    if path.is_dir() or path.suffix.lower() in PARQUET:
        clicks = _collect(path, _parquet(path, columns, chunk))
    else:
        sep = sep.replace("\\t", "\t") if sep else "\t" if ".tsv" in path.name.lower() else ","
        if len(sep) > 1:
            raise ValueError(f"sep is one character, or \\t for a tab; got {sep!r}")
        clicks = _collect(path, _csv(path, columns, sep, chunk))
    log_columns.refuse_days(clicks.time, time, path)
    return clicks


def read_yoochoose(path: Path | str, chunk: int = CHUNK) -> Clicks:
    """Read ``yoochoose-clicks.dat`` (RecSys Challenge 2015): no header; session, time, item, category.

    Raises:
        DataError: as `read_log`; ids must be whole numbers >= 0.
    """
    names = ["session", "time", "item", "category"]
    columns = {name: name for name in names[:3]}
    return _collect(Path(path), _csv(Path(path), columns, ",", chunk, ("session", "item"), names), numbers=True)


def read_diginetica(path: Path | str, chunk: int = CHUNK) -> Clicks:
    """Read ``train-item-views.csv`` (CIKM Cup 2016), in either spelling of its header (session_id or sessionId).

    `time` is the day, `offset` the timeframe: milliseconds since the session's first query, read as whole numbers.

    Raises:
        DataError: as `read_log`; ids and timeframes must be whole numbers >= 0.
    """
    path = Path(path)
    found = {name.lower().replace("_", ""): name for name in _header(path, ";")}
    plain = {"session": "sessionid", "item": "itemid", "time": "eventdate", "offset": "timeframe"}
    columns = {ours: found.get(theirs, theirs) for ours, theirs in plain.items()}
    chunks = _csv(path, columns, ";", chunk, ("session", "item", "offset"))
    return _collect(path, chunks, numbers=True)


def read_meli(path: Path | str) -> Clicks:
    """Read MeLi2020's gzip-compressed JSON lines: one user a line, whose item views are one session.

    Searches (they carry text, no item) and the purchase are left out.

    Raises:
        DataError: a damaged file, or a line that is not of this form (the line is named).
    """
    path = Path(path)
    return _collect(path, _meli_chunks(path), numbers=True)


def _meli_chunks(path: Path, lines: int = 20_000) -> Iterator[pd.DataFrame]:
    rows: list[tuple] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            for event in json.loads(line)["user_history"]:  # the session is the number of its line
                if event["event_type"] == "view":
                    rows.append((number, event["event_info"], event["event_timestamp"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: line {number} is no MeLi2020 record ({type(error).__name__}: {error}); a line is "
                            '{"user_history": [{"event_info", "event_timestamp", "event_type"}, ...]}') from None
        if number % lines == 0 and rows:
            yield _views(rows, path)
            rows = []
    if rows:
        yield _views(rows, path)


def _views(rows: list[tuple], path: Path) -> pd.DataFrame:
    """A chunk that says in its ``attrs`` which line of the file each of its rows comes from."""
    part = pd.DataFrame(rows, columns=["session", "item", "time"])
    part.attrs["from"] = path, part["session"].to_numpy()
    return part


def _lines(path: Path) -> Iterator[str]:
    """Lines of a gzip file."""
    _must_exist(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from file
    except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}); {COPY_AGAIN}") from None


def _header(path: Path, sep: str) -> list[str]:
    """Names of the columns of a CSV file."""
    _must_exist(path)
    with _damage(path):
        return [str(name) for name in pd.read_csv(path, sep=sep, nrows=0).columns]


def _csv(path: Path, columns: dict[str, str], sep: str, chunk: int, numeric: tuple = (),
         names: list[str] | None = None) -> Iterator[pd.DataFrame]:
    """Chunks of the wanted columns, called by our names, from a CSV file with a header (or with given `names`).

    Rows with nothing in them are left out; a chunk says in its ``attrs`` which row of the file each of its rows is.
    Columns are text but for the `numeric` ones, which are whatever pandas finds in them.
    """
    _must_exist(path)
    header, row = names or _header(path, sep), 1 if names else 2
    _must_have(path, columns, header, f"separated by {sep!r}")
    wanted = list(columns.values())
    dtype = dict.fromkeys({*header, BEYOND} - {columns[name] for name in numeric}, str)
    chunk = max(1, 4 * chunk // max(4, len(header)))  # all columns are read: only so is a field too many seen
    with _damage(path), pd.read_csv(path, sep=sep, header=None, skiprows=row - 1, names=[*header, BEYOND], dtype=dtype,
                                    chunksize=chunk, na_filter=False, low_memory=False, index_col=False,
                                    skip_blank_lines=False) as chunks:
        for part in chunks:
            beyond = part[BEYOND]
            if (more := (beyond != "").to_numpy(bool)).any():
                remedy = f"a row has {len(header)} fields: {TOO_MANY}"
                raise log_columns.refusal(path, beyond, more, row, remedy, "one field too many,")
            rows = np.arange(row, row + len(part))
            row += len(part)
            if (empty := (part[wanted[0]] == "").to_numpy(bool)).any():
                empty = (part == "").to_numpy(bool).all(1)
                part, rows = part[~empty], rows[~empty]
            part = part[wanted].set_axis(list(columns), axis=1)
            part.attrs["from"] = path, rows
            yield part


def _parquet(path: Path, columns: dict[str, str], chunk: int) -> Iterator[pd.DataFrame]:
    """Chunks of a Parquet file, or of all in a folder; a chunk says in its ``attrs`` where it begins."""
    import pyarrow.parquet

    for shard in parquet_files(path):
        _must_exist(shard)
        row = 1
        with _damage(shard), pyarrow.parquet.ParquetFile(shard) as file:
            _must_have(shard, columns, file.schema_arrow.names)
            for batch in file.iter_batches(chunk, columns=list(columns.values())):
                part = batch.to_pandas()
                part = pd.DataFrame({ours: part[theirs] for ours, theirs in columns.items()})
                part.attrs["from"] = shard, row
                row += len(part)
                yield part


def parquet_files(path: Path) -> list[Path]:
    """The file itself, or the Parquet files of a folder by path.

    Raises:
        DataError: if the folder has none.
    """
    if not path.is_dir():
        return [path]
    if not (found := shards(path)):
        raise DataError(f"{path}: a folder without Parquet files; give a file, or a folder of Parquet shards")
    return found


def shards(folder: Path) -> list[Path]:
    """The Parquet files of a folder and its subfolders, without what others have hidden or not finished (_, .)."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in PARQUET and file.is_file())
    return sorted(file for file in files if not any(part[0] in "_." for part in file.relative_to(folder).parts))


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns whatever a reader says of a damaged file into one error that names the file."""
    try:
        yield
    except DataError:
        raise
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: the file is empty; {COPY_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8 ({error}); save it as CSV in UTF-8") from None
    except Exception as error:  # the parsers raise errors of many kinds
        if found := re.search(r"in line (\d+), saw (\d+)", str(error)):
            raise DataError(f"{path}: row {found[1]} has {found[2]} fields, more than the header: {TOO_MANY}") from None
        raise DataError(f"{path}: damaged or of another form ({error}); {COPY_AGAIN}") from None


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; {COPY_AGAIN}")


def _must_have(path: Path, columns: dict[str, str], found: list[str], how: str = "") -> None:
    missing = [theirs for theirs in columns.values() if theirs not in found]
    if len(set(columns.values())) < len(columns):
        said = ", ".join(f"{ours}={theirs}" for ours, theirs in columns.items())
        raise DataError(f"{path}: {said} name one column twice; session, item and time are a column each")
    if missing:
        raise DataError(f"{path}: no column {', '.join(missing)}; the columns found {how} are {', '.join(found)}: say "
                        "which is which with session=, item=, time= and sep=")


def _collect(path: Path, chunks: Iterator[pd.DataFrame], numbers: bool = False) -> Clicks:
    """One `Clicks` from chunks with columns session, item, time (and offset) that say in ``attrs`` where they begin."""
    ids: dict[str, dict] = {"session": {}, "item": {}}
    parts: dict[str, list[np.ndarray]] = {"session": [], "item": [], "time": [], "offset": []}
    for part in filter(len, chunks):
        where = part.attrs["from"]
        for name, known in ids.items():
            column = (log_columns.whole if numbers else log_columns.text)(part[name], name, *where)
            parts[name].append(log_columns.numbered(column, known))
        parts["time"].append(log_columns.milliseconds(part["time"], *where))
        if "offset" in part:
            parts["offset"].append(log_columns.whole(part["offset"], "timeframe", *where).to_numpy())
    if not parts["time"]:
        raise DataError(f"{path}: no clicks in it; {COPY_AGAIN}")
    whole = {name: np.concatenate(arrays) if arrays else None for name, arrays in parts.items()}
    return Clicks(**whole, **{f"{name}_ids": log_columns.raw(known, name, path) for name, known in ids.items()})
