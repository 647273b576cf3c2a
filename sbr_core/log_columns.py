"""Columns of a raw click log as numbers, with one clear error for the first row that is none.

Every function takes the path and the number of the chunk's first row, or of each of its rows, for its errors.

Shapes: N rows of a chunk.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sbr_core.pickles import DataError

MISSING = ("", "NULL", "Null", "null", "NA", "N/A", "NaN", "nan", "None", "<NA>", "\\N")  # what exports write for no id


def numbered(column: pd.Series, known: dict) -> np.ndarray:
    """Numbers of a column's ids in order of first appearance, going on where earlier chunks left off."""
    codes, ids = pd.factorize(column)
    numbers = np.fromiter((known.setdefault(raw, len(known)) for raw in ids.tolist()), np.int32, len(ids))
    return numbers[codes]


def raw(known: dict, name: str, path: Path) -> np.ndarray:
    """Raw ids as an array: of ints where every id is a plain whole number (or all end in .0), else of strings."""
    ids = list(known)
    floats = [text[:-2] for text in ids if isinstance(text, str) and text.endswith(".0")]
    floats = [text for text in floats if text.removeprefix("-").isdecimal()]
    if both := next((text for text in floats if text in known), None):
        raise DataError(f"{path}: {name} {both} is also there as {both}.0; write every {name} as a whole number")
    ids = floats if len(floats) == len(ids) else ids
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
    """A column of ids as text; none may be missing, and floats must be whole numbers."""
    bad = column.isna().to_numpy(bool) | column.astype(str).isin(MISSING).to_numpy(bool)
    if bad.any():
        word = column.iloc[int(bad.argmax())]
        hint = f" (if {word} is an id, call it something else)" if isinstance(word, str) and word else ""
        raise refusal(path, column, bad, row, f"the {name} is missing; correct or delete the row{hint}")
    if not pd.api.types.is_float_dtype(column.dtype):
        return column.astype(str)
    bad = ~((column % 1 == 0) & (column.abs() < 2**53)).to_numpy(bool)
    if bad.any():
        remedy = f"write every {name} as a whole number or as text: floats hold only whole numbers below 2**53 exactly"
        raise refusal(path, column, bad, row, remedy)
    return column.astype("int64").astype(str)


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
        remedy = "time must be seconds since 1970 (divide milliseconds by 1000) or ISO 8601, in every row"
        times = None if bad.any() else (seconds.astype("float64") * 1000).round().astype("int64").to_numpy()
    else:
        dates = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
        bad = dates.isna().to_numpy(bool)
        remedy = "time must be ISO 8601, such as 2014-04-07T10:51:09.277Z, or seconds since 1970, in every row"
        times = None if bad.any() else dates.dt.as_unit("ms").astype("int64").to_numpy()
    if bad.any():
        raise refusal(path, column, bad, row, remedy)
    return times


def refuse_days(times: np.ndarray, name: str, path: Path) -> None:
    """Refuse a column of times (ms) that are all dates written as one number, 20140402: it was read as seconds."""
    first = int(times[0]) // 1000
    days, rest = np.divmod(times, 1000)
    if (rest == 0).all() and (days >= 19_000_101).all() and (days <= 21_001_231).all():
        month, day = days // 100 % 100, days % 100
        if ((1 <= month) & (month <= 12) & (1 <= day) & (day <= 31)).all():
            iso = f"{first // 10_000}-{first // 100 % 100:02}-{first % 100:02}"
            raise DataError(f"{path}: column {name} holds dates such as {first}, not seconds since 1970; write them as "
                            f"{iso}, better with the time of day: {iso}T10:51:09")


def refusal(
    path: Path, column: pd.Series, bad: np.ndarray, row: int | np.ndarray, remedy: str, what: str = ""
) -> DataError:
    """The error for the first row of a column that is bad; `what` says of the value what it is."""
    place = int(bad.argmax())
    number = row + place if isinstance(row, int) else row[place]
    return DataError(f"{path}: row {number} holds {what}{' ' * bool(what)}{str(column.iloc[place])[:40]!r}; {remedy}")
