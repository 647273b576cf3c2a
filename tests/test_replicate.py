"""A published row repeated: two runs, one record, continued after a stop, never done twice."""

import dataclasses
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import chain, random_sessions

from sbr_core import models, plan, record_check, records, replicate, train
from sbr_core.datasets import Dataset
from sbr_core.evaluate import evaluate
from sbr_core.recipes import Recipe
from sbr_core.train import TrainConfig

V = 20
DATASET = Dataset("chain", chain(V, 100, seed=0), chain(V, 20, seed=1), np.arange(V), "f" * 64, "test")
RECIPE = Recipe("gru4rec", {"dim": 8}, TrainConfig(epochs=2, batch_size=32, lr=0.02, l2=0.0))


@pytest.fixture
def run(tmp_path):
    def go(recipe=RECIPE, results="results", dataset=DATASET, seed=1, **more):
        return replicate.replicate(recipe, dataset, seed, tmp_path / "work", tmp_path / results, progress=False, **more)

    go.work = tmp_path / "work"
    return go


def without_time(record):
    """A record without what depends on the clock, the machine and the process."""
    runs = {part: [{k: v for k, v in e.items() if k not in ("seconds", "examples_per_second")} for e in epochs]
            for part, epochs in record["runs"].items()}  # fmt: skip
    return {k: v for k, v in record.items() if k not in ("seconds", "peak_rss_mb", "digest")} | {"runs": runs}


def test_a_replication_is_one_record_of_both_protocols(run):
    path = run()
    (found,) = records.load(path.parent)
    select, final = found["runs"]["select"], found["runs"]["final"]
    assert len(select) == len(final) == 2 and path.name == "gru4rec--chain--seed1.json"
    assert all(
        epoch.keys() >= {"validation"} and "test" not in epoch for epoch in select
    )  # nothing is picked on the test
    assert all("test" in epoch and "validation" not in epoch for epoch in final)
    assert select[0]["validation"]["examples"] == 10 * 5 and final[0]["test"]["examples"] == 20 * 5
    picked = max(select, key=lambda epoch: epoch["validation"]["MRR@20"])["epoch"]
    assert found["honest"]["epoch"] == picked
    assert found["honest"]["MRR@20"] == final[picked - 1]["test"]["MRR@20"]
    assert found["as_published"]["HR@20"] == max(epoch["test"]["HR@20"] for epoch in final)
    assert found["seed"] == found["recipe"]["config"]["seed"] == 1


def test_the_select_run_trains_on_all_but_the_latest_tenth_and_the_final_run_on_all(run, monkeypatch):
    trained = []
    fit = replicate.fit

    def spy(model, examples, *arguments, **more):
        trained.append(len(examples))
        return fit(model, examples, *arguments, **more)

    monkeypatch.setattr(replicate, "fit", spy)
    run()
    assert trained == [90 * 5, 100 * 5]


def test_a_record_that_is_there_is_left_alone(run, monkeypatch, capsys):
    path = run()
    before, changed = path.read_bytes(), path.stat().st_mtime_ns
    monkeypatch.setattr(replicate, "fit", None)
    assert run() == path and path.read_bytes() == before and path.stat().st_mtime_ns == changed
    assert capsys.readouterr().err == f"recorded already: {path}; a new one needs another --results\n"


@pytest.mark.parametrize("field, refused", [("epochs", False), ("precision", False), ("lr", True)])
def test_a_record_of_fewer_epochs_is_of_the_recipe_and_one_of_another_rate_is_not(field, refused, run, capsys):
    path = run()
    found = json.loads(path.read_text())
    found["recipe"]["config"][field] = {"epochs": 1, "precision": "bf16", "lr": 0.5}[field]
    path.write_text(json.dumps(record_check.sealed(found)))
    if refused:
        with pytest.raises(ValueError, match=f"record of other settings \\({field} differ\\)"):
            run()
    else:
        assert run() == path
        assert f", with {field} {found['recipe']['config'][field]}; a new one needs" in (
            said := capsys.readouterr().err
        )
        assert said.endswith("or --renew, which keeps this one in earlier/\n")


def with_epochs(count):
    return dataclasses.replace(RECIPE, config=dataclasses.replace(RECIPE.config, epochs=count))


