"""The field's own files: Python pickles of lists of ints, read without running anything that is in them.

A pickle is a program. `read` runs it on an unpickler that knows no name outside itself, so it can build lists, tuples,
ints and strings and nothing else; everything further is arithmetic on flat arrays.

Shapes: R rows of a file, N clicks, S sessions.
"""
import io
import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

HUGE = 2**31 - 2  # an item id must fit 32 bits


class DataError(ValueError):
    """Something is wrong with a file of data; the message names the file, the place in it, and the remedy."""


class Runs(NamedTuple):
    """Whole sessions of a file, and which prefixes of them are its examples.

    Fields:
        items: (N,) ids as in the file.
        offsets: (S + 1,) where each session begins.
        session: (R,) the session of each example, or None if the examples are all prefixes of all sessions.
        length: (R,) input clicks of each example, or None.
    """

    items: np.ndarray
    offsets: np.ndarray
    session: np.ndarray | None = None
    length: np.ndarray | None = None


class _ListsOnly(pickle.Unpickler):
    """An unpickler without names: no class, no function, hence nothing to call."""

    def find_class(self, module: str, name: str):
        """Refuse every name."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read(path: Path | str) -> list | tuple:
    """Read a pickle of nested lists, tuples, ints and strings.

    Raises:
        DataError: the file is missing, empty, cut short, not a pickle, or names a class or function (which is how a
            pickle runs code, and also how it stores numpy arrays).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    data = path.read_bytes()
    if not data:
        raise DataError(f"{path}: the file is empty; copy it again from its source")
    try:
        found = _ListsOnly(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        if "it asks for" in str(error):
            raise DataError(f"{path}: refused, {error}, and a pickle that names anything can run any code. Only lists, "
                            "tuples, ints and strings are read: store plain lists (array.tolist()) instead") from None
        raise DataError(f"{path}: not a complete pickle ({error}); copy it again from its source") from None
    except Exception as error:  # a damaged pickle can fail in any way: IndexError, KeyError, MemoryError, ...
        raise DataError(f"{path}: not a complete pickle ({type(error).__name__}: {error}); copy it again") from None
    if not isinstance(found, list | tuple) or len(found) == 0:
        raise DataError(f"{path}: holds {_called(found)} where a non-empty list of sessions was expected")
    return found


def read_runs(path: Path | str) -> Runs:
    """Read sessions from any of the three forms the field uses, told apart by their shape and the file's name.

    A list of lists is sessions; a pair in a file called ``unaug_*`` is (sessions, index); any other pair is
    (prefixes, labels), which `chains` puts together again.

    Raises:
        DataError: as `read`, and for rows that are not lists of ids 1..2147483646, naming the row.
    """
    path = Path(path)
    found = read(path)
    is_pair = len(found) == 2 and all(isinstance(part, list | tuple) for part in found) and (
        len(found[0]) == 0 or isinstance(found[0][0], list | tuple))
    items, offsets = flatten(found[0] if is_pair else found, path)
    if not is_pair or path.name.startswith("unaug"):
        return Runs(items, offsets)
    labels, at = flatten([found[1]], path, what="labels")
    if at[1] != len(offsets) - 1:
        raise DataError(f"{path}: {len(offsets) - 1} prefixes but {at[1]} labels; the file is not whole, copy it again")
    return chains(np.insert(items, offsets[1:], labels), offsets + np.arange(len(offsets)))


def flatten(rows: Sequence, path: Path, what: str = "session") -> tuple[np.ndarray, np.ndarray]:
    """A list of lists of ids as one array and offsets: (N,) int64, (S + 1,) int64.

    Raises:
        DataError: a row that is empty or no list, or an id that is no int in 1..2147483646 (0 is the field's padding).
    """
    if set(map(type, rows)) - {list, tuple}:
        row = next(i for i, row in enumerate(rows) if not isinstance(row, list | tuple))
        raise DataError(f"{path}: row {row} is {_called(rows[row])}, not a list of item ids")
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    if len(lengths) == 0 or lengths.min() == 0:
        row = int(lengths.argmin()) if len(lengths) else 0
        raise DataError(f"{path}: row {row} is an empty {what}; a row needs at least one item id: delete it")
    offsets = np.concatenate([[0], lengths.cumsum()])
    kinds = set(map(type, itertools.chain.from_iterable(rows)))
    try:
        items = np.fromiter(itertools.chain.from_iterable(rows), np.int64, offsets[-1]) if kinds == {int} else None
    except OverflowError:
        items = None
    if items is None or items.min() < 1 or items.max() > HUGE:
        row, bad = next((i, x) for i, row in enumerate(rows) for x in row if type(x) is not int or not 0 < x <= HUGE)
        raise DataError(f"{path}: row {row} holds {_called(bad)}; item ids are whole numbers 1..{HUGE} (0 is padding): "
                        "number the items from 1")
    return items, offsets


def chains(items: np.ndarray, offsets: np.ndarray) -> Runs:
    """Put sessions together from examples: consecutive rows that are prefixes of one another come from one session.

    Args:
        items: (N,) the clicks of all rows, each row an input followed by its label.
        offsets: (R + 1,) where each row begins.

    Public files list the prefixes of a session longest first (SR-GNN) or shortest first (DGTN). Which of the two is
    decided once for the whole file, since the last prefix of one session may by chance continue in the next session.
    A row that continues nothing (a shuffled file, a truncated one) becomes a session of its own.
    """
    lengths = np.diff(offsets)
    short = np.minimum(lengths[:-1], lengths[1:])
    pair = np.repeat(np.arange(len(short)), short)  # compare row r with row r + 1, click by click
    column = np.arange(len(pair)) - np.repeat(short.cumsum() - short, short)
    differ = items[offsets[pair] + column] != items[offsets[pair + 1] + column]
    same = np.bincount(pair[differ], minlength=len(short)) == 0
    down, up = same & (lengths[1:] == lengths[:-1] - 1), same & (lengths[1:] == lengths[:-1] + 1)
    longest_first = down.sum() >= up.sum()
    first = np.concatenate([[True], ~(down if longest_first else up)])
    last = np.concatenate([first[1:], [True]])
    session, length = first.cumsum() - 1, lengths - 1
    whole = first if longest_first else last  # the one row of each session that holds all of it
    clicks, starts = items[np.repeat(whole, lengths)], np.concatenate([[0], lengths[whole].cumsum()])
    complete = len(lengths) == (lengths[whole] - 1).sum()
    return Runs(clicks, starts) if complete else Runs(clicks, starts, session, length)


def _called(value) -> str:
    """How a message names a value: short, whatever it is."""
    text = repr(value) if isinstance(value, int | float | str) else ""
    return f"{type(value).__name__} {text[:40]}".strip()
