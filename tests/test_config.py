"""The training configuration refuses what makes no sense when it is made."""

import dataclasses

import pytest
from toys import as_lists, random_sessions

from sbr_core.config import CHOICES, TrainConfig, fits


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("block", -1, "block must be at least 1, got -1"),
        ("lr_every", 0, "lr_every must be at least 1, or None"),
        ("table_lr", 0.0, "table_lr must be positive, or None for the rate of all else, got 0.0"),
        ("clip_grad", 0.0, "clip_grad must be positive, or None for no clipping, got 0.0"),
        *((name, "neither", f"{name} is .*, got 'neither'") for name in CHOICES),
    ],
)
def test_a_field_that_makes_no_sense_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{field: value})


def test_whole_sessions_are_not_cut_to_their_first_clicks():
    with pytest.raises(ValueError, match="batches='every-position' .* keep='first' .*: set keep='last', or batches="):
        TrainConfig(batches="every-position", keep="first", max_len=8)
    assert TrainConfig(batches="examples", keep="first", max_len=8).keep == "first"


def test_a_gradient_that_is_clipped_whole_may_not_be_sparse():
    with pytest.raises(ValueError, match="agc='sbr_inverted_axis0' changes the whole .* loss='in-batch' has a sparse"):
        TrainConfig(agc="sbr_inverted_axis0", loss="in-batch")
    assert TrainConfig(agc="nfnet", loss="in-batch").loss == TrainConfig(agc="off", loss="in-batch").loss == "in-batch"


def test_every_choice_is_accepted():
    for name, allowed in CHOICES.items():
        for value in allowed:
            assert getattr(dataclasses.replace(TrainConfig(), **{name: value}), name) == value


def test_examples_are_prefixes_or_suffixes_and_are_cut_on_the_side_that_is_asked_for():
    sessions = random_sessions(20, longest=12, seed=3)
    whole = as_lists(sessions.prefixes())
    for keep, cut in (("last", lambda clicks: clicks[-3:]), ("first", lambda clicks: clicks[:3])):
        config = TrainConfig(max_len=3, keep=keep)
        assert as_lists(config.examples(sessions)) == [(cut(clicks), label) for clicks, label in whole]
    suffixes = TrainConfig(augmentation="suffix")
    assert as_lists(suffixes.examples(sessions)) == as_lists(sessions.suffixes()) != whole
    assert as_lists(suffixes.examples(sessions, augment=False)) == whole


@pytest.mark.parametrize("setting, said", [
    ({"patience": 0}, "patience must be at least 1, or None for no early end, got 0"),
    ({"max_len": 0}, "max_len must be at least 1, or None for all clicks, got 0"),
    ({"lr": float("nan")}, "lr must be a finite number, got nan"),
    ({"clip_grad": float("inf")}, "clip_grad must be a finite number, got inf"),
])  # fmt: skip
def test_numbers_without_a_meaning_are_refused_by_name(setting, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**setting)


@pytest.mark.parametrize("value, kind, fit", [
    (1, int, True), (True, int, False), (True, int | str, False), (True, bool, True), (False, bool | str, True),
    (None, int | None, True), (1.5, int | None, False), ("x", str | int, True),
])  # fmt: skip
def test_truth_is_no_number(value, kind, fit):
    assert fits(value, kind) is fit
