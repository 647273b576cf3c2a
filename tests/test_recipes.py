"""Recipes: every one builds its model, and the published settings are what the specs print."""

from dataclasses import replace
from pathlib import Path

import pytest

from sbr_core import plan, records, rerun
from sbr_core.models import MODELS, build
from sbr_core.recipes import LOG_OF, RECIPES, Recipe, recipe
from sbr_core.recipes_variants import VARIANTS, variants_of
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


STAMP = {"dim": 100, "add_mean": True, "biases": False, "batch_size": 512, "lr_every": None, "l2": 0.0}
STEPPED = {"lr": 1e-3, "lr_decay": 0.1, "lr_every": 3, "batch_size": 100}
SESSION_PARALLEL = {"optimizer": "adagrad", "batches": "session-parallel", "epochs": 10, "lr_every": None, "l2": 0.0}
NARM = {"dim": 50, "hidden": 100, "lr": 1e-3, "batch_size": 512, "lr_every": None, "l2": 0.0, "max_len": 19}
GATED = {"dim": 100, "steps": 1, "l2": 1e-5} | STEPPED
FIRST = {"dim": 100, "embedding": "none", "cell": "reset-before", "momentum": 0.0} | SESSION_PARALLEL
LGSR = {"dim": 100, "g": 2, "dropout": 0.3, "residual": True, "hard_sigmoid": True, "nce": True, "off_by_one": True}
CLIPPED = {"dropout": 0.1, "batch_size": 50, "lr": 1e-4, "lr_decay": 0.1, "lr_every": 3, "l2": 1e-6, "agc": "nfnet"}
PADDED = {"null_slots": "official", "pad_to_train": 145, "pad_to_test": 73}


def second(dim, slots, embed, hidden, lr, momentum, alpha, **loss):
    """A row of the table of known-good settings of GRU4Rec (specs of the baselines, section 4.2)."""
    drop = {"dropout_embed": embed, "dropout_hidden": hidden}
    arguments = {"loss_arguments": {"negatives": 2048, "alpha": alpha} | (loss or {"logq": 1.0})}
    fields = {"dim": dim, "batch_size": slots, "lr": lr, "momentum": momentum, "loss": "bpr-max" if loss else "xe"}
    return fields | drop | arguments | SESSION_PARALLEL


