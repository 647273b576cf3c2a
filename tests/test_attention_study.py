"""The study of attention: what it stores equals a slow loop over one session, and its shares a loop over all."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from toys import random_sessions

from sbr_core import attention_study as study
from sbr_core import cli, datasets, replicate
from sbr_core.batches import Batch
from sbr_core.datasets import Dataset
from sbr_core.models import build
from sbr_core.recipes import Recipe
from sbr_core.train import TrainConfig

V = 30
TEST = random_sessions(60, V, longest=24, seed=1)
DATASET = Dataset("clicks", random_sessions(200, V, longest=12), TEST, np.arange(V), "f" * 64, "test")
SMALL = {"dim": 8, "g": 1, "rounds": 1, "length": 6, "negatives": 5, "pairs": 64, "max_positions": 17}


def a_model(**arguments):
    torch.manual_seed(3)
    return build("lgsr", V, **SMALL | arguments).eval()


def by_hand(model, session):
    """Rows of self-attention, and the weights of the pooling, number by number."""
    part = model.recommender
    block, n = part.block, len(session)
    x = [model.table[item] + part.positions.table[n - 1 - i] for i, item in enumerate(session)]
    keys, values = zip(*(block.attention.KV(each).chunk(2) for each in x), strict=True)
    rows, states = [], []
    for i in range(n):
        logits = [(block.attention.Q(x[i]) @ keys[j]).item() / math.sqrt(len(x[i])) for j in range(i + 1)]
        total = sum(map(math.exp, logits))
        rows.append([math.exp(logit) / total for logit in logits])
        y = sum(weight * value for weight, value in zip(rows[-1], values, strict=False))
        y = block.norms[0](y + x[i]) if block.norms else y
        f = block.W2(torch.relu(block.W1(y)))
        states.append(block.norms[1](f + y) if block.norms else f)
    inner = [part.W1(states[-1]) + part.W2(f) for f in states]
    inner = [(0.2 * z + 0.5).clamp(0, 1) if part.hard_sigmoid else torch.sigmoid(z) for z in inner]
    logits = [part.q(z).item() for z in inner]
    total = sum(map(math.exp, logits))
    return rows, [math.exp(logit) / total for logit in logits]


@pytest.mark.parametrize("as_code", [False, True])
def test_what_is_stored_is_what_a_loop_over_one_session_computes(as_code):
    model = a_model(residual=as_code, hard_sigmoid=as_code)
    lists = sorted((TEST[number][:-1][-17:] for number in range(len(TEST))), key=lambda s: abs(len(s) - study.DRAWN))
    stored = study.cases(model, TEST.prefixes())
    assert [len(case["items"]) for case in stored] == list(map(len, lists[: study.CASES]))
    for case, session in zip(stored, lists, strict=False):
        rows, pooled = by_hand(model, session)
        assert [len(row) for row in case["self"]] == list(range(1, len(session) + 1))  # nobody looks ahead
        for found, expected in zip([*case["self"], case["pooling"]], [*rows, pooled], strict=True):
            assert found == pytest.approx(expected, abs=2e-5) and sum(found) == pytest.approx(1, abs=1e-4)
        assert case["items"] == [list(dict.fromkeys(session)).index(item) for item in session]
    maps, pooled = study.look(model, Batch.of(lists[:3] + [[1, 2]], V))
    assert maps.triu(1).eq(0).all() and pooled[3, 2:].eq(0).all()


def test_the_shares_are_those_of_a_loop_over_all_sessions():
    model, few, late, chance, heaviest, rows, kept = a_model(), [], [], [], [], 0, 0
    for number in range(len(TEST)):
        session = TEST[number][:-1][-17:]
        if (n := len(session)) < study.SHORTEST:
            continue
        maps, pooled = by_hand(model, session)
        counts = [math.exp(-sum(w * math.log(w) for w in row)) / len(row) for row in maps[study.SHORTEST - 1 :]]
        few += [count < 0.75 for count in counts]
        after = n - 1 - max(range(n), key=pooled.__getitem__)
        late, chance, heaviest = [*late, after < study.END], [*chance, study.END / n], [*heaviest, after]
        rows, kept = rows + len(counts), kept + 1
    found = study.shares(model, TEST.prefixes())
    assert (found["cases"], found["sessions"]) == (rows, kept)
    assert found["few"]["0.75"][0] == pytest.approx(100 * np.mean(few))
    assert found["end"][0] == pytest.approx(100 * np.mean(late))
    assert found["beyond chance"][0] == pytest.approx(100 * (np.mean(late) - np.mean(chance)))
    assert found["heaviest"][0] == pytest.approx(100 * np.mean([after == 0 for after in heaviest]))
    for value, low, high in (found["end"], found["beyond chance"], found["self"], found["pooling"]):
        assert low <= value <= high


def test_the_study_reads_a_run_and_shows_no_item_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name: dataclasses.replace(DATASET, name=name))
    recipe = Recipe("lgsr", SMALL, TrainConfig(1, 50, lr=0.01, lr_every=None, l2=0.0))
    work = tmp_path / "work"
    replicate.replicate(recipe, datasets.load("clicks"), 0, work, tmp_path / "results", progress=False)
    cli.study("attention", datasets_="clicks", models=None, work=work, output=tmp_path / "a.json")
    (found,) = json.loads((tmp_path / "a.json").read_text())
    assert found["fingerprint"] == DATASET.fingerprint and found["run"]["epochs"] == 1
    assert all(set(case["items"]) == set(range(max(case["items"]) + 1)) for case in found["cases"])
    with pytest.raises(ValueError, match="lgsr--other--seed0-final"):
        study.attention_study(work, "other")
