"""The studies of speed: each system in its own process, a step in parts that is the same step."""

import pytest
import torch
from toys import random_sessions, same

from sbr_core import speed
from sbr_core.config import TrainConfig
from sbr_core.models import build
from sbr_core.run_state import Run
from sbr_core.train import make_order, train_step


def test_the_study_of_speed_measures_each_system_in_its_own_process():
    (row,) = speed.speed_study(["stamp"], ["demo"], steps=2)
    assert (row["model"], row["dataset"], row["steps"]) == ("stamp", "demo", 2) and row["examples_per_second"] > 0


def test_a_target_stands_beside_what_was_measured(monkeypatch):
    asked, speeds = [], {"sr-gnn": 1000.0, "tagnn": 320.0, "narm": 250.0}

    def measured(model, name, options, steps):
        asked.append((model, name, options))
        return {"model": model, "dataset": name, "examples_per_second": speeds[model]}

    monkeypatch.setattr(speed, "measured", measured)
    monkeypatch.setattr(speed, "neural", lambda: ["sr-gnn", "tagnn", "narm"])
    tagnn, narm = speed.targets_study(2, "demo", {("tagnn", "demo", ("--precision", "bf16")): (300, 1600)})
    assert (tagnn["target"], tagnn["target_mb"], narm["target"], narm["times"]) == (300, 1600, 400.0, 4.0)
    assert asked[0] == ("tagnn", "demo", ("--precision", "bf16", "--no-evaluation"))
    assert [model for model, *_ in asked[1:]] == ["sr-gnn", "narm"]
    assert all(options == (*speed.SAME, "--no-evaluation") for *_, options in asked[1:])


@pytest.mark.parametrize("model", ["sr-gnn", "tagnn++", "repeatnet"])
def test_a_step_in_parts_is_the_step(model):
    train, config = random_sessions(40).prefixes(), TrainConfig(batch_size=16, l2=1e-4, agc="nfnet")
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        runs.append(Run(build(model, 30, dim=8), train, config, None, {}, 0.0))
    whole, parts = runs
    batch = next(iter(make_order(train, config, 0).batches(train)))
    torch.manual_seed(2)
    train_step(whole.model, whole.loss, whole.optimizers, batch, whole.encode, whole.clip)
    torch.manual_seed(2)
    found = speed._parts_of(parts, batch)
    assert list(found) == ["encode", "score", "encode_backward", "update"]
    assert same(whole.model.state_dict(), parts.model.state_dict())


def test_the_parts_of_a_system_are_measured_on_its_dataset():
    found = speed.parts_study("stamp", "demo", steps=2)
    assert (found["model"], found["batch_size"]) == ("stamp", 100) and min(found["encode"], found["score"]) > 0