PRINTED = [  # (model, datasets, variant, fields as the specs print them)
    ("narm", "yoochoose1_64 diginetica", "", NARM | {"attention": "softmax", "cell": "code", "hard": True}),
    ("narm", "yoochoose1_64", "session-rec", NARM | {"lr": 0.005, "epochs": 20}),
    ("narm", "diginetica", "session-rec", NARM | {"lr": 0.0007}),
    ("stamp", "yoochoose1_64", "", STAMP | {"lr": 0.003, "clip_norm": 1.0}),
    ("stamp", "yoochoose1_4", "", STAMP | {"lr": 0.005, "clip_norm": 1.0}),
    ("stamp", "diginetica", "", STAMP | {"lr": 0.005, "clip_norm": 1.5}),
    ("stamp", "diginetica", "config-file", STAMP | {"lr": 0.003, "clip_norm": 1.5}),
    ("tagnn", "yoochoose1_64 diginetica", "", GATED),
    ("tagnn", "yoochoose1_64", "code", GATED | PADDED | {"combine": "add", "attention_softmax": True}),
    ("tagnn", "diginetica", "code", GATED | {"pad_to_train": 69, "pad_to_test": 40, "attention_softmax": True}),
    ("tagnn++", "yoochoose1_64 yoochoose1_64_dgtn", "", CLIPPED | {"dim": 100, "heads": 2}),
    ("tagnn++", "diginetica diginetica_dgtn diginetica_lessr", "", CLIPPED | {"dim": 120, "heads": 8}),
    ("tagnn++", "yoochoose1_64 yoochoose1_64_dgtn diginetica", "code",
     {"form": "code", "heads": 2, "dropout": 0.1, "agc": "off", "l2": 1e-5, "schedule_offset": 1, "lr": 1e-3,
      "lr_decay": 0.1, "lr_every": 3, "null_slots": "official"}),
    ("tagnn++", "yoochoose1_64", "code", PADDED | {"dim": 120, "batch_size": 75}),
    ("tagnn++", "yoochoose1_64_dgtn", "code", {"pad_to_train": 145, "pad_to_test": 67, "batch_size": 75}),
    ("tagnn++", "diginetica", "code", {"dim": 100, "batch_size": 50, "pad_to_train": 69, "pad_to_test": 40}),
    ("tagnn++", "diginetica_dgtn", "code", {"dim": 100, "batch_size": 50, "pad_to_train": 69, "pad_to_test": 55}),
    ("repeatnet", "diginetica diginetica_dgtn", "", {"epochs": 18}),
    ("gc-san", "yoochoose1_64 diginetica", "issue-1287",
     GATED | {"dim": 120, "batch_size": 50, "blocks": 5, "share_blocks": None, "omega": 0.6}),
    ("stamp", "yoochoose1_64 diginetica", "paper",
     STAMP | {"add_mean": False, "biases": True, "lr": 0.005, "epochs": 30}),
    ("lgsr", "yoochoose1_64 diginetica", "", LGSR | STEPPED | {"l2": 1e-6}),
    ("lgsr", "yoochoose1_64 diginetica", "batch-512", LGSR | {"lr": 1e-3, "l2": 1e-6, "batch_size": 512}),
    ("lgsr", "yoochoose1_64 diginetica", "first-version", LGSR | STEPPED | {"dropout": 0.5, "l2": 0.0}),
    ("gc-san", "yoochoose1_64 diginetica", "", GATED | {"blocks": 1, "omega": 0.6, "dropout": 0.2}),
    ("gc-san", "yoochoose1_64 diginetica", "copy",
     GATED | {"dim": 120, "batch_size": 50, "blocks": 4, "share_blocks": True, "omega": 0.52, "dropout": 0.2}),
    ("transformer", "yoochoose1_64 diginetica", "",
     {"dim": 100, "heads": 2, "blocks": 1, "positions": "end", "max_positions": 50, "l2": 1e-5} | STEPPED),
    ("transformer", "yoochoose1_64 diginetica", "sr-san",
     {"dim": 96, "heads": 2, "dropout": 0.1, "positions": "none", "batch_size": 100, "epochs": 12}),
    ("gru4rec-2016", "yoochoose1_64 diginetica", "",
     FIRST | {"batch_size": 50, "loss": "top1", "dropout_hidden": 0.5, "lr": 0.01,
              "batches_arguments": {"end": "cut"}}),
    ("gru4rec-2016", "yoochoose1_64", "bpr",
     FIRST | {"batch_size": 50, "loss": "bpr", "dropout_hidden": 0.2, "lr": 0.05, "momentum": 0.2}),
    ("gru4rec-2016", "yoochoose1_64", "ce",
     FIRST | {"batch_size": 500, "loss": "xe", "loss_arguments": {"negatives": 0, "logq": 0.0}, "dropout_hidden": 0.0,
              "lr": 0.01}),
    ("gru4rec-2018", "yoochoose1_64", "", second(100, 32, 0.0, 0.4, 0.2, 0.2, 0.5)),
    ("gru4rec-2018", "yoochoose1_64", "readme", second(100, 32, 0.1, 0.0, 0.1, 0.0, 0.75)),
    ("gru4rec-2018", "yoochoose1_64", "xe-480", second(480, 48, 0.0, 0.2, 0.07, 0.0, 0.2)),
    ("gru4rec-2018", "yoochoose1_64", "bpr-max",
     second(448, 48, 0.25, 0.0, 0.075, 0.1, 0.2, penalty=0.5, activation="linear")),
    ("gru4rec-2018", "diginetica", "", second(192, 128, 0.45, 0.15, 0.1, 0.0, 0.0)),
    ("gru4rec-2018", "diginetica", "bpr-max",
     second(512, 128, 0.5, 0.3, 0.05, 0.15, 0.3, penalty=0.9, activation="elu-1")),
    ("bpr-mf", "yoochoose1_64 diginetica", "code", {"epochs": 10, "lr": 0.01, "l2": 0.0, "negatives": "code"}),
    ("bpr-mf", "yoochoose1_64 diginetica", "session-rec", {"lr": 0.05, "l2": 0.0025}),
    ("fpmc", "yoochoose1_64 diginetica", "session-rec", {"lr": 0.05, "l2": 0.0025, "user": "mean"}),
]  # fmt: skip


