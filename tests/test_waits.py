"""No step of training or evaluation waits for its device: an epoch of many batches asks as often as one of few.

Seen on a CPU that takes the branches of a GPU. Not counted is the sorting of the rows that a sparse gradient names,
which torch's own SparseAdam waits for too; nor do the steps of LGSR's second task, which are as many for any batch.
"""

from collections import Counter
from functools import partial

import pytest
import torch
from test_train import quietly
from torch.utils._python_dispatch import TorchDispatchMode
from toys import random_sessions

from sbr_core.config import TrainConfig
from sbr_core.evaluate import evaluate
from sbr_core.losses import LOSSES
from sbr_core.models import MODELS, build
from sbr_core.models.base import SessionModel

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select}
READS |= {aten._unique2, aten.unique_dim, aten.unique_consecutive}
TRAIN = random_sessions(80, 30, seed=1, shortest=2)
NEURAL = [name for name, cls in MODELS.items() if issubclass(cls, SessionModel)]
SEEKS = "dgtn"  # the neighbours of every batch: lists whose lengths follow from the data


class Waits(TorchDispatchMode):
    """Counts the operations whose result, or its size, the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        operation = function.overloadpacket
        by_truth = operation in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        unknown = operation is aten.repeat_interleave and (kwargs or {}).get("output_size") is None
        if operation in READS or by_truth or unknown:
            self.found[str(operation)] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """waits(work) -> how often the host would wait for a GPU in work(), by operation."""

    def count(work) -> Counter:
        with monkeypatch.context() as patch, Waits() as mode:
            patch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True))
            work()
        return mode.found

    return count


def training(name, batch_size, arguments=None, **settings):
    """An epoch of a new model, ready to run."""
    torch.manual_seed(0)
    model = build(name, TRAIN.num_items, dim=8, **(arguments or {}))
    model.prepare(TRAIN)
    config = TrainConfig(epochs=1, batch_size=batch_size, l2=0.0, **settings)
    return partial(quietly, model, TRAIN.prefixes(), config)


@pytest.mark.parametrize("name", NEURAL)
def test_more_steps_wait_no_more_often(name, waits):
    batches = "session-parallel" if name.startswith("gru4rec-20") else "examples"
    few, many = (waits(training(name, size, batches=batches)) for size in (40, 10))
    assert few["aten._local_scalar_dense"] > 0  # the loss at the end
    assert (many.total() > few.total()) if name == SEEKS else (many == few), (few, many)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_waits(loss, waits):
    few, many = (waits(training("sr-gnn", size, loss=loss)) for size in (120, 30))
    assert many == few


@pytest.mark.parametrize("batches", ["chronological", "every-position"])
def test_no_other_order_waits(batches, waits):
    readable = {"positions": "start"}  # from every position on
    few, many = (waits(training("transformer", size, readable, batches=batches, max_len=20)) for size in (40, 10))
    assert many == few


@pytest.mark.parametrize("name", [name for name in NEURAL if name != SEEKS])
def test_evaluation_waits_no_more_often_for_more_batches(name, waits):
    model = build(name, TRAIN.num_items, dim=8)
    few, many = (waits(partial(evaluate, model, TRAIN.prefixes(), chunk=size)) for size in (120, 30))
    assert many == few