@pytest.mark.parametrize("kept", [True, False])
def test_a_longer_run_goes_on_from_the_shorter_one_and_sets_its_record_aside(kept, run, tmp_path, monkeypatch):
    path = run()
    before, ranks, given = path.read_bytes(), records.ranks_path(path).read_bytes(), []
    if not kept:
        (tmp_path / "work").rename(tmp_path / "lost")
    step = train.train_step
    monkeypatch.setattr(train, "train_step", lambda *arguments: given.append(1) or step(*arguments))
    assert run(with_epochs(3), renew=True) == path
    assert len(given) == {True: 31, False: 93}[kept]  # 15 steps an epoch of the select run, 16 of the final one
    (aside,) = (path.parent / "earlier").glob(f"{path.stem}--????????.json")
    assert aside.read_bytes() == before and records.ranks_path(aside).read_bytes() == ranks
    whole = records.read(run(with_epochs(3), results="straight"))
    assert records.load(path.parent) == [records.read(path)]
    assert without_time(records.read(path)) == without_time(whole)


@pytest.mark.parametrize("kept", [True, False])
def test_a_select_run_is_added_to_a_final_run_that_is_not_done_again(kept, run, monkeypatch, capsys):
    whole = records.read(run(results="straight"))
    shutil.rmtree(run.work)
    path = run(dataclasses.replace(RECIPE, select=False))
    only, ranks, given = records.read(path), records.ranks_path(path).read_bytes(), []
    if not kept:
        shutil.rmtree(run.work)  # the record has its final run still
    assert run() == path and "with no select run" in capsys.readouterr().err
    assert only["honest"]["epoch"] == 2 and only["runs"].keys() == {"final"}
    assert run() == path and records.read(path) == only  # not unless asked
    step = train.train_step
    monkeypatch.setattr(train, "train_step", lambda *arguments: given.append(1) or step(*arguments))
    assert run(renew=True) == path and len(given) == 2 * 15  # the select run's steps alone
    assert without_time(records.read(path)) == without_time(whole) | {"final_of": only["digest"]}
    (aside,) = (path.parent / "earlier").glob("*.json")
    assert json.loads(aside.read_text())["digest"] == only["digest"]
    assert records.ranks_path(path).read_bytes() == records.ranks_path(aside).read_bytes() == ranks
    longer = dataclasses.replace(with_epochs(3), select=False)
    assert run(longer, renew=True) == path and len(given) == 2 * 15  # what was picked is not lost to what was not
    assert len(list((path.parent / "earlier").glob("*.json"))) == 1


@pytest.mark.parametrize("other", ["picked", "ranks", "precision"])
def test_a_final_run_is_done_again_where_its_record_cannot_answer(other, run, monkeypatch):
    trained, given = replicate._run, []
    path = run(dataclasses.replace(RECIPE, select=False))
    shutil.rmtree(run.work)
    recipe = RECIPE
    if other == "ranks":
        records.ranks_path(path).unlink()
    if other == "precision":
        recipe = dataclasses.replace(RECIPE, config=dataclasses.replace(RECIPE.config, precision="bf16"))

    def spy(*arguments):
        given.append(arguments[-1])
        epochs = trained(*arguments)
        if other == "picked" and given[-1] == "select":
            epochs[0]["validation"]["MRR@20"] = 99.0  # the ranks beside the record are of epoch 2
        return epochs

    monkeypatch.setattr(replicate, "_run", spy)
    found = records.read(run(recipe, renew=True))
    assert given == ["select", "final"] and "final_of" not in found
    assert records.read_ranks(path) and found["honest"]["epoch"] == (1 if other == "picked" else 2)


@pytest.mark.parametrize("fault", ["no ranks", "bf16"])
def test_a_record_without_ranks_or_of_rough_numbers_is_renewed_too(fault, run):
    path = run()
    whole = records.read(path)
    if fault == "no ranks":
        records.ranks_path(path).unlink()
    else:
        rough = whole | {"recipe": whole["recipe"] | {"config": whole["recipe"]["config"] | {"precision": "bf16"}}}
        path.write_text(json.dumps(record_check.sealed(rough)))
    run(renew=True)
    assert records.ranks_path(path).exists() and without_time(records.read(path)) == without_time(whole)
    assert len(list((path.parent / "earlier").glob("*.json"))) == 1


def test_of_two_commands_at_once_the_faster_one_has_the_record(run, monkeypatch):
    first, work = run(), replicate._run
    before = first.read_bytes()
    first.rename(first.with_suffix(".kept"))

    def slow(*arguments):
        done = work(*arguments)
        first.with_suffix(".kept").exists() and first.with_suffix(".kept").rename(first)
        return done

    monkeypatch.setattr(replicate, "_run", slow)
    assert run() == first and first.read_bytes() == before and not (first.parent / "earlier").exists()


