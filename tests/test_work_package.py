"""Runs under a budget of time, and records brought back in a folder of their own."""

import json
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
from toys import put, record

from sbr_core import plan, records, replicate, work_package

PLAN = '[[rows]]\nsystems = ["pop", "markov"]\ndatasets = ["demo"]\n'


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture
def asked(tmp_path):
    """The options that follow a plan of two counting systems on the demo shop."""
    (tmp_path / "plan.toml").write_text(PLAN)
    folders = ("--work", tmp_path / "work", "--results", tmp_path / "results", "--package", tmp_path / "package")
    return ("replicate", "--plan", tmp_path / "plan.toml", "--device", "cpu", *folders)


def of_demo(system):
    return plan.Job(plan.varied(system, "demo"), "demo", 0)


def test_a_package_holds_new_records_only_and_the_next_call_makes_the_rest(asked, sbr_json, tmp_path):
    package, results = tmp_path / "package", tmp_path / "results"
    first = sbr_json(*asked, "--budget", "70s")["records"]  # a counting system without a record: a minute
    assert first == [str(package / "pop--demo--seed0.json")]
    assert files(package) == ["pop--demo--seed0.json", "ranks/pop--demo--seed0.npz"] and not results.exists()
    package.rename(results)
    second = sbr_json(*asked, "--budget", "70s")["records"]
    assert second == [str(package / "markov--demo--seed0.json")]
    assert files(package) == ["markov--demo--seed0.json", "ranks/markov--demo--seed0.npz"]
    assert sbr_json(*asked)["records"] == []  # what waits in the package is not made again either
    assert len(records.load(results)) == len(records.load(package)) == 1


def test_a_renewed_record_comes_back_with_the_one_that_it_replaces(tmp_path):
    results, package = tmp_path / "results", tmp_path / "package"
    earlier = put(results, record("pop", "demo"))  # without ranks: it falls short
    earlier.write_text(json.dumps(_as_counted(results)))
    (path,) = work_package.fill([of_demo("pop")], tmp_path / "work", results, package, renew=True, progress=False)
    assert path == package / earlier.name and records.read_ranks(path) is not None
    (kept,) = (package / "earlier").glob("*.json")
    assert kept.read_text() == earlier.read_text() and files(results) == [earlier.name]


def _as_counted(folder):
    """A record of POP on the demo shop as `replicate` writes it, with another text, so that it is told apart."""
    job = of_demo("pop")
    (path,) = replicate.run_all([job], folder.parent / "w", folder.parent / "r")
    return records.sealed(records.read(path) | {"seconds": 1.5})


def ring_when_there_is(path):
    """The budget's alarm, as soon as there is such a file."""

    def wait():
        while not path.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGALRM)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_under_way_when_the_budget_ends_stops_and_its_checkpoint_is_kept(
    tmp_path, capsys, monkeypatch, workers
):
    checkpoint = tmp_path / "w" / "stamp--long--demo--seed0-select" / "state.safetensors"
    jobs = [plan.Job(plan.varied("stamp", "demo", "long", config={"epochs": 100_000}), "demo", 0)]
    monkeypatch.setattr(plan.Costs, "seconds", lambda self, job: (60.0, "estimated"))
    ring_when_there_is(checkpoint)
    assert work_package.fill(jobs, tmp_path / "w", tmp_path / "r", None, 3600.0, workers, progress=False) == []
    assert "the budget is used up, 1 of 1 runs are not done: the same command continues" in capsys.readouterr().err
    assert checkpoint.exists() and not (tmp_path / "r" / jobs[0].file).exists()


def test_the_end_comes_to_a_background_job_too_whose_shell_ignores_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with work_package._interrupted_after(0.05) as over:
            time.sleep(30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert over == [0.05]


def test_no_run_begins_after_the_end():
    jobs = [of_demo("pop"), of_demo("markov")]
    assert list(work_package.Until(jobs, time.time() + 3600)) == jobs
    over = work_package.Until(jobs, time.time() - 1)
    assert list(over) == [] and len(over) == 2
    assert pickle.loads(pickle.dumps(over)).end == over.end  # so do the workers know it


def test_ctrl_c_is_not_taken_for_the_end_of_the_budget(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(work_package, "run_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work_package.fill([of_demo("pop")], tmp_path / "w", tmp_path / "r", budget=600.0)


def test_no_alarm_is_left_when_the_work_is_done_before_the_budget_ends(tmp_path):
    before = signal.getsignal(signal.SIGALRM)
    assert work_package.fill([], tmp_path / "w", tmp_path / "r", budget=100.0) == []
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) == before


def test_a_record_that_cannot_be_read_is_refused_before_anything_runs(tmp_path):
    put(tmp_path, record("pop", "demo")).write_text('{"schema": 1')
    with pytest.raises(ValueError, match="pop--demo--seed0.json is not a record"):
        work_package.fill([of_demo("pop"), of_demo("markov")], tmp_path / "w", tmp_path)
    assert files(tmp_path) == ["pop--demo--seed0.json"]
