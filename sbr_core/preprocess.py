"""From a raw click log to training and test sessions: one function for every protocol of the literature.

The steps are those of every paper: drop short sessions and rare items, date the sessions, cut the log at a time, number
the items of the older part. What the papers did differently is said in `protocols`. There is no loop over sessions.

Shapes: N clicks, S sessions, V items.
"""
from typing import NamedTuple

import numpy as np
import torch

from sbr_core.pickles import DataError
from sbr_core.protocols import PROTOCOLS, Protocol, as_protocol
from sbr_core.readers import Clicks
from sbr_core.sessions import Sessions

__all__ = ["PROTOCOLS", "Prepared", "Protocol", "Step", "as_protocol", "by_time", "preprocess", "repeated"]


class Step(NamedTuple):
    """What is left of a log after one step of the preparation."""

    step: str
    sessions: int
    clicks: int
    items: int


class Prepared(NamedTuple):
    """What `preprocess` returns: two splits over one numbering, the raw id of every row (V,), and the way there."""

    train: Sessions
    test: Sessions
    item_ids: np.ndarray
    funnel: list[Step]


class _Log(NamedTuple):
    """Clicks grouped by session: session s is rows offsets[s]:offsets[s + 1]."""

    items: np.ndarray  # (N,)
    times: np.ndarray  # (N,) stamps of clicks, ms
    offsets: np.ndarray  # (S + 1,)
    dates: np.ndarray  # (S,) stamps of sessions, ms
    raw: np.ndarray  # (S,) raw ids of sessions

    @property
    def lengths(self) -> np.ndarray:
        """(S,) clicks per session."""
        return np.diff(self.offsets)

    def keep(self, clicks: np.ndarray, min_length: int) -> "_Log":
        """Delete the clicks that are not marked, then drop sessions left with fewer than `min_length`."""
        lengths = np.diff(np.concatenate([[0], clicks.cumsum()])[self.offsets])
        enough = lengths >= min_length
        clicks = clicks & np.repeat(enough, self.lengths)
        offsets = np.concatenate([[0], lengths[enough].cumsum()])
        return _Log(self.items[clicks], self.times[clicks], offsets, self.dates[enough], self.raw[enough])

    def take(self, sessions: np.ndarray) -> "_Log":
        """These sessions (numbers or marks), in this order."""
        sessions = np.flatnonzero(sessions) if sessions.dtype == bool else sessions
        lengths = self.lengths[sessions]
        offsets = np.concatenate([[0], lengths.cumsum()])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[sessions] - offsets[:-1], lengths)
        return _Log(self.items[rows], self.times[rows], offsets, self.dates[sessions], self.raw[sessions])

    def between(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Marks of the clicks at places first..last-1 of their sessions."""
        place = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self.lengths)
        return (place >= np.repeat(first, self.lengths)) & (place < np.repeat(last, self.lengths))


def by_time(clicks: Clicks) -> Clicks:
    """The same clicks sorted by their exact time, sessions numbered by their raw ids (as text).

    What `preprocess` makes of them then does not depend on the order of the rows, but for clicks of one session at the
    same time: these stay as they were.
    """
    ids = np.argsort(clicks.session_ids.astype(str), kind="stable")
    number = np.empty(len(ids), np.int32)
    number[ids] = np.arange(len(ids), dtype=np.int32)
    time = clicks.exact
    rows = np.argsort(time, kind="stable")
    return Clicks(number[clicks.session[rows]], clicks.item[rows], time[rows], clicks.session_ids[ids], clicks.item_ids)


def repeated(clicks: Clicks) -> Step:
    """The rows that an earlier row equals in session, item and exact time, the sessions and the items of such rows."""
    columns = clicks.session, clicks.item, clicks.exact
    order = np.lexsort(columns)
    same = np.logical_and.reduce([np.diff(column[order]) == 0 for column in columns])
    rows = order[1:][same]
    sessions, items = (len(np.unique(column[rows])) for column in columns[:2])
    return Step("rows that repeat another", sessions, len(rows), items)


def preprocess(clicks: Clicks, protocol: Protocol | str = "srgnn") -> Prepared:
    """Filter, date, split and number a click log.

    Args:
        protocol: a name of `PROTOCOLS`, or your own `Protocol`.

    Returns:
        `Prepared`: training and test sessions in order of time with `times` in seconds, the raw id of each item row,
        and the funnel: what was left after every step.

    Raises:
        DataError: nothing is left for training or for the test.
    """
    protocol = as_protocol(protocol)
    funnel: list[Step] = []
    log = _filtered(_grouped(clicks, protocol), protocol, len(clicks.item_ids), funnel)
    train, test = _split(_dated(log, protocol), protocol, funnel)
    full = _vocabulary(train, len(clicks.item_ids), protocol.ids)
    test = _known(test, full, protocol, len(clicks.item_ids))
    train = _shortened(train, protocol)
    fraction = _fraction(train, protocol)
    items = full
    if protocol.vocab == "fraction" and protocol.fraction > 1:
        items = _vocabulary(fraction, len(clicks.item_ids), protocol.ids)
        test = _known(test, items, protocol, len(clicks.item_ids))
    test = _shortened(test, protocol)
    if protocol.fraction > 1:
        funnel.append(_step(f"training: latest 1/{protocol.fraction}", fraction))
    funnel.append(_step("test: items known from training", test))
    for part, log in (("training", fraction), ("test", test)):
        if len(log.dates) == 0:
            raise DataError(f"no {part} sessions are left after: {_told(funnel)}; the log may be too small, or "
                            f"test_seconds={protocol.test_seconds:g} or min_support={protocol.min_support} too large")
    rows = np.full(len(clicks.item_ids), -1, np.int32)
    rows[items] = np.arange(len(items))
    return Prepared(*(_sessions(part, rows, len(items)) for part in (fraction, test)), clicks.item_ids[items], funnel)


def _grouped(clicks: Clicks, protocol: Protocol) -> _Log:
    """Rows grouped by session, each session's clicks in the protocol's order, dated by its last row in the file."""
    stamps = clicks.exact if protocol.stamp == "exact" else clicks.time
    if protocol.whole_seconds:
        stamps = stamps // 1000 * 1000
    last_row = np.empty(len(clicks.session_ids), np.int64)
    last_row[clicks.session] = stamps  # of equal places the last one stays
    key = clicks.exact if protocol.stamp == "exact" or clicks.offset is None else clicks.offset
    if protocol.order == "time":
        rows = np.lexsort((key, clicks.session))
    else:
        rows = np.argsort(clicks.session, kind="stable")
    offsets = np.concatenate([[0], np.bincount(clicks.session, minlength=len(last_row)).cumsum()])
    return _Log(clicks.item[rows], stamps[rows], offsets, last_row, clicks.session_ids)


def _filtered(log: _Log, protocol: Protocol, num_items: int, funnel: list[Step]) -> _Log:
    """Short sessions, then rare items, then short sessions again: one pass, as everybody did."""
    every = np.ones(len(log.items), bool)
    funnel.append(_step("log", log))
    log = log.keep(every, protocol.min_length)
    funnel.append(_step(f"sessions of {protocol.min_length} clicks or more", log))
    if protocol.keep_first is not None:
        log = log.keep(log.between(np.zeros_like(log.dates), np.full_like(log.dates, protocol.keep_first)), 1)
        funnel.append(_step(f"first {protocol.keep_first} clicks", log))
    support = np.bincount(log.items, minlength=num_items)
    log = log.keep(support[log.items] >= protocol.min_support, 1)
    funnel.append(_step(f"items of {protocol.min_support} clicks or more", log))
    log = log.keep(np.ones(len(log.items), bool), protocol.min_length)
    funnel.append(_step(f"still sessions of {protocol.min_length} clicks or more", log))
    return log


def _dated(log: _Log, protocol: Protocol) -> _Log:
    """Date sessions by the clicks that are left, if the protocol says so."""
    if protocol.session_time == "last_row" or len(log.dates) == 0:
        return log
    rule = np.maximum if protocol.session_time == "max" else np.minimum
    return log._replace(dates=rule.reduceat(log.times, log.offsets[:-1]))


def _split(log: _Log, protocol: Protocol, funnel: list[Step]) -> tuple[_Log, _Log]:
    """Training and test sessions, each in order of time (ties in order of first appearance)."""
    latest = log.dates.max() if len(log.dates) else 0
    cut = latest - round(protocol.test_seconds * 1000)
    before, after = log.dates < cut, log.dates > cut
    if protocol.boundary != "drop":
        before, after = (before, ~before) if protocol.boundary == "test" else (~after, after)
    parts = []
    for part, name in ((log.take(before), "training: before the cut"), (log.take(after), "test: after the cut")):
        key = part.dates
        if protocol.session_order == "first_click" and len(key):
            key = np.minimum.reduceat(part.times, part.offsets[:-1])
        parts.append(part.take(np.argsort(key, kind="stable")))
        funnel.append(_step(name, part))
    return parts[0], parts[1]


def _vocabulary(log: _Log, num_items: int, ids: str) -> np.ndarray:
    """Items of a log in the order of their new numbers."""
    first = np.full(num_items, len(log.items))
    first[log.items[::-1]] = np.arange(len(log.items))[::-1]
    support = np.bincount(log.items, minlength=num_items)
    order = np.lexsort((first, -support)) if ids == "frequency" else np.argsort(first, kind="stable")
    return order[: np.count_nonzero(support)]


def _known(log: _Log, items: np.ndarray, protocol: Protocol, num_items: int) -> _Log:
    """Delete items that training does not know."""
    known = np.zeros(num_items, bool)
    known[items] = True
    return log.keep(known[log.items], protocol.min_length)


def _shortened(log: _Log, protocol: Protocol) -> _Log:
    """The last clicks of every session."""
    if protocol.keep_last is None:
        return log
    return log.keep(log.between(log.lengths - protocol.keep_last, log.lengths), 1)


def _fraction(log: _Log, protocol: Protocol) -> _Log:
    """The latest 1/fraction of the training part."""
    if protocol.fraction == 1 or len(log.dates) == 0:
        return log
    if protocol.fraction_rule == "rows_by_session_id":
        order = np.argsort(log.raw, kind="stable")
        begin = log.lengths[order].cumsum() - log.lengths[order]
        whole = np.empty(len(order), bool)
        whole[order] = begin > len(log.items) - len(log.items) // protocol.fraction  # not the session that is cut
        return log.take(whole)
    examples = log.lengths - 1
    wanted = examples.sum() // protocol.fraction
    after = examples[::-1].cumsum()[::-1]  # examples from each session on
    kept = np.minimum(examples, wanted - (after - examples))  # the session on the boundary keeps its shortest prefixes
    return log.keep(log.between(np.zeros_like(kept), np.maximum(kept + 1, 0)), 2)


def _sessions(log: _Log, rows: np.ndarray, num_items: int) -> Sessions:
    times = torch.from_numpy(log.dates // 1000)
    return Sessions(torch.from_numpy(rows[log.items]), torch.from_numpy(log.offsets), num_items, times)


def _step(name: str, log: _Log) -> Step:
    return Step(name, len(log.dates), len(log.items), int(np.count_nonzero(np.bincount(log.items))))


def _told(funnel: list[Step]) -> str:
    return "; ".join(f"{step.step}: {step.sessions} sessions" for step in funnel)
