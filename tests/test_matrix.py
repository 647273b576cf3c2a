"""Every model with every loss: the loss falls, or the pair is refused with a reason."""

from dataclasses import replace

import pytest
import torch
from toys import chain

from sbr_core.batches import gather
from sbr_core.config import TrainConfig
from sbr_core.losses import LOSSES, Scores, make_loss
from sbr_core.models import MODELS, SessionModel, build
from sbr_core.optim import make_optimizers
from sbr_core.rowwise import TABLE_OPTIMIZERS
from sbr_core.train import fit, train_step

V, STEPS = 20, 15
SESSIONS = chain(V, 40, 4)
WINDOWS = SESSIONS.prefixes()
BATCH = gather(WINDOWS, torch.arange(0, len(WINDOWS), 3))
SAMPLED = [name for name, loss in LOSSES.items() if not loss.full_catalogue]
NEURAL = [name for name, cls in MODELS.items() if issubclass(cls, SessionModel)]
ARGUMENTS = {  # few items: few negatives, and no tanh that would saturate
    "negative-sampling": {"negatives": 10}, "sampled-softmax": {"negatives": 10}, "gbce": {"negatives": 10},
    "triplet": {"negatives": 5}, "xe": {"negatives": 10}, "bpr-max": {"negatives": 10}, "top1-max": {"negatives": 10},
}  # fmt: skip


def start(name, loss, table_optimizer="auto", **more):
    """(model, loss, optimizers) on a fixed batch."""
    torch.manual_seed(0)
    model = build(name, V, dim=8, **more)
    model.prepare(SESSIONS)
    config = TrainConfig(loss=loss, loss_arguments=ARGUMENTS.get(loss, {}), batch_size=len(BATCH), l2=0.0)
    found = make_loss(model, config, WINDOWS)
    sparse = not found.full_catalogue
    return model, found, make_optimizers(model, 0.01, sparse_table=sparse, table_optimizer=table_optimizer)


def fixed_loss(model, loss) -> float:
    """The loss of the batch on the negatives of step 0, without dropout."""
    model.eval()
    if hasattr(loss, "seek"):
        loss.seek(0, 0)
    with torch.no_grad():
        value = loss(Scores(model, model.encode(BATCH)), BATCH.target).item()
    model.train()
    return value


def falls(model, loss, optimizers) -> bool:
    before = fixed_loss(model, loss)
    model.train()
    for _ in range(STEPS):
        train_step(model, loss, optimizers, BATCH)
    return fixed_loss(model, loss) < before


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NEURAL)
def test_the_loss_falls_or_the_pair_is_refused(name, loss):
    if name == "repeatnet" and loss in SAMPLED:
        with pytest.raises(ValueError, match=f"loss='{loss}' asks for the scores of some items, but RepeatNet"):
            start(name, loss)
        return
    model, found, optimizers = start(name, loss)
    assert falls(model, found, optimizers)
    if loss in SAMPLED:
        assert model.table.grad.is_sparse


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in NEURAL])
def test_counting_systems_are_refused(name, loss):
    with pytest.raises(ValueError, match="counts instead of training by a loss: call its fit"):
        make_loss(build(name, V), TrainConfig(loss=loss), WINDOWS)


@pytest.mark.parametrize("table_optimizer", TABLE_OPTIMIZERS)
@pytest.mark.parametrize("loss", ["full", "negative-sampling", "triplet"])
def test_every_optimizer_of_the_table_lowers_the_loss_or_is_refused(loss, table_optimizer):
    if loss == "full" and table_optimizer == "sparse-adam":
        with pytest.raises(ValueError, match="wants a sparse gradient"):
            start("stamp", loss, table_optimizer)
    else:
        assert falls(*start("stamp", loss, table_optimizer))


@pytest.mark.parametrize("similarity", ["dot", "distance", "squared-distance"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["stamp", "sr-gnn", "gru4rec"])
def test_every_loss_falls_on_the_sphere(name, loss, similarity):
    assert falls(*start(name, loss, normalise=True, similarity=similarity))


@pytest.mark.parametrize("loss", SAMPLED)
def test_a_whole_epoch_with_its_last_small_batch_is_finite(loss):
    config = TrainConfig(
        epochs=1, batch_size=len(WINDOWS) - 1, l2=0.0, loss=loss, loss_arguments=ARGUMENTS.get(loss, {})
    )
    model = build("gru4rec", V, dim=8)
    epochs = fit(model, WINDOWS, config, progress=False)
    assert torch.isfinite(torch.tensor(epochs[0]["loss"])) and model.table.isfinite().all()


def test_a_row_that_is_alone_in_its_batch_loses_nothing_by_negatives():
    for loss in ("bpr-max", "top1-max"):
        model, _, optimizers = start("gru4rec", loss)
        config = replace(TrainConfig(l2=0.0), loss=loss, loss_arguments={"negatives": 0}, batch_size=1)
        train_step(model, make_loss(model, config, WINDOWS), optimizers, gather(WINDOWS, torch.arange(1)))
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_arguments_that_a_loss_does_not_have_are_refused():
    with pytest.raises(ValueError, match="loss='in-batch' has no argument 'negatives'; it has correction, mask_hits"):
        make_loss(build("stamp", V), TrainConfig(loss="in-batch", loss_arguments={"negatives": 3}), WINDOWS)
    with pytest.raises(ValueError, match="there is no loss 'hinge'; the losses are full, .*gbce"):
        make_loss(build("stamp", V), TrainConfig(loss="hinge"), WINDOWS)
