"""The folder of a training: one run at a time, never two in turn, and a model that is kept or missed aloud."""
import dataclasses
import fcntl
import os

import pytest

from sbr_core import checkpoints, datasets, workflow
from sbr_core.cli_options import recipe_of

DEMO = datasets.load("demo")
STAMP = ["train", "--model", "stamp", "--set", "dim=8", "--batch-size", "512", "--epochs", "2"]
MODEL, STATE = "model.safetensors", "state.safetensors"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The commands find a demo shop of few sessions."""
    found = dataclasses.replace(DEMO, train=DEMO.train.select(0, 300), test=DEMO.test.select(0, 60))
    monkeypatch.setattr(datasets, "load", lambda name, **_: found)


@pytest.mark.parametrize("first, second, named", [
    (STAMP, ["train", "--model", "item-knn"], "state.safetensors belongs to another run: model, arguments"),
    (["train", "--model", "item-knn"], STAMP, "model.safetensors belongs to another run: model, arguments"),
    (["train", "--model", "item-knn"], ["train", "--model", "pop"], "model.safetensors belongs to another run: model"),
    (["train", "--model", "item-knn"], ["train", "--model", "item-knn", "--set", "k=7"], "another run: arguments"),
    (["train", "--model", "pop"], ["train", "--model", "pop", "--validate"], "another run: validate differ"),
    (["train", "--model", "pop"], ["train", "--model", "pop", "--max-len", "3"], "another run: max_len differ"),
])
def test_a_run_is_not_written_over_another(first, second, named, sbr, tmp_path):
    assert sbr(*first, "--output", tmp_path)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = sbr(*second, "--output", tmp_path)
    assert (code, out) == (1, "") and named in err and "choose another folder, or delete it" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_whose_checkpoint_is_gone_is_not_written_over_by_other_settings(sbr, tmp_path):
    assert sbr(*STAMP, "--output", tmp_path)[0] == 0
    (tmp_path / STATE).unlink()
    code, _, err = sbr(*STAMP, "--lr", "0.02", "--output", tmp_path)
    assert code == 1 and "model.safetensors belongs to another run: lr differ" in err
    assert sbr(*STAMP, "--epochs", "3", "--output", tmp_path)[0] == 0  # the same run, for longer


@pytest.mark.parametrize("system", [STAMP, ["train", "--model", "s-pop"]], ids=["stamp", "s-pop"])
def test_a_model_file_that_does_not_name_its_run_is_known_by_system_and_arguments(system, sbr, tmp_path):
    assert sbr(*system, "--output", tmp_path)[0] == 0
    tensors, info = checkpoints.read(tmp_path / MODEL)
    checkpoints.write(tmp_path / MODEL, tensors, {k: v for k, v in info.items() if k not in ("run", "epoch")})
    assert sbr(*system, "--output", tmp_path)[0] == 0
    assert sbr("train", "--model", "pop", "--output", tmp_path)[0] == 1


def test_two_trainings_do_not_share_a_folder(sbr, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    code, out, err = sbr(*STAMP, "--output", tmp_path)
    assert (code, out) == (1, "") and not list(tmp_path.iterdir())
    assert err == f"error: another process is at work in {tmp_path}: wait for it, or choose another folder\n"
    os.close(folder)
    assert sbr(*STAMP, "--output", tmp_path)[0] == 0


def test_a_folder_is_held_while_a_model_trains_and_let_go_whatever_happens(sbr, tmp_path, monkeypatch):
    refused = []

    def new_model(*given):
        with pytest.raises(ValueError, match="another process is at work"), workflow.alone_in(tmp_path):
            pass
        refused.append(True)
        raise ValueError("broken")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(workflow, "new_model", new_model)
            assert sbr(*STAMP, "--output", tmp_path)[::2] == (1, "error: broken\n")
    assert len(refused) == 2


def test_where_folders_cannot_be_locked_training_goes_on_and_says_so(sbr, tmp_path, monkeypatch):
    def flock(*given):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    code, _, err = sbr(*STAMP, "--output", tmp_path)
    assert code == 0 and f"warning: {tmp_path} cannot be locked" in err and (tmp_path / MODEL).exists()


@pytest.fixture
def full(monkeypatch):
    """full(wanted): the disk is full for the files for which wanted(name, count of writes of it so far) is true."""

    def set_up(wanted):
        write, counts = checkpoints.write, {}

        def refuse(path, tensors, info):
            counts[path.name] = counts.get(path.name, 0) + 1
            if wanted(path.name, counts[path.name]):
                raise OSError(f"{path} could not be written (No space left on device); what was there is unchanged")
            write(path, tensors, info)

        monkeypatch.setattr(checkpoints, "write", refuse)

    return set_up


@pytest.mark.parametrize("system", [STAMP, ["train", "--model", "pop"]], ids=["stamp", "pop"])
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_a_model_that_a_full_disk_refuses_is_an_error_after_the_figures(system, as_json, sbr, tmp_path, full):
    full(lambda name, count: True)
    code, out, err = sbr(*system, *as_json, "--output", tmp_path)
    assert code == 1 and "MRR@20" in out and str(tmp_path) not in out
    last = err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/model.safetensors could not be written (No space left on device)")
    assert "free space and give the same command again" in last


def test_a_write_that_fails_is_tried_once_more_at_the_end(sbr_json, tmp_path, full):
    full(lambda name, count: name == MODEL and count <= 2)  # both epochs
    found = sbr_json(*STAMP, "--output", tmp_path)
    assert found["output"] == str(tmp_path) and "unkept" not in found
    again = sbr_json("evaluate", "--checkpoint", tmp_path)
    assert again["MRR@20"] == pytest.approx(found["epochs"][1]["test"]["MRR@20"], abs=1e-9)


@pytest.fixture
def scripted(monkeypatch):
    """scripted(values): the validation of the epochs has these MRR@20; of the models no figure is needed."""

    def set_up(values):
        left = iter([each for value in values for each in (value, 0.0)])  # validation and test
        figures = lambda model: dict.fromkeys(("HR@20", "MRR@20"), next(left))  # noqa: E731
        monkeypatch.setattr(workflow, "evaluator", lambda *given, progress: figures)

    return set_up


@pytest.mark.filterwarnings("ignore:training goes on, but without its model")
def test_the_picked_epoch_s_model_is_what_is_tried_again(tmp_path, full, scripted):
    recipe, tables = recipe_of("stamp", "demo", ["dim=8"], epochs=2, batch_size=512), []
    for folder in ("room", "full"):
        scripted([2.0, 1.0])
        if folder == "full":
            full(lambda name, count: name == MODEL and count == 1)
        workflow.train(recipe, datasets.load("demo"), tmp_path / folder, validate=True, progress=False)
        tables.append((tmp_path / folder / MODEL).read_bytes())
    assert tables[0] == tables[1]


def test_a_run_whose_model_was_refused_writes_it_when_it_is_asked_again(sbr, sbr_json, tmp_path, full):
    room = []
    full(lambda name, count: name == MODEL and count > 1 and not room)  # the first epoch's is kept
    assert sbr(*STAMP, "--output", tmp_path)[0] == 1 and checkpoints.header(tmp_path / MODEL)["epoch"] == 1
    room.append(True)
    found = sbr_json(*STAMP, "--output", tmp_path)
    assert checkpoints.header(tmp_path / MODEL)["epoch"] == 2
    again = sbr_json("evaluate", "--checkpoint", tmp_path)
    assert again["MRR@20"] == pytest.approx(found["epochs"][1]["test"]["MRR@20"], abs=1e-9)


def test_a_picked_epoch_whose_model_is_lost_is_told(tmp_path, scripted):
    recipe = recipe_of("stamp", "demo", ["dim=8"], epochs=2, batch_size=512)
    scripted([2.0, 1.0])
    found = workflow.train(recipe, datasets.load("demo"), tmp_path, validate=True, progress=False)
    assert found["output"] == str(tmp_path)
    (tmp_path / MODEL).unlink()
    found = workflow.train(recipe, datasets.load("demo"), tmp_path, validate=True, progress=False)
    assert found["output"] is None and "does not hold the model of epoch 1, which was picked" in found["unkept"]
    assert f"delete {tmp_path / STATE} and train again" in found["unkept"]
