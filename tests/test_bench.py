"""The benchmark: what it reports adds up, and it times the work that it says it times."""

import statistics

import pytest
import torch
from toys import chain

from sbr_core import bench
from sbr_core.models.counting import Markov
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.models.lgsr import LGSR
from sbr_core.train import TrainConfig

V = 20
SESSIONS = chain(V, 40)
WINDOWS = SESSIONS.prefixes()  # 200 examples
CONFIG = TrainConfig(batch_size=16, block=1)
KEYS = {
    "step_ms", "mean_step_ms", "floor_ms", "floor_ratio", "examples_per_second", "mean_width", "batch_size",
    "precision", "steps", "peak_rss_mb", "device", "parameters", "loss", "table_optimizer",
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Every timed piece of work takes a known time: steps 6 ms, 7 ms, 9 ms, 13 ms, ...; floors 2 ms."""
    works = []

    def timed(work, device):
        work()
        works.append(work)
        return 5.0 + 2 ** (len(works) // 2) if len(works) % 2 else 2.0

    monkeypatch.setattr(bench, "timed", timed)
    return works


def test_figures_follow_from_the_times(clock):
    found = bench.bench_training(GRU4Rec(V, 8), WINDOWS, CONFIG, steps=5, warmup=2)
    steps = [9.0, 13.0, 21.0, 37.0, 69.0]  # the two of the warm-up are left out
    assert found.keys() == KEYS and len(clock) == 2 * 7
    assert found["step_ms"] == 21 and found["mean_step_ms"] == statistics.mean(steps) and found["floor_ms"] == 2
    assert found["floor_ratio"] == 10.5 and found["examples_per_second"] == pytest.approx(5 * 16 / sum(steps) * 1e3)
    assert (found["steps"], found["batch_size"], found["precision"], found["device"]) == (5, 16, "fp32", "cpu")
    assert 1 <= found["mean_width"] <= 5 and found["peak_rss_mb"] > 50


def test_the_steps_that_are_timed_train_the_model():
    model = GRU4Rec(V, 8)
    before = model.table.detach().clone()
    bench.bench_training(model, WINDOWS, CONFIG, steps=2, warmup=0)
    assert not torch.equal(model.table, before)


def test_more_steps_than_an_epoch_has_go_round_again():
    assert bench.bench_training(GRU4Rec(V, 8), WINDOWS, CONFIG, steps=30, warmup=0)["steps"] == 30


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_precisions_are_timed(precision):
    found = bench.bench_training(GRU4Rec(V, 8), WINDOWS, TrainConfig(batch_size=16, precision=precision), steps=2)
    assert found["precision"] == precision and found["step_ms"] > 0 and found["floor_ms"] > 0


def test_the_floor_leaves_the_model_alone_and_does_all_of_its_work(monkeypatch):
    model, shapes = GRU4Rec(V, 8), []
    before = model.table.detach().clone()
    mm = torch.mm
    work = bench._floor(model, torch.float32, CONFIG)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: shapes.append((*a.shape, *b.shape)) or mm(a, b, out=out))
    work()
    assert shapes == [
        (16, 8, 8, V),
        (16, V, V, 8),
        (V, 16, 16, 8),
    ]  # scores, gradient of queries, gradient of the table
    assert torch.equal(model.table, before) and model.table.grad is None


def test_evaluation_is_timed_by_the_example(clock):
    found = bench.bench_evaluation(GRU4Rec(V, 8), WINDOWS)
    assert found == {"evaluation_s": 0.006, "evaluation_ms_per_example": 0.03, "examples": 200}


def test_a_counting_system_has_only_its_evaluation_timed():
    found = bench.bench(Markov(V).fit(SESSIONS), WINDOWS, WINDOWS[:50], CONFIG)
    assert found.keys() == {"evaluation_s", "evaluation_ms_per_example", "examples", "peak_rss_mb", "device"}
    assert found["examples"] == 50


def test_a_counting_system_without_examples_has_nothing_to_time():
    with pytest.raises(ValueError, match="Markov counts: its evaluation is all that is measured"):
        bench.bench(Markov(V).fit(SESSIONS), WINDOWS, None, CONFIG)


def test_a_neural_model_has_both():
    found = bench.bench(GRU4Rec(V, 8), WINDOWS, WINDOWS[:50], CONFIG, steps=1)
    assert found.keys() == KEYS | {"evaluation_s", "evaluation_ms_per_example", "examples"}
    assert bench.bench(GRU4Rec(V, 8), WINDOWS, None, CONFIG, steps=1).keys() == KEYS


def test_every_form_of_the_softmax_is_timed(monkeypatch):
    times = iter(range(100))

    def timed(work, device):
        work()
        return float(next(times))

    monkeypatch.setattr(bench, "timed", timed)
    found = bench.bench_softmax(50, batch_size=8, dim=4, repeats=3)
    sizes = {"num_items": 50, "batch_size": 8, "dim": 4}
    # six forms in turn, two rounds of warm-up: the second of rounds 3, 4, 5 is the median
    forms = ("plain fp32", "chunked fp32", "kept fp32", "kept bf16", "blocked fp32", "blocked bf16")
    assert found == sizes | {form: 18.0 + at for at, form in enumerate(forms)}


def test_no_steps_cannot_be_timed():
    with pytest.raises(ValueError, match="at least one step must be timed, got steps=0"):
        bench.bench_training(GRU4Rec(V, 8), WINDOWS, CONFIG, steps=0)


@pytest.mark.parametrize("loss, arguments, rows", [
    ("negative-sampling", {"negatives": 6}, 16 + 6), ("triplet", {"negatives": 2}, 16 + 2 * 16), ("in-batch", {}, 16),
])  # fmt: skip
def test_the_floor_of_a_sampled_loss_is_that_of_its_candidates(monkeypatch, loss, arguments, rows):
    seen, floor = [], bench._floor
    monkeypatch.setattr(bench, "_floor", lambda *given: seen.append(given[3]) or floor(*given))
    config = TrainConfig(batch_size=16, block=1, l2=0.0, loss=loss, loss_arguments=arguments)
    found = bench.bench_training(GRU4Rec(V, 8), WINDOWS, config, steps=1, warmup=0)
    assert seen == [rows] and found["loss"] == loss and found["table_optimizer"] == "auto"


def test_of_a_large_catalogue_some_examples_are_evaluated(monkeypatch):
    monkeypatch.setattr(bench, "MANY_SCORES", 200 * V)
    assert bench.bench_evaluation(GRU4Rec(V, 8), WINDOWS)["examples"] == 200
    monkeypatch.setattr(bench, "MANY_SCORES", 200 * V - 1)
    assert bench.bench_evaluation(GRU4Rec(V, 8), WINDOWS)["examples"] == 49


def test_an_auxiliary_task_adds_its_share_to_the_price_of_an_example(monkeypatch):
    monkeypatch.setattr(bench, "timed", lambda work, device: (work(), 4.0)[1])
    model = LGSR(V, 8, g=2, rounds=1, length=6, window=2, negatives=4, pairs=50)
    model.prepare(SESSIONS)
    found = bench.bench_training(model, WINDOWS, CONFIG, steps=2, warmup=1)
    (task,) = model.auxiliary_tasks()
    assert found["skip-gram_steps"] == task.steps([]) > 2 and found["skip-gram_step_ms"] == 4.0
    assert found["task_ms_per_example"] == pytest.approx(4.0 * task.steps([]) / 200)
