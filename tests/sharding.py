"""What the processes of `test_sharded` do; each leaves what it found in a file, and the test compares."""

from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from toys import random_sessions

from sbr_core import sharded_training
from sbr_core.batches import length_order
from sbr_core.config import TrainConfig
from sbr_core.losses import FullSoftmax, Scores
from sbr_core.models import build
from sbr_core.samplers import click_counts
from sbr_core.sharded import add_up_gradients, gathered, rank_targets, rows_of, shard, share
from sbr_core.sharded_losses import LocalSampledSoftmax
from sbr_core.sharded_training import ShardedRun, fit_sharded
from sbr_core.torchrun import join

V, D = 23, 8
MODELS = {"stamp": {}, "sr-gnn": {}, "gru4rec": {"dropout": 0.0}}
LOSSES = {
    "full": {},
    "negative-sampling": {"negatives": 8},
    "triplet": {"negatives": 4, "shared": True},
    "sampled-softmax": {"negatives": 8},
}
CASES = [
    ("stamp", "full"),
    ("sr-gnn", "full"),
    ("gru4rec", "full"),
    ("stamp", "negative-sampling"),
    ("sr-gnn", "triplet"),
]
EXAMPLES = random_sessions(40, V, seed=1).prefixes()
EXAMPLES = EXAMPLES[: len(EXAMPLES) // 8 * 8]  # every batch can be shared out evenly


def new(name: str):
    torch.manual_seed(3)
    return build(name, V, dim=D, **MODELS[name]).double()


def config_of(loss: str, **more) -> TrainConfig:
    settings = {"epochs": 1, "batch_size": 8, "lr": 0.01, "l2": 1e-3 if loss == "full" else 0.0, "loss": loss}
    return TrainConfig(**settings | {"loss_arguments": LOSSES[loss]} | more)


def work(rank: int, ranks: int, folder: str, tasks: list[str]) -> None:
    """Do tasks of this module as one of several ranks."""
    torch.set_num_threads(1)
    join(rank, ranks, f"file://{folder}/meeting")
    torch.save({task: globals()[task](Path(folder)) for task in tasks}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def train(folder: Path) -> dict:
    """Mean losses of an epoch; rank 0 leaves the checkpoints."""
    found = {}
    for name, loss in CASES:
        output = folder / f"{name}-{loss}"
        found[name, loss] = fit_sharded(shard(new(name)), EXAMPLES, config_of(loss), output=output)[0]["loss"]
    return found


def evaluate(folder: Path) -> list:
    """Ranks of all targets, and the largest number of rows that a rank holds."""
    model = shard(new("sr-gnn").eval())
    ranks = [rank_targets(model, batch) for batch in length_order(EXAMPLES, 16).batches(EXAMPLES)]
    return [torch.cat(ranks), len(model.table)]


def local_negatives(folder: Path) -> dict:
    """The sampled softmax of one batch: its value, this rank's gradients, and everybody's negatives."""
    model, rank, ranks = shard(new("stamp")), dist.get_rank(), dist.get_world_size()
    loss = LocalSampledSoftmax(8, click_counts(EXAMPLES), alpha=0.75, seed=5)
    loss.seek(0, 0)
    drawn = loss.noise.draw(loss.k) + rows_of(rank, ranks, V)[0]
    loss.seek(0, 0)
    part = share(next(iter(length_order(EXAMPLES, 8).batches(EXAMPLES))))
    value = loss(Scores(model, model.encode(part)), part.target)
    value.backward()
    return {"value": value.item(), "ids": gathered(drawn), "table": model.table.grad.to_dense()[:-1]}


def refused(folder: Path) -> list[str]:
    """What is said of settings that a shared table cannot have."""
    said, model = [], shard(new("stamp"))
    literal = {"loss_arguments": {"negatives": 8, "correction": "none"}}
    many = {"loss_arguments": {"negatives": V - 1}}
    for loss, more in (("full", {"clip_grad": 1.0}), ("sampled-softmax", literal), ("sampled-softmax", many)):
        try:
            ShardedRun(model, EXAMPLES, config_of(loss, **more), None, {})
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    with suppress(ValueError):
        fit_sharded(model, EXAMPLES[:0], config_of("full"))
        said.append("an empty log is trained on")
    return said


def traffic(folder: Path) -> dict:
    """Bytes handed to each kind of message in one step, and what the cost model wants to know of it."""
    model, sent, real = shard(new("sr-gnn")), {"all_gather": 0, "all_reduce": 0}, (dist.all_gather, dist.all_reduce)

    def all_gather(parts, mine):
        sent["all_gather"] += mine.nbytes * len(parts)
        return real[0](parts, mine)

    def all_reduce(tensor, *arguments, **more):
        sent["all_reduce"] += tensor.nbytes
        return real[1](tensor, *arguments, **more)

    batch = next(iter(length_order(EXAMPLES, 8).batches(EXAMPLES)))
    part, encoder = share(batch), sum(p.numel() for p in model.parameters() if p is not model.table)
    dist.all_gather, dist.all_reduce = all_gather, all_reduce
    FullSoftmax()(Scores(model, model.encode(part)), part.target).backward()
    add_up_gradients(model)
    dist.all_gather, dist.all_reduce = real
    return {"sent": sent, "shape": tuple(batch.items.shape), "encoder": encoder}


def stop_and_go(folder: Path) -> float:
    """Continue, on as many ranks as there are, a run of two epochs that was saved after the first."""
    config = config_of("full", epochs=2)
    return fit_sharded(shard(new("stamp")), EXAMPLES, config, output=folder / "begun")[-1]["loss"]


def with_dropout(folder: Path, output: str) -> list[dict]:
    torch.manual_seed(3)
    model = shard(build("gru4rec", V, dim=D, dropout=0.5).double())
    config = config_of("sampled-softmax", epochs=2)
    return fit_sharded(model, EXAMPLES, config, output=folder / output, checkpoint_steps=3)


def dropped_out(folder: Path) -> tuple[float, float]:
    """Last loss of a run with dropout, and of the same run stopped after five steps and continued."""
    through, step, taken = with_dropout(folder, "through"), sharded_training.sharded_step, []

    def stumbling(*arguments):
        taken.append(1)
        if len(taken) > 5:
            raise KeyboardInterrupt
        return step(*arguments)

    sharded_training.sharded_step = stumbling
    with suppress(KeyboardInterrupt):
        with_dropout(folder, "stopped")
    sharded_training.sharded_step = step
    return through[-1]["loss"], with_dropout(folder, "stopped")[-1]["loss"]
