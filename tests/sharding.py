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
from sbr_core.sampled_losses import NegativeSampling, Triplet
from sbr_core.samplers import click_counts
from sbr_core.sharded import add_up_gradients, gathered, rank_targets, rows_of, shard, share
from sbr_core.sharded_losses import LocalSampledSoftmax
from sbr_core.sharded_training import ShardedRun, fit_sharded
from sbr_core.torchrun import join

V, D = 23, 8
MODELS = {
    "stamp": {},
    "sr-gnn": {},
    "gru4rec": {"dropout": 0.0},
    "stamp+scale": {"scale": 3.0},
    "stamp+sphere": {"normalise": True},
    "stamp+distance": {"normalise": True, "similarity": "distance"},
}
LOSSES = {
    "full": {},
    "negative-sampling": {"negatives": 8},
    "triplet": {"negatives": 4, "shared": True},
    "sampled-softmax": {"negatives": 8},
    "bpr": {},
}
CASES = [  # model, loss, optimizer of the table
    ("stamp", "full", "auto"),
    ("sr-gnn", "full", "auto"),
    ("gru4rec", "full", "auto"),
    ("stamp+scale", "full", "auto"),
    ("stamp+sphere", "full", "auto"),
    ("stamp+distance", "full", "auto"),
    ("stamp", "negative-sampling", "auto"),
    ("sr-gnn", "triplet", "auto"),
    ("stamp+sphere", "triplet", "auto"),
    ("stamp+distance", "triplet", "rowwise-adam"),
]
EXAMPLES = random_sessions(40, V, seed=1).prefixes()
EXAMPLES = EXAMPLES[: len(EXAMPLES) // 8 * 8]  # every batch can be shared out evenly


def new(name: str):
    torch.manual_seed(3)
    model = build(name.partition("+")[0], V, dim=D, **MODELS[name]).double()
    if MODELS[name].get("normalise"):
        model.table.data *= 100  # rows as long as trained ones: short ones have large gradients, rounding included
    return model


def tolerance(name: str) -> float:
    """How far rounding may carry two runs apart: on the sphere some gradients are zero but for it, and Adam divides
    them by 1e-8."""
    return 1e-6 if MODELS[name].get("normalise") else 1e-10


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
    for name, loss, table in CASES:
        output, config = folder / f"{name}-{loss}-{table}", config_of(loss, table_optimizer=table)
        found[name, loss, table] = fit_sharded(shard(new(name)), EXAMPLES, config, output=output)[0]["loss"]
    return found


def handed_on(folder: Path) -> list:
    """Epochs and table that are handed on by a run of two epochs, and by the same run found finished."""
    seen, config = [], config_of("full", epochs=2)
    for _ in range(2):
        model = shard(new("stamp"))
        hand_on = {"after_epoch": lambda tensors, epochs: seen.append((len(epochs), tensors["table"].clone()))}
        fit_sharded(model, EXAMPLES, config, output=folder / "handed", **hand_on)
    return seen


def evaluate(folder: Path) -> dict:
    """Ranks of all targets, and the largest number of rows that a rank holds."""
    found = {}
    for name in ("sr-gnn", "stamp+sphere", "stamp+distance"):
        model = shard(new(name).eval())
        ranks = [rank_targets(model, batch) for batch in length_order(EXAMPLES, 16).batches(EXAMPLES)]
        found[name] = torch.cat(ranks), len(model.table)
    return found


def in_chunks(folder: Path) -> list:
    """Metrics and batch sizes of an evaluation in chunks as asked for, and of one in chunks of at most 60 scores."""
    found, real, largest = [], (sharded_training.rank_targets, sharded_training.CHUNK_SCORES), 60
    for limit in (real[1], largest):
        sizes, sharded_training.CHUNK_SCORES = [], limit
        sharded_training.rank_targets = lambda model, batch, sizes=sizes: (
            sizes.append(len(batch)) or real[0](model, batch)
        )
        found.append((sharded_training.evaluate_sharded(shard(new("stamp")), EXAMPLES, 16), max(sizes)))
    sharded_training.rank_targets, sharded_training.CHUNK_SCORES = real
    return found


def diverged(folder: Path) -> str:
    """What is said, on this rank, of scores that are NaN on the last one."""
    model = shard(new("stamp"))
    if dist.get_rank() == dist.get_world_size() - 1:
        model.table.data[0] = float("nan")
    with suppress(ValueError):
        return str(sharded_training.evaluate_sharded(model, EXAMPLES.last(1)[:1]))
    return "refused"


def local_negatives(folder: Path) -> dict:
    """`negatives_of` the plain product and of one on the unit sphere."""
    return {name: negatives_of(name) for name in ("stamp", "stamp+sphere", "stamp+distance")}


def negatives_of(name: str) -> dict:
    """The sampled softmax of one batch: its value, this rank's gradients, and everybody's negatives."""
    model, rank, ranks = shard(new(name)), dist.get_rank(), dist.get_world_size()
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
    sampled = [("sampled-softmax", literal), ("sampled-softmax", many), ("bpr", {})]
    for loss, more in [("full", {"clip_grad": 1.0}), *sampled]:
        try:
            ShardedRun(model, EXAMPLES, config_of(loss, **more), None, {})
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    with suppress(ValueError):
        fit_sharded(model, EXAMPLES[:0], config_of("full"))
        said.append("an empty log is trained on")
    try:
        fit_sharded(shard(new("stamp+sphere")), EXAMPLES, config_of("full", precision="bf16"))
    except ValueError as error:
        said.append(str(error))
    return said


def traffic(folder: Path) -> dict:
    """`sent_with` every kind of loss."""
    counts = click_counts(EXAMPLES)
    losses = {"full": FullSoftmax(), "sampled-softmax": LocalSampledSoftmax(8, counts)}
    losses |= {"negative-sampling": NegativeSampling(5, counts=counts), "triplet": Triplet(3, counts=counts)}
    return {name: sent_with(loss) for name, loss in losses.items()}


def sent_with(loss) -> dict:
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
    loss(Scores(model, model.encode(part)), part.target).backward()
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
