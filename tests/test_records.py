"""Records of runs: which epoch each protocol picks, what is written, what is refused."""

import json
import time

import numpy as np
import pytest
import torch
from toys import random_sessions

from sbr_core import records
from sbr_core.datasets import Dataset
from sbr_core.recipes import Recipe
from sbr_core.train import TrainConfig


def epoch(number, hr, mrr, part="test"):
    intervals = {"HR@20 interval": [hr - 1, hr + 1], "MRR@20 interval": [mrr - 1, mrr + 1]}
    return {"epoch": number, "loss": 1.0, part: {"HR@20": hr, "MRR@20": mrr} | intervals}


FINAL = [epoch(1, 50.0, 20.0), epoch(2, 52.0, 19.0), epoch(3, 51.0, 21.0), epoch(4, 40.0, 18.0)]
SELECT = [epoch(1, 60.0, 22.0, "validation"), epoch(2, 61.0, 24.0, "validation"), epoch(3, 62.0, 23.0, "validation")]
EPOCHS = {"select": SELECT, "final": FINAL}


def test_as_published_takes_the_best_test_value_of_every_metric_for_itself():
    best = records.both_columns(EPOCHS)["as_published"]
    assert best == {"HR@20": 52.0, "HR@20 epoch": 2, "MRR@20": 21.0, "MRR@20 epoch": 3}


def test_honest_takes_all_metrics_at_the_epoch_that_the_held_out_sessions_pick():
    honest = records.both_columns(EPOCHS)["honest"]
    assert honest == {
        "HR@20": 52.0, "HR@20 interval": [51, 53], "MRR@20": 19.0, "MRR@20 interval": [18, 20], "epoch": 2,
    }  # fmt: skip


def test_of_equal_epochs_the_first_is_taken():
    twice = {
        "select": [epoch(n, 1.0, 5.0, "validation") for n in (1, 2)],
        "final": [epoch(n, 3.0, 3.0) for n in (1, 2)],
    }
    columns = records.both_columns(twice)
    assert columns["honest"]["epoch"] == 1 and columns["as_published"]["HR@20 epoch"] == 1


def test_a_system_that_only_counts_has_one_epoch():
    columns = records.both_columns({"final": FINAL[:1]})
    assert columns["honest"]["epoch"] == 1 and columns["as_published"]["MRR@20"] == columns["honest"]["MRR@20"] == 20.0


def test_without_a_select_run_the_last_epoch_is_the_honest_one():
    columns = records.both_columns({"final": FINAL})
    assert columns["honest"]["epoch"] == len(FINAL) > 1
    assert columns["honest"]["HR@20"] == FINAL[-1]["test"]["HR@20"]


def test_a_final_run_that_stopped_before_the_picked_epoch_answers_with_its_last():
    columns = records.both_columns({"select": [epoch(9, 1.0, 9.0, "validation")], "final": FINAL[:2]})
    assert columns["honest"]["epoch"] == 2


@pytest.fixture
def record(tmp_path):
    sessions = random_sessions(10)
    dataset = Dataset("toy", sessions, sessions, np.arange(30), "f" * 64, "test")
    recipe = Recipe("sr-gnn", {"dim": 4}, TrainConfig(seed=5), "made up")
    watch = records.Watch()
    time.sleep(0.01)
    path = tmp_path / "new" / records.file_name("sr-gnn", "toy", 5)
    return records.write(path, recipe, recipe.config, dataset, EPOCHS, watch)


def test_a_record_says_what_ran_and_what_came_of_it(record):
    assert record.name == "sr-gnn--toy--seed5.json"
    (found,) = records.load(record.parent)
    assert found == json.loads(record.read_text(encoding="utf-8"))
    assert (found["schema"], found["system"], found["dataset"], found["seed"]) == (records.SCHEMA, "sr-gnn", "toy", 5)
    assert (found["protocol"], found["fingerprint"]) == ("test", "f" * 64)
    assert found["recipe"]["arguments"] == {"dim": 4} and found["recipe"]["config"]["batch_size"] == 100
    assert found["recipe"]["source"] == "made up" and found["runs"] == EPOCHS
    assert {"as_published", "honest"} < found.keys() and found["honest"]["epoch"] == 2
    assert found["versions"]["torch"] == torch.__version__ and "python" in found["versions"]
    assert found["seconds"] >= 0.01 and found["peak_rss_mb"] > 50 and found["device"].startswith("CPU, ")
    assert found["commit"] is None or len(found["commit"]) == 40
    assert [path.name for path in record.parent.iterdir()] == [record.name]


@pytest.mark.parametrize(
    "text, reason",
    [('{"schema": 1, "sys', "is not a record"), ("[1, 2]", "is not a record"), ("{}", "'schema'"),
     ("", "is not a record"),
     ('{"schema": 99}', "it has schema 99, this package reads 1"), ("null", "is not a record")],
)  # fmt: skip
def test_a_file_that_is_not_a_record_is_refused_by_name(text, reason, record):
    damaged = record.parent / "zz.json"
    damaged.write_text(text)
    with pytest.raises(ValueError, match=f"{damaged} is not a record: .*" if reason == "is not a record" else reason):
        records.load(record.parent)


def test_records_are_read_in_order_of_their_names(record):
    for name in ("a--toy--seed0.json", "zz--toy--seed0.json"):
        (record.parent / name).write_text(record.read_text().replace('"sr-gnn"', f'"{name[:2]}"'))
    assert [found["system"] for found in records.load(record.parent)] == ["a-", "sr-gnn", "zz"]
    assert records.load(record.parent / "nothing here") == []


def test_peak_memory_is_that_of_this_process():
    before = records.peak_rss_mb()
    block = bytearray(b"x" * 200_000_000)
    assert records.peak_rss_mb() >= before and records.peak_rss_mb() > len(block) / 1e6
