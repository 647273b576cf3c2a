"""The runs of a chapter made again: the plan's variants on any dataset, and the command of every missing record."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
from toys import put, record

from sbr_core import plan, records, rerun
from sbr_core.recipes import recipe
from sbr_core.sources import FINGERPRINTS

ROOT = Path(__file__).resolve().parent.parent
PLAN = """
[[rows]]
why = "first"
systems = ["tagnn"]
datasets = ["yoochoose1_64"]

[[rows]]
systems = ["tagnn"]
datasets = ["yoochoose1_64"]
variant = "average"
arguments = {readout = "Avg"}
config = {l2 = 0.5}
select = false
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN, encoding="utf-8")
    return tmp_path / "plan.toml"


def test_a_variant_is_carried_to_another_dataset(path):
    plain, varied, again = rerun.jobs_for(["tagnn", "tagnn--average"], "demo", [0], 1, path) + rerun.jobs_for(
        ["stamp"], "demo", [3]
    )
    here = recipe("tagnn", "demo")
    assert plain.recipe.arguments == here.arguments and plain.recipe.config.epochs == 1
    assert varied.recipe.arguments == here.arguments | {"readout": "Avg"} and varied.recipe.variant == "average"
    assert (varied.recipe.config.l2, varied.recipe.config.lr) == (0.5, here.config.lr)
    assert not varied.recipe.select and plain.recipe.select
    assert varied.file == records.file_name("tagnn", "demo", 0, "average")
    assert again.recipe == recipe("stamp", "demo") and again.seed == 3


def test_names_may_be_a_text():
    assert rerun.jobs_for("stamp,sr-gnn", "demo") == rerun.jobs_for(["stamp", "sr-gnn"], "demo")


def test_a_variant_that_no_plan_defines_is_refused(path):
    with pytest.raises(ValueError, match="no variant 'tagnn--sum'; it has tagnn--average"):
        rerun.jobs_for(["tagnn--sum"], "demo", path=path)
    with pytest.raises(ValueError, match="there is no model 'tagnnn'"):
        rerun.jobs_for(["tagnnn"], "demo", path=path)


@pytest.mark.parametrize(
    "given, seeds", [(0, [0]), ("0", [0]), ("0,1", [0, 1]), (" 2, 10 ", [2, 10]), ([3, 1], [3, 1]), ((4,), [4])]
)
def test_seeds_come_as_a_number_a_text_or_a_list(given, seeds):
    assert rerun.seeds_of(given) == seeds
    assert [job.seed for job in rerun.jobs_for(["pop"], "demo", given)] == seeds


@pytest.mark.parametrize("given", [-1, 0.5, True, None, "", "0;1", "0,,1", "first", [], [0, "one"], {"seed": 0}])
def test_seeds_that_are_no_whole_numbers_are_refused_by_name(given):
    with pytest.raises(ValueError, match="seeds are whole numbers from 0 on, given as 0, .* got") as refused:
        rerun.seeds_of(given)
    assert str(refused.value).endswith(f"got {given!r}")


@pytest.mark.slow
def test_a_chapter_makes_its_runs_from_what_papermill_hands_over(tmp_path):
    for folder in ("book", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "book/plan.toml").write_text((ROOT / "book/plan.toml").read_text())
    given = {"seeds": "0,1", "epochs": 1, "from_scratch": True, "runs": ["pop", "markov"]}
    chapter, there = ROOT / "notebooks/41_tagnn.ipynb", tmp_path / "notebooks"
    out = papermill.execute_notebook(chapter, tmp_path / "out.ipynb", given, cwd=there, progress_bar=False)
    made = sorted(path.name for path in (tmp_path / "runs/chapter41/demo-1").glob("*.json"))
    assert made == [f"{system}--demo--seed{seed}.json" for system in ("markov", "pop") for seed in (0, 1)]
    said = [output.get("data", {}).get("text/markdown", "") for cell in out.cells for output in cell.get("outputs", [])]
    assert any(text.startswith("Of the 0 comparisons that are recorded (36 were asked for), 0 go to") for text in said)


