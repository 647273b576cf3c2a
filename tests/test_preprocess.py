"""Preparation of raw logs: golden counts, a slow oracle in plain Python, and the invariants of every protocol."""
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbr_core import readers
from sbr_core.pickles import DataError
from sbr_core.preprocess import PROTOCOLS, Protocol, Step, by_time, preprocess, repeated
from sbr_core.protocols import DAY
from sbr_core.readers import Clicks

DATA = Path(os.environ.get("SBR_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
SAMPLE = DATA / "raw" / "diginetica_sample_train-item-views.csv"
needs_data = pytest.mark.skipif(not SAMPLE.is_file(), reason=f"no real data at {DATA}: set SBR_DATA")
VARIANTS = list(PROTOCOLS.values()) + [
    replace(PROTOCOLS["srgnn"], boundary="test"),
    replace(PROTOCOLS["srgnn"], boundary="train", session_time="first"),
    replace(PROTOCOLS["srgnn"], fraction=3),
    replace(PROTOCOLS["srgnn"], fraction=3, vocab="fraction", ids="frequency", keep_last=3),
    replace(PROTOCOLS["dgtn"], fraction=3),
    replace(PROTOCOLS["lessr"], keep_first=3, min_length=3),
]


def variant_name(protocol: Protocol) -> str:
    changed = [f for f, v in vars(protocol).items() if v != getattr(PROTOCOLS[protocol.name], f)]
    return "-".join([protocol.name, *changed])


def oracle(rows, protocol):
    """The same preparation with dictionaries and loops. rows: (session, item, time, offset or None), raw ids, ms.

    Returns (train, test, item_ids): lists of (date in s, list of new ids)."""
    p, log = protocol, {}
    for number, (session, item, time, offset) in enumerate(rows):
        exact = time + (offset or 0)
        stamp = exact if p.stamp == "exact" else time
        stamp = stamp // 1000 * 1000 if p.whole_seconds else stamp
        key = exact if p.stamp == "exact" or offset is None else offset
        log.setdefault(session, []).append((key, number, item, stamp))
    last_row = {session: clicks[-1][3] for session, clicks in log.items()}
    if p.order == "time":
        log = {session: sorted(clicks, key=lambda c: (c[0], c[1])) for session, clicks in log.items()}
    log = {s: c for s, c in log.items() if len(c) >= p.min_length}
    if p.keep_first:
        log = {s: c[: p.keep_first] for s, c in log.items()}
    support = Counter(c[2] for clicks in log.values() for c in clicks)
    log = {s: [c for c in clicks if support[c[2]] >= p.min_support] for s, clicks in log.items()}
    log = {s: c for s, c in log.items() if len(c) >= p.min_length}
    rule = {"max": max, "first": min}
    date = {s: last_row[s] if p.session_time == "last_row" else rule[p.session_time](c[3] for c in clicks)
            for s, clicks in log.items()}
    cut = max(date.values(), default=0) - p.test_seconds * 1000
    side = {s: "train" if d < cut else "test" if d > cut else p.boundary for s, d in date.items()}
    begin = {s: min(c[3] for c in clicks) for s, clicks in log.items()}
    order = sorted(log, key=lambda s: date[s] if p.session_order == "session_time" else begin[s])
    train = [(s, [c[2] for c in log[s]]) for s in order if side[s] == "train"]
    test = [(s, [c[2] for c in log[s]]) for s in order if side[s] == "test"]

    def numbering(sessions):
        support = Counter(item for _, items in sessions for item in items)  # insertion order: as first seen
        return sorted(support, key=lambda item: -support[item]) if p.ids == "frequency" else list(support)

    def known(sessions, items):
        sessions = [(s, [i for i in clicks if i in set(items)]) for s, clicks in sessions]
        return [(s, clicks) for s, clicks in sessions if len(clicks) >= p.min_length]

    items = numbering(train)
    test = known(test, items)
    if p.keep_last:
        train = [(s, clicks[-p.keep_last :]) for s, clicks in train]
    if p.fraction > 1 and p.fraction_rule == "examples_by_date":
        examples = [(s, end) for s, clicks in train for end in range(len(clicks), 1, -1)]  # longest first
        longest = {}
        for s, end in examples[len(examples) - len(examples) // p.fraction :]:
            longest[s] = max(longest.get(s, 0), end)
        train = [(s, clicks[: longest[s]]) for s, clicks in train if s in longest]
    elif p.fraction > 1:
        by_id = [s for s, clicks in sorted(train) for _ in clicks]
        latest = by_id[len(by_id) - len(by_id) // p.fraction :]
        train = [(s, clicks) for s, clicks in train if s in latest and s != latest[0]]
    if p.fraction > 1 and p.vocab == "fraction":
        items = numbering(train)
        test = known(test, items)
    if p.keep_last:
        test = [(s, clicks[-p.keep_last :]) for s, clicks in test]
    place = {item: number for number, item in enumerate(items)}
    return *([(date[s] // 1000, [place[i] for i in clicks]) for s, clicks in part] for part in (train, test)), items


def rows_of(clicks: Clicks):
    offset = [None] * len(clicks) if clicks.offset is None else clicks.offset.tolist()
    session, item = clicks.session_ids[clicks.session].tolist(), clicks.item_ids[clicks.item].tolist()
    return list(zip(session, item, clicks.time.tolist(), offset, strict=True))


def clicks_of(rows) -> Clicks:
    session_ids, item_ids = (list(dict.fromkeys(column)) for column in list(zip(*rows, strict=True))[:2])
    offset = None if rows[0][3] is None else np.array([row[3] for row in rows])
    return Clicks(np.array([session_ids.index(row[0]) for row in rows], np.int32),
                  np.array([item_ids.index(row[1]) for row in rows], np.int32), np.array([row[2] for row in rows]),
                  np.array(session_ids), np.array(item_ids), offset)


def agrees(clicks: Clicks, protocol: Protocol) -> bool:
    """Whether the preparation equals the oracle's, and refuses what leaves nothing."""
    train, test, items = oracle(rows_of(clicks), protocol)
    if not train or not test:
        with pytest.raises(DataError, match="sessions are left"):
            preprocess(clicks, protocol)
        return True
    found = preprocess(clicks, protocol)
    assert found.item_ids.tolist() == items
    for sessions, expected in ((found.train, train), (found.test, test)):
        assert [sessions[i] for i in range(len(sessions))] == [clicks for _, clicks in expected]
        assert sessions.times.tolist() == [date for date, _ in expected]
        assert sessions.num_items == len(items)
    return True


@pytest.fixture(scope="module")
def sample() -> Clicks:
    return readers.read_diginetica(SAMPLE)


GOLDEN = {
    "dropped": (PROTOCOLS["srgnn"], (469, 309, 1674, 1205, 39, 99)),
    "in test": (replace(PROTOCOLS["srgnn"], boundary="test"), (469, 309, 1674, 1205, 47, 118)),
    "dgtn": (PROTOCOLS["dgtn"], (469, 309, 1674, 1205, 47, 118)),
    "dissertation": (PROTOCOLS["scalable"], (469, 309, 1674, 1205, 47, 118)),
    "lessr": (PROTOCOLS["lessr"], (477, 310, 1694, 1217, 41, 102)),
}


@needs_data
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_counts_of_the_diginetica_sample(sample, case):
    protocol, expected = GOLDEN[case]
    found = preprocess(sample, protocol)
    assert (len(sample), len(sample.session_ids), len(sample.item_ids)) == (12_391, 2_986, 7_139)
    counts = (len(found.train), len(found.item_ids), found.train.num_clicks, len(found.train.prefixes()))
    counts += (len(found.test), len(found.test.prefixes()))
    assert counts == expected


@needs_data
def test_the_funnel_tells_every_step(sample):
    log = pd.DataFrame(rows_of(sample), columns=["session", "item", "day", "offset"])
    day = log.groupby("session").day.last()
    expected = [log]
    expected.append(log[log.groupby("session").item.transform("size") >= 2])
    expected.append(expected[-1][expected[-1].groupby("item").item.transform("size") >= 5])
    expected.append(expected[-1][expected[-1].groupby("session").item.transform("size") >= 2])
    day = expected[-1].session.map(day)
    expected += [expected[-1][day < day.max() - 7 * DAY * 1000], expected[-1][day > day.max() - 7 * DAY * 1000]]
    known = expected[-1][expected[-1].item.isin(expected[-2].item)]
    expected.append(known[known.groupby("session").item.transform("size") >= 2])
    found = preprocess(sample).funnel
    assert [step[1:] for step in found] == [(p.session.nunique(), len(p), p.item.nunique()) for p in expected]
    assert [step.step for step in found] == [
        "log", "sessions of 2 clicks or more", "items of 5 clicks or more", "still sessions of 2 clicks or more",
        "training: before the cut", "test: after the cut", "test: items known from training"]


@needs_data
@pytest.mark.parametrize("protocol", VARIANTS, ids=variant_name)
def test_the_sample_equals_the_oracle(sample, protocol):
    assert agrees(sample, protocol)


@st.composite
def logs(draw):
    """Small logs of few sessions, items and days: ties, repeats and boundary dates are frequent."""
    with_offset = draw(st.booleans())
    seconds = st.integers(0, 20) if with_offset else st.integers(0, 2000)
    unit = DAY * 1000 if with_offset else 800_500
    row = st.tuples(st.integers(0, 12), st.integers(0, 6), seconds.map(lambda n: n * unit),
                    st.integers(0, 90_000_000) if with_offset else st.none())
    return draw(st.lists(row, min_size=1, max_size=80))


@pytest.mark.parametrize("protocol", VARIANTS, ids=variant_name)
@settings(max_examples=100, deadline=None)
@given(rows=logs(), support=st.integers(1, 3))
def test_random_logs_equal_the_oracle(protocol, rows, support):
    assert agrees(clicks_of(rows), replace(protocol, min_support=support))


@needs_data
@pytest.mark.parametrize("name", PROTOCOLS)
def test_invariants_on_real_yoochoose_clicks(name):
    clicks = readers.read_log(DATA / "raw" / "rsc15_100k_train.tsv.gz", "SessionId", "ItemId", "Time")
    protocol = replace(PROTOCOLS[name], test_seconds=DAY)
    found = preprocess(clicks, protocol)
    if protocol.session_order == "session_time":
        assert (found.train.times.diff() >= 0).all() and (found.test.times.diff() >= 0).all()
    assert found.train.times.max() < found.test.times.min()
    assert set(found.test.items.tolist()) <= set(found.train.items.tolist()) or protocol.keep_last
    assert found.train.items.min() >= 0 and found.train.items.max() < len(found.item_ids)
    examples = int((found.train.lengths - 1).sum())
    prefixes, suffixes = found.train.prefixes(), found.train.suffixes()
    assert len(prefixes) == len(suffixes) == examples
    assert prefixes.lengths.bincount().tolist() == suffixes.lengths.bincount().tolist()
    assert found.funnel[0] == Step("log", len(clicks.session_ids), len(clicks), len(clicks.item_ids))


@needs_data
@pytest.mark.parametrize("fraction", [2, 5, 64])
def test_a_fraction_is_the_end_of_the_example_list(sample, fraction):
    def examples(protocol):
        sessions = preprocess(sample, protocol).train
        return [tuple(sessions[s][:end]) for s in range(len(sessions)) for end in range(len(sessions[s]), 1, -1)]

    whole, part = examples(Protocol()), examples(Protocol(fraction=fraction))
    assert len(part) == len(whole) // fraction
    assert part == whole[len(whole) - len(part) :]


def pairs(*stamps):
    """Sessions 0, 1, ... of two clicks on items 1 and 2, at these milliseconds."""
    return clicks_of([(s, item, time, None) for s, time in enumerate(stamps) for item in (1, 2)])


def test_milliseconds_decide_at_the_boundary_only_where_the_protocol_keeps_them():
    clicks = pairs(10_000, 11_900, 21_000)  # the cut is at 11 s: the second session lies on it, or 0.9 s after it
    sizes = {}
    for whole in (True, False):
        protocol = Protocol(min_support=1, test_seconds=10, whole_seconds=whole)
        found = preprocess(clicks, protocol)
        sizes[whole] = (len(found.train), len(found.test))
    assert sizes == {True: (1, 1), False: (1, 2)}


def test_a_fraction_of_rows_always_drops_its_first_session():
    clicks = pairs(1000, 2000, 3000, 4000, 900_000)  # 8 training clicks; the last 4 are sessions 2 and 3, both whole
    protocol = replace(PROTOCOLS["dgtn"], min_support=1, test_seconds=10, fraction=2)
    assert preprocess(clicks, protocol).train.times.tolist() == [4]
    assert preprocess(clicks, replace(protocol, fraction=1)).train.times.tolist() == [1, 2, 3, 4]


def test_times_before_1970_are_cut_alike():
    stamps = [1000, 2000, 3000, 50_000]
    late, early = (preprocess(pairs(*(stamp - past for stamp in stamps)), Protocol(min_support=1, test_seconds=10))
                   for past in (0, 10**12))
    assert len(early.train) == len(late.train) == 3 and len(early.test) == len(late.test) == 1
    assert early.train.times.tolist() == [time - 10**9 for time in late.train.times.tolist()]


@given(rows=logs(), seed=st.integers(0, 5))
def test_sorted_by_time_the_order_of_the_rows_is_nothing(rows, seed):
    rows = [(*row[:2], row[2] + n, row[3]) for n, row in enumerate(rows)]  # no two clicks of a session at one time
    rows = [row if row[3] is None else (*row[:2], n * DAY * 1000, row[3] % 1000) for n, row in enumerate(rows)]
    shuffled = [rows[n] for n in np.random.default_rng(seed).permutation(len(rows))]
    first, second = (by_time(clicks_of(part)) for part in (rows, shuffled))
    assert [row[:2] for row in rows_of(first)] == [row[:2] for row in rows_of(second)]
    assert first.session.tolist() == second.session.tolist() and first.offset is None
    assert first.time.tolist() == second.time.tolist() == sorted(row[2] + (row[3] or 0) for row in rows)


def test_of_one_time_the_order_of_the_file_stays_and_sessions_go_by_their_ids():
    clicks = by_time(clicks_of([("b", 3, 5000, None), ("a", 1, 5000, None), ("b", 2, 5000, None), ("a", 9, 0, None)]))
    assert rows_of(clicks) == [("a", 9, 0, None), ("b", 3, 5000, None), ("a", 1, 5000, None), ("b", 2, 5000, None)]
    assert clicks.session_ids.tolist() == ["a", "b"]


@given(rows=logs())
def test_repeated_rows_equal_a_loop(rows):
    rows = [(*row[:2], row[2] // 4, row[3] and row[3] % 2) for row in rows]
    seen, again = set(), []
    for session, item, time, offset in rows:
        click = session, item, time + (offset or 0)
        again += [click] if click in seen else []
        seen.add(click)
    expected = len({row[0] for row in again}), len(again), len({row[1] for row in again})
    assert repeated(clicks_of(rows))[1:] == expected


def test_windows_follow_the_protocol():
    rows = [(s, i, s * DAY * 1000, n) for s in range(3) for n, i in enumerate([1, 2, 3, 4])]
    found = preprocess(clicks_of(rows), Protocol(min_support=1, test_seconds=DAY / 2, boundary="test"))
    suffix = Protocol(augment="suffix").windows(found.train)
    assert suffix.lengths.tolist() == [3, 2, 1] * 2 and set(suffix.labels.tolist()) == {3}
    assert Protocol(augment="suffix").windows(found.test, training=False).labels.tolist() == [1, 2, 3]
    first = Protocol(head=2).windows(found.train)
    assert first.lengths.tolist() == [1, 2, 2] * 2 and first.labels.tolist() == [1, 2, 3] * 2


@pytest.mark.parametrize("wrong, said", [
    ({"boundary": "both"}, "boundary must be one of drop, test, train"),
    ({"fraction": 0}, "fraction must be at least 1"),
    ({"min_length": 1}, "min_length must be at least 2"), ({"test_seconds": 0}, "test_seconds must be above 0"),
])
def test_a_wrong_choice_is_told(wrong, said):
    with pytest.raises(ValueError, match=said):
        Protocol(**wrong)
    with pytest.raises(ValueError, match="known are srgnn, dgtn, lessr, scalable, narm"):
        preprocess(clicks_of([(1, 1, 1, None)]), "sr-gnn")


def test_too_small_a_log_is_told():
    with pytest.raises(DataError, match=r"no training sessions are left after: log: 1 sessions; .* min_support=5"):
        preprocess(clicks_of([(1, 1, 1000, None), (1, 2, 2000, None)]))
