"""Readers of raw logs and of the field's pickles: values, and one clear error for each kind of bad file."""
import gzip
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbr_core import log_columns, pickles, readers
from sbr_core.pickles import DataError

RAW = Path(os.environ.get("SBR_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")) / "raw"
YOO = "11,2014-04-07T10:51:09.277Z,214,0\n11,2014-04-07T10:54:09.868Z,99,S\n7,2014-04-07T10:54:46.998Z,214,0\n"


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def raises(path, message, read=pickles.read_runs, **how):
    """Reading `path` gives one DataError that names the file and matches `message`."""
    with pytest.raises(DataError, match=message) as error:
        read(path, **how)
    assert str(path) in str(error.value) and error.value.__suppress_context__ | (error.value.__cause__ is None)


# ---- raw logs


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_yoochoose_in_chunks(tmp_path, chunk):
    clicks = readers.read_yoochoose(written(tmp_path / "yoochoose-clicks.dat", YOO), chunk)
    assert clicks.session.tolist() == [0, 0, 1] and clicks.session_ids.tolist() == [11, 7]
    assert clicks.item.tolist() == [0, 1, 0] and clicks.item_ids.tolist() == [214, 99]
    expected = [pd.Timestamp(t).value // 10**6 for t in ("2014-04-07T10:51:09.277", "2014-04-07T10:54:09.868",
                                                        "2014-04-07T10:54:46.998")]
    assert clicks.time.tolist() == expected and clicks.offset is None and len(clicks) == 3


@pytest.mark.parametrize("header", ["session_id;user_id;item_id;timeframe;eventdate",
                                    "sessionId;userId;itemId;timeframe;eventdate"])
def test_diginetica_in_both_spellings(tmp_path, header):
    rows = "\n1;NA;81766;526309;2016-05-09\n1;NA;31331;9;2016-05-10\n"
    path = written(tmp_path / "train-item-views.csv", header + rows)
    clicks = readers.read_diginetica(path)
    day = pd.Timestamp("2016-05-09").value // 10**6
    assert clicks.time.tolist() == [day, day + 86_400_000] and clicks.offset.tolist() == [526_309, 9]
    assert clicks.exact.tolist() == [day + 526_309, day + 86_400_009] and clicks.item_ids.tolist() == [81766, 31331]


def test_diginetica_sample_equals_a_plain_loop():
    path = RAW / "diginetica_sample_train-item-views.csv"
    if not path.is_file():
        pytest.skip(f"no real data at {RAW}: set SBR_DATA")
    lines = [line.split(";") for line in path.read_text().splitlines()[1:]]
    clicks = readers.read_diginetica(path, chunk=1000)
    assert clicks.session_ids[clicks.session].tolist() == [int(line[0]) for line in lines]
    assert clicks.item_ids[clicks.item].tolist() == [int(line[2]) for line in lines]
    assert clicks.offset.tolist() == [int(line[3]) for line in lines]


def meli(*users: list) -> bytes:
    names = ("event_info", "event_timestamp", "event_type")
    users = [[dict(zip(names, event, strict=True)) for event in user] for user in users]
    lines = [{"user_history": user, "item_bought": 5} for user in users]
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())


def test_meli_views_are_clicks(tmp_path):
    view = (1786148, "2019-10-19T11:25:42.444-0400", "view")
    path = written(tmp_path / "m.jl.gz", meli([view, ("RADIO", view[1], "search")], [], [(7, view[1], "view"), view]))
    clicks = readers.read_meli(path)
    assert clicks.session_ids.tolist() == [1, 3] and clicks.session.tolist() == [0, 1, 1]
    assert clicks.item_ids[clicks.item].tolist() == [1786148, 7, 1786148]
    assert clicks.time[0] == pd.Timestamp("2019-10-19T15:25:42.444").value // 10**6


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet"])
def test_a_log_of_your_own(tmp_path, kind):
    frame = pd.DataFrame({"who": ["b", "a", "b"], "what": ["007", "x y", "007"], "when": [1.5, 2.25, 1e9], "else": 0})
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, sep="\t" if kind == "tsv" else ",", index=False)
    clicks = readers.read_log(path, "who", "what", "when", chunk=2)
    assert clicks.session_ids.tolist() == ["b", "a"] and clicks.session.tolist() == [0, 1, 0]
    assert clicks.item_ids.tolist() == ["007", "x y"] and clicks.time.tolist() == [1500, 2250, 10**12]