@pytest.mark.parametrize("epochs, renew", [(3, False), (2, True), (1, True)])
def test_a_record_is_set_aside_only_for_a_longer_run_and_only_when_asked(epochs, renew, run, monkeypatch, capsys):
    path = run()
    before = path.read_bytes()
    monkeypatch.setattr(replicate, "fit", None)
    assert run(with_epochs(epochs), renew=renew) == path and path.read_bytes() == before
    assert not (path.parent / "earlier").exists() and "recorded already" in capsys.readouterr().err


@pytest.mark.parametrize("steps", [10, 40])
def test_a_replication_that_was_stopped_is_continued_to_the_same_record(steps, run, monkeypatch):
    straight = run(results="straight")
    straight_record = records.load(straight.parent)[0]
    for folder in (straight.parent.parent / "work").iterdir():
        for file in folder.iterdir():
            file.unlink()
    left, step = iter(range(steps)), train.train_step  # 15 steps an epoch of the select run, 16 of the final one

    def stopping(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(train, "train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run()
    done = []
    monkeypatch.setattr(train, "train_step", lambda *arguments: done.append(1) or step(*arguments))
    continued = records.load(run().parent)[0]
    assert without_time(continued) == without_time(straight_record)
    assert len(done) == {10: 62, 40: 62 - 30}[steps]  # what was finished by an epoch's checkpoint is not done again


def test_a_counting_system_is_fitted_once_on_all_sessions(run):
    (found,) = records.load(run(Recipe("markov", {})).parent)
    assert found["runs"].keys() == {"final"} and found["honest"]["HR@20"] == 100.0
    assert found["as_published"]["MRR@20"] == found["honest"]["MRR@20"] == 100.0


def test_a_recipe_without_a_select_run_has_its_last_epoch_for_the_honest_one(run):
    (found,) = records.load(run(dataclasses.replace(RECIPE, variant="once", select=False)).parent)
    assert found["runs"].keys() == {"final"} and found["honest"]["epoch"] == 2
    assert found["honest"]["MRR@20"] == found["runs"]["final"][1]["test"]["MRR@20"]


def test_a_seed_gives_its_model_and_another_seed_another():
    one, two, other = (replicate.new_model(RECIPE, V, seed) for seed in (0, 0, 1))
    assert torch.equal(one.table, two.table) and not torch.equal(one.table, other.table)


@pytest.mark.parametrize("name", ["bpr-mf", "fpmc"])
def test_a_system_that_draws_while_it_counts_has_the_seed_of_its_run(name):
    sessions, small = random_sessions(30, V), {"dim": 4, "epochs": 1}
    tables = [
        dict(replicate.new_model(Recipe(name, small | own), V, seed).fit(sessions).named_buffers())
        for own, seed in (({}, 0), ({}, 0), ({}, 1), ({"seed": 1}, 7))
    ]
    one, again, other, given = (torch.cat([t.flatten().double() for t in each.values()]) for each in tables)
    assert torch.equal(one, again) and torch.equal(other, given) and not torch.equal(one, other)


def test_a_record_holds_the_defaults_of_its_model_and_a_changed_one_is_noticed(run, monkeypatch):
    path = run()
    held = records.read(path)["constructor"]
    assert held.items() > RECIPE.arguments.items() and held.keys() == models.bound("gru4rec", {}).keys()
    monkeypatch.setattr(records, "bound", lambda name, arguments: models.bound(name, arguments) | {"dropout": 0.9})
    with pytest.raises(ValueError, match=r"other settings \(dropout differ\)"):
        run()


def test_the_evaluator_reports_metrics_intervals_and_what_could_not_be_known():
    sessions = random_sessions(40, V)
    train_part = random_sessions(5, V, seed=3)
    model = replicate.new_model(RECIPE, V, 0)
    config = dataclasses.replace(RECIPE.config, max_len=2)
    found = replicate.evaluator(sessions.prefixes(), config, train_part)(model)
    seen = torch.zeros(V, dtype=torch.bool)
    seen[train_part.clicks.long()] = True
    expected = evaluate(model, sessions.prefixes().last(2), seen=seen)
    assert {name: found[name] for name in expected.metrics} == expected.metrics
    assert (found["unknown_targets"], found["unknown_clicks"]) == (expected.unknown_targets, expected.unknown_clicks)
    assert found["unknown_targets"] > 0 and found["examples"] == len(sessions.prefixes())
    low, high = found["HR@20 interval"]
    assert low <= found["HR@20"] <= high


def test_items_that_occur():
    assert replicate.occurring(random_sessions(3, V).select(0, 0)).sum() == 0
    sessions = random_sessions(10, V)
    assert replicate.occurring(sessions.select(2, 5)).nonzero().flatten().tolist() == sorted(
        {item for number in (2, 3, 4) for item in sessions[number]}
    )


class Starved:
    """A job whose data does not fit into the card's memory."""

    file = "starved--demo--seed0.json"

    @property
    def dataset(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_finds_no_memory_is_reported_and_the_next_ones_begin(workers, tmp_path, capfd):
    jobs = [Starved(), *(plan.Job(plan.varied(system, "demo"), "demo", 0) for system in ("pop", "s-pop"))]
    with pytest.raises(RuntimeError, match="1 of 3 runs failed: starved" if workers == 1 else "a worker failed"):
        if workers == 1:
            replicate.run_all(jobs, tmp_path / "w", tmp_path / "r")
        else:
            replicate.run_with_workers(jobs, workers, tmp_path / "w", tmp_path / "r")
    assert [path.name for path in sorted((tmp_path / "r").glob("*.json"))] == [job.file for job in jobs[1:]]
    said = capfd.readouterr().err
    assert "failed: starved--demo--seed0.json: CUDA out of memory. Tried to allocate 9 GiB." in said
    assert workers == 1 or "1 of 3 runs failed: starved--demo--seed0.json\n" in said


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError("no"), KeyError("no"), ZeroDivisionError("no"), ImportError("no")], ids=repr
)
def test_whatever_stops_a_run_the_next_one_begins(error, tmp_path, capsys, monkeypatch):
    first, second = (plan.Job(plan.varied(system, "demo"), "demo", 0) for system in ("pop", "s-pop"))
    replicated = replicate.replicate

    def one(recipe, *rest):
        if recipe.model == "pop":
            raise error
        return replicated(recipe, *rest)

    monkeypatch.setattr(replicate, "replicate", one)
    with pytest.raises(RuntimeError, match="1 of 2 runs failed: pop--demo"):
        replicate.run_all([first, second], tmp_path / "w", tmp_path / "r", progress=False)
    assert (tmp_path / "r" / second.file).exists()
    assert f"failed: {first.file}: {error if str(error) else 'MemoryError'}" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_counting_system_is_replicated_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    path = replicate.replicate(Recipe("markov", {}), DATASET, 0, tmp_path / "w", tmp_path / "r", "cuda", progress=False)
    assert records.load(path.parent)[0]["honest"]["HR@20"] == 100.0


def test_a_dataset_that_has_the_name_of_another_one_is_refused(run):
    with pytest.raises(ValueError, match="diginetica is the name of another dataset, with other clicks: rename"):
        run(dataset=dataclasses.replace(DATASET, name="diginetica"))


def test_a_run_that_was_longer_is_recorded_for_the_epochs_asked(run):
    run(with_epochs(3), results="long")
    assert without_time(records.read(run())) == without_time(records.read(run(results="again")))
    assert [len(epochs) for epochs in records.read(run())["runs"].values()] == [2, 2]


@pytest.mark.parametrize("code, fails", [(0, False), (replicate.STOPPED, False), (1, True), (-9, True)])
def test_a_worker_that_was_told_to_stop_has_not_failed(code, fails, tmp_path, monkeypatch):
    class Worker:
        exitcode = code

        def __init__(self, **given):
            self.start = self.join = lambda: None

    monkeypatch.setattr(replicate.multiprocessing, "get_context", lambda kind: SimpleNamespace(Process=Worker))
    with pytest.raises(RuntimeError, match="a worker failed") if fails else nullcontext():
        assert replicate.run_with_workers([], 2, tmp_path, tmp_path) == []


def test_epochs_that_are_a_model_s_own_make_another_run(run):
    short = Recipe("bpr-mf", {"dim": 4, "epochs": 1}, TrainConfig())
    run(short)
    with pytest.raises(ValueError, match=r"a record of other settings \(epochs differ\)"):
        run(Recipe("bpr-mf", {"dim": 4, "epochs": 2}, TrainConfig()))
