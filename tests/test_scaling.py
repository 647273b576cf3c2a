"""The cost of a step against the catalogue: what is measured, what is not tried, and the slope."""

import math
from types import SimpleNamespace

import pytest

from sbr_core import scaling


def test_a_step_is_measured_with_its_memory():
    form = scaling.FORMS["negative sampling"]
    row = scaling.step_cost("stamp", 3000, form, batch_size=50, dim=8, steps=2, sessions=500)
    assert row["items"] == 3000 and row["steps"] == 2 and row["seconds_per_1000"] > 0
    assert row["peak_rss_mb"] > row["peak_model_mb"] >= 0


def test_what_does_not_fit_is_not_tried():
    assert scaling.needed_bytes("full softmax, plain", 10**7) > scaling.LIMIT_BYTES
    assert scaling.needed_bytes("negative sampling, row-wise", 10**7) == 4 * 64 * 10**7 < scaling.LIMIT_BYTES
    assert scaling.needed_bytes("full softmax", 10**6) == 4 * 4 * 64 * 10**6


def test_a_whole_epoch_sees_every_example_and_is_evaluated():
    row = scaling.whole_epoch("stamp", "negative sampling, L2", "demo", batch_size=500, dim=8, test=300)
    data = scaling.datasets.load("demo")
    assert (row["items"], row["examples"]) == (data.num_items, len(data.train.prefixes()))
    assert row["test_examples"] == 300 and 0 < row["metrics"]["MRR@20"] < 100
    assert row["epoch_seconds"] > 0 and row["evaluation_seconds"] > 0 and math.isfinite(row["loss"])


class Here:
    """Does at once what is submitted."""

    def __init__(self, workers, context):
        assert workers == 1 and context.get_start_method() == "spawn"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def submit(self, work, *arguments, **more):
        found = work(*arguments, sessions=300, **more)
        return SimpleNamespace(result=lambda: found)


def test_the_study_runs_every_form_that_fits_in_its_own_process(monkeypatch):
    forms = {name: scaling.FORMS[name] for name in ("full softmax", "triplet")}
    monkeypatch.setattr(scaling, "FORMS", forms)
    monkeypatch.setattr(scaling, "LIMIT_BYTES", 4 * 4 * 64 * 300.0)
    monkeypatch.setattr(scaling, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(scaling, "LEVEL", 300)
    found = scaling.scale_study(("stamp",), (200, 400), steps=2)
    rows = [(row["form"], row["items"]) for row in found["scale"]]
    assert rows == [("full softmax", 200), ("triplet", 200), ("triplet", 400)]
    (level,) = found["flat"]
    assert (level["form"], level["model"], level["items"]) == ("triplet", "stamp", 400)


def test_flatness_takes_a_step_of_each_catalogue_in_turn(monkeypatch):
    taken = []

    def stepper(model, size, *rest):
        return lambda: taken.append(size) or size * (1.0 + len(taken)), 0.0

    monkeypatch.setattr(scaling, "_stepper", stepper)
    rows = scaling.flatness("stamp", "triplet", (2, 3), steps=3)
    assert taken == [2, 3] * 5
    assert [row["seconds_per_1000"] for row in rows] == [10 * 2 * 8.0, 10 * 3 * 9.0]  # the median step: the fourth


def test_a_size_that_would_take_too_long_is_not_tried(monkeypatch):
    monkeypatch.setattr(scaling, "FORMS", {"triplet": scaling.FORMS["triplet"], "full softmax": {"loss": "full"}})
    found = {("triplet", 200): 1.0, ("triplet", 400): 7.0, ("full softmax", 200): 2.0}
    monkeypatch.setattr(
        scaling, "_apart", lambda work, model, items, fields, steps: {"model": model, "items": items}
        | {"seconds_per_1000": found["full softmax" if fields["loss"] == "full" else "triplet", items]})  # fmt: skip
    monkeypatch.setattr(scaling, "LIMIT_SECONDS", 3.0)
    monkeypatch.setattr(scaling, "flat_study", lambda models, sizes: [])
    rows = scaling.scale_study(("stamp",), (200, 400, 800))["scale"]
    assert [(row["form"], row["items"]) for row in rows] == list(found)


def test_forms_that_go_over_every_row_are_known():
    sparse = ["sampled softmax", "negative sampling", "triplet", "negative sampling, row-wise"]
    assert [form for form in scaling.FORMS if form not in scaling.DENSE] == sparse


def test_the_epoch_study_measures_every_loss_and_trains_those_of_the_sphere_whole(monkeypatch):
    monkeypatch.setattr(scaling, "ProcessPoolExecutor", Here)
    monkeypatch.setitem(scaling.SAMPLES, "negatives", 64)
    monkeypatch.setattr(scaling, "whole_epoch", lambda *arguments, sessions: {"whole": arguments})
    found = scaling.epoch_study("demo", batch_size=50, dim=8, steps=4)
    assert [(row["model"], row["form"]) for row in found["steps"]] == [
        (model, form) for model in ("stamp", "sr-gnn", "gru4rec") for form in scaling.DISSERTATION
    ]
    assert [row["steps"] for row in found["steps"]] == [3, 4, 4, 4] * 3
    assert {(row["batch_size"], row["dim"]) for row in found["steps"]} == {(50, 8)}
    sphere = ("negative sampling, L2", "triplet, L2", "sampled softmax, L2")
    assert found["epochs"] == [{"whole": ("stamp", form, "demo", 50, 8)} for form in sphere]


@pytest.mark.parametrize("power", [0.0, 1.0, 0.5])
def test_slope_of_a_power_law(power):
    rows = [{"items": v, "seconds_per_1000": 3 * v**power} for v in (10, 1000, 10**6)]
    assert scaling.slope(rows) == pytest.approx(power, abs=1e-12)


def test_one_size_has_no_slope():
    with pytest.raises(ValueError, match="at least two sizes"):
        scaling.slope([{"items": 10, "seconds_per_1000": 1.0}])


def test_the_walks_are_counted_and_their_pairs_timed(monkeypatch):
    monkeypatch.setattr(scaling.recipes, "recipe", lambda *_: SimpleNamespace(arguments={"dim": 8, "negatives": 8}))
    row = scaling.walk_study("demo", steps=2)
    data = scaling.datasets.load("demo")
    graph = scaling.global_graph(data.train)
    source, destination, _ = scaling.edges(graph)
    assert row["nodes"] == len(set(source.tolist()) | set(destination.tolist())) and row["edges"] == len(source)
    assert (row["rounds"], row["length"], row["walks"]) == (13, 50, 13 * row["nodes"])
    assert row["pairs"] <= row["walks"] * (8 * 50 * 2 - 8 * 9) and row["made"] > row["trained"] > 0 <= row["seconds"]
