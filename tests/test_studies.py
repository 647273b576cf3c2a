"""The book's measurements: what collides is counted right, and the others return what the book reads."""

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from toys import chain, random_clicks

from sbr_core import studies
from sbr_core.config import TrainConfig
from sbr_core.datasets import load
from sbr_core.models import build
from sbr_core.sessions import Sessions

CLICKS = [[1, 2, 1, 2, 1, 3], [1, 2, 1, 3, 4], [1, 1, 1, 5], [3, 2, 1], [2, 3, 1]]


def test_inputs_are_the_prefixes_with_how_often_each_occurs():
    found = studies.inputs(Sessions.from_lists([[1, 2, 3], [1, 2, 4], [5]], 6))
    assert found == {(1,): 2, (1, 2): 2}


def test_two_inputs_collide_if_their_graph_and_last_click_agree():
    found = Counter({(1, 2, 1, 2, 1, 3): 1, (1, 2, 1, 3): 2, (3, 1, 2): 1})
    (group,) = studies.colliding(found, studies.VIEWS["graph, last click"])
    assert sorted(group) == [(1, 2, 1, 2, 1, 3), (1, 2, 1, 3)]
    assert studies.colliding(found, studies.VIEWS["counted graph, last click"]) == []
    assert len(studies.colliding(found, studies.VIEWS["items"])[0]) == 3


def test_collisions_equal_a_comparison_of_all_pairs():
    found = Counter(tuple(session) for session in random_clicks(150, 4, 5, seed=2))
    for view in studies.VIEWS.values():
        collide = {s for s, t in combinations(found, 2) if view(s) == view(t)}
        collide |= {t for s, t in combinations(found, 2) if view(s) == view(t)}
        groups = studies.colliding(found, view)
        assert {s for group in groups for s in group} == collide
        assert studies._size(groups, found)["examples"] == sum(found[s] for s in collide)


def test_repeats_are_counted_by_session():
    assert studies._repeats(Sessions.from_lists(CLICKS, 6)) == {
        "all": 5, "repeated item": 3, "immediate repeat": 1, "repeated step": 2,
    }  # fmt: skip


def test_the_study_of_a_dataset_holds_what_the_book_reads():
    found = studies.collision_study(["demo"])["datasets"]["demo"]
    data = load("demo")
    assert found["fingerprint"] == data.fingerprint and sum(found["session_lengths"]) == len(data.train)
    assert found["inputs"]["examples"] == data.statistics()["train_examples"]
    assert found["collisions"].keys() == studies.VIEWS.keys()


def test_the_study_of_the_softmax_has_a_row_per_catalogue():
    rows = studies.softmax_study((50, 60))["softmax"]
    assert [row["num_items"] for row in rows] == [50, 60]


def test_the_grid_of_the_softmax_leaves_out_scores_that_are_too_many(monkeypatch):
    monkeypatch.setattr(studies, "GRID_BYTES", 4 * 4 * 20)
    rows = studies.softmax_grid_study((20, 30), (3, 4), (2,))["grid"]
    assert [(row["batch_size"], row["dim"], row["num_items"]) for row in rows] == [(3, 2, 20), (4, 2, 20)]
    assert {"plain fp32", "kept fp32", "blocked fp32"} == {key for key in rows[0] if " " in key}


@pytest.mark.parametrize("table_optimizer", ["sparse-adam", "rowwise-adam", "adam"])
def test_only_adam_moves_rows_that_a_step_does_not_name(table_optimizer):
    train = chain(60, 40).prefixes()
    fields = {"loss": "negative-sampling", "loss_arguments": {"negatives": 3}, "table_optimizer": table_optimizer}
    torch.manual_seed(0)
    model = build("stamp", 60, dim=6)
    moved, named = studies.row_movement(model, train, TrainConfig(batch_size=4, l2=0.0, block=1, **fields), 8)
    assert moved.shape == named.shape == (8, 61) and (moved[named] > 0).all()
    assert 4 < named.sum(1).double().mean() < 40
    before = named.cumsum(0) - named.long() > 0  # named by an earlier step
    assert (moved[~named & ~before] == 0).all()
    assert (moved[~named & before] > 0).all() if table_optimizer == "adam" else (moved[~named] == 0).all()


def test_the_study_of_table_optimizers_measures_accuracy_and_movement(monkeypatch):
    demo = load("demo")
    small = replace(demo, train=demo.train.select(0, 400), test=demo.test.select(0, 60))
    monkeypatch.setattr(studies.datasets, "load", lambda name: small)
    few = {"loss_arguments": {"negatives": 4}}
    monkeypatch.setattr(studies, "TABLE_VARIANTS", {"SparseAdam": few, "none": few | {"lr": 1e-9}})
    monkeypatch.setattr(studies, "RARE", 3)
    row, still = studies.table_study(["demo"], [5], epochs=2, examples=50, steps=6)["table_optimizers"]
    assert row["examples"] == sum(group["examples"] for group in row["groups"]) == 50 and len(row["losses"]) == 2
    assert row["rows_named"] == row["rows_moved"] > 4 and row["path_unnamed"] == 0
    weighted = sum(group["examples"] * group.get("MRR@20", 0) for group in row["groups"]) / 50
    assert row["metrics"]["MRR@20"] == pytest.approx(weighted)
    assert row["seed"] == still["seed"] == 5
    assert row["against"] == {"examples": 50, "difference": 0, "low": 0, "high": 0}
    gap = still["metrics"]["MRR@20"] - row["metrics"]["MRR@20"]
    assert gap != 0 and still["against"]["difference"] == pytest.approx(gap, abs=1e-4)
    assert still["against"]["low"] < gap < still["against"]["high"]
    rare = sum(group["examples"] for group in row["groups"] if group["to"] is not None and group["to"] < 10)
    assert 0 < still["against, rare"]["examples"] <= rare < 50


def test_every_study_of_the_book_is_read_and_one_that_is_not_there_is_none(request, tmp_path):
    paths = sorted((request.config.rootpath / "book" / "results" / "studies").glob("*.json"))
    assert paths and [studies.read_study(path) for path in paths] == [json.loads(path.read_text()) for path in paths]
    assert studies.read_study(tmp_path / "none.json") is None


@pytest.mark.parametrize("shape", ["rows", "datasets"])
def test_a_study_of_other_data_is_refused_by_name(tmp_path, shape):
    part, path = {"fingerprint": "0" * 64}, tmp_path / "edited.json"
    for name, refused in (("demo", True), ("my shop", False)):
        found = [{"dataset": name} | part] if shape == "rows" else {"datasets": {name: part}}
        path.write_text(json.dumps(found))
        if refused:
            with pytest.raises(ValueError, match="edited.json: its fingerprint 000000000000... is not that of demo"):
                studies.read_study(path)
        else:
            assert studies.read_study(path) == found


def test_a_study_that_is_not_json_is_refused_by_name(tmp_path):
    (tmp_path / "cut.json").write_text("[{")
    with pytest.raises(ValueError, match="cut.json is not a study"):
        studies.read_study(tmp_path / "cut.json")
