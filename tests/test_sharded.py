"""A table shared out over processes: the same loss, update, ranks and checkpoint as on one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sharding
import torch
import torch.multiprocessing
from sharding import CASES, EXAMPLES, V, config_of, new

from sbr_core import checkpoints
from sbr_core.batches import length_order
from sbr_core.evaluate import evaluate
from sbr_core.models import build
from sbr_core.samplers import Noise, click_counts, mixed
from sbr_core.sharded import _obstacle, rows_of
from sbr_core.sharded_costs import gather_bytes, memory, reduce_bytes, replicated_traffic, traffic
from sbr_core.train import fit


def together(folder, ranks: int, *tasks: str) -> list[dict]:
    """What every rank found."""
    torch.multiprocessing.spawn(sharding.work, (ranks, str(folder), list(tasks)), ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Folder and findings of one job of two ranks, and of one of four, which goes on with a run of one."""
    two, four = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("four")
    fit(new("stamp"), EXAMPLES, config_of("full"), output=four / "begun", progress=False)
    return {
        2: (two, together(two, 2, "train", "evaluate", "local_negatives", "dropped_out", "traffic", "refused")),
        4: (four, together(four, 4, "train", "evaluate", "stop_and_go")),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Loss and checkpoint of every case in a single process."""
    folder, found = tmp_path_factory.mktemp("alone"), {}
    for name, loss in CASES:
        records = fit(new(name), EXAMPLES, config_of(loss), output=folder / f"{name}-{loss}", progress=False)
        found[name, loss] = records[0]["loss"], checkpoints.read(folder / f"{name}-{loss}" / "state.safetensors")[0]
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
        assert [one["train"][case] for one in found] == pytest.approx([loss] * ranks, abs=1e-12)
        tensors, _ = checkpoints.read(folder / "-".join(case) / "state.safetensors")
        assert tensors.keys() == expected.keys()
        for name in expected.keys() - {"rng.cpu"}:
            mine, theirs = tensors[name], expected[name]
            if theirs.shape[:1] == (V + 1,):
                mine, theirs = mine[:-1], theirs[:-1]  # the padding's row is nobody's
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10, msg=f"{case}: {name}")


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_targets_are_exact_and_no_rank_holds_the_table(ranks, jobs):
    order = length_order(EXAMPLES, 16)
    expected = evaluate(new("sr-gnn"), EXAMPLES).ranks[order.index]
    for one in jobs[ranks][1]:
        found, rows = one["evaluate"]
        assert torch.equal(found, expected) and rows <= -(-V // ranks) + 1


def test_local_negatives_estimate_the_softmax_as_written(jobs):
    found, model = [one["local_negatives"] for one in jobs[2][1]], new("stamp")
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
    torch.testing.assert_close(torch.cat([one["table"] for one in found]), gradient[:-1], rtol=0, atol=1e-6)


def test_a_rank_draws_what_it_owns_and_no_two_alike():
    counts = click_counts(EXAMPLES)
    draws = [Noise(counts[slice(*rows_of(rank, 2, V))], 0.0, mixed(5, rank)).draw(50) for rank in (0, 1)]
    assert all(int(ids.max()) < 12 for ids in draws) and not torch.equal(*draws)


def test_settings_that_want_the_whole_table_are_refused(jobs):
    for one in jobs[2][1]:
        clipped, literal, many = one["refused"]
        assert "clip_grad=None" in clipped and "has the arguments negatives and alpha, not correction" in literal
        assert "22 negatives on 2 ranks are 11 of the 11 items of a rank" in many  # said by both, though one has 12


def test_the_cost_model_counts_what_is_sent(jobs):
    for one in jobs[2][1]:
        (B, L), encoder = one["traffic"]["shape"], one["traffic"]["encoder"]
        costs = traffic(B, L, sharding.D, 2, encoder, size=8)
        gathers = ("ids", "their gradients", "queries", "targets")
        expected = {
            "all_gather": sum(costs[name] for name in gathers) / gather_bytes(1, 2),
            "all_reduce": sum(costs[name] for name in costs.keys() - set(gathers)) / reduce_bytes(1, 2),
        }
        assert one["traffic"]["sent"] == expected


def test_bytes_of_a_ring_and_of_a_table():
    assert gather_bytes(1200, 4) == 900 and reduce_bytes(1200, 4) == 1800 and reduce_bytes(5, 1) == 0
    assert memory(10, 8, 4, states=2.0) == 3 * 8 * 4 * 3 and replicated_traffic(10, 8, 2, 20) == (80 + 20) * 4


def test_a_checkpoint_of_one_goes_on_with_four(jobs):
    whole = fit(new("stamp"), EXAMPLES, config_of("full", epochs=2), progress=False)[1]["loss"]
    assert [one["stop_and_go"] for one in jobs[4][1]] == pytest.approx([whole] * 4, abs=1e-12)


def test_a_checkpoint_of_four_goes_on_with_one(jobs, tmp_path):
    folder, case = jobs[4][0], ("stamp", "full")
    whole = fit(new("stamp"), EXAMPLES, config_of("full", epochs=2), progress=False)
    continued = fit(new("stamp"), EXAMPLES, config_of("full", epochs=2), output=folder / "-".join(case), progress=False)
    assert [one["loss"] for one in continued] == pytest.approx([one["loss"] for one in whole], abs=1e-12)


def test_a_run_with_dropout_is_continued_exactly(jobs):
    folder, found = jobs[2]
    for one in found:
        through, continued = one["dropped_out"]
        assert through == continued
    runs = [checkpoints.read(folder / name / "state.safetensors")[0] for name in ("through", "stopped")]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0] if name != "rng.cpu")


@pytest.mark.parametrize("name, arguments, said", [
    ("tagnn", {}, "not the product of one query"), ("repeatnet", {}, "not the product of one query"),
    ("gru4rec-2018", {}, "not the product of one query"), ("lgsr", {}, "sessions or states of its own"),
    ("csrm", {}, "sessions or states of its own"),
    ("dgtn", {}, "sessions or states of its own"), ("pop", {}, "counts instead of training"),
    ("stamp", {"normalise": True}, "normalise=True"),
])  # fmt: skip
def test_a_model_that_needs_the_whole_table_is_refused(name, arguments, said):
    assert re.search(said, _obstacle(build(name, V, **arguments)))


def test_a_model_of_one_query_is_not_refused():
    assert _obstacle(new("stamp")) == ""


COMMAND = ["-m", "sbr_core.torchrun", "--model", "stamp", "--dataset", "demo", "--epochs", "40"]


def test_a_lost_rank_ends_the_job_and_leaves_a_whole_checkpoint(tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *COMMAND]
    log, state = tmp_path / "log", tmp_path / "run" / "state.safetensors"
    with log.open("w") as file:
        job = subprocess.Popen(
            [*run, "--output", str(tmp_path / "run"), "--checkpoint-steps", "20"], stdout=file, stderr=file,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        wait_for(state.exists, job)
        os.kill(int(re.search(r"rank 1 of 2: process (\d+)", log.read_text())[1]), signal.SIGKILL)
        assert job.wait(120) != 0
    assert "rank 0 of 2 lost the others" in log.read_text() or "exitcode  : -9" in log.read_text()
    tensors, info = checkpoints.read(state)
    assert tensors["model.table"].isfinite().all() and info["step"] + len(info["epochs"]) > 0


def wait_for(done, job, seconds=180):
    """Until `done()`, while the job lives."""
    end = time.monotonic() + seconds
    while not done():
        if job.poll() is not None or time.monotonic() > end:
            raise AssertionError("the job ended, or did nothing, before its first checkpoint")
        time.sleep(0.1)


def test_without_torchrun_the_command_says_how_to_start_it():
    done = subprocess.run([sys.executable, *COMMAND], capture_output=True, text=True)
    assert done.returncode == 1 and "torchrun --nproc-per-node" in done.stderr
