"""A table shared out over processes: the same loss, update, ranks and checkpoint as on one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sharding
import torch
import torch.distributed as dist
import torch.multiprocessing
from sharding import CASES, EXAMPLES, V, config_of, new, tolerance

from sbr_core import checkpoints, run_state, torchrun
from sbr_core.batches import length_order
from sbr_core.evaluate import evaluate
from sbr_core.models import STAMP, build
from sbr_core.samplers import Noise, click_counts, mixed
from sbr_core.sharded import _obstacle, rows_of
from sbr_core.sharded_costs import fetched_traffic, gather_bytes, memory, reduce_bytes, replicated_traffic, traffic
from sbr_core.train import fit


def together(folder, ranks: int, *tasks: str) -> list[dict]:
    """What every rank found."""
    torch.multiprocessing.spawn(sharding.work, (ranks, str(folder), list(tasks)), ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


OF_TWO = ("refused", "handed_on", "in_chunks", "diverged")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Folder and findings of one job of two ranks, and of one of four, which goes on with a run of one."""
    two, four = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("four")
    fit(new("stamp"), EXAMPLES, config_of("full"), output=four / "begun", progress=False)
    return {
        2: (two, together(two, 2, "train", "evaluate", "local_negatives", "dropped_out", "traffic", *OF_TWO)),
        4: (four, together(four, 4, "train", "evaluate", "stop_and_go")),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Loss and checkpoint of every case in a single process."""
    folder, found = tmp_path_factory.mktemp("alone"), {}
    for name, loss, table in CASES:
        output, config = folder / f"{name}-{loss}-{table}", config_of(loss, table_optimizer=table)
        records = fit(new(name), EXAMPLES, config, output=output, progress=False)
        found[name, loss, table] = records[0]["loss"], checkpoints.read(output / "state.safetensors")[0]
    return found


def test_items_are_shared_out_once_each():
    for ranks in (1, 2, 3, 4, 7):
        spans = [rows_of(rank, ranks, V) for rank in range(ranks)]
        assert [item for begin, end in spans for item in range(begin, end)] == list(range(V))
        sizes = [end - begin for begin, end in spans]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_give_the_loss_and_the_update_of_one(ranks, alone, jobs):
    folder, found = jobs[ranks]
    for case in CASES:
        loss, expected = alone[case]
        assert [one["train"][case] for one in found] == pytest.approx([loss] * ranks, abs=tolerance(case[0]) / 100)
        assert_same_state(checkpoints.read(folder / "-".join(case) / "state.safetensors")[0], expected, case)


def assert_same_state(mine: dict, theirs: dict, case: tuple) -> None:
    """The tensors of two checkpoints are the same, but for rounding."""
    assert mine.keys() == theirs.keys()
    for name in sorted(theirs.keys() - {"rng.cpu"}):
        one, other = mine[name], theirs[name]
        if other.shape[:1] == (V + 1,):
            one, other = one[:-1], other[:-1]  # the padding's row is nobody's
        close = tolerance(case[0])
        torch.testing.assert_close(one, other, rtol=close, atol=close, msg=f"{case}: {name}")


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_targets_are_exact_and_no_rank_holds_the_table(ranks, jobs):
    order = length_order(EXAMPLES, 16)
    for name in ("sr-gnn", "stamp+sphere", "stamp+distance"):
        expected = evaluate(new(name), EXAMPLES).ranks[order.index]
        for one in jobs[ranks][1]:
            found, rows = one["evaluate"][name]
            assert torch.equal(found, expected) and rows <= -(-V // ranks) + 1


def test_an_evaluation_holds_no_more_scores_than_the_limit_and_finds_the_same(jobs):
    result = evaluate(new("stamp"), EXAMPLES)
    for one in jobs[2][1]:
        (asked, largest), (capped, fewer) = one["in_chunks"]
        assert (largest, fewer) == (16, 5)  # 60 scores are 5 rows of the 12 items that a rank of two has at most
        assert asked == capped == pytest.approx({name: result.metric(name) for name in ("HR@20", "MRR@20")})


def test_a_nan_on_one_rank_is_refused_by_all(jobs):
    assert [one["diverged"] for one in jobs[2][1]] == ["refused"] * 2


def test_rank_0_hands_on_the_whole_table_after_every_epoch_and_of_a_finished_run(jobs):
    zero, one = (found["handed_on"] for found in jobs[2][1])
    assert [epoch for epoch, _ in zero] == [1, 2, 2] and one == []
    table = checkpoints.read(jobs[2][0] / "handed" / "state.safetensors")[0]["model.table"]
    assert torch.equal(zero[1][1], table) and torch.equal(zero[2][1], table) and not torch.equal(zero[0][1], table)


@pytest.mark.parametrize("name", ["stamp", "stamp+sphere", "stamp+distance"])
def test_local_negatives_estimate_the_softmax_as_written(name, jobs):
    found, model = [one["local_negatives"][name] for one in jobs[2][1]], new(name)
    batch = next(iter(length_order(EXAMPLES, 8).batches(EXAMPLES)))
    scores, counts = model.score(model.encode(batch)), click_counts(EXAMPLES)
    rows = []
    for row, target in enumerate(batch.target.tolist()):
        denominator = scores[row, target].exp()
        for rank, ids in enumerate(found[0]["ids"].tolist()):
            begin, end = rows_of(rank, 2, V)
            weight = counts[begin:end].double() ** 0.75 * (counts[begin:end] > 0)
            if begin <= target < end:
                weight[target - begin] = 0
            law, kept = weight / weight.sum(), [i for i in ids if i != target]
            denominator = denominator + sum(scores[row, i].exp() / law[i - begin] for i in kept) / max(len(kept), 1)
        rows.append(denominator.log() - scores[row, target])
    value = torch.stack(rows).mean()
    gradient = torch.autograd.grad(value, model.table)[0]
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    assert [one["value"] for one in found] == pytest.approx([value.item()] * 2, abs=1e-6)  # q is kept in float32
    torch.testing.assert_close(torch.cat([one["table"] for one in found]), gradient[:-1], rtol=1e-6, atol=1e-6)


def test_a_rank_draws_what_it_owns_and_no_two_alike():
    counts = click_counts(EXAMPLES)
    draws = [Noise(counts[slice(*rows_of(rank, 2, V))], 0.0, mixed(5, rank)).draw(50) for rank in (0, 1)]
    assert all(int(ids.max()) < 12 for ids in draws) and not torch.equal(*draws)


def test_settings_that_want_the_whole_table_are_refused(jobs):
    for one in jobs[2][1]:
        clipped, literal, many, others, half = one["refused"]
        assert "loss='bpr' has the other rows' targets as negatives" in others and "precision='bf16'" in half
        assert "clip_grad=None" in clipped and "has the arguments negatives and alpha, not correction" in literal
        assert "22 negatives on 2 ranks are 11 of the 11 items of a rank" in many  # said by both, though one has 12


def test_the_cost_model_counts_what_is_sent(jobs):
    for one in jobs[2][1]:
        for loss, found in one["traffic"].items():
            step = (*found["shape"], sharding.D, 2, found["encoder"])  # B, L, D, ranks, P
            costs = {
                "negative-sampling": lambda step: fetched_traffic(*step, negatives=5, size=8),
                "triplet": lambda step: fetched_traffic(*step, negatives=3, shared=False, size=8),
            }.get(loss, lambda step: traffic(*step, size=8))(step)
            gathers = ("ids", "their gradients", "queries", "targets")
            expected = {
                "all_gather": sum(costs.get(name, 0) for name in gathers) / gather_bytes(1, 2),
                "all_reduce": sum(costs[name] for name in costs.keys() - set(gathers)) / reduce_bytes(1, 2),
            }
            assert found["sent"] == expected, loss


def test_bytes_of_a_ring_and_of_a_table():
    assert gather_bytes(1200, 4) == 900 and reduce_bytes(1200, 4) == 1800 and reduce_bytes(5, 1) == 0
    assert memory(10, 8, 4, states=2.0) == 3 * 8 * 4 * 3 and replicated_traffic(10, 8, 2, 20) == (80 + 20) * 4


def test_a_checkpoint_of_one_goes_on_with_four(jobs):
    whole = fit(new("stamp"), EXAMPLES, config_of("full", epochs=2), progress=False)[1]["loss"]
    assert [one["stop_and_go"] for one in jobs[4][1]] == pytest.approx([whole] * 4, abs=1e-12)


@pytest.mark.parametrize("ranks, case", [
    (4, ("stamp", "full", "auto")), (2, ("stamp+distance", "triplet", "rowwise-adam")),
])  # fmt: skip
def test_a_checkpoint_of_several_goes_on_with_one(ranks, case, jobs, tmp_path):
    name, loss, table = case
    config = config_of(loss, epochs=2, table_optimizer=table)
    whole = fit(new(name), EXAMPLES, config, output=tmp_path / "whole", progress=False)
    shutil.copytree(jobs[ranks][0] / "-".join(case), tmp_path / "run")
    continued = fit(new(name), EXAMPLES, config, output=tmp_path / "run", progress=False)
    assert [one["loss"] for one in continued] == pytest.approx(
        [one["loss"] for one in whole], abs=tolerance(name) / 100
    )
    mine, theirs = (checkpoints.read(tmp_path / run / "state.safetensors")[0] for run in ("run", "whole"))
    assert_same_state(mine, theirs, case)


def test_a_run_with_dropout_is_continued_exactly(jobs):
    folder, found = jobs[2]
    for one in found:
        through, continued = one["dropped_out"]
        assert through == continued
    runs = [checkpoints.read(folder / name / "state.safetensors")[0] for name in ("through", "stopped")]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0] if name != "rng.cpu")


@pytest.mark.parametrize("name, said", [
    ("tagnn", "do not compare one query"), ("repeatnet", "do not compare one query"),
    ("gru4rec-2018", "do not compare one query"), ("lgsr", "sessions or states of its own"),
    ("csrm", "sessions or states of its own"),
    ("dgtn", "sessions or states of its own"), ("pop", "counts instead of training"),
])  # fmt: skip
def test_a_model_that_needs_the_whole_table_is_refused(name, said):
    assert re.search(said, _obstacle(build(name, V)))


class Longing(STAMP):
    """Wants more than its loss."""

    def extra_loss(self, query, target):
        """The norm of the query."""
        return query.norm()


def test_a_model_with_terms_beside_the_loss_is_refused():
    assert _obstacle(Longing(V)) == "it has training terms beside the loss"


def test_a_model_of_one_query_is_not_refused():
    assert _obstacle(new("stamp")) == _obstacle(new("stamp+distance")) == ""


MODULE = ["-m", "sbr_core.torchrun", "--model", "stamp", "--dataset", "demo"]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SETTINGS = ["--batch-size", "2000", "--max-len", "9", "--lr", "0.02", "--optimizer", "rowwise-adam", "--l2", "0"]
SETTINGS += ["--loss", "triplet", "--set", "normalise=true", "--set", "dim=8"]
HERE = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def test_a_run_of_two_ranks_is_evaluated_served_and_continued_by_the_usual_commands(tmp_path, sbr_json):
    folder = tmp_path / "run"
    command = [sys.executable, *LAUNCHER, *MODULE, *SETTINGS, "--epochs", "1", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | HERE, timeout=600)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)["epochs"][0]["test"]
    found = sbr_json("evaluate", "--checkpoint", str(folder))
    assert {name: found[name] for name in first} == pytest.approx(first, abs=1e-3)  # float32: a near tie may turn
    assert len(sbr_json("recommend", "--checkpoint", str(folder), "--session", "1,2", "-k", "5")["items"]) == 5

    go_on = ["train", "--model", "stamp", "--dataset", "demo", *SETTINGS, "--epochs", "2", "--output", str(folder)]
    epochs = sbr_json(*go_on)["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2] and epochs[0]["test"] == first
    after = sbr_json("evaluate", "--checkpoint", str(folder))
    assert after["MRR@20"] == epochs[1]["test"]["MRR@20"] != found["MRR@20"]

    (folder / "model.safetensors").unlink()
    sbr_json(*go_on)  # nothing is left to train; the model is written again
    assert sbr_json("evaluate", "--checkpoint", str(folder))["MRR@20"] == after["MRR@20"]


@pytest.mark.parametrize(
    "ranks, number, said",
    [(2, signal.SIGKILL, "it lost the others ("), (1, signal.SIGTERM, "it was told to (SIGTERM)")],
)
def test_a_rank_that_is_lost_or_stopped_is_told_of_and_leaves_a_whole_checkpoint(ranks, number, said, tmp_path):
    state, logs = tmp_path / "run" / "state.safetensors", [tmp_path / str(rank) for rank in range(ranks)]
    command = [sys.executable, *MODULE, "--epochs", "40", "--checkpoint-steps", "5", "--output", str(state.parent)]
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    jobs = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            env = os.environ | HERE | meeting | {"RANK": str(rank)}
            jobs.append(subprocess.Popen(command, stdout=file, stderr=file, env=env))
    try:
        wait_for(state.exists, jobs[0])
        jobs[-1].send_signal(number)  # nobody stands above these processes: what is said, they say themselves
        assert jobs[0].wait(180) == 1
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    last = logs[0].read_text().splitlines()[-1]
    assert (
        f"error: rank 0 of {ranks} stops: {said}" in last and f"The last checkpoint in {state.parent} is whole" in last
    )
    tensors, info = checkpoints.read(state)
    assert tensors["model.table"].isfinite().all() and info["step"] + len(info["epochs"]) > 0


def test_a_signal_amid_a_checkpoint_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    before = {number: signal.getsignal(number) for number in torchrun.STOPS}
    monkeypatch.setattr(checkpoints, "save_file", lambda *_: torchrun._told_to_stop(signal.SIGTERM, None))
    try:
        with pytest.raises(torchrun.Told, match="SIGTERM"):
            checkpoints.write(tmp_path / "state.safetensors", {}, {})
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not list(tmp_path.iterdir())


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("localhost", 0))
        return some.getsockname()[1]


def wait_for(done, job, seconds=300):
    """Until `done()`, while the job lives."""
    end = time.monotonic() + seconds
    while not done():
        if job.poll() is not None or time.monotonic() > end:
            raise AssertionError("the job ended, or did nothing, before its first checkpoint")
        time.sleep(0.1)


@pytest.mark.parametrize("error, said", [
    (OSError("the disk is gone"), "error: the disk is gone"), (ImportError("no faiss"), "error: no faiss"),
    (MemoryError("8 GB"), "error: not enough memory on rank 0 (8 GB)"), (RuntimeError("odd"), "error: odd"),
    (dist.DistNetworkError("no answer"), "rank 0 of 1 stops: it lost the others (no answer). There is no checkpoint"),
])  # fmt: skip
def test_what_goes_wrong_on_a_rank_is_one_line(error, said, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(torchrun, "join", fail)
    monkeypatch.setattr(torchrun.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        torchrun.main("stamp")
    told = capsys.readouterr().err
    assert ended.value.code == 1 and said in told and told.count("\n") == 1


@pytest.fixture
def alone_on_a_rank(monkeypatch):
    """run(folder): the command as the only rank, in this process."""
    monkeypatch.setattr(torchrun.signal, "signal", lambda *_: None)
    monkeypatch.setattr(torchrun, "join", lambda *_: "cpu")

    def run(folder):
        with pytest.raises(SystemExit) as ended:
            torchrun.main("stamp", output=folder)
        return ended.value.code

    return run


def test_a_folder_of_another_run_is_refused_before_anything_is_trained(alone_on_a_rank, tmp_path, sbr, capsys):
    with run_state.alone_in(tmp_path):
        assert alone_on_a_rank(tmp_path) == 1
    assert "another process is at work in" in capsys.readouterr().err
    assert sbr("train", "--model", "pop", "--output", tmp_path)[0] == 0
    kept = (tmp_path / "model.safetensors").read_bytes()
    assert alone_on_a_rank(tmp_path) == 1
    assert "model.safetensors belongs to another run: model, arguments" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize("more, said", [
    ([], "torchrun --nproc-per-node"), (["--output", __file__], "a file is in the way; it must be a folder"),
])  # fmt: skip
def test_a_wrong_command_ends_before_anything_is_trained(more, said):
    done = subprocess.run([sys.executable, *MODULE, *more], capture_output=True, text=True, env=os.environ | HERE)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
