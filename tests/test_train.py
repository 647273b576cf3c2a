"""Training: the loop, exact resume after every kind of stop, refusals, and stops that lose nothing."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from toys import chain, random_sessions, same

from sbr_core import checkpoints, train
from sbr_core.batches import epoch_order
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.optim import make_optimizers
from sbr_core.run_state import Run
from sbr_core.train import TrainConfig, fit, train_step

V = 20
WINDOWS = chain(V, count=60).prefixes()  # 300 examples
CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.02, lr_every=1, l2=1e-5, seed=7)  # 19 steps an epoch, the last of 12


def new_model(seed=0, **arguments):
    """A small model with dropout: the random numbers of training matter."""
    torch.manual_seed(seed)
    return GRU4Rec(V, 8, **arguments)


class Stop(Exception):
    """The power goes off."""


@pytest.fixture
def often(monkeypatch):
    """Look at the loss, and save, every 4 steps instead of every 50."""
    monkeypatch.setattr(train, "CHECK_EVERY", 4)


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n): the n-th step from now on raises."""

    def set_up(steps, error=Stop):
        left = iter(range(steps))

        def step(*arguments):
            if next(left, None) is None:
                raise error
            return train_step(*arguments)

        monkeypatch.setattr(train, "train_step", step)

    yield set_up


def quietly(model, windows=WINDOWS, config=CONFIG, **more):
    return fit(model, windows, config, progress=False, **more)


def timeless(epochs):
    """Epoch records without what a clock put there."""
    return [{k: v for k, v in epoch.items() if k not in ("seconds", "examples_per_second")} for epoch in epochs]


def test_the_loss_falls_and_is_the_mean_over_all_examples():
    model = new_model(dropout=0.0)
    epochs = quietly(model, config=TrainConfig(epochs=3, batch_size=16, lr=0.02, lr_every=None, l2=0.0))
    losses = [epoch["loss"] for epoch in epochs]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.5 * losses[0]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3] and [epoch["lr"] for epoch in epochs] == [0.02] * 3
    for epoch in epochs:
        assert epoch["examples_per_second"] == pytest.approx(300 / epoch["seconds"])


