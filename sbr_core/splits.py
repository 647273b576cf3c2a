"""What must hold of a training and a test file before they are a dataset.

Shapes: N clicks, S sessions.
"""
from pathlib import Path

import torch

from sbr_core.pickles import DataError, Runs
from sbr_core.sessions import Sessions, Windows

# An id beyond SPARE + PER_CLICK x the clicks of both files is taken for a mistake: the item table would have that many
# rows, nearly all of them never clicked. (Diginetica has 0.04 items a click, MeLi2020 0.24, Yoochoose 1/64 0.07.)
SPARE, PER_CLICK = 10_000_000, 100
# Short sessions recur: of the test sessions of Yoochoose 1/64, 27 % are a training session, of Diginetica 5 %. Of those
# of LONG clicks or more, 0.5 % and none are (DGTN's cut of Yoochoose: 0.4 %).
LONG, ENOUGH, COPY = 5, 20, 0.5


def largest_id(files: dict[Path, Runs], num_items: int | None = None) -> int:
    """The largest item id in some files.

    Args:
        num_items: what it may be at most; default, what the number of clicks allows.

    Raises:
        DataError: an id that is larger, with its file and session.
    """
    most = num_items or SPARE + PER_CLICK * sum(len(runs.items) for runs in files.values())
    for path, runs in files.items():
        place = int(runs.items.argmax())
        if runs.items[place] > most:
            session = int(runs.offsets.searchsorted(place, "right")) - 1
            why = "" if num_items else f" (the files hold {sum(len(r.items) for r in files.values())} clicks)"
            raise DataError(f"{path}: session {session} holds item {runs.items[place]}, but ids must lie in 1..{most}"
                            f"{why}; number the items 1, 2, 3, ... without gaps")
    return max(int(runs.items.max()) for runs in files.values())


def refuse_copy(train: Sessions, test: Sessions, path: Path) -> None:
    """Refuse a test whose long sessions are training sessions: it was not held out.

    Args:
        path: where the test was read.

    Raises:
        DataError: at least half of the test sessions of five clicks or more (and there are twenty of them) are also
            training sessions, click by click.
    """
    long = test.lengths >= LONG
    copied = test.among(train) & long
    if long.sum() >= ENOUGH and copied.sum() >= COPY * long.sum():
        raise DataError(f"{path}: {int(copied.sum())} of its {int(long.sum())} sessions of {LONG} clicks or more are "
                        f"training sessions too, click by click (the first is session {int(copied.nonzero()[0])}): "
                        "this test was not held out; split the log again, by time")


def windows_of(sessions: Sessions, runs: Runs) -> Windows | None:
    """The examples of a file as windows on its sessions, where they are not all prefixes of them."""
    if runs.session is None:
        return None
    session, length = torch.from_numpy(runs.session), torch.from_numpy(runs.length)
    start = sessions.offsets[session]
    return Windows(sessions.items, start.int(), (start + length).int(), session.int(), sessions.num_items)
