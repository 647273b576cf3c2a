"""Sampled negatives: their law, and that a step's draws depend on seed, epoch and step alone."""

import pytest
import torch
from toys import random_sessions

from sbr_core import samplers
from sbr_core.samplers import Negatives, Noise, accidental_hits, click_counts, target_counts

COUNTS = torch.tensor([0, 1, 4, 0, 9, 16, 0])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_items_are_drawn_in_proportion_to_a_power_of_their_clicks(alpha):
    weight = [0.0 if c == 0 else float(c) ** alpha for c in COUNTS]
    law = torch.tensor([w / sum(weight) for w in weight])
    negatives = Negatives(COUNTS, 1000, alpha)
    drawn = torch.cat([negatives.draw() for _ in range(200)])
    share = torch.bincount(drawn, minlength=7) / len(drawn)
    assert (share - law).abs().max() < 0.005 and share[COUNTS == 0].eq(0).all()
    torch.testing.assert_close(negatives.log_q[COUNTS > 0].exp(), law[COUNTS > 0])
    assert negatives.log_q[COUNTS == 0].eq(float("-inf")).all()


def test_a_step_has_its_draws_whatever_came_before(monkeypatch):
    monkeypatch.setattr(samplers, "BLOCK", 25)  # 5 steps of 5 ids
    one = Negatives(COUNTS, 5, 0.5, seed=3)
    drawn = [one.draw() for _ in range(12)]
    for first in (0, 4, 5, 7, 11):
        other = Negatives(COUNTS, 5, 0.5, seed=3)
        other.draw()
        other.seek(0, first)
        assert all(torch.equal(other.draw(), expected) for expected in drawn[first:])


def test_seeds_epochs_and_steps_differ(monkeypatch):
    monkeypatch.setattr(samplers, "BLOCK", 200)
    many = torch.ones(10_000, dtype=torch.long)
    seen = set()
    for seed in (0, 1):
        negatives = Negatives(many, 100, seed=seed)
        for epoch in (0, 1):
            negatives.seek(epoch, 0)
            seen |= {tuple(negatives.draw().tolist()) for _ in range(6)}
    assert len(seen) == 2 * 2 * 6


def test_the_last_item_can_be_drawn_and_items_behind_it_cannot(monkeypatch):
    monkeypatch.setattr(
        torch, "rand", lambda *shape, **more: torch.tensor([[0.0, 0.2, 1 - 1e-12]], dtype=torch.float64)
    )
    assert Negatives(COUNTS, 3).draw().tolist() == [1, 1, 5]  # of items 1, 2, 4, 5, a quarter each


@pytest.mark.parametrize(
    "size, counts, message", [(0, COUNTS, "at least one negative, got 0"), (3, COUNTS * 0, "no item")]
)
def test_nothing_to_draw_is_refused(size, counts, message):
    with pytest.raises(ValueError, match=message):
        Negatives(counts, size)


@pytest.mark.parametrize("part", ["prefixes", "suffixes", "late", "last"])
def test_clicks_are_counted_once_each(part):
    sessions = random_sessions(50, seed=2, shortest=2)
    if part == "late":
        sessions = sessions.select(20, 50)
    windows = sessions.suffixes() if part == "suffixes" else sessions.prefixes()
    clicks = [item for i in range(len(sessions)) for item in sessions[i]]
    if part == "last":  # the first clicks are still read by the shortest prefixes
        windows = windows.last(1)
    assert click_counts(windows).tolist() == [clicks.count(item) for item in range(30)]


def test_targets_are_counted_once_for_every_example():
    sessions = random_sessions(40, seed=3, shortest=2)
    later = [item for i in range(len(sessions)) for item in sessions[i][1:]]
    assert target_counts(sessions.prefixes()).tolist() == [later.count(item) for item in range(30)]


def test_accidental_hits_of_shared_and_of_own_candidates():
    target = torch.tensor([3, 1])
    assert accidental_hits(torch.tensor([3, 1, 3, 0]), target).tolist() == [
        [True, False, True, False],
        [False, True, False, False],
    ]
    assert accidental_hits(torch.tensor([[0, 3], [3, 2]]), target).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("alpha, weight", [(0.0, [1] * 7), (0.5, [0, 1, 2, 0, 3, 4, 0]), (1.0, [0, 1, 4, 0, 9, 16, 0])])
def test_noise_is_uniform_over_the_catalogue_or_by_popularity(alpha, weight):
    noise, law = Noise(COUNTS, alpha), torch.tensor(weight) / sum(weight)
    share = torch.bincount(noise.draw(400, 500).flatten(), minlength=7) / 200_000
    assert (share - law).abs().max() < 0.005 and share[law == 0].eq(0).all()
    torch.testing.assert_close(noise.log_q(torch.arange(7)).exp(), law)


def test_noise_has_any_shape_and_depends_on_seed_epoch_and_step_alone():
    def drawn(seed, epoch, step, alpha):
        noise = Noise(torch.ones(10_000, dtype=torch.long), alpha, seed)
        noise.draw(3)
        noise.seek(epoch, step)
        return noise.draw(4, 5)

    for alpha in (0.0, 0.75):
        places = [(seed, epoch, step) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1, 2)]
        found = {tuple(drawn(*place, alpha).flatten().tolist()) for place in places}
        assert len(found) == len(places) and drawn(0, 1, 2, alpha).shape == (4, 5)
        assert torch.equal(drawn(1, 1, 2, alpha), drawn(1, 1, 2, alpha))
    walked = Noise(COUNTS, seed=1)
    two = [walked.draw(3) for _ in range(2)]
    walked.seek(0, 1)
    assert torch.equal(walked.draw(3), two[1])


@pytest.mark.parametrize("make", [Noise, lambda counts, alpha: Negatives(counts, 3, alpha)])
@pytest.mark.parametrize("alpha", [-0.5, float("-inf"), float("nan"), float("inf"), 1e7])
def test_a_power_that_is_negative_or_no_number_is_refused(make, alpha):
    with pytest.raises(ValueError, match=f"alpha must be 0 .uniform. or more .*got {alpha}"):
        make(COUNTS, alpha)


def test_a_large_power_draws_the_most_popular_item_and_overflows_nowhere():
    counts = torch.tensor([0, 9_999, 100_000, 1])
    negatives, noise = Negatives(counts, 100, 1000.0), Noise(counts, 1000.0)
    assert negatives.draw().eq(2).all() and noise.draw(4, 25).eq(2).all()
    law = 1000 * (counts[1:] / 100_000).log()
    torch.testing.assert_close(negatives.log_q[1:], law, rtol=1e-5, atol=1e-6)
    assert torch.equal(noise.log_q(torch.arange(4)), negatives.log_q)