def test_a_record_says_in_what_it_departs_and_how_it_is_made_again(tmp_path):
    held = record("stamp", "diginetica")
    planned = held["recipe"]["config"]["epochs"]
    held["recipe"]["config"] |= {"epochs": 2, "precision": "bf16"}
    held["runs"]["final"][1]["test"]["HR@20"] = held["as_published"]["HR@20"] = 50.5
    assert rerun.departures(held) == {"epochs": (2, planned), "precision": ("bf16", "fp32")}
    assert rerun.repeat(held).endswith("--models stamp --datasets diginetica --seeds 0 --epochs 2 --precision bf16")
    put(tmp_path, held)
    assert rerun.shortened(tmp_path, "stamp", "diginetica") == (
        f"The run of stamp on diginetica here stopped after 2 of its recipe's {planned} epochs, in bfloat16; "
        "the last one moved HR@20 by +1.50."
    )
    assert rerun.extents(tmp_path, "diginetica", ["stamp", "narm", "stamp"]) == (
        "Of 1 runs recorded on diginetica, stopped before their recipes' last epoch: `stamp` 2 of 8; "
        "trained in bfloat16: `stamp`."
    )
    held["recipe"]["config"] |= {"epochs": planned}
    put(tmp_path, held)
    assert rerun.shortened(tmp_path, "stamp", "diginetica").endswith("was made in bfloat16.")
    held["recipe"]["config"] |= {"precision": "fp32"}
    put(tmp_path, held)
    assert rerun.shortened(tmp_path, "stamp", "diginetica") == rerun.shortened(tmp_path, "narm", "demo") == ""
    assert rerun.extents(tmp_path, "diginetica", ["stamp"]) == ""


def test_the_extents_of_variants_are_told_too(tmp_path, path):
    (job,) = rerun.jobs_for(["tagnn--average"], "yoochoose1_64", path=path)
    held = record("tagnn", "yoochoose1_64", variant="average")
    held["recipe"]["config"] = dataclasses.asdict(job.recipe.config) | {"epochs": 2}
    put(tmp_path, held)
    put(tmp_path, record("tagnn", "yoochoose1_64"))
    told = rerun.extents(tmp_path, "yoochoose1_64", ["tagnn", "tagnn--average"], path=path, title="Yoochoose")
    assert told == "Of 2 runs recorded on Yoochoose, stopped before their recipes' last epoch: `tagnn--average` 2 of 6."


def test_a_record_without_the_select_run_of_its_recipe_says_so(tmp_path):
    held = record("stamp", "diginetica")
    del held["runs"]["select"]
    held |= records.both_columns(held["runs"])
    assert rerun.departures(held) == {"final-only": (True, False)}
    assert rerun.repeat(held).endswith("--models stamp --datasets diginetica --seeds 0 --final-only")
    put(tmp_path, held)
    assert rerun.shortened(tmp_path, "stamp", "diginetica") == (
        "The run of stamp on diginetica here had no select run: its last epoch is the honest one."
    )
    assert rerun.extents(tmp_path, "diginetica", ["stamp"]).endswith("epoch is the honest one: `stamp`.")
    held["recipe"]["config"] |= {"epochs": 2}
    put(tmp_path, held)
    assert rerun.shortened(tmp_path, "stamp", "diginetica").endswith(
        "epochs; the last one moved HR@20 by +1.00. It had no select run: its last epoch is the honest one."
    )
    assert rerun.repeat(held).endswith("--seeds 0 --epochs 2 --final-only")
    counted = record("pop", "diginetica")
    counted["runs"] = {"final": counted["runs"]["final"][:1]}
    assert rerun.departures(counted) == {}  # it has no epochs to choose from


def test_the_committed_records_are_of_what_the_book_would_run_today():
    plan_file, folder = ROOT / "book/plan.toml", ROOT / "book/results"
    paths = [*folder.glob("*.json"), *folder.glob("variants/*.json")]
    for held, path in ((records.read(path), path) for path in paths):
        name = f"{held['system']}--{held['variant']}".removesuffix("--")
        (job,) = rerun.jobs_for([name], held["dataset"], [held["seed"]], path=plan_file)
        config = dataclasses.replace(job.recipe.config, seed=job.seed)
        departs = records.check_same(path, job.recipe, config, FINGERPRINTS[held["dataset"]])
        said = {key: mine for key, (mine, _) in rerun.departures(held, plan_file).items() if key != "final-only"}
        assert departs == said
    assert len(paths) > 80


