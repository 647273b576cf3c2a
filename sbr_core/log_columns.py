"""Columns of a raw click log as numbers, with one clear error for the first row that is none.

Every function takes the path and the number of the chunk's first row, or of each of its rows, for its errors.

Shapes: N rows of a chunk.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sbr_core.pickles import DataError


def numbered(column: pd.Series, known: dict) -> np.ndarray:
    """Numbers of a column's ids in order of first appearance, going on where earlier chunks left off."""
    codes, ids = pd.factorize(column)
    numbers = np.fromiter((known.setdefault(raw, len(known)) for raw in ids.tolist()), np.int32, len(ids))
    return numbers[codes]


def raw(known: dict) -> np.ndarray:
    """Raw ids as an array: of ints where every id is a plain whole number, else of strings."""
    ids = list(known)
    try:
        numbers = np.array(ids, np.int64)
    except (ValueError, OverflowError):
        return np.array(ids)
    return numbers if isinstance(ids[0], int) or list(map(str, numbers.tolist())) == ids else np.array(ids)


def whole(column: pd.Series, name: str, path: Path, row: int | np.ndarray) -> pd.Series:
    """A column of whole numbers >= 0, or an error that names the first row where it is not."""
    if column.dtype == np.int64 and column.min() >= 0:
        return column
    numbers = pd.to_numeric(column, errors="coerce")
    bad = ~((numbers >= 0) & (numbers < 2**63) & (numbers % 1 == 0)).to_numpy(bool)
    if bad.any():
        remedy = f"{name} must be a whole number, 0 to 2**63 - 1; correct or delete the row"
        raise refusal(path, column, bad, row, remedy)
    return column.astype("int64")


def text(column: pd.Series, name: str, path: Path, row: int | np.ndarray) -> pd.Series:
    """A column of ids as text; none may be missing."""
    bad = column.isna().to_numpy(bool) | (column.astype(str) == "").to_numpy(bool)
    if bad.any():
        raise refusal(path, column, bad, row, f"the {name} is missing; correct or delete the row")
    return column.astype(str)


def milliseconds(column: pd.Series, path: Path, row: int | np.ndarray) -> np.ndarray:
    """Times in milliseconds since 1970: from numbers (seconds), dates, or ISO 8601 text."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf":
        seconds = column
    elif pd.api.types.is_datetime64_any_dtype(column.dtype):
        seconds = None
    else:
        seconds = pd.to_numeric(column, errors="coerce")
        seconds = None if pd.isna(seconds.iloc[0]) else seconds
    if seconds is not None:
        bad = ~(seconds.abs() < 1e11).to_numpy(bool)  # also where it is no number
        remedy = "time must be seconds since 1970 (divide milliseconds by 1000) in every row"
        times = None if bad.any() else (seconds.astype("float64") * 1000).round().astype("int64").to_numpy()
    else:
        dates = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
        bad = dates.isna().to_numpy(bool)
        remedy = "time must be ISO 8601, such as 2014-04-07T10:51:09.277Z, or seconds since 1970, in every row"
        times = None if bad.any() else dates.dt.as_unit("ms").astype("int64").to_numpy()
    if bad.any():
        raise refusal(path, column, bad, row, remedy)
    return times


def refusal(
    path: Path, column: pd.Series, bad: np.ndarray, row: int | np.ndarray, remedy: str, what: str = ""
) -> DataError:
    """The error for the first row of a column that is bad; `what` says of the value what it is."""
    place = int(bad.argmax())
    number = row + place if isinstance(row, int) else row[place]
    return DataError(f"{path}: row {number} holds {what}{' ' * bool(what)}{str(column.iloc[place])[:40]!r}; {remedy}")
