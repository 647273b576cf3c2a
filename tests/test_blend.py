"""Several systems as one: the mean is the mean, the weights are those that help, a run is read back as it ended."""

import dataclasses

import numpy as np
import pytest
import torch
from toys import chain

from sbr_core import blend, replicate
from sbr_core.batches import Batch, gather
from sbr_core.datasets import Dataset
from sbr_core.evaluate import evaluate
from sbr_core.models import build
from sbr_core.recipes import Recipe
from sbr_core.train import TrainConfig

V = 20
DATASET = Dataset("chain", chain(V, 100, seed=0), chain(V, 20, seed=1), np.arange(V), "f" * 64, "test")


class Fixed(torch.nn.Module):
    """The same scores for every session."""

    num_items = 3

    def __init__(self, *scores):
        super().__init__()
        self.scores = torch.tensor(scores)

    def encode(self, batch):
        """Nothing to read."""
        return batch

    def score(self, query, ids=None):
        """(B, 3)"""
        return self.scores.expand(len(query), 3)


def test_the_scores_are_the_weighted_mean_of_probabilities():
    members = [Fixed(1.0, 2.0, 0.0), Fixed(5.0, -1.0, 0.5), Fixed(0.0, 0.0, 9.0)]
    found = blend.Blend(members, [3, 1, 0])
    batch = Batch.of([[0], [1, 2]], 3)
    parts = [torch.tensor(x).softmax(0) for x in ((1.0, 2.0, 0.0), (5.0, -1.0, 0.5))]
    expected = (3 * parts[0] + parts[1]) / 4
    assert len(found.encode(batch)) == 2  # a member without weight is not asked
    torch.testing.assert_close(found.score(found.encode(batch)), expected.expand(2, 3))


def test_what_counts_speaks_by_its_share_and_may_have_nothing_to_say():
    markov = build("markov", V).fit(DATASET.train)
    batch = gather(DATASET.test_windows(), torch.arange(4))
    scores = markov.score(batch)
    found = blend.probabilities(markov, markov.encode(batch))
    torch.testing.assert_close(found, scores / scores.sum(1, keepdim=True))
    markov.score = lambda query: torch.zeros(2, V)
    assert (blend.probabilities(markov, None) == 0).all()


@pytest.mark.parametrize(
    "members, weights, message",
    [
        ([], [], "at least one member"),
        ([Fixed(1.0, 2.0, 0.0), build("pop", V)], [1, 1], "the same catalogue"),
        ([Fixed(1.0, 2.0, 0.0)], [1, 2], "a blend of 1 wants as many weights"),
        ([Fixed(1.0, 2.0, 0.0)], [-1], "weights >= 0"),
        ([Fixed(1.0, 2.0, 0.0)], [0], "not all 0"),
    ],
)
def test_members_and_weights_that_do_not_fit_are_refused(members, weights, message):
    with pytest.raises(ValueError, match=message):
        blend.Blend(members, weights)


def test_the_members_are_taken_that_help():
    """One knows the even examples, one the odd ones, one is sure of nonsense."""
    target = torch.arange(200) % 40
    even = torch.full((200, 40), 1 / 40)
    even[::2] = torch.nn.functional.one_hot(target[::2], 40).float()
    odd = torch.full((200, 40), 1 / 40)
    odd[1::2] = torch.nn.functional.one_hot(target[1::2], 40).float()
    wrong = torch.nn.functional.one_hot((target + 1) % 40, 40).float()
    counts, reached = blend.pick_weights([wrong, even, odd], target, rounds=4)
    assert counts[0] == 0 and counts[1] > 0 and counts[2] > 0
    assert reached[0] == pytest.approx(50.0) and max(reached) == pytest.approx(100.0)


@pytest.fixture
def work(tmp_path):
    config = TrainConfig(epochs=2, batch_size=32, lr=0.02, l2=0.0)
    for model in ("gru4rec", "stamp"):
        recipe = Recipe(model, {"dim": 8}, config)
        replicate.replicate(recipe, DATASET, 0, tmp_path / "work", tmp_path / "results", progress=False)
    return tmp_path / "work"


def test_a_run_is_read_back_as_it_ended(work):
    folder = work / "gru4rec--chain--seed0-final"
    model = blend.trained("gru4rec", DATASET, DATASET.train, folder)
    record = replicate.records.load(work.parent / "results")[0]
    assert evaluate(model, DATASET.test_windows()).metrics == {
        name: record["runs"]["final"][-1]["test"][name] for name in evaluate(model, DATASET.test_windows()).metrics
    }
    with pytest.raises(ValueError, match="other data than chain"):
        blend.trained("gru4rec", dataclasses.replace(DATASET, fingerprint="e" * 64), DATASET.train, folder)
    with pytest.raises(ValueError, match="seed0-final holds no run; `sbr replicate --models narm --datasets chain"):
        blend.trained("narm", DATASET, DATASET.train, work / "narm--chain--seed0-final")


def test_the_study_picks_on_held_out_sessions_and_reports_the_test(work, monkeypatch):
    monkeypatch.setattr(blend.datasets, "load", lambda name: DATASET)
    read, asked = blend.trained, []

    def spy(name, dataset, train, folder):
        asked.append((folder.name, len(train)))
        return read(name, dataset, train, folder)

    monkeypatch.setattr(blend, "trained", spy)
    found = blend.blend_study(work, ["gru4rec", "stamp", "markov"], "chain", rounds=5)
    assert found["members"] == ["gru4rec", "stamp", "markov"] and 1 <= sum(found["counts"]) <= 5
    runs = [f"{name}--chain--seed0" for name in ("gru4rec", "stamp", "markov")]
    early, whole = 90, 100  # weights are picked with models that have not seen the sessions that they are picked on
    assert asked == [(f"{run}-select", early) for run in runs] + [(f"{run}-final", whole) for run in runs]
    validation = found["validation"]
    assert len(validation["alone"]) == 3 and validation["rounds"][0] == pytest.approx(max(validation["alone"]))
    assert max(validation["rounds"]) >= max(validation["alone"])
    low, high = found["test"]["MRR@20 interval"]
    assert low <= found["test"]["MRR@20"] <= high and found["test"]["examples"] == 20 * 5


def test_a_variant_of_a_system_that_counts_is_that_variant(work):
    model = blend.trained("stan--hr", dataclasses.replace(DATASET, name="diginetica"), DATASET.train, work)
    plain = blend.trained("stan", dataclasses.replace(DATASET, name="diginetica"), DATASET.train, work)
    assert (model.sample_size, plain.sample_size) == (2500, 5000)