def test_fit_is_a_plain_loop_over_epochs_and_batches():
    model, plain = new_model(), new_model()
    torch.manual_seed(5)
    epochs = quietly(model)
    torch.manual_seed(5)
    loss, optimizers = FullSoftmax(), make_optimizers(plain, 0.02, 1e-5)
    plain.train()
    for epoch, lr in enumerate((0.02, 0.002)):
        optimizers[0].param_groups[0]["lr"] = lr
        total = 0.0
        for batch in epoch_order(WINDOWS, 16, 7, epoch, CONFIG.block).batches(WINDOWS):
            total += train_step(plain, loss, optimizers, batch).item() * len(batch)
        assert epochs[epoch]["loss"] == pytest.approx(total / 300, rel=1e-6) and epochs[epoch]["lr"] == pytest.approx(
            lr
        )
    assert same(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("steps", [5, 10, 19, 25, 33, 37])
def test_a_run_that_stops_anywhere_and_resumes_ends_with_the_same_bits(steps, often, stop_after, tmp_path, monkeypatch):
    straight = new_model()
    expected = quietly(straight)
    stop_after(steps)
    with pytest.raises(Stop):
        quietly(new_model(), output=tmp_path, checkpoint_seconds=-1.0)
    monkeypatch.setattr(train, "train_step", train_step)
    resumed = new_model(seed=99)  # another initialisation and other random numbers: the checkpoint brings both
    assert timeless(quietly(resumed, output=tmp_path, checkpoint_seconds=-1.0)) == timeless(expected)
    assert same(resumed.state_dict(), straight.state_dict())


def test_an_epoch_that_was_continued_took_the_time_before_the_stop_too(tmp_path):
    stopped = Run(new_model(), WINDOWS, CONFIG, tmp_path, {}, checkpoint_seconds=60.0)
    stopped.seconds = 1000.0
    stopped.save()
    first, second = quietly(new_model(), output=tmp_path)
    assert first["seconds"] > 1000 > second["seconds"]


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    model = new_model()
    epochs = quietly(model, output=tmp_path)
    monkeypatch.setattr(train, "train_step", None)
    again = new_model(seed=1)
    assert quietly(again, output=tmp_path) == epochs
    assert same(again.state_dict(), model.state_dict())


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
from sbr_core import train
import test_train as t
torch.set_num_threads({threads})
train.CHECK_EVERY = 4
step = train.train_step
def slow(*arguments):
    time.sleep(0.05)
    return step(*arguments)
train.train_step = slow
t.quietly(t.new_model(), output={output!r}, checkpoint_seconds=0.0)
"""


def wait_for(condition, process, seconds=120):
    """Until the condition holds, the process ends, or time is up."""
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert condition(), process.communicate(timeout=5)


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_an_epoch_and_resumed_ends_with_the_same_bits(tmp_path, often):
    straight = new_model()
    expected = quietly(straight)
    script = SCRIPT.format(tests=str(Path(__file__).parent), threads=torch.get_num_threads(), output=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    state = tmp_path / "state.safetensors"
    try:
        wait_for(lambda: state.exists() and checkpoints.read(state)[1]["step"] >= 8, process)
    finally:
        process.kill()
        process.communicate()
    _, info = checkpoints.read(state)
    assert process.returncode == -signal.SIGKILL and info["step"] % 4 == 0 < info["step"] and len(info["epochs"]) < 2
    resumed = new_model(seed=99)
    assert timeless(quietly(resumed, output=tmp_path)) == timeless(expected)
    assert same(resumed.state_dict(), straight.state_dict())


def interrupt(steps, monkeypatch):
    """Ctrl-C arrives inside step number `steps`."""
    left = [steps]

    def step(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(*arguments)

    monkeypatch.setattr(train, "train_step", step)


@pytest.mark.parametrize("steps", [1, 11, 19, 30])
def test_ctrl_c_ends_the_step_saves_and_resumes_to_the_same_bits(steps, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    straight = new_model()
    expected = quietly(straight)
    stopped = new_model()
    interrupt(steps, monkeypatch)
    epoch, step = (1, steps) if steps <= 19 else (2, steps - 19)
    with pytest.raises(KeyboardInterrupt, match=f"stopped in epoch {epoch} after step {step}$"):
        quietly(stopped, output=tmp_path)
    assert signal.getsignal(signal.SIGINT) == before
    tensors, info = checkpoints.read(tmp_path / "state.safetensors")
    assert info["step"] == step and len(info["epochs"]) == epoch - 1
    assert all(torch.equal(tensors[f"model.{name}"], value) for name, value in stopped.state_dict().items())
    monkeypatch.setattr(train, "train_step", train_step)
    resumed = new_model(seed=99)
    assert timeless(quietly(resumed, output=tmp_path)) == timeless(expected)
    assert same(resumed.state_dict(), straight.state_dict())


@pytest.mark.parametrize("epoch", [1, 2])
def test_ctrl_c_in_an_evaluation_ends_the_epoch_and_the_run(epoch, tmp_path):
    expected = quietly(new_model(), evaluators={"test": lambda model: {"of": 1}})
    asked = []

    def evaluator(model):
        asked.append(1)
        if len(asked) == epoch:
            os.kill(os.getpid(), signal.SIGINT)
        return {"of": 1}

    with pytest.raises(KeyboardInterrupt, match=f"stopped after epoch {epoch}$"):
        quietly(new_model(), output=tmp_path, evaluators={"test": evaluator})
    again = quietly(new_model(seed=99), output=tmp_path, evaluators={"test": evaluator})
    assert timeless(again) == timeless(expected) and len(asked) == len(expected)  # nothing is evaluated again


def test_ctrl_c_does_not_save_a_model_that_has_just_diverged(tmp_path, monkeypatch):
    """The loss is looked at every 50 steps only: here it is broken from step 4 on, and Ctrl-C arrives in step 6."""
    calls = iter(range(1, 100))

    def step(*arguments):
        value, number = train_step(*arguments), next(calls)
        if number == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return value * float("nan") if number >= 4 else value

    monkeypatch.setattr(train, "train_step", step)
    with pytest.raises(BaseException, match="epoch 1 at step 4 ") as stop:
        quietly(new_model(), output=tmp_path)
    assert stop.type is FloatingPointError
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_epoch_step_and_sessions(often, tmp_path, monkeypatch):
    calls = iter(range(1000))

    def step(model, *arguments):
        value = train_step(model, *arguments)
        if next(calls) < 19 + 9:
            return value
        with torch.no_grad():
            model.table.fill_(float("nan"))
        return value * float("nan")

    monkeypatch.setattr(train, "train_step", step)
    order = epoch_order(WINDOWS, 16, 7, 1, CONFIG.block)
    rows = order.index[9 * 16 :][:3]
    with pytest.raises(FloatingPointError) as error:
        quietly(new_model(), output=tmp_path, checkpoint_seconds=-1.0)
    assert "epoch 2 at step 10 " in str(error.value)
    assert str(WINDOWS.session[rows].tolist()) in str(error.value)
    tensors, info = checkpoints.read(tmp_path / "state.safetensors")
    assert (len(info["epochs"]), info["step"]) == (1, 8)
    assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


def test_a_rate_that_is_far_too_high_is_found_out():
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        quietly(new_model(), config=TrainConfig(epochs=3, batch_size=16, lr=1e30, lr_every=None))


DIFFERENT = [
    ({"config": TrainConfig(epochs=2, batch_size=16, lr=0.03, lr_every=1, l2=1e-5, seed=7)}, "lr"),
    ({"config": TrainConfig(epochs=2, batch_size=16, lr=0.02, lr_every=1, l2=1e-5, seed=8)}, "seed"),
    ({"windows": chain(V, count=61).prefixes()}, "examples"),
    ({"run": {"model": "gru4rec", "dataset": "other"}}, "dataset"),
]


@pytest.mark.parametrize("change, named", DIFFERENT, ids=lambda value: value if isinstance(value, str) else "")
def test_the_checkpoint_of_another_run_is_refused_naming_what_differs(change, named, tmp_path):
    same_run = {"run": {"model": "gru4rec", "dataset": "chain"}}
    quietly(new_model(), output=tmp_path, **same_run)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(ValueError, match=rf"state\.safetensors belongs to another run: {named} differ"):
        quietly(new_model(), output=tmp_path, **same_run | change)
    assert (tmp_path / "state.safetensors").read_bytes() == before


def test_a_run_that_names_itself_less_than_its_checkpoint_is_refused_too(tmp_path):
    quietly(new_model(), output=tmp_path, run={"model": "gru4rec", "dataset": "chain"})
    with pytest.raises(ValueError, match="another run: dataset differ"):
        quietly(new_model(), output=tmp_path, run={"model": "gru4rec"})


def test_a_run_may_be_named_with_tuples(tmp_path):
    for _ in range(2):
        epochs = quietly(new_model(), output=tmp_path, run={"arguments": {"shape": (1, 2)}})
    assert len(epochs) == 2


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="state.safetensors is damaged or not a checkpoint of this package"):
        quietly(new_model(), output=tmp_path)


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(often, tmp_path, monkeypatch):
    straight = new_model()
    expected = quietly(straight)
    saved, calls, errors = checkpoints.save_file, iter(range(100)), cycle((OSError, SafetensorError))

    def save_file(tensors, path, metadata):
        if next(calls) < 2:
            return saved(tensors, path, metadata)
        Path(path).write_bytes(b"half a fi")
        raise next(errors)("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", save_file)
    model = new_model()
    with pytest.warns(
        UserWarning, match="training goes on without a new checkpoint: .*state.safetensors.*No space left"
    ):
        epochs = quietly(model, output=tmp_path, checkpoint_seconds=-1.0)
    assert timeless(epochs) == timeless(expected) and same(model.state_dict(), straight.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    assert checkpoints.read(tmp_path / "state.safetensors")[1]["step"] == 8


def scripted(values):
    """An evaluator that returns these MRR@20 in turn."""
    left = iter(values)
    return lambda model: {"MRR@20": next(left)}


@pytest.mark.parametrize(
    "values, patience, epochs",
    [
        ([1, 2, 3, 4, 5, 6], 2, 6),
        ([5, 1, 2, 3], 1, 2),
        ([1, 5, 4, 3, 9], 2, 4),
        ([3, 3, 3], 1, 2),
        ([4, 3, 4, 5, 1, 1], 3, 6),
    ],
)
def test_patience_stops_when_validation_no_longer_improves(values, patience, epochs):
    config = TrainConfig(epochs=6, batch_size=300, patience=patience)
    found = quietly(new_model(), config=config, evaluators={"validation": scripted([float(v) for v in values])})
    assert len(found) == epochs
    assert [epoch["validation"]["MRR@20"] for epoch in found] == values[:epochs]


def test_patience_counts_the_epochs_before_a_resume(tmp_path, stop_after, monkeypatch):
    config = TrainConfig(epochs=6, batch_size=300, patience=2)
    stop_after(2)
    with pytest.raises(Stop):
        quietly(new_model(), config=config, evaluators={"validation": scripted([5.0, 4.0])}, output=tmp_path)
    monkeypatch.setattr(train, "train_step", train_step)
    found = quietly(new_model(), config=config, evaluators={"validation": scripted([3.0])}, output=tmp_path)
    assert [epoch["validation"]["MRR@20"] for epoch in found] == [5, 4, 3]


def test_without_validation_patience_waits_for_ever():
    config = TrainConfig(epochs=3, batch_size=300, patience=1)
    assert len(quietly(new_model(), config=config, evaluators={"test": scripted([3.0, 2.0, 1.0])})) == 3


def test_after_every_epoch_its_record_is_handed_on_before_it_is_saved(tmp_path):
    seen = []

    def after(model, epochs):
        state = tmp_path / "state.safetensors"
        seen.append(
            (
                len(epochs),
                epochs[-1]["test"]["MRR@20"],
                len(checkpoints.read(state)[1]["epochs"]) if state.exists() else 0,
            )
        )

    quietly(new_model(), evaluators={"test": scripted([1.5, 2.5])}, after_epoch=after, output=tmp_path)
    assert seen == [(1, 1.5, 0), (2, 2.5, 1)]
    assert json.loads(json.dumps(checkpoints.read(tmp_path / "state.safetensors")[1]["epochs"][1]["test"])) == {
        "MRR@20": 2.5
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"block": -1}, "block must be at least 1, got -1"),
        ({"augmentation": "random"}, "augmentation is prefix or suffix, got 'random'"),
        ({"keep": "middle"}, "keep is last or first, got 'middle'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**arguments)


def test_wrong_precision_or_rate_is_refused_before_training():
    for config in (TrainConfig(precision="fp8"), TrainConfig(lr=-1.0), TrainConfig(l2=-1.0)):
        with pytest.raises(ValueError, match="precision is|lr must be positive"):
            quietly(new_model(), config=config)


def test_examples_follow_the_configuration():
    sessions = random_sessions(30)
    for augmentation, windows in (("prefix", sessions.prefixes()), ("suffix", sessions.suffixes())):
        for keep, cut in (("last", windows.last(2)), ("first", windows.first(2))):
            found = TrainConfig(augmentation=augmentation, max_len=2, keep=keep).examples(sessions)
            assert torch.equal(found.start, cut.start) and found.head == cut.head
    assert len(TrainConfig().examples(sessions)) == len(sessions.prefixes())
    suffix = TrainConfig(augmentation="suffix")
    assert torch.equal(suffix.examples(sessions, augment=False).start, sessions.prefixes().start)
    with pytest.raises(ValueError, match="max_len must be at least 1"):
        TrainConfig(max_len=0).examples(sessions)


def test_bf16_learns_almost_as_well():
    losses = {}
    for precision in ("fp32", "bf16"):
        config = TrainConfig(epochs=2, batch_size=16, lr=0.02, lr_every=None, precision=precision)
        losses[precision] = quietly(new_model(dropout=0.0), config=config)[-1]["loss"]
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_very_long_inputs_are_told_of_once_with_what_to_do(monkeypatch, recwarn):
    monkeypatch.setattr(train, "LONG", 4)
    config = TrainConfig(epochs=2, batch_size=300)
    for quiet in (dataclasses.replace(config, max_len=5), dataclasses.replace(config, batches="session-parallel")):
        with contextlib.suppress(ValueError):  # what carries no state cannot be trained session-parallel
            quietly(new_model(), config=quiet)
    quietly(new_model(), windows=WINDOWS.last(4), config=config)
    assert not recwarn.list
    quietly(new_model(), config=config)
    (found,) = recwarn.list
    assert "the longest input has 5 clicks" in str(found.message) and "--max-len 50" in str(found.message)
    assert "chapter 05" in str(found.message) and train.LONG == 4


def test_inputs_of_the_published_datasets_are_not_told_of():
    assert 145 < train.LONG == 500


def test_training_outside_the_main_thread_works():
    import threading

    found = []
    thread = threading.Thread(
        target=lambda: found.extend(quietly(new_model(), config=TrainConfig(epochs=1, batch_size=300)))
    )
    thread.start()
    thread.join()
    assert [epoch["epoch"] for epoch in found] == [1]


@pytest.mark.gpu
def test_training_resumes_on_a_gpu(often, stop_after, tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    straight = new_model(dropout=0.0).cuda()
    expected = quietly(straight, WINDOWS.to("cuda"))
    stop_after(25)
    with pytest.raises(Stop):
        quietly(new_model(dropout=0.0).cuda(), WINDOWS.to("cuda"), output=tmp_path, checkpoint_seconds=-1.0)
    monkeypatch.setattr(train, "train_step", train_step)
    resumed = new_model(seed=99, dropout=0.0).cuda()
    epochs = quietly(resumed, WINDOWS.to("cuda"), output=tmp_path)
    assert [epoch["loss"] for epoch in epochs] == pytest.approx([epoch["loss"] for epoch in expected], rel=1e-4)
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-3, atol=1e-4)


class Pull:
    """An auxiliary task: pull the rows of the table together, two by two, with an optimizer of its own."""

    name = "pull"
    decays = False

    def __init__(self, model):
        self.model = model

    def make_optimizers(self):
        return [torch.optim.SparseAdam([self.model.table], lr=0.01)]

    def steps(self, epochs):
        return 7 if len(epochs) < 2 else 0  # it stops for good after two epochs

    def loss(self, epoch, step):
        pair = torch.tensor([(epoch * 7 + step) % V, (3 * step + 1) % V])
        left, right = self.model.embed(pair)
        return (left - right).square().sum()


class Pulled(GRU4Rec):
    """A model with an auxiliary task and a term of its own in the loss."""

    weight = 0.0

    def auxiliary_tasks(self):
        return [Pull(self)]

    def extra_loss(self, query, target):
        return self.weight * query.square().mean() if self.weight else None


def pulled(seed=0):
    torch.manual_seed(seed)
    return Pulled(V, 8)


def test_an_auxiliary_task_is_trained_before_each_epoch_with_its_own_optimizer():
    model, plain = pulled(), pulled()
    torch.manual_seed(5)
    epochs = quietly(model, config=dataclasses.replace(CONFIG, epochs=3))
    torch.manual_seed(5)
    task, loss, optimizers = Pull(plain), FullSoftmax(), make_optimizers(plain, 0.02, 1e-5)
    (own,) = task.make_optimizers()
    plain.train()
    for epoch, lr in enumerate((0.02, 0.002, 0.0002)):
        optimizers[0].param_groups[0]["lr"] = lr
        values = []
        for step in range(7 if epoch < 2 else 0):
            value = task.loss(epoch, step)
            plain.zero_grad(set_to_none=True)
            value.backward()
            own.step()
            values.append(value.item())
        assert epochs[epoch]["auxiliary"] == {"pull": pytest.approx(sum(values) / 7 if values else 0.0)}
        for batch in epoch_order(WINDOWS, 16, 7, epoch, CONFIG.block).batches(WINDOWS):
            train_step(plain, loss, optimizers, batch)
    assert same(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("steps", [5, 6, 9, 25, 33])
def test_a_run_that_stops_inside_an_auxiliary_task_resumes_to_the_same_bits(steps, often, tmp_path, monkeypatch):
    straight = pulled()
    expected = quietly(straight)
    left, update = iter(range(steps)), train._update

    def stop(*arguments):
        if next(left, None) is None:
            raise Stop
        update(*arguments)

    monkeypatch.setattr(train, "_update", stop)
    with pytest.raises(Stop):
        quietly(pulled(), output=tmp_path, checkpoint_seconds=-1.0)
    monkeypatch.setattr(train, "_update", update)
    resumed = pulled(seed=99)
    assert timeless(quietly(resumed, output=tmp_path, checkpoint_seconds=-1.0)) == timeless(expected)
    assert same(resumed.state_dict(), straight.state_dict())


def test_an_auxiliary_task_that_diverges_stops_the_run_by_name(often, monkeypatch):
    nothing = float("nan")
    monkeypatch.setattr(Pull, "loss", lambda self, epoch, step: self.model.embed(torch.tensor([1])).sum() * nothing)
    with pytest.raises(FloatingPointError, match="auxiliary task pull is not finite in epoch 1"):
        quietly(pulled())


def test_what_a_model_adds_to_the_loss_is_trained_and_not_reported():
    model, batch = pulled(), next(epoch_order(WINDOWS, 16, 7, 0).batches(WINDOWS))
    model.eval()
    model.weight = 3.0
    query = model.encode(batch)
    plain = FullSoftmax()(Scores(model, query), batch.target)
    (plain + 3.0 * query.square().mean()).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    value = train_step(model, FullSoftmax(), [torch.optim.SGD(model.parameters(), lr=0.0)], batch)
    assert value.item() == pytest.approx(plain.item(), rel=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-5, atol=1e-7)
