"""Checkpoint files: what is written is read, damage is named, and no failure leaves half a file."""

import os

import pytest
import torch
from safetensors.torch import save_file
from toys import same

from sbr_core import checkpoints
from sbr_core.models.gru4rec import GRU4Rec
from sbr_core.optim import make_optimizers

TENSORS = {"a": torch.arange(6).view(2, 3), "b": torch.tensor(0.5, dtype=torch.float64), "c": torch.zeros(0, 4).bool()}
INFO = {"epochs": [{"loss": 0.1 + 0.2, "name": "é"}], "step": 3, "none": None}


def test_tensors_and_json_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "folder" / "x.safetensors"
    checkpoints.write(path, TENSORS, INFO)
    tensors, info = checkpoints.read(path)
    assert same(tensors, TENSORS) and info == INFO
    assert all(tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_parts_of_larger_tensors_are_written_as_themselves(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    checkpoints.write(tmp_path / "x", {"column": whole[:, 1], "turned": whole.T}, {})
    tensors, _ = checkpoints.read(tmp_path / "x")
    assert tensors["column"].tolist() == [1, 5, 9] and torch.equal(tensors["turned"], whole.T)


def test_a_new_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    for step in range(3):
        checkpoints.write(tmp_path / "x", TENSORS, {"step": step})
    assert checkpoints.read(tmp_path / "x")[1] == {"step": 2}
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("place", ["save_file", "replace"])
def test_a_disk_that_refuses_leaves_the_old_file_whole(place, tmp_path, monkeypatch):
    checkpoints.write(tmp_path / "x", TENSORS, INFO)

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((checkpoints, "save_file") if place == "save_file" else (os, "replace")), refuse)
    with pytest.raises(OSError, match=r"/x could not be written .*No space left.*unchanged"):
        checkpoints.write(tmp_path / "x", {"a": torch.ones(3)}, {})
    assert os.listdir(tmp_path) == ["x"]
    assert same(checkpoints.read(tmp_path / "x")[0], TENSORS)


def test_a_file_that_is_not_there_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}/x does not exist; `sbr train --output {tmp_path}` writes it"):
        checkpoints.read(tmp_path / "x")


@pytest.mark.parametrize("damage", ["empty", "short", "text", "header", "foreign"])
def test_damage_is_named(damage, tmp_path):
    path = tmp_path / "x"
    checkpoints.write(path, TENSORS, INFO)
    whole = path.read_bytes()
    if damage == "foreign":
        save_file(TENSORS, path)  # another program's file: no JSON of ours
    else:
        path.write_bytes(
            {"empty": b"", "short": whole[:-3], "text": b"hello world, " * 9, "header": whole[:20]}[damage]
        )
    with pytest.raises(ValueError, match=f"{path} is damaged or not a checkpoint of this package"):
        checkpoints.read(path)


def stepped(seed, optimizers=None):
    """A model and its optimizer after two steps."""
    torch.manual_seed(seed)
    model = GRU4Rec(5, 3)
    optimizers = make_optimizers(model, lr=0.01, l2=0.1)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizers[0].step()
    return model, optimizers


def test_a_restored_state_takes_the_same_next_step():
    model, optimizers = stepped(0)
    tensors = {name: tensor.clone() for name, tensor in checkpoints.training_state(model, optimizers).items()}
    other, others = stepped(1)
    checkpoints.restore_training_state(tensors, other, others)
    for net, optimizer in ((other, others[0]), (model, optimizers[0])):
        torch.set_rng_state(tensors["rng.cpu"])
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    assert same(model.state_dict(), other.state_dict())
    assert all(name in tensors for name in ("model.table", "optimizer.0.0.exp_avg", "optimizer.0.0.step"))


def test_the_generator_is_restored():
    model, optimizers = stepped(0)
    tensors = {name: tensor.clone() for name, tensor in checkpoints.training_state(model, optimizers).items()}
    expected = torch.rand(4)
    torch.manual_seed(5)
    checkpoints.restore_training_state(tensors, model, optimizers)
    assert torch.equal(torch.rand(4), expected)


def test_a_state_before_the_first_step_is_restored_too():
    torch.manual_seed(0)
    model = GRU4Rec(5, 3)
    tensors = checkpoints.training_state(model, make_optimizers(model))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    other, others = stepped(1)
    checkpoints.restore_training_state(tensors, other, others)
    assert same(model.state_dict(), other.state_dict()) and not others[0].state_dict()["state"]


def test_a_sparse_optimizer_is_restored_beside_a_dense_one(tmp_path):
    torch.manual_seed(0)
    states = []
    for _ in range(2):
        model = GRU4Rec(5, 3)
        optimizers = make_optimizers(model, lr=0.1, sparse_table=True)
        model.embed(torch.tensor([1, 3])).sum().backward()
        optimizers[0].step()
        states.append((model, optimizers))
    (model, optimizers), (other, others) = states
    checkpoints.write(tmp_path / "state", checkpoints.training_state(model, optimizers), {})
    checkpoints.restore_training_state(checkpoints.read(tmp_path / "state")[0], other, others)
    left, right = (o[0].state_dict()["state"][0] for o in (optimizers, others))
    assert left["step"] == right["step"] == 1 and type(left["step"]) is type(right["step"])
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[key]) for key, value in left.items() if isinstance(value, torch.Tensor))