def sharded(frame, folder, cuts):
    """The rows of a frame as Parquet files of a folder."""
    folder.mkdir()
    for number, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(frame)], strict=True)):
        frame.iloc[begin:end].to_parquet(folder / f"part-{number:05}.parquet")
    return folder


def test_shards_are_read_as_one_file(tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"session": draw.integers(0, 30, 200), "item": draw.integers(0, 50, 200), "time": range(200)})
    frame.to_parquet(tmp_path / "log.parquet")
    whole = readers.read_log(tmp_path / "log.parquet", chunk=7)
    parts = readers.read_log(sharded(frame, tmp_path / "shards", [1, 60, 60, 199]), chunk=7)
    for name in ("session", "item", "time", "session_ids", "item_ids"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name


def test_an_error_in_a_shard_names_the_shard_and_its_row(tmp_path):
    frame = pd.DataFrame({"session": ["1", "1", "2", "2", ""], "item": ["5"] * 5, "time": range(5)})
    said = "part-00001.parquet: row 2 holds ''; the session is missing"
    raises(sharded(frame, tmp_path / "shards", [3]), said, readers.read_log)
    (tmp_path / "empty").mkdir()
    raises(tmp_path / "empty", "a folder without Parquet files", readers.read_log)


def test_parquet_dates_and_whole_number_ids(tmp_path):
    when = pd.to_datetime(["2020-01-01T00:00:00.5", "2020-01-02"], format="ISO8601")
    pd.DataFrame({"session": [1, 1], "item": [20, 10], "time": when}).to_parquet(tmp_path / "log.parquet")
    clicks = readers.read_log(tmp_path / "log.parquet")
    assert clicks.item_ids.dtype == np.int64 and clicks.item_ids.tolist() == [20, 10]
    assert clicks.time.tolist() == [1577836800500, 1577923200000]


CELL = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(
    lambda text: text not in log_columns.MISSING and not text.endswith(".0"))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELL | st.integers(0, 99).map(str), CELL | st.integers(0, 10**20).map(str),
                               st.integers(0, 10**12)), min_size=1, max_size=30), chunk=st.integers(1, 8))
def test_any_text_survives_the_reader(tmp_path_factory, rows, chunk):
    path = tmp_path_factory.mktemp("log") / "log.csv"
    frame = pd.DataFrame(rows, columns=["session", "item", "time"])
    frame.assign(time=frame.time / 1000).to_csv(path, index=False)
    clicks = readers.read_log(path, chunk=chunk)
    assert list(map(str, clicks.session_ids[clicks.session].tolist())) == [row[0] for row in rows]
    assert list(map(str, clicks.item_ids[clicks.item].tolist())) == [row[1] for row in rows]
    assert clicks.time.tolist() == [row[2] for row in rows]
    assert list(dict.fromkeys(clicks.session.tolist())) == list(range(len(clicks.session_ids)))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 400)), min_size=1, max_size=40),
       gap=st.integers(1, 60))
def test_cut_by_gap_equals_a_loop(rows, gap):
    users = list(dict.fromkeys(user for user, _ in rows))
    clicks = readers.Clicks(np.array([users.index(user) for user, _ in rows]), np.arange(len(rows)),
                            np.array([time * 1000 for _, time in rows]), np.array(users), np.arange(len(rows)))
    expected = []
    for user in users:
        mine, last = sorted((time, i) for i, (who, time) in enumerate(rows) if who == user), None
        for time, i in mine:
            if last is None or time - last > gap:
                expected.append((user, []))
            expected[-1][1].append(i)
            last = time
    cut = clicks.cut_by_gap(gap)
    assert cut.session_ids.tolist() == [user for user, _ in expected]
    assert [cut.item[cut.session == s].tolist() for s in range(len(expected))] == [items for _, items in expected]


