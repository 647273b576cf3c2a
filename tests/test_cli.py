"""The commands: one JSON object on stdout, one line on stderr when the input is wrong, and the exit codes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from sbr_core import checkpoints, datasets, recipes, synthetic, workflow
from sbr_core.models import MODELS, build
from sbr_core.recommend import Recommender
from sbr_core.train import TrainConfig

SMALL = ["--set", "dim=8", "--batch-size", "512"]
DEMO = datasets.load("demo")
TESTS = len(DEMO.test_windows())
METRICS = {f"{name}@{k}" for name in ("HR", "MRR", "NDCG") for k in (5, 10, 20)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small model trained on the demo shop, and what `sbr train --json` printed."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = [
        "train",
        "--model",
        "sr-gnn",
        "--epochs",
        "1",
        "--seed",
        "3",
        "--output",
        str(folder),
        *SMALL,
        "--json",
    ]
    code = "import sys; sys.argv[0] = 'sbr'; from sbr_core.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return folder, json.loads(done.stdout)


def test_data_stats_are_those_of_the_dataset(sbr_json):
    found = sbr_json("data", "stats", "--dataset", "demo")
    assert found == DEMO.statistics()
    assert {"train_sessions", "train_clicks", "train_examples", "test_examples", "items"} <= found.keys()


def test_data_prepare_names_the_fingerprint(sbr_json):
    found = sbr_json("data", "prepare")
    assert found["fingerprint"] == DEMO.fingerprint and found["seconds"] >= 0


def test_data_list_tells_what_is_there(sbr, sbr_json):
    found = sbr_json("data", "list")
    assert found["demo"]["status"] == "ready"
    assert {"demo", "diginetica", "yoochoose1_64", "yoochoose1_4", "meli2020"} <= found.keys()
    code, out, _ = sbr("data", "list")
    assert code == 0 and len(out.splitlines()) == len(found) and out.startswith("demo ")


def test_train_prints_the_issue_s_keys_and_keeps_the_model(trained):
    folder, found = trained
    assert {"HR@20", "MRR@20", "epoch"} == found["best"].keys() and found["best"]["epoch"] == 1
    (epoch,) = found["epochs"]
    assert METRICS <= epoch["test"].keys() and epoch["test"]["examples"] == TESTS
    assert found["best"]["MRR@20"] == epoch["test"]["MRR@20"] and 0 < epoch["test"]["MRR@20"] < 100
    low, high = epoch["test"]["MRR@20 interval"]
    assert low < epoch["test"]["MRR@20"] < high
    assert (found["seed"], found["model"], found["dataset"], found["output"]) == (3, "sr-gnn", "demo", str(folder))
    assert found["peak_rss_mb"] > 50 and found["seconds"] > 0 and "selected" not in found
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "state.safetensors"]


def test_the_same_train_command_again_finds_the_run_done(trained, sbr_json):
    folder, found = trained
    again = sbr_json("train", "--model", "sr-gnn", "--epochs", 1, "--seed", 3, "--output", folder, *SMALL)
    assert again["epochs"] == found["epochs"] and again["best"] == found["best"]


def test_a_command_that_would_train_another_run_into_the_folder_is_refused(trained, sbr):
    folder, _ = trained
    code, out, err = sbr("train", "--model", "sr-gnn", "--epochs", 1, "--seed", 4, "--output", folder, *SMALL)
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert "state.safetensors belongs to another run: seed differ (there: [3])" in err


def test_evaluate_of_the_trained_model_repeats_the_training_s_figures(trained, sbr_json):
    folder, found = trained
    again = sbr_json("evaluate", "--checkpoint", folder)
    for name in METRICS:
        assert again[name] == pytest.approx(found["epochs"][0]["test"][name], abs=1e-9)
    assert again["examples"] == TESTS and again["ties"] == "conservative" and again["unknown_targets"] == 0


def test_train_with_validation_reports_the_epoch_it_selects(sbr_json, tmp_path):
    options = ["--epochs", 3, "--validate", "--lr", 0.01, "--output", tmp_path, *SMALL]
    found = sbr_json("train", "--model", "gru4rec", "--dataset", "demo", *options)
    values = [epoch["validation"]["MRR@20"] for epoch in found["epochs"]]
    picked = found["epochs"][values.index(max(values))]
    assert found["selected"] == {key: picked[key] for key in ("epoch", "validation", "test")}
    assert found["epochs"][0]["validation"]["examples"] == len(DEMO.train.split_latest(0.1)[1].prefixes())
    kept = sbr_json("evaluate", "--checkpoint", tmp_path)
    assert kept["MRR@20"] == pytest.approx(picked["test"]["MRR@20"], abs=1e-9)


def test_the_model_kept_is_that_of_the_selected_epoch_and_not_the_last(monkeypatch, tmp_path):
    tables, figures = [], iter([1.0, 1.0, 3.0, 2.0, 2.0, 9.0])  # validation and test of three epochs

    def evaluator(windows, config, train, progress):
        def function(model):
            tables.append(model.table.detach().clone())
            return dict.fromkeys(("HR@20", "MRR@20"), next(figures))

        return function

    monkeypatch.setattr(workflow, "evaluator", evaluator)
    config = TrainConfig(epochs=3, batch_size=4096)
    recipe = recipes.Recipe("gru4rec", {"dim": 4}, config)
    found = workflow.train(recipe, DEMO, tmp_path, validate=True, progress=False)
    assert (found["selected"]["epoch"], found["selected"]["test"]["MRR@20"], found["best"]["epoch"]) == (2, 2.0, 3)
    kept = Recommender.load(tmp_path).model.table
    assert torch.equal(kept, tables[2]) and not torch.equal(kept, tables[4])


def test_evaluate_counts_a_system_on_the_spot(sbr_json):
    found = sbr_json("evaluate", "--model", "markov", "--breakdown")
    assert METRICS <= found.keys() and found["examples"] == TESTS and 5 < found["MRR@20"] < found["HR@20"] < 100
    for table in ("by_length", "by_popularity"):
        assert sum(row["examples"] for row in found[table]) == TESTS
        assert sum(row["examples"] * row.get("HR@20", 0) for row in found[table]) / TESTS == pytest.approx(
            found["HR@20"], rel=1e-4
        )


def test_tie_policies_order_the_figures_of_a_counting_system(sbr_json):
    policies = ("conservative", "median", "standard")
    low, middle, high = (sbr_json("evaluate", "--model", "item-knn", "--ties", ties)["HR@20"] for ties in policies)
    assert low <= middle <= high and low < high


def test_recommend_answers_with_items_and_scores(trained, sbr_json):
    found = sbr_json("recommend", "--checkpoint", trained[0], "--session", "214,55,214", "-k", 20)
    assert len(found["items"]) == len(set(found["items"])) == len(found["scores"]) == 20
    assert found["scores"] == sorted(found["scores"], reverse=True) and all(
        item in DEMO.item_ids for item in found["items"]
    )


def test_index_is_written_and_measured(trained, sbr_json, tmp_path):
    faiss = pytest.importorskip("faiss", reason="faiss is an optional extra: pip install 'sbr-core[index]'")
    found = sbr_json("index", "--checkpoint", trained[0], "--output", tmp_path / "items.faiss", "--kind", "flat")
    assert found["recall@20"] > 0.999 and found["items"] == DEMO.num_items
    assert faiss.read_index(found["output"]).ntotal == DEMO.num_items


def test_index_is_measured_on_inputs_cut_as_in_training(cut_demo, monkeypatch, tmp_path):
    pytest.importorskip("faiss")
    model, lengths = build("stamp", DEMO.num_items, dim=8), []
    Recommender.of(model, cut_demo, max_len=2).save(tmp_path, "stamp", {"dim": 8})
    order = workflow.length_order
    watched = lambda windows, size: lengths.append(int(windows.lengths.max())) or order(windows, size)  # noqa: E731
    monkeypatch.setattr(workflow, "length_order", watched)
    workflow.index(tmp_path, cut_demo, tmp_path / "items.faiss", "flat", 1, 5)
    assert lengths == [2] < [int(cut_demo.test_windows().lengths.max())]


def test_recommend_warns_on_stderr_of_clicks_it_does_not_know(trained, sbr):
    code, out, err = sbr("recommend", "--checkpoint", trained[0], "--session", "214,999999,55", "--json")
    assert code == 0 and err == "warning: 1 of 3 clicks are unknown to the model and skipped: 999999\n"
    assert json.loads(out) == json.loads(
        sbr("recommend", "--checkpoint", trained[0], "--session", "214,55", "--json")[1]
    )


def test_recommend_without_json_is_a_ranked_list(trained, sbr):
    code, out, _ = sbr("recommend", "--checkpoint", trained[0], "--session", "214", "-k", 3)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["1", "2", "3"]


def test_bench_prints_the_issue_s_keys(sbr_json):
    found = sbr_json("bench", "--model", "sr-gnn", "--dataset", "demo", "--steps", 3, *SMALL)
    wanted = {"examples_per_second", "step_ms", "floor_ms", "floor_ratio", "peak_rss_mb"}
    assert wanted <= found.keys() and all(found[key] > 0 for key in wanted)
    assert found["examples_per_second"] == pytest.approx(512 / found["mean_step_ms"] * 1e3)
    assert (found["steps"], found["batch_size"], found["examples"]) == (3, 512, TESTS)


def test_bench_without_evaluation_times_the_steps_alone(cut_demo, sbr, sbr_json, monkeypatch):
    monkeypatch.setattr("sbr_core.bench.evaluate", lambda *given: 1 / 0)
    found = sbr_json("bench", "--model", "stamp", "--steps", 1, "--no-evaluation", *SMALL)
    assert found["step_ms"] > 0 and "evaluation_s" not in found
    code, _, err = sbr("bench", "--model", "pop", "--no-evaluation")
    assert code == 1 and "Popularity counts: its evaluation is all that is measured" in err


@pytest.mark.parametrize("loss, table", [("full", "1,000 x 8 with the gradient of a"), ("triplet", "1,000 x 8 takes")])
@pytest.mark.parametrize("command", ["train", "bench"])
def test_a_table_that_no_memory_holds_is_refused(command, loss, table, sbr, monkeypatch):
    generate = synthetic.large_catalogue
    monkeypatch.setattr(synthetic, "large_catalogue", lambda count: generate(count, num_sessions=50))
    options = ["--model", "stamp", "--set", "dim=8", "--dataset", "large:1000", "--loss", loss, "--l2", 0]
    for room, code in ((31_999, 1), (63_999, 1 if loss == "full" else 0), (64_000, 0)):
        monkeypatch.setattr("sbr_core.memory.machine_bytes", lambda room=room: room)
        with monkeypatch.context() as patch:
            patch.setattr(workflow, "new_model", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt()))
            found, _, err = sbr(command, *options)
        assert found == (1 if code else 130) and (not code or table in err)


def test_bench_takes_a_loss_and_an_optimizer(sbr_json):
    options = ["--loss", "negative-sampling", "--optimizer", "rowwise-adagrad", "--l2", 0, "--steps", 1]
    found = sbr_json("bench", "--model", "stamp", *options, "--config", 'loss_arguments={"negatives": 9}')
    assert (found["loss"], found["table_optimizer"]) == ("negative-sampling", "rowwise-adagrad")
    assert found["step_ms"] > 0 and found["peak_rss_mb"] > 50


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--table-optimizer", "rowwise-adam"], ("adam", "rowwise-adam")),
        (["--optimizer", "adamw", "--table-optimizer", "adam"], ("adamw", "adam")),
        (["--optimizer", "adam"], ("adam", "auto")),
        (["--optimizer", "rowwise-adam"], ("adam", "rowwise-adam")),
    ],
)
def test_the_table_has_an_optimizer_of_its_own(options, expected, sbr_json, monkeypatch):
    seen = []
    monkeypatch.setattr(workflow, "train", lambda recipe, *rest, **more: seen.append(recipe.config) or {})
    assert sbr_json("train", "--model", "stamp", "--loss", "triplet", *options) == {}
    assert (seen[0].optimizer, seen[0].table_optimizer) == expected and seen[0].loss == "triplet"


def test_bench_names_a_generated_catalogue_by_its_size(sbr_json, monkeypatch):
    generate = synthetic.large_catalogue
    monkeypatch.setattr(synthetic, "large_catalogue", lambda count: generate(count, num_sessions=80))
    options = ["--loss", "negative-sampling", "--table-optimizer", "sparse-adam", "--steps", 1]
    found = sbr_json("bench", "--model", "stamp", "--dataset", "large:5000", *options)
    assert found["parameters"] > 5000 * 100 and found["loss"] == "negative-sampling"
    assert found["step_ms"] > 0 and found["peak_rss_mb"] > 50


def test_bench_compares_the_forms_of_the_softmax(sbr_json):
    found = sbr_json("bench", "--softmax", "50,60", "--batch-size", 8)["softmax"]
    assert [(row["num_items"], row["batch_size"]) for row in found] == [(50, 8), (60, 8)]
    assert all(row[form] > 0 for row in found for form in ("plain fp32", "chunked fp32", "kept fp32", "blocked bf16"))


def test_replicate_takes_a_variant_of_the_plan_by_its_name(sbr_json, sbr, tmp_path):
    text = '[[rows]]\nsystems = ["stamp"]\ndatasets = ["diginetica"]\nvariant = "biased"\narguments = {biases = true}\n'
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    options = ("replicate", "--plan", plan, "--datasets", "demo", "--epochs", "1")
    folders = ("--work", tmp_path / "w", "--results", tmp_path / "r")
    (path,) = sbr_json(*options, "--models", "stamp--biased", "--final-only", *folders)["records"]
    record = json.loads(Path(path).read_text())
    assert (record["variant"], record["recipe"]["arguments"]["biases"]) == ("biased", True)
    assert record["runs"].keys() == {"final"} and len(record["runs"]["final"]) == 1
    code, _, err = sbr(*options, "--models", "stamp--unbiased", *folders)
    assert code == 1 and "defines no variant 'stamp--unbiased'; it has stamp--biased" in err


def test_replicate_writes_a_record(sbr_json, tmp_path):
    options = [
        "--models",
        "pop",
        "--datasets",
        "demo",
        "--seeds",
        "0,1",
        "--work",
        tmp_path / "w",
        "--results",
        tmp_path / "r",
    ]
    found = sbr_json("replicate", *options)["records"]
    assert found == [str(tmp_path / "r" / f"pop--demo--seed{seed}.json") for seed in (0, 1)]
    assert json.loads((tmp_path / "r" / "pop--demo--seed1.json").read_text())["seed"] == 1


def test_replicate_lists_the_plan_cut_to_a_dataset_and_a_seed_for_a_card_too(sbr_json, sbr, tmp_path):
    text = '[[rows]]\nsystems = ["pop"]\ndatasets = ["demo", "diginetica"]\nseeds = [0, 1]'
    (tmp_path / "plan.toml").write_text(text)
    options = ("replicate", "--list", "--plan", tmp_path / "plan.toml", "--results", tmp_path, "--seeds", "1")
    rows = sbr_json(*options, "--datasets", "diginetica", "--device", "cuda")["runs"]
    assert [(row["system"], row["dataset"], row["seed"], row["time"]) for row in rows] == [
        ("pop", "diginetica", 1, "estimated")
    ]
    assert "all 2 from nothing: 0.0 hours" in sbr(*options)[1]


def test_a_run_that_is_longer_than_the_budget_is_begun_and_each_call_goes_on_with_it(sbr, tmp_path):
    row = '[[rows]]\nsystems = ["stamp"]\ndatasets = ["demo"]\nvariant = "long"\nconfig = {epochs = 100000}\n'
    (tmp_path / "plan.toml").write_text(row)
    folders = ("--work", tmp_path / "w", "--results", tmp_path / "r")
    options = ("--plan", tmp_path / "plan.toml", *folders, "--device", "cpu")
    done = []
    for _ in range(2):
        code, out, err = sbr("replicate", *options, "--budget", "5s")
        assert code == 0 and out.split() == ["records", "[]"]
        assert "of 1 missing runs none fits into the budget" in err
        assert "the budget is used up, 1 of 1 runs are not done: the same command continues" in err
        info = checkpoints.read(tmp_path / "w" / "stamp--long--demo--seed0-select" / "state.safetensors", "cpu")[1]
        done.append((len(info["epochs"]), info["step"]))
    assert (0, 0) < done[0] < done[1] and not (tmp_path / "r").exists()


def test_a_budget_in_which_nothing_can_be_done_says_so(sbr, tmp_path):
    (tmp_path / "plan.toml").write_text('[[rows]]\nsystems = ["pop", "markov"]\ndatasets = ["demo"]\n')
    options = ("--plan", tmp_path / "plan.toml", "--work", tmp_path / "w", "--results", tmp_path / "r")
    code, out, err = sbr("replicate", *options, "--budget", "10s")
    assert code == 0 and out.split() == ["records", "[]"]
    assert err == "of 2 missing runs none fits into the budget, the shortest takes 1.0 min: begins none\n"


WRONG = {
    "model": (["train", "--model", "srgnn"], "no model 'srgnn'; the models are pop, "),
    "dataset": (["data", "stats", "--dataset", "nowhere"], "nowhere"),
    "dataset to train": (["train", "--model", "sr-gnn", "--dataset", "nowhere"], "nowhere"),
    "argument": (["train", "--model", "stamp", "--set", "steps=2"], "stamp has no argument 'steps'"),
    "argument's value": (["train", "--model", "sr-gnn", "--set", "readout=max"], "readout is one of"),
    "argument's type": (["train", "--model", "sr-gnn", "--set", "dim=wide"], "sr-gnn: dim is int, got 'wide'"),
    "argument's number": (["train", "--model", "sr-gnn", "--set", "dim=-1"], "dim must be at least 1"),
    "argument's form": (["train", "--model", "sr-gnn", "--set", "steps"], "--set takes name=value, got 'steps'"),
    "epochs": (["train", "--model", "sr-gnn", "--epochs", "0"], "epochs must be at least 1, got 0"),
    "rate": (["train", "--model", "sr-gnn", "--lr", "-1", *SMALL], "lr must be positive"),
    "precision": (["train", "--model", "sr-gnn", "--precision", "fp8", *SMALL], "'fp32' or 'bf16', got 'fp8'"),
    "length": (["train", "--model", "sr-gnn", "--max-len", "0", *SMALL], "max_len must be at least 1"),
    "argument's truth": (["train", "--model", "sr-gnn", "--set", "steps=true", *SMALL], "steps is int, got True"),
    "device": (["train", "--model", "sr-gnn", "--device", "toaster", *SMALL], "--device toaster"),
    "checkpoint": (["recommend", "--checkpoint", "/no", "--session", "1"], "/no/model.safetensors does not exist"),
    "checkpoint to evaluate": (["evaluate", "--checkpoint", "/nowhere"], "/nowhere/model.safetensors does not exist"),
    "untrained": (["evaluate", "--model", "sr-gnn"], "sr-gnn must be trained first"),
    "nothing to evaluate": (["evaluate"], "give either --model"),
    "settings of a trained one": (["evaluate", "--checkpoint", "/x", "--set", "dim=3"], "give either --model (a count"),
    "two to evaluate": (["evaluate", "--model", "pop", "--checkpoint", "/x"], "give either --model"),
    "ties": (["evaluate", "--model", "pop", "--ties", "random"], "ties is one of"),
    "steps": (["bench", "--model", "sr-gnn", "--steps", "0", *SMALL], "at least one step"),
    "replicate": (["replicate"], "say what to run: --models and --datasets, --budget 2h, or --plan book/plan"),
    "budget without end": (["replicate", "--budget", "nan"], "a budget must be positive, got 'nan'"),
    "budget of the plan": (["replicate", "--budget", "soon"], "a budget is a time such as 90s, 20m or 2h, got 'soon'"),
    "plan": (["replicate", "--plan", "nowhere.toml"], "nowhere.toml is not a plan"),
    "budget": (["replicate", "--models", "pop", "--budget", "soon"], "a budget is a time such as 90s, 20m or 2h"),
    "seed of a plan": (["replicate", "--plan", "book/plan.toml", "--seeds", "5"], "no run with seed 5; it has"),
    "dataset of a plan": (["replicate", "--list", "--datasets", "mars"], "no run with dataset mars; it has"),
    "dataset to list": (["replicate", "--list", "--models", "pop", "--datasets", "mars"], "there is no dataset 'mars'"),
    "epochs of a plan": (["replicate", "--plan", "p.toml", "--epochs", "3"], "--epochs and --precision go with"),
    "precision of a plan": (["replicate", "--list", "--precision", "bf16"], "--epochs and --precision go with"),
    "study": (["study", "nonsense"], "there is no study 'nonsense'; the studies are collisions, softmax, "),
    "two of agc": (["train", "--model", "tagnn++", "--loss", "xe", "--config", "agc=sbr_inverted_axis0"],
                   "agc='sbr_inverted_axis0' changes the whole gradient of the item table, and loss='xe' has a sparse"),
    "config": (["train", "--model", "stamp", "--config", "rate=1"], "--config has no field 'rate'; the fields are"),
    "seeds": (["replicate", "--models", "pop", "--seeds", "one"], "--seeds takes whole numbers, separated by commas"),
    "softmax": (["bench", "--softmax", "100,b"], "--softmax takes whole numbers, separated by commas, got '100,b'"),
    "output": (["train", "--model", "pop", "--output", __file__], "test_cli.py: a file is in the way; it must be a"),
    "output below a file": (["train", "--model", "pop", "--output", f"{__file__}/x"], "a file is in the way"),
    "argument of a loss": (
        ["train", "--model", "stamp", "--loss", "triplet", "--config", 'loss_arguments={"negatives": "many"}'],
        "loss='triplet': negatives is int, got 'many'",
    ),
    "truth for a number": (
        ["train", "--model", "stamp", "--loss", "bpr-max", "--config", 'loss_arguments={"negatives": true}'],
        "loss='bpr-max': negatives is int | None, got True",
    ),
    "two optimizers of the table": (
        ["train", "--model", "stamp", "--optimizer", "sparse-adam", "--table-optimizer", "rowwise-adam"],
        "--optimizer sparse-adam is for the item table, and so is --table-optimizer rowwise-adam: give one of them",
    ),
    "decay of a sparse table": (
        ["train", "--model", "sr-gnn", "--loss", "negative-sampling", "--l2", "1e-5", *SMALL],
        "set l2=0 (--l2 0), or table_l2='touched' (--config table_l2=touched)",
    ),
    "catalogue beyond 32 bits": (["data", "stats", "--dataset", "large:3000000000"], "at most 2,147,483,647 items"),
    "missing option": (["train"], "--model"),
    "missing value": (["train", "--model"], "--model"),
    "unknown option": (["train", "--model", "sr-gnn", "--bogus"], "--bogus"),
    "unknown command": (["fly"], "fly"),
    "not a number": (["train", "--model", "sr-gnn", "--epochs", "many"], "valid integer"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, message", WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_on_stderr_and_exit_code_1(arguments, message, sbr):
    code, out, err = sbr(*arguments)
    assert code == 1 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert message in err


def test_no_memory_is_one_line(sbr, monkeypatch):
    def full(*arguments, **more):
        raise MemoryError("Unable to allocate 15.0 GiB for an array")

    monkeypatch.setattr(datasets, "load", full)
    code, out, err = sbr("data", "stats")
    assert (code, out) == (1, "") and err.count("\n") == 1
    assert err.startswith("error: not enough memory (Unable to allocate 15.0 GiB for an array); take a smaller")


@pytest.mark.parametrize("command, said", [
    (["train", "--model", "pop"], "interrupted: with --output, the same command continues\n"),
    (["evaluate", "--model", "pop"], "interrupted\n"), (["data", "stats"], "interrupted\n"),
])  # fmt: skip
def test_only_a_run_that_can_go_on_says_so(command, said, sbr, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda *name, **log: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert sbr(*command) == (130, "", said)


def test_train_shows_the_progress_of_its_evaluations(cut_demo, capsys):
    recipe = recipes.Recipe("pop", {}, TrainConfig())
    workflow.train(recipe, cut_demo, None, validate=True, progress=False)
    assert "evaluate" not in capsys.readouterr().err
    workflow.train(recipe, cut_demo, None, validate=True, progress=True)
    assert "evaluate:" in capsys.readouterr().err


def test_evaluate_shows_its_progress_on_a_terminal(sbr, monkeypatch):
    seen = []
    monkeypatch.setattr(workflow, "rank_all", lambda *given, progress: seen.append(progress) or 1 / 0)
    for terminal in (True, False):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
            workflow_arguments = ["evaluate", "--model", "pop"]
            sbr(*workflow_arguments)
    assert seen == [True, False]


def test_a_session_of_something_else_than_integers_is_refused(trained, sbr):
    code, out, err = sbr("recommend", "--checkpoint", trained[0], "--session", "214,shoe")
    assert (code, out) == (1, "")
    assert err == "error: the items of this model are integers, separated by commas; got '214,shoe'\n"


@pytest.mark.parametrize("k", [0, DEMO.num_items + 1])
def test_more_items_than_there_are_is_refused(k, trained, sbr):
    code, out, err = sbr("recommend", "--checkpoint", trained[0], "--session", "214", "-k", k)
    assert (code, out, err) == (1, "", f"error: k must lie in 1..{DEMO.num_items} (the catalogue), got {k}\n")


def test_a_damaged_model_is_named(trained, sbr, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((trained[0] / "model.safetensors").read_bytes()[:-100])
    code, out, err = sbr("recommend", "--checkpoint", tmp_path, "--session", "214")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "model.safetensors is damaged" in err


def test_a_model_of_another_catalogue_is_not_evaluated(trained, sbr):
    code, out, err = sbr("evaluate", "--checkpoint", trained[0], "--dataset", "large:1000")
    assert (code, out) == (1, "") and "trained on another catalogue than large:1000" in err


def test_cuda_without_cuda_is_refused(sbr, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    code, out, err = sbr("train", "--model", "sr-gnn", "--device", "cuda", *SMALL)
    assert (code, out) == (1, "") and err.count("\n") == 1 and "--device cuda" in err and "--device cpu" in err


def test_no_command_shows_the_help(sbr):
    code, out, err = sbr()
    assert code == 1 and "recommend" in out and err == "error: a command is missing\n"
    code, out, _ = sbr("--help")
    assert code == 0 and all(
        command in out for command in ("train", "evaluate", "recommend", "bench", "data", "replicate")
    )


@pytest.fixture
def cut_demo(monkeypatch):
    """The commands find a demo shop of few sessions."""
    small = dataclasses.replace(DEMO, train=DEMO.train.select(0, 300), test=DEMO.test.select(0, 60))
    monkeypatch.setattr(datasets, "load", lambda name, **_: small)
    return small


@pytest.mark.parametrize("model", MODELS)
def test_every_system_trains_for_an_epoch(model, cut_demo, sbr_json, tmp_path):
    found = sbr_json("train", "--model", model, "--dataset", "demo", "--epochs", 1, "--output", tmp_path)
    (epoch,) = found["epochs"]
    assert found["model"] == model and epoch["test"]["examples"] == len(cut_demo.test_windows())
    assert 0 < epoch["test"]["HR@20"] < 100
    loaded = sbr_json("evaluate", "--checkpoint", tmp_path)
    assert loaded["MRR@20"] == pytest.approx(epoch["test"]["MRR@20"], abs=1e-9)


def test_dgtn_is_given_the_test_sessions_where_it_is_told_to_find_neighbours_among_them(
    cut_demo, sbr, sbr_json, tmp_path
):
    options = ["train", "--model", "dgtn", "--set", "dim=8", "--epochs", 1]
    plain = sbr_json(*options)
    found = sbr_json(*options, "--set", "transductive=true", "--output", tmp_path)
    assert found["epochs"][0]["loss"] == plain["epochs"][0]["loss"]
    assert found["best"]["MRR@20"] != plain["best"]["MRR@20"]
    loaded = Recommender.load(tmp_path).model
    assert int(loaded.neighbour_training) == 300 and len(loaded.neighbour_distinct) == 360
    again = sbr_json("evaluate", "--checkpoint", tmp_path)
    assert again["MRR@20"] == pytest.approx(found["best"]["MRR@20"], abs=1e-9)
    code, _, err = sbr(*options, "--set", "transductive=true", "--validate")
    assert code == 1 and "transductive=True makes neighbours of test sessions, and --validate picks" in err


def test_a_counting_system_warns_of_the_fields_that_it_does_not_read(cut_demo, sbr):
    code, out, err = sbr("train", "--model", "pop", "--config", "epochs=1", "--lr", 0.1, "--seed", 3, "--json")
    assert code == 0 and out.count("\n") == 1 and err.count("\n") == 1
    assert err.startswith("warning: pop counts instead of training by steps and does not read epochs, seed, lr;")
    assert sbr("train", "--model", "pop", "--max-len", 3)[2] == sbr("train", "--model", "stamp", "--epochs", 1)[2] == ""


@pytest.mark.parametrize("model", ["s-pop", "markov"])
def test_counting_systems_train_evaluate_and_recommend(model, sbr_json, tmp_path):
    found = sbr_json("train", "--model", model, "--output", tmp_path)
    direct = sbr_json("evaluate", "--model", model)
    loaded = sbr_json("evaluate", "--checkpoint", tmp_path)
    assert found["best"]["HR@20"] == pytest.approx(direct["HR@20"]) == pytest.approx(loaded["HR@20"])
    assert len(sbr_json("recommend", "--checkpoint", tmp_path, "--session", "214,55", "-k", 5)["items"]) == 5


DRIVER = """
import sys, time
from sbr_core import cli, train
step = train.train_step
def slow(*arguments):
    print("training", file=sys.stderr, flush=True)
    time.sleep(0.05)
    return step(*arguments)
