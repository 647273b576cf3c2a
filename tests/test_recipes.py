"""Recipes: every one builds its model, and the published settings are what the specs print."""

import pytest

from sbr_core.models import MODELS, build
from sbr_core.recipes import RECIPES, Recipe, recipe
from sbr_core.sources import RAW
from sbr_core.train import TrainConfig


@pytest.mark.parametrize("pair", RECIPES, ids="--".join)
def test_every_recipe_is_that_of_its_pair_and_builds_its_model(pair):
    found = RECIPES[pair]
    assert found.model == pair[0] and recipe(*pair) is found and len(found.source) > 40
    model = build(found.model, 40, **found.arguments)
    assert isinstance(model, MODELS[pair[0]])
    assert {name: getattr(model, name) for name in found.arguments if name in ("dim", "clip_norm", "k", "lambda1")} == {
        name: value for name, value in found.arguments.items() if name in ("dim", "clip_norm", "k", "lambda1")
    }


@pytest.mark.parametrize("dataset", ["yoochoose1_64", "diginetica"])
def test_sr_gnn_as_published(dataset):
    config = recipe("sr-gnn", dataset).config
    assert (config.batch_size, config.lr, config.lr_decay, config.lr_every, config.schedule_offset) == (
        100,
        1e-3,
        0.1,
        3,
        0,
    )
    assert (config.l2, config.precision, config.augmentation, config.max_len) == (1e-5, "fp32", "prefix", None)
    assert recipe("sr-gnn", dataset).arguments == {"dim": 100, "steps": 1}


@pytest.mark.parametrize("dataset, lr, clip", [("yoochoose1_64", 0.003, 1.0), ("diginetica", 0.005, 1.5)])
def test_stamp_as_its_code(dataset, lr, clip):
    found = recipe("stamp", dataset)
    assert found.arguments == {"dim": 100, "add_mean": True, "biases": False, "clip_norm": clip}
    assert (found.config.batch_size, found.config.lr, found.config.lr_every, found.config.l2) == (512, lr, None, 0.0)


@pytest.mark.parametrize("dataset", ["yoochoose1_4", "some/folder"])
def test_elsewhere_a_system_has_its_recipe_of_yoochoose(dataset):
    assert recipe("stamp", dataset) is recipe("stamp", "yoochoose1_64")


def test_a_system_without_a_recipe_has_the_defaults():
    assert recipe("pop", "demo") == Recipe("pop", {}, TrainConfig(), "defaults of the package")


@pytest.mark.parametrize("dataset", ["diginetica", "diginetica_lessr", "yoochoose1_64"])
def test_lessr_as_its_code(dataset):
    found = recipe("lessr", dataset)
    assert found.arguments == {"dim": 32, "layers": 4, "dropout": 0.2}
    assert (found.config.batch_size, found.config.lr, found.config.lr_every) == (512, 1e-3, None)
    assert (found.config.optimizer, found.config.l2) == ("adamw", 1e-4)


@pytest.mark.parametrize("dataset", ["diginetica", "yoochoose1_64", "yoochoose1_64_dgtn"])
def test_dgtn_trained_as_its_code_in_the_form_of_the_paper(dataset):
    found = recipe("dgtn", dataset)
    assert (found.arguments["dim"], found.arguments["k"], found.arguments["threshold"]) == (100, 120, 0.5)
    assert (found.arguments["inter"], found.arguments["fusion"]) == ("sgc", "affine")
    config = found.config
    assert (config.batch_size, config.lr, config.lr_decay, config.lr_every, config.l2) == (128, 1e-3, 0.1, 3, 1e-5)


def test_every_recipe_is_for_a_dataset_that_has_a_name():
    assert {dataset for _, dataset in RECIPES} <= {"demo", *RAW}