def test_a_variant_is_what_its_row_says_even_where_a_recipe_has_some_of_it_already(tmp_path):
    row = '[[rows]]\nsystems = ["dgtn"]\nvariant = "no-neighbours"\narguments = {inter = "none", fusion = "max"}\n'
    (tmp_path / "plan.toml").write_text(row + 'datasets = ["demo", "yoochoose1_64"]\n')
    assert recipe("dgtn", "demo").arguments["fusion"] == "max" != recipe("dgtn", "yoochoose1_64").arguments["fusion"]
    for dataset in ("demo", "yoochoose1_64", "diginetica"):
        (job,) = rerun.jobs_for(["dgtn--no-neighbours"], dataset, path=tmp_path / "plan.toml")
        assert (job.recipe.arguments["inter"], job.recipe.arguments["fusion"]) == ("none", "max")


def test_what_is_missing_comes_with_its_command(path, tmp_path):
    jobs = plan.read(path)
    (tmp_path / jobs[0].file).write_text("{}")
    found = rerun.missing(jobs[:1], tmp_path / "elsewhere")
    assert found.command.tolist() == ["sbr replicate --models tagnn --datasets yoochoose1_64 --seeds 0"]
    assert found.why.tolist() == ["first"] and np.isnan(found.minutes[0]) and found.time.tolist() == ["unknown"]
    rest = rerun.missing(jobs[1:], tmp_path)
    assert rest.system.tolist() == ["tagnn (average)"]
    assert rest.command.tolist() == ["sbr replicate --models tagnn--average --datasets yoochoose1_64 --seeds 0"]
    assert rerun.missing([], tmp_path).empty


@pytest.mark.parametrize(
    "minutes, said",
    [
        ([90.0, 270.0], "about 6 hours"),
        ([90.0, 270.0, np.nan, np.nan], "about 6 hours, and 2 of unknown length"),
        ([1.0, np.nan], "about 0 hours, and 1 of unknown length"),
        ([np.nan], "of unknown length"),
    ],
)
def test_an_unknown_time_is_not_taken_for_nothing(minutes, said):
    assert rerun.hours(pd.DataFrame({"minutes": minutes})) == said


def test_what_is_recorded_short_of_the_plan_comes_with_what_it_lacks(path, tmp_path):
    job = plan.read(path)[0]
    cut = record("tagnn", "yoochoose1_64")
    cut["recipe"]["config"] |= {"precision": "bf16", "epochs": 2}
    put(tmp_path, cut)
    found = rerun.short([job], tmp_path)
    assert found.lacks.tolist() == [f"2 of {job.recipe.config.epochs} epochs, bf16, no ranks"]
    assert found.command.tolist() == ["sbr replicate --models tagnn --datasets yoochoose1_64 --seeds 0 --renew"]
    assert rerun.short([job], tmp_path / "elsewhere").empty


def test_a_system_that_counts_has_no_epochs_to_change():
    pop, stamp = rerun.jobs_for(["pop", "stamp"], "demo", epochs=3)
    assert pop.recipe == recipe("pop", "demo") and stamp.recipe.config.epochs == 3


def test_a_command_says_what_of_a_record_it_would_not_repeat():
    found = record("stamp", "demo")
    assert rerun.repeat(found) == "sbr replicate --models stamp --datasets demo --seeds 0"
    found["recipe"]["config"] |= {"lr": 0.5, "seed": 3}
    found["recipe"]["arguments"] |= {"dim": 7}
    assert rerun.repeat(found).endswith("--seeds 0  # the record has settings of its own: dim, lr")


def test_a_variant_without_a_plan_is_refused_in_one_negation():
    with pytest.raises(ValueError, match="^no plan is given for 'stamp--mine'; published are stamp--paper"):
        rerun.jobs_for("stamp--mine", "demo")


def test_records_of_an_own_log_or_of_an_own_model_stand_in_nobody_s_way(tmp_path):
    held = record("stamp", "clicks.csv")  # the file lies elsewhere by now
    held["recipe"]["config"]["epochs"] = 2
    assert "epochs" in rerun.departures(held) and rerun.departures(record("mine", "demo")) == {}
