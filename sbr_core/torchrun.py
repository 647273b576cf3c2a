"""The command behind torchrun: train with the item table shared out over the processes that it starts.

Example::

    torchrun --nproc-per-node 4 -m sbr_core.torchrun --model stamp --dataset large:1000000 \\
        --loss sampled-softmax --negatives 512 --epochs 1 --output runs/large
"""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer

from sbr_core import datasets
from sbr_core.cli_options import Config, DatasetName, ModelName, Set, recipe_of, show
from sbr_core.replicate import new_model
from sbr_core.sharded import shard
from sbr_core.sharded_training import fit_sharded


def main(
    model: ModelName,
    dataset: DatasetName = "demo",
    epochs: int | None = None,
    seed: int | None = None,
    loss: Annotated[str | None, typer.Option(help="full, sampled-softmax (negatives drawn on every rank), ...")] = None,
    negatives: int | None = None,
    batch_size: int | None = None,
    l2: float | None = None,
    output: Path | None = None,
    checkpoint_steps: int = 500,
    set_: Set = None,
    config_: Config = None,
) -> None:
    """Train with the item table shared out over the processes that torchrun has started."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    arguments = {} if negatives is None else {"loss_arguments": {"negatives": negatives}}
    try:
        device = join(rank, ranks)
        recipe = recipe_of(
            model,
            dataset,
            set_,
            config_,
            epochs=epochs,
            seed=seed,
            loss=loss,
            batch_size=batch_size,
            l2=l2,
            **arguments,
        )
        data = datasets.load(dataset)
        whole = new_model(recipe, data.num_items, recipe.config.seed, device)
        print(f"rank {rank} of {ranks}: process {os.getpid()}, {device}", file=sys.stderr, flush=True)
        windows = recipe.config.examples(data.train).to(device)
        test = recipe.config.truncate(data.test_windows()).to(device)
        identity = {"model": recipe.model, "arguments": recipe.arguments, "dataset": data.fingerprint}
        records = fit_sharded(shard(whole), windows, recipe.config, test, output, identity, checkpoint_steps, True)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        sys.exit(
            f"error: rank {rank} of {ranks} lost the others ({str(error).splitlines()[0]}). "
            + (
                f"The last checkpoint in {output} is whole"
                if output
                else "There is no checkpoint: no --output was given"
            )
            + "; start the same command again, on any number of ranks"
        )
    if rank == 0:
        show({"model": recipe.model, "dataset": data.name, "ranks": ranks, "epochs": records}, as_json=True)
    dist.destroy_process_group()


def join(rank: int, ranks: int, init_method: str | None = None) -> str:
    """Join the process group; returns the device of this rank."""
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