def test_bad_yoochoose_rows_are_named(tmp_path):
    for number, (line, said) in enumerate([
        ("-5,2014-04-07T10:51:09.277Z,9,0", "row 4 holds '-5'; session must be a whole number"),
        ("5,2014-04-07T10:51:09.277Z,x9,0", "row 4 holds 'x9'; item must be a whole number"),
        (f"5,2014-04-07T10:51:09.277Z,{10**25},0", f"row 4 holds '{10**25}'; item must be a whole number"),
        (f"5,2014-04-07T10:51:09.277Z,{2**63},0", "row 4 holds .*; item must be a whole number"),
        ("5,yesterday,9,0", "row 4 holds 'yesterday'; time must be ISO 8601"),
        ("5,,9,0", "row 4 holds ''; time must be ISO 8601"),
        ("5,2014-04-07T10:51:09.277Z,,0", "row 4 holds ''; item must be"),
    ]):
        path = written(tmp_path / f"{number}.dat", YOO + line + "\n")
        for chunk in (1, 3, 100):
            raises(path, said, readers.read_yoochoose, chunk=chunk)


def test_bad_logs_are_named(tmp_path):
    read = readers.read_log
    raises(tmp_path / "none.csv", "no such file", read)
    raises(written(tmp_path / "empty.csv", ""), "the file is empty", read)
    raises(written(tmp_path / "head.csv", "session,item,time\n"), "no clicks in it", read)
    path = written(tmp_path / "a.csv", "sid,item,ts\n1,2,3\n")
    raises(path, r"no column session, time; the columns found .* are sid, item, ts", read)
    raises(written(tmp_path / "b.csv", "session,item,time\n1,2,3\n1,,3\n"), "row 3 holds ''; the item is missing", read)
    raises(written(tmp_path / "c.csv", "session,item,time\n1,2,3\n1,2,x\n"), "row 3 holds 'x'; time must", read)
    raises(written(tmp_path / "d.csv", "session,item,time\n1,2,1396860669277\n"), "divide milliseconds by 1000", read)
    raises(written(tmp_path / "e.csv.gz", b"session,item,time\n1,2,3\n"), "damaged or of another form", read)
    whole = gzip.compress(("session,item,time\n" + "".join(f"{n},{n * 7919 % 997},3\n" for n in range(5000))).encode())
    raises(written(tmp_path / "f.csv.gz", whole[: len(whole) // 2]), "damaged or of another form", read)
    raises(written(tmp_path / "g.parquet", b"PAR1 no"), "damaged or of another form", read)
    raises(written(tmp_path / "h.csv", "session,item,time\n1,2,3\n1,2\n"), "row 3 holds ''; time must be", read)
    pd.DataFrame({"session": [1], "item": [1]}).to_parquet(tmp_path / "i.parquet")
    raises(tmp_path / "i.parquet", "no column time", read)
    with pytest.raises(ValueError, match="session_gap is a number of seconds above 0, got 0"):
        readers.read_log(written(tmp_path / "j.csv", "session,item,time\n1,2,3\n")).cut_by_gap(0)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_row_with_a_field_too_many_is_named(tmp_path, chunk):
    head, read, said = "session,item,time\n1,2,3\n", readers.read_log, "row 4 holds one field too many, '9'; a row has"
    raises(written(tmp_path / "a.csv", head + "1,2,3\n1,2,3,9\n1,2,3\n"), said, read, chunk=chunk)
    said = "row 2 holds one field too many, '3'"  # a header that leaves out the column of row names
    raises(written(tmp_path / "b.csv", "session,item,time\n0,1,2,3\n1,1,2,3\n"), said, read, chunk=chunk)
    raises(written(tmp_path / "c.dat", YOO + "7,2014-04-07T10:54:46.998Z,214,0,x\n"),
           "row 4 holds one field too many, 'x'; a row has 4 fields", readers.read_yoochoose, chunk=chunk)
    raises(written(tmp_path / "d.csv", "session_id;user_id;item_id;timeframe;eventdate\n1;NA;8;5;2016-05-09;6\n"),
           "row 2 holds one field too many, '6'; a row has 5 fields: put text that holds the separator in quotes",
           readers.read_diginetica, chunk=chunk)
    raises(written(tmp_path / "f.csv", head + "1,2,3,4,5\n"), "row 3 (has 5 fields|holds one field too many)", read)
    quoted = written(tmp_path / "e.csv", head.replace("1,2,3", '1,"2,5",3') + "1,2,3,\n")  # quotes, an empty last field
    assert read(quoted, chunk=chunk).item_ids.tolist() == ["2,5", "2"]


HEAD = "session,item,time\n"


def test_whole_numbers_kept_as_floats_are_whole_number_ids(tmp_path):
    frame = pd.DataFrame({"session": [1, 1, 2, 2], "item": [20, 10, 20, 30], "time": range(4)})
    folder = sharded(frame, tmp_path / "shards", [2])
    frame.iloc[2:].astype({"item": float, "session": "Float64"}).to_parquet(folder / "part-00001.parquet")
    clicks = readers.read_log(folder)
    assert clicks.item_ids.tolist() == [20, 10, 30] and clicks.item_ids.dtype == np.int64
    assert clicks.session_ids.tolist() == [1, 2]
    path = written(tmp_path / "floats.csv", HEAD + "1.0,20.0,5\n1.0,10.0,6\n-2.0,20.0,7\n")
    assert readers.read_log(path, chunk=1).item_ids.tolist() == [20, 10]
    assert readers.read_log(path).session_ids.tolist() == [1, -2]
    versions = written(tmp_path / "versions.csv", HEAD + "a,1.0,5\na,1.5,6\n")
    assert readers.read_log(versions).item_ids.tolist() == ["1.0", "1.5"]


def test_ids_that_are_no_whole_numbers_are_named(tmp_path):
    for number, (value, said) in enumerate([(0.5, "row 2 holds '0.5'"), (2.0**53, "row 2 holds '9007199254740992.0'"),
                                            (np.inf, "row 2 holds 'inf'"), (np.nan, "row 2 holds 'nan'; the item is")]):
        pd.DataFrame({"session": [1, 1], "item": [1.0, value], "time": [1, 2]}).to_parquet(tmp_path / f"{number}.pq")
        raises(tmp_path / f"{number}.pq", said, readers.read_log)
    path = written(tmp_path / "both.csv", HEAD + "1,20.0,5\n1,20,6\n")
    raises(path, "item 20 is also there as 20.0", readers.read_log)


@pytest.mark.parametrize("word", ["NULL", "null", "NA", "N/A", "NaN", "nan", "None", "<NA>", "\\N"])
@pytest.mark.parametrize("name", ["session", "item"])
def test_an_id_that_says_it_is_missing_is_refused(tmp_path, word, name):
    row = {"session": "1", "item": "2"} | {name: word}
    path = written(tmp_path / "a.csv", HEAD + f"1,2,3\n{row['session']},{row['item']},4\n")
    said = re.escape(f"row 3 holds {word!r}; the {name} is missing; correct or delete the row (if {word} is an id")
    for chunk in (1, 100):
        raises(path, said, readers.read_log, chunk=chunk)


def test_dates_written_as_numbers_are_refused(tmp_path):
    path = written(tmp_path / "a.csv", "session,item,day\n1,2,20140402\n1,3,20141231\n")
    raises(path, "column day holds dates such as 20140402, .* 2014-04-02", readers.read_log, time="day")
    pd.DataFrame({"session": [1], "item": [2], "time": [20140402]}).to_parquet(tmp_path / "a.pq")
    raises(tmp_path / "a.pq", "column time holds dates such as 20140402", readers.read_log)
    seconds = written(tmp_path / "b.csv", HEAD + "1,2,20140402\n1,3,20141332\n")  # there is no 13th month
    assert readers.read_log(seconds, chunk=1).time.tolist() == [20140402000, 20141332000]
    path = written(tmp_path / "c.csv", HEAD + "1,2,20140402111746\n")
    raises(path, "divide milliseconds by 1000.* or ISO 8601", readers.read_log)


def test_separators_and_suffixes(tmp_path):
    tabs = HEAD.replace(",", "\t") + "1\t2\t3\n"
    for name, how in {"a.txt": {"sep": "\\t"}, "b.txt": {"sep": "\t"}, "c.TSV": {}, "d.csv.Tsv": {"sep": ""}}.items():
        assert readers.read_log(written(tmp_path / name, tabs), **how).item_ids.tolist() == [2]
    pd.DataFrame({"session": [1], "item": [2], "time": [3]}).to_parquet(tmp_path / "E.PARQUET")
    assert readers.read_log(tmp_path / "E.PARQUET").item_ids.tolist() == [2]
    with pytest.raises(ValueError, match=r"sep is one character, or \\t for a tab; got '::'"):
        readers.read_log(tmp_path / "a.txt", sep="::")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_text_of_another_encoding_is_told_so(tmp_path, encoding):
    for number, content in enumerate((HEAD + "1,Größe,3\n", HEAD.replace("item", "Größe") + "1,2,3\n")):
        path = written(tmp_path / f"{number}.csv", content.encode(encoding))
        raises(path, "not text in UTF-8 .*; save it as CSV in UTF-8", readers.read_log)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_blank_rows_are_counted_and_skipped(tmp_path, chunk):
    rows = "1,2,3\n\n1,5,4\n,,\n\n"
    assert readers.read_log(written(tmp_path / "a.csv", HEAD + rows), chunk=chunk).item_ids.tolist() == [2, 5]
    path = written(tmp_path / "b.csv", HEAD + rows + "1,,5\n")
    raises(path, "row 7 holds ''; the item is missing", readers.read_log, chunk=chunk)
    path = written(tmp_path / "c.csv", HEAD + rows + "1,2,3,4\n")
    raises(path, "row 7 holds one field too many", readers.read_log, chunk=chunk)
    path = written(tmp_path / "d.dat", YOO.replace("\n", "\n\n"))
    assert readers.read_yoochoose(path, chunk).item_ids.tolist() == [214, 99]
    raises(written(tmp_path / "e.csv", HEAD + "\n\n"), "no clicks in it", readers.read_log, chunk=chunk)


def test_shards_in_subfolders_are_read(tmp_path):
    frame = pd.DataFrame({"session": [1, 1, 2], "item": [7, 8, 9], "time": range(3)})
    for day in (0, 1, 2):
        (tmp_path / f"log/{day}.parquet").mkdir(parents=True)
        frame.iloc[day : day + 1].to_parquet(tmp_path / f"log/{day}.parquet/part-0.parquet")
    (tmp_path / "log/_temporary").mkdir()
    frame.to_parquet(tmp_path / "log/_temporary/part-0.parquet")
    frame.to_parquet(tmp_path / "log/.part-0.parquet")
    assert readers.read_log(tmp_path / "log").item.tolist() == [0, 1, 2]


def test_one_column_is_not_two(tmp_path):
    path = written(tmp_path / "a.csv", "session,item,time\n1,2,3\n")
    raises(path, "session=item, item=item, time=time name one column twice", readers.read_log, session="item")


def test_bad_meli_files_are_named(tmp_path):
    read, good = readers.read_meli, meli([(1, "2019-10-19T11:25:42.444-0400", "view")])
    raises(written(tmp_path / "a.gz", b"not gzip"), "not a complete gzip file", read)
    raises(written(tmp_path / "b.gz", good[:-12]), "not a complete gzip file", read)
    raises(written(tmp_path / "c.gz", gzip.compress(b'{"user_history": []}\n{"user": 1}\n')), "line 2 is no MeLi", read)
    view = (1, "2019-10-19T11:25:42.444-0400", "view")
    users = [[view] * 3, [], [view, ("a", view[1], "search"), ("x", view[1], "view")]]
    raises(written(tmp_path / "d.gz", meli(*users)), "row 3 holds 'x'; item must be", read)  # a line, not the 5th view
    raises(written(tmp_path / "f.gz", meli([view] * 3, [(1, "yesterday", "view")])), "row 2 holds 'yesterday'", read)
    raises(written(tmp_path / "e.gz", gzip.compress(b"")), "no clicks in it", read)


# ---- pickles


def pickled(path: Path, value, protocol: int = 4) -> Path:
    return written(path, pickle.dumps(value, protocol))


def sessions_of(runs: pickles.Runs) -> list[list[int]]:
    return [part.tolist() for part in np.split(runs.items, runs.offsets[1:-1])]


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path, protocol):
    path = pickled(tmp_path / "all_train_seq.txt", [[1, 2], (3, 70_000, 3)], protocol)
    assert sessions_of(pickles.read_runs(path)) == [[1, 2], [3, 70_000, 3]]
    path = pickled(tmp_path / "unaug_train.txt", ([[1, 2], [3]], [0, 2]), protocol)
    assert sessions_of(pickles.read_runs(path)) == [[1, 2], [3]]
    assert pickles.read(pickled(tmp_path / "text.txt", ["a", "é"], protocol)) == ["a", "é"]


class Runs:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_runs_code_is_raises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raises(pickled(tmp_path / "test.txt", ([[1]], Runs())), r"refused, it asks for (posix|nt).system")
    assert not (tmp_path / "pwned").exists()
    raises(pickled(tmp_path / "train.txt", [np.arange(3)]), r"refused, it asks for numpy.*store plain lists")
    raises(written(tmp_path / "old.txt", b"cos\nsystem\n(S'touch pwned'\ntR."), "refused, it asks for os.system")
    raises(written(tmp_path / "eval.txt", b"c__builtin__\neval\n(S'1'\ntR."), "refused, it asks for .*builtin.*eval")
    assert not (tmp_path / "pwned").exists()


def test_bad_pickles_are_named(tmp_path):
    whole = pickle.dumps([[1, 2, 3]] * 50)
    raises(tmp_path / "none.txt", "no such file")
    raises(written(tmp_path / "a.txt", b""), "the file is empty")
    raises(written(tmp_path / "b.txt", whole[: len(whole) // 2]), "not a complete pickle")
    raises(written(tmp_path / "c.txt", b"session,item\n1,2\n"), "not a complete pickle")
    raises(pickled(tmp_path / "d.txt", {"a": 1}), "holds dict where a non-empty list")
    raises(pickled(tmp_path / "e.txt", []), "holds list where a non-empty list")
    raises(pickled(tmp_path / "f.txt", [[1], [], [2]]), "row 1 is an empty session")
    raises(pickled(tmp_path / "g.txt", [[1], [3, -4]]), "row 1 holds int -4; item ids are whole numbers")
    raises(pickled(tmp_path / "h.txt", [[1], [0]]), "row 1 holds int 0; .*0 is padding")
    raises(pickled(tmp_path / "i.txt", [[1], [2**31]]), f"row 1 holds int {2**31}")
    raises(pickled(tmp_path / "j.txt", [[1], [10**30]]), "row 1 holds int 10000")
    raises(pickled(tmp_path / "k.txt", [[1], ["7"]]), "row 1 holds str '7'")
    raises(pickled(tmp_path / "l.txt", [[1], [True]]), "row 1 holds bool True")
    raises(pickled(tmp_path / "m.txt", [[1], [1.5]]), "row 1 holds float 1.5")
    raises(pickled(tmp_path / "n.txt", [[1], 5]), "row 1 is int 5, not a list")
    raises(pickled(tmp_path / "o.txt", ([[1], [2]], [3])), "2 prefixes but 1 labels")
    raises(pickled(tmp_path / "p.txt", ([[1], []], [3, 4])), "row 1 is an empty session")
    raises(pickled(tmp_path / "q.txt", ([[1], [2]], [3, "x"])), "holds str 'x'")


@settings(max_examples=150, deadline=None)
@given(noise=st.binary(max_size=60), cut=st.integers(0, 60))
def test_noise_is_refused_or_read(tmp_path_factory, noise, cut):
    whole = pickle.dumps([[1, 2, 3], [4]])
    path = written(tmp_path_factory.mktemp("noise") / "train.txt", whole[:cut] + noise)
    try:
        runs = pickles.read_runs(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert runs.items.min() >= 1 and runs.offsets[-1] == len(runs.items)


SESSIONS = st.lists(st.lists(st.integers(1, 3), min_size=2, max_size=5), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(sessions=SESSIONS, longest_first=st.booleans())
def test_chains_rebuild_whole_sessions(sessions, longest_first):
    ends = [(s, e) for s in sessions for e in (range(len(s), 1, -1) if longest_first else range(2, len(s) + 1))]
    items = np.concatenate([s[:e] for s, e in ends])
    offsets = np.cumsum([0] + [e for _, e in ends])
    runs = pickles.chains(items, offsets)
    found = sessions_of(runs)
    expected = sorted(tuple(s[:e]) for s, e in ends)
    if runs.session is None and any(len(s) > 2 for s in sessions) and found != sessions:
        # only two orders of the same examples can be confused: then both readings list the same inputs and labels
        assert sorted(tuple(s[:e]) for s in found for e in range(2, len(s) + 1)) == expected
    else:
        assert found == sessions and runs.session is None


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.integers(1, 2), min_size=2, max_size=4), min_size=1, max_size=12))
def test_chains_keep_every_row_of_any_file(rows):
    runs = pickles.chains(np.concatenate(rows), np.cumsum([0] + [len(row) for row in rows]))
    sessions = sessions_of(runs)
    if runs.session is None:
        found = [s[:e] for s in sessions for e in range(2, len(s) + 1)]
        assert sorted(found) == sorted(rows)
    else:
        assert [sessions[s][: n + 1] for s, n in zip(runs.session, runs.length, strict=True)] == rows
