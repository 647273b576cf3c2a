"""The command behind torchrun: train with the item table shared out over the processes that it starts.

Example::

    torchrun --nproc-per-node 4 -m sbr_core.torchrun --model stamp --dataset large:1000000 \\
        --loss sampled-softmax --negatives 512 --epochs 1 --output runs/large
"""

import dataclasses
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from sbr_core import cli_options as cli
from sbr_core import workflow
from sbr_core.datasets import Dataset
from sbr_core.models import build
from sbr_core.recipes import Recipe
from sbr_core.replicate import new_model
from sbr_core.run_state import alone_in
from sbr_core.sharded import shard
from sbr_core.sharded_training import fit_sharded

STOPS = (signal.SIGTERM, signal.SIGINT)


class Told(BaseException):
    """A signal to stop. No OSError as InterruptedError is: a checkpoint that is being written takes one of these for
    a full disk, and goes on."""


def main(
    model: cli.ModelName,
    dataset: cli.DatasetName = "demo",
    log: cli.Log = None,
    epochs: cli.Epochs = None,
    seed: cli.Seed = None,
    output: cli.Output = None,
    checkpoint_steps: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints within an epoch.")] = 500,
    loss: cli.Loss = None,
    negatives: Annotated[
        int | None, typer.Option(help="Items drawn in a step by a sampled loss; those of sampled-softmax on all ranks.")
    ] = None,
    optimizer: cli.Optimizer = None,
    table_optimizer: cli.TableOptimizer = None,
    precision: cli.Precision = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples of a step, of all ranks together.")] = None,
    lr: cli.LearningRate = None,
    l2: cli.L2 = None,
    max_len: cli.MaxLen = None,
    set_: cli.Set = None,
    config_: cli.Config = None,
) -> None:
    """Train with the item table shared out over the processes that torchrun has started."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    options = dict(epochs=epochs, seed=seed, loss=loss, optimizer=optimizer, table_optimizer=table_optimizer)
    options |= dict(precision=precision, batch_size=batch_size, lr=lr, l2=l2, max_len=max_len)
    for number in STOPS:
        signal.signal(number, _told_to_stop)
    try:
        recipe = with_negatives(cli.recipe_of(model, dataset, set_, config_, **options), negatives)
        if output:
            workflow.make_folder(output)
        device = join(rank, ranks)
        print(f"rank {rank} of {ranks}: process {os.getpid()}, {device}", file=sys.stderr, flush=True)
        data = cli.load_dataset(dataset, log)
        with alone_in(output if rank == 0 else None):
            records = train(recipe, data, output, device, checkpoint_steps)
    except Told as error:
        sys.exit(cli.fail(_stopped(rank, ranks, str(error), output)))
    except (ValueError, FloatingPointError, LookupError, OSError, ImportError) as error:
        sys.exit(cli.fail(str(error)))
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        why = f"it lost the others ({str(error).splitlines()[0]})"
        sys.exit(cli.fail(_stopped(rank, ranks, why, output) if lost else str(error)))
    except MemoryError as error:
        sys.exit(cli.fail(f"not enough memory on rank {rank} ({error}); take more ranks, or a smaller batch"))
    if rank == 0:
        named = {"model": recipe.model, "dataset": data.name, "ranks": ranks}
        cli.show(named | {"epochs": records, "output": output and str(output)}, as_json=True)
    dist.destroy_process_group()


def train(recipe: Recipe, data: Dataset, output: Path | None, device: str, checkpoint_steps: int) -> list[dict]:
    """Train as one of the ranks, test after every epoch, keep a model for `Recommender.load` in `output`.

    Returns:
        The records of all epochs, the same on every rank.

    Raises:
        ValueError, FloatingPointError: as `sharded.shard` and `sharded_training.fit_sharded`; a ValueError too if
            `output` holds another run.
        OSError: if the disk has no room for the model, even at the end.
    """
    config, keeper = recipe.config, workflow.Keeper(recipe, data, output, validate=False)

    def keep(tensors: dict, epochs: list[dict]) -> None:
        with torch.device("meta"):  # takes over the tensors: the table is not held once more
            model = build(recipe.model, data.num_items, **recipe.arguments)
        model.load_state_dict(tensors, assign=True)
        keeper(model, epochs)

    model = shard(new_model(recipe, data.num_items, config.seed, device))
    windows, test = config.examples(data.train).to(device), config.truncate(data.test_windows()).to(device)
    identity = workflow.identity_of(recipe, data)
    epochs = fit_sharded(model, windows, config, test, output, identity, checkpoint_steps, True, keep)
    if keeper.again:  # the disk was full
        keeper.again()
    return epochs


def with_negatives(recipe: Recipe, negatives: int | None) -> Recipe:
    """The recipe with another number of negatives, if one is given."""
    if negatives is None:
        return recipe
    arguments = recipe.config.loss_arguments | {"negatives": negatives}
    return dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, loss_arguments=arguments))


def _told_to_stop(number: int, frame: object) -> None:
    """Once; torchrun sends such signals to all ranks that are left when one has ended, or on Ctrl-C."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise Told(f"it was told to ({signal.Signals(number).name}), as all are when one has ended")


def _stopped(rank: int, ranks: int, why: str, output: Path | None) -> str:
    """What a rank says that cannot go on, though nothing is wrong with it."""
    left = f"The last checkpoint in {output} is whole" if output else "There is no checkpoint: no --output was given"
    return f"rank {rank} of {ranks} stops: {why}. {left}; start the same command again, on any number of ranks"


def join(rank: int, ranks: int, init_method: str | None = None) -> str:
    """Join the process group; returns the device of this rank: a GPU (NCCL, never run so far) or the CPU.

    Raises:
        ValueError: if the process was not started by torchrun.
    """
    cuda = torch.cuda.is_available()
    device = f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % torch.cuda.device_count()}" if cuda else "cpu"
    if "MASTER_ADDR" not in os.environ and init_method is None:
        raise ValueError("start this with torchrun, as in: torchrun --nproc-per-node 2 -m sbr_core.torchrun ...")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", init_method, timedelta(minutes=5), rank=rank, world_size=ranks)
    return device


if __name__ == "__main__":
    typer.run(main)
