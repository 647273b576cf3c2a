"""The study of a memory that is written at test time: what it holds equals a replay, and frozen means frozen."""

import dataclasses
from collections import deque

import numpy as np
import pytest
import torch
from toys import chain, random_sessions

from sbr_core import datasets, leaks, replicate
from sbr_core.datasets import Dataset
from sbr_core.evaluate import evaluate
from sbr_core.models import build
from sbr_core.recipes import Recipe
from sbr_core.train import TrainConfig

V = 20
DATASET = Dataset("chain", chain(V, 100, seed=0), chain(V, 40, seed=1), np.arange(V), "f" * 64, "test")
SMALL = {"dim": 8, "neighbours": 5, "capacity": 30, "input_dropout": 0.0, "dropout": 0.0}


@pytest.mark.parametrize("capacity", [1, 5, 30, 1000])
@pytest.mark.parametrize("size", [1, 4, 50])
def test_the_answers_in_memory_are_those_of_a_replay(size, capacity):
    windows = random_sessions(40).prefixes()
    for order in leaks.orders(windows).values():
        asked, memory, expected = windows[order], deque(maxlen=capacity), []
        pairs = list(zip(asked.session.tolist(), asked.lengths.tolist(), strict=True))
        for begin in range(0, len(pairs), size):
            batch = pairs[begin : begin + size]
            expected += [any(s == session and n > length for s, n in memory) for session, length in batch]
            memory.extend(batch)
        assert leaks.answers(asked, capacity, size).tolist() == expected


def test_a_random_share_cuts_through_the_sessions_and_keeps_the_order_of_the_log():
    windows = random_sessions(200).prefixes()
    asked, rest = leaks.random_share(windows, 0.25, seed=3)
    assert len(asked) == round(0.25 * len(windows)) and len(asked) + len(rest) == len(windows)
    places = [list(zip(part.session.tolist(), part.lengths.tolist(), strict=True)) for part in (asked, rest)]
    everything = list(zip(windows.session.tolist(), windows.lengths.tolist(), strict=True))
    assert places == [sorted(part) for part in places] and sorted(places[0] + places[1]) == sorted(everything)
    both = set(asked.session.tolist()) & set(rest.session.tolist())
    assert len(both) > 0.5 * len(set(asked.session.tolist()))
    again, other = (leaks.random_share(windows, 0.25, seed)[0].session.tolist() for seed in (3, 4))
    assert again == asked.session.tolist() != other


def test_every_order_asks_every_example_once():
    windows = random_sessions(30).prefixes()
    found = leaks.orders(windows)
    assert all(sorted(order.tolist()) == list(range(len(windows))) for order in found.values())
    lengths = [windows.lengths[found[name]].tolist() for name in ("shortest first", "longest first")]
    assert lengths[0] == sorted(lengths[0]) and lengths[1] == sorted(lengths[1], reverse=True)


def test_a_frozen_memory_ranks_as_the_evaluation_does_and_a_stream_leaves_no_trace():
    torch.manual_seed(0)
    model, test = build("csrm", V, **SMALL), DATASET.test_windows()
    model.memory.write(torch.randn(30, 8))
    before = model.memory.rows.clone()
    frozen = leaks.ask(model.eval(), test, "off", 16)
    streamed = leaks.ask(model, test, "streaming", 16)
    assert torch.equal(frozen.ranks, evaluate(model, test).ranks)
    assert (streamed.ranks != frozen.ranks).any()
    assert torch.equal(model.memory.rows, before) and model.memory_at_test == "off" and not model.training
    assert torch.equal(leaks.ask(model, test, "streaming", 16).ranks, streamed.ranks)  # it begins anew


def test_the_study_reads_a_run_and_tells_the_orders_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: dataclasses.replace(DATASET, name=name))
    config = TrainConfig(1, 50, lr=0.01, lr_every=None, l2=0.0, batches="chronological")
    recipe, data = Recipe("csrm", SMALL, config), datasets.load("chain")
    path = replicate.replicate(recipe, data, 0, tmp_path / "work", tmp_path / "results", progress=False)
    found = leaks.stream_study(tmp_path / "work", "chain")
    assert list(found["orders"]) == ["frozen", "of the log", "shuffled", "shortest first", "longest first"]
    assert found["examples"] == len(data.test_windows()) and found["fingerprint"] == DATASET.fingerprint
    held = {name: row["answers"] for name, row in found["orders"].items()}
    assert held["frozen"] == 0 and held["longest first"] >= held["shortest first"]
    recorded = replicate.records.read(path)["runs"]["final"][-1]["test"]
    assert found["orders"]["frozen"]["MRR@20"] == pytest.approx(recorded["MRR@20"], abs=1e-5)


def test_a_study_without_a_run_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: DATASET)
    with pytest.raises(ValueError, match="csrm--chain--seed0-final"):
        leaks.stream_study(tmp_path, "chain")
