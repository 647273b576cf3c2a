"""A step with a sampled loss touches some rows of the table, never all of them: every operation in it is watched."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import random_sessions

from sbr_core.config import TrainConfig
from sbr_core.losses import least_rows
from sbr_core.models import build
from sbr_core.run_state import Run
from sbr_core.train import make_order, train_step

V = 200_000
LOOKS = {  # operations that are given the table, or something as long, and read or write some rows of it
    "aten::detach", "aten::slice.Tensor", "aten::select.int", "aten::view", "aten::embedding", "aten::index.Tensor",
    "aten::index_select", "aten::index_add_", "aten::index_copy_", "aten::searchsorted.Tensor",
    "aten::_sparse_coo_tensor_with_dims_and_tensors",
}  # fmt: skip
SAMPLED = {
    "sampled-softmax": {"negatives": 8},
    "negative-sampling": {"negatives": 4, "shared": False, "alpha": 0.75},
    "triplet": {},
    "gbce": {"negatives": 8},
    "bpr-max": {"negatives": 8},
    "in-batch": {},
}


class Watch(TorchDispatchMode):
    """Names of the operations that take or give a dense tensor of V numbers or more."""

    def __init__(self):
        super().__init__()
        self.large = set()

    def __torch_dispatch__(self, operation, types, arguments=(), more=None):
        """Do it, and note its name."""
        found = operation(*arguments, **(more or {}))
        tensors = [x for x in tree_leaves((arguments, more, found)) if isinstance(x, torch.Tensor)]
        if any(x.layout == torch.strided and x.numel() >= V for x in tensors):
            self.large.add(operation.name())
        return found


def watched(model: str, **fields) -> set[str]:
    """What a step does with tensors as long as the catalogue, once the optimizers have their state."""
    sessions = random_sessions(60, V)
    config = TrainConfig(batch_size=8, l2=0.0, **fields)
    examples = config.examples(sessions)
    torch.manual_seed(0)
    network = build(model, V, dim=8)
    run = Run(network, examples, config, None, {}, 0.0)
    batches = make_order(examples, config, 0, least_rows(run.loss)).batches(examples)
    train_step(network, run.loss, run.optimizers, next(batches), run.encode, run.clip)
    with Watch() as watch:
        train_step(network, run.loss, run.optimizers, next(batches), run.encode, run.clip)
    return watch.large


@pytest.mark.parametrize("table_optimizer", ["sparse-adam", "rowwise-adam", "rowwise-adagrad"])
@pytest.mark.parametrize("loss", SAMPLED)
def test_a_step_looks_at_some_rows_only(loss, table_optimizer):
    found = watched("stamp", loss=loss, loss_arguments=SAMPLED[loss], table_optimizer=table_optimizer)
    assert found - LOOKS == set() and found & LOOKS


@pytest.mark.parametrize("model", ["sr-gnn", "gru4rec", "narm", "tagnn"])
def test_so_does_a_step_of_every_encoder(model):
    assert watched(model, loss="sampled-softmax", loss_arguments={"negatives": 8}) - LOOKS == set()


def test_a_step_that_moves_the_whole_table_is_seen():
    assert "aten::_fused_adam_" in watched("stamp", loss="triplet", table_optimizer="adam")
    assert "aten::mm" in watched("stamp", loss="full", loss_arguments={"form": "plain"})