@pytest.mark.parametrize("model, datasets, variant, printed", PRINTED, ids=lambda value: str(value)[:30])
def test_the_settings_are_those_that_the_specs_print(model, datasets, variant, printed):
    for dataset in datasets.split():
        found = variants_of(model, dataset)[variant] if variant else recipe(model, dataset)
        settings = vars(found.config) | found.arguments
        assert {name: settings.get(name) for name in printed} == printed


@pytest.mark.parametrize("pair", VARIANTS, ids="--".join)
def test_every_variant_departs_from_its_recipe_and_builds_its_model(pair):
    for name, found in VARIANTS[pair].items():
        assert (found.model, found.variant) == (pair[0], name) and len(found.source) > 40
        assert found.source != recipe(*pair).source
        assert (found.arguments, found.config) != (recipe(*pair).arguments, recipe(*pair).config)
        assert isinstance(build(found.model, 40, **found.arguments), MODELS[pair[0]])


def test_a_published_variant_is_run_by_its_name_without_a_plan():
    here, carried = (rerun.jobs_for(["gc-san--copy"], dataset, [3], epochs=2)[0] for dataset in ("diginetica", "demo"))
    published = VARIANTS["gc-san", "diginetica"]["copy"]
    assert here.recipe == replace(published, config=replace(published.config, epochs=2))
    assert here.file == records.file_name("gc-san", "diginetica", 3, "copy")
    assert carried.recipe.arguments == published.arguments
    with pytest.raises(ValueError, match="no plan is given for 'gc-san--copied'; published are gc-san--copy"):
        rerun.jobs_for(["gc-san--copied"], "demo")


def test_no_variant_of_the_plan_has_the_name_of_a_published_one():
    planned = plan.read(Path(__file__).parents[1] / "book" / "plan.toml")
    names = {(job.recipe.model, job.recipe.variant) for job in planned}
    assert names.isdisjoint((model, name) for (model, _), found in VARIANTS.items() for name in found)


def test_every_variant_of_the_plan_departs_from_its_recipe():
    for job in plan.read(Path(__file__).parents[1] / "book" / "plan.toml"):
        plain = recipe(job.recipe.model, job.dataset)
        same = (job.recipe.arguments, job.recipe.config) == (plain.arguments, plain.config)
        assert not (job.recipe.variant and same), f"{job.file} would train its own recipe a second time"


def test_the_origin_says_where_a_recipe_departs_from_what_is_printed():
    assert all(text in recipe("gru4rec", "diginetica").source for text in ("batch 128, 8 epochs", "last 25 clicks"))
    assert all(text in recipe("stamp", "yoochoose1_64").source for text in ("clipped at norm 150", "110 (Diginetica)"))


@pytest.mark.parametrize("cut, log", LOG_OF.items(), ids=str)
def test_on_another_cut_of_a_log_a_system_has_its_recipe_of_the_log(cut, log):
    for model in MODELS:
        if (model, cut) not in RECIPES:
            assert recipe(model, cut) == recipe(model, log), model
        assert set(variants_of(model, cut)) == set(VARIANTS.get((model, log), {})), model
    assert recipe("stan", cut).arguments


@pytest.mark.parametrize("dataset", ["yoochoose1_4", "some/folder"])
def test_elsewhere_a_system_has_its_recipe_of_yoochoose(dataset):
    assert recipe("narm", dataset) is recipe("narm", "yoochoose1_64")
    assert variants_of("gc-san", dataset) == VARIANTS["gc-san", "yoochoose1_64"]
    assert recipe("stan", dataset).arguments == {} and not variants_of("stan", dataset)


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