train.train_step = slow
sys.argv = ["sbr", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.slow
def test_ctrl_c_saves_exits_130_and_the_same_command_continues(sbr_json, tmp_path):
    arguments = ["train", "--model", "gru4rec", "--epochs", "1", *SMALL, "--json", "--output"]
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments, str(tmp_path / "stopped")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job may come with it ignored
    )  # fmt: skip
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        while "training" not in (line := process.stderr.readline()):
            assert line, "ended before training began"
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate()
    finally:
        watchdog.cancel()
        process.kill()
    assert process.returncode == 130 and out == "" and "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted: with --output, the same command continues"
    _, info = checkpoints.read(tmp_path / "stopped" / "state.safetensors")
    assert 1 <= info["step"] < len(DEMO.train.prefixes()) // 512 and info["epochs"] == []
    continued = sbr_json(*arguments[:-2], "--output", tmp_path / "stopped")
    straight = sbr_json(*arguments[:-2], "--output", tmp_path / "straight")
    assert continued["best"] == straight["best"] and continued["epochs"][0]["loss"] == straight["epochs"][0]["loss"]
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("stopped", "straight")]
    assert files[0] == files[1]


def test_the_study_of_a_blend_wants_the_runs_it_reads(sbr, tmp_path):
    code, _, err = sbr("study", "blend", "--models", "stamp,pop", "--work", tmp_path)
    assert code == 1 and "stamp--demo--seed0-select holds no run" in err
    assert f"`sbr replicate --models stamp --datasets demo --work {tmp_path}` makes it" in err


def test_a_study_is_written_where_it_is_wanted(sbr, tmp_path, monkeypatch):
    monkeypatch.setattr("sbr_core.scaling.scale_study", lambda: {"scale": [1, 2]})
    path = tmp_path / "new" / "scale.json"
    assert sbr("study", "scale", "--output", path)[0] == 0 and json.loads(path.read_text()) == {"scale": [1, 2]}
    code, out, err = sbr("study", "scale", "--output", tmp_path)
    assert code == 1 and json.loads(out) == {"scale": [1, 2]} and str(tmp_path) in err  # not lost
    code, _, err = sbr("study", "scales")
    assert code == 1 and "there is no study 'scales'; the studies are collisions" in err
