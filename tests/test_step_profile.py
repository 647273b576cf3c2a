"""A step with a sampled loss touches some rows of the table, never all of them: every operation in it is watched."""

import inspect

import pytest
import torch
from toys import random_sessions

from sbr_core.bench import SOME_ROWS, LargestTensors, profile_step
from sbr_core.config import TrainConfig
from sbr_core.losses import LOSSES
from sbr_core.models import build

V = 200_000
SAMPLED = [name for name, loss in LOSSES.items() if not loss.full_catalogue]
DRAWN = {"shared": False, "alpha": 0.75}  # the other way to draw


def watched(model: str, **fields) -> set[str]:
    """What a step does with tensors as long as the catalogue, once the optimizers have their state."""
    config = TrainConfig(batch_size=8, l2=0.0, **fields)
    torch.manual_seed(0)
    found = profile_step(build(model, V, dim=8), config.examples(random_sessions(60, V)), config)
    return {name for name, numbers in found.items() if numbers >= V}


def few(loss: str) -> dict:
    """Eight negatives where the loss draws any."""
    return {"negatives": 8} if "negatives" in inspect.signature(LOSSES[loss]).parameters else {}


def test_the_profile_has_the_size_of_the_largest_tensor_of_each_operation():
    with LargestTensors() as watch:
        torch.ones(3) + torch.ones(2, 3)
        torch.ones(2) + torch.ones(2)
    assert watch.found["aten::add.Tensor"] == 6


@pytest.mark.parametrize("table_optimizer", ["sparse-adam", "rowwise-adam", "rowwise-adagrad"])
@pytest.mark.parametrize("loss", SAMPLED)
def test_a_step_looks_at_some_rows_only(loss, table_optimizer):
    found = watched("stamp", loss=loss, loss_arguments=few(loss), table_optimizer=table_optimizer)
    assert found - SOME_ROWS == set() and found & SOME_ROWS


@pytest.mark.parametrize("loss", ["negative-sampling", "triplet", "gbce"])
def test_so_does_a_step_whose_rows_draw_their_own_by_popularity(loss):
    assert watched("stamp", loss=loss, loss_arguments=few(loss) | DRAWN) - SOME_ROWS == set()


@pytest.mark.parametrize("model", ["sr-gnn", "gru4rec", "narm", "tagnn"])
def test_so_does_a_step_of_every_encoder(model):
    assert watched(model, loss="sampled-softmax", loss_arguments={"negatives": 8}) - SOME_ROWS == set()


def test_a_step_that_moves_the_whole_table_is_seen():
    assert "aten::_fused_adam_" in watched("stamp", loss="triplet", table_optimizer="adam")
    assert "aten::mm" in watched("stamp", loss="full", loss_arguments={"form": "plain"})
