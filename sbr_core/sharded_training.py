"""Training with the item table shared out over ranks; the command is `sbr_core.torchrun`.

Every rank reads the same click log and takes its share of every batch. A checkpoint is the file that a single process
writes: it is continued on any number of ranks, and one rank is a single process.

Shapes: R ranks, B examples of a batch, V items, n items of this rank.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm

from sbr_core import checkpoints
from sbr_core.batches import Batch, epoch_order, length_order
from sbr_core.config import TrainConfig
from sbr_core.evaluate import CHUNK_SCORES
from sbr_core.losses import Scores, seek
from sbr_core.models.base import SessionModel
from sbr_core.optim import learning_rate, set_learning_rate
from sbr_core.run_state import Run
from sbr_core.samplers import click_counts, mixed
from sbr_core.sessions import Windows
from sbr_core.sharded import add_up_gradients, rank_targets, rows_of, share
from sbr_core.sharded_losses import LocalSampledSoftmax

CHECK_EVERY = 50  # steps between two looks at the loss from the host


class ShardedRun(Run):
    """A `Run` of which every rank has a part; its checkpoint is whole.

    Raises:
        ValueError: for settings that would need to see the whole table, or another kind of batch.
    """

    def __init__(self, model: SessionModel, train: Windows, config: TrainConfig, output: Path | None, identity: dict):
        if config.batches != "examples" or config.agc != "off" or config.clip_grad is not None or config.compile:
            raise ValueError(
                "a shared table trains on batches='examples', with agc='off', clip_grad=None and compile=False"
            )
        super().__init__(model, train, config, output, identity, checkpoint_seconds=0.0)
        if hasattr(self.loss, "least_rows"):
            raise ValueError(
                f"loss={config.loss!r} has the other rows' targets as negatives, and a rank sees a part of them: "
                "use full, sampled-softmax, negative-sampling, triplet or gbce"
            )
        if config.loss == "sampled-softmax":
            self.loss = self._on_own_rows()
        self.collective = self.loss.full_catalogue or getattr(self.loss, "collective", False)
        self.reseed()

    def _on_own_rows(self) -> LocalSampledSoftmax:
        """The sampled softmax that a single process would train by, with its negatives drawn on every rank."""
        other = self.config.loss_arguments.keys() - {"negatives", "alpha"}
        if other:
            raise ValueError(
                f"loss='sampled-softmax' over several ranks has the arguments negatives and alpha, not "
                f"{', '.join(sorted(other))}: its negatives are shared, and corrected as they are drawn"
            )
        counts = click_counts(self.train)
        return LocalSampledSoftmax(self.loss.negatives, counts, self.loss.alpha, self.config.seed)

    def reseed(self) -> None:
        """Dropout of this rank from here on: the same whether the run was stopped here or not."""
        torch.manual_seed(mixed(self.config.seed, dist.get_rank(), len(self.epochs), self.step))

    def save(self) -> None:
        """Collect the rows on rank 0, which writes them; every rank calls it after the same step."""
        if self.output is None:
            return
        tensors, info = self.contents()
        if dist.get_rank() == 0:
            self.write(tensors, info)
        self.reseed()
        dist.barrier()

    def keep(self, after_epoch: Callable[[dict, list[dict]], None] | None) -> None:
        """On rank 0, hand on the tensors of the whole model and all epoch records; every rank calls it."""
        if after_epoch is None:
            return
        tensors = self.model.state_dict()
        tensors |= {"table": self._whole(tensors["table"])}
        if dist.get_rank() == 0:
            after_epoch(tensors, self.epochs)

    def contents(self) -> tuple[dict, dict]:
        """What a single process would save, on rank 0; elsewhere without the rows."""
        tensors, info = super().contents()
        tensors["total"] = self.total.clone()
        dist.all_reduce(tensors["total"])
        rows = {name: self._whole(tensor) for name, tensor in tensors.items() if self._is_shared(name, tensor.shape)}
        return tensors | rows, info

    def read(self, path: Path) -> tuple[dict, dict]:
        """The whole tensors, and of the shared ones this rank's rows: no rank reads more."""
        begin, end = self.model.own_rows

        def get(file: safe_open, name: str) -> Tensor:
            part = file.get_slice(name)
            if not self._is_shared(name, part.get_shape()):
                return file.get_tensor(name)
            rows = part[begin:end]
            return torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])

        tensors, info = checkpoints.read(path, str(self.train.device), get)
        tensors["total"] /= dist.get_world_size()
        return tensors, info

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        super().resume()
        self.reseed()

    def _is_shared(self, name: str, shape: Sequence[int]) -> bool:
        """Is this the table, or a part of its optimizer's state with a row for every item?"""
        return len(shape) > 0 and (name == "model.table" or name.startswith(self._states_of_table()))

    def _states_of_table(self) -> tuple[str, ...]:
        found = []
        for number, optimizer in enumerate(self.optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            found += [f"optimizer.{number}.{i}." for i, p in enumerate(parameters) if p is self.model.table]
        return tuple(found)

    def _whole(self, tensor: Tensor) -> Tensor | None:
        """(V + 1, ...) on rank 0, with zeros for padding; None elsewhere."""
        ranks, V = dist.get_world_size(), self.model.num_items
        largest = -(-V // ranks)
        mine = tensor.new_zeros(largest, *tensor.shape[1:])
        mine[: len(tensor) - 1] = tensor[:-1]
        parts = [torch.empty_like(mine) for _ in range(ranks)] if dist.get_rank() == 0 else None
        dist.gather(mine, parts)
        if parts is None:
            return None
        spans = [rows_of(rank, ranks, V) for rank in range(ranks)]
        rows = [part[: end - begin] for part, (begin, end) in zip(parts, spans, strict=True)]
        return torch.cat([*rows, mine.new_zeros(1, *mine.shape[1:])])


def fit_sharded(
    model: SessionModel,
    train: Windows,
    config: TrainConfig,
    test: Windows | None = None,
    output: Path | None = None,
    run: dict | None = None,
    checkpoint_steps: int = 500,
    progress: bool = False,
    after_epoch: Callable[[dict, list[dict]], None] | None = None,
) -> list[dict]:
    """Train a model whose table is shared out (`sharded.shard`); every rank calls it and gets the same records.

    Args:
        train: the examples, the same on every rank.
        test: examples that are ranked after every epoch.
        output: folder of the checkpoint ``state.safetensors``; a run found there is continued.
        run: what identifies the run (JSON).
        checkpoint_steps: steps between two checkpoints within an epoch.
        progress: rank 0 shows a bar on stderr.
        after_epoch: called on rank 0 with the tensors of the whole model and all epoch records so far, before the
            epoch's checkpoint is written; and once if there is no epoch left to train.

    Raises:
        FloatingPointError: if the loss is not finite, on every rank.
        ValueError: as `train.fit`; and for settings that a shared table cannot have.
    """
    state = ShardedRun(model, train, config, output, run or {})
    state.resume()
    progress = progress and dist.get_rank() == 0
    if len(state.epochs) >= config.epochs:
        state.keep(after_epoch)
    while len(state.epochs) < config.epochs:
        record = _train_epoch(state, checkpoint_steps, progress)
        if test is not None:
            record["test"] = evaluate_sharded(model, test, progress=progress)
        state.epochs.append(record)
        state.keep(after_epoch)
        state.begin_epoch()
        state.save()
    return state.epochs


def _train_epoch(state: ShardedRun, checkpoint_steps: int, progress: bool) -> dict:
    """One epoch, or what is left of it."""
    config, number, begun = state.config, len(state.epochs), time.perf_counter() - state.seconds
    lr = learning_rate(number, config.lr, config.lr_decay, config.lr_every, config.schedule_offset)
    set_learning_rate(state.optimizers, lr)
    order = epoch_order(state.train, config.batch_size, config.seed, number, config.block)
    seek(state.loss, number, state.step)
    state.model.train()
    bar = {"total": len(order), "initial": state.step, "desc": f"epoch {number + 1}", "mininterval": 1.0}
    for batch in tqdm(order.batches(state.train, first=state.step), disable=not progress, **bar):
        part = share(batch)
        if part is not None:
            state.total += sharded_step(state, part)
            state.seen += len(part) * dist.get_world_size()
        state.step += 1
        state.seconds = time.perf_counter() - begun
        if state.step % CHECK_EVERY == 0 or state.step == len(order):
            loss = _mean_loss(state)
        if state.step % checkpoint_steps == 0 and state.step < len(order):
            state.save()
    seconds = time.perf_counter() - begun
    speed = {"seconds": seconds, "examples_per_second": state.seen / seconds}
    return {"epoch": number + 1, "lr": lr, "loss": loss} | speed


def sharded_step(state: ShardedRun, part: Batch) -> Tensor:
    """One step on this rank's part of a batch; the summed loss of the batch, as far as this rank knows it.

    A loss over all items is that of the whole batch already; another one is the mean of this rank's part.
    """
    model, ranks = state.model, dist.get_world_size()
    value = state.loss(Scores(model, state.encode(part)), part.target)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    (value if state.collective else value / ranks).backward()
    add_up_gradients(model)
    for optimizer in state.optimizers:
        optimizer.step()
    return value.detach() * len(part)


def _mean_loss(state: ShardedRun) -> float:
    """Mean loss of the epoch so far; the same number, or the same error, on every rank."""
    total = state.total.clone()
    dist.all_reduce(total)
    if not bool(total.isfinite()):
        raise FloatingPointError(
            f"the loss is not finite in epoch {len(state.epochs) + 1} before its step {state.step + 1}; the checkpoint "
            "on disk is from before. Lower the learning rate"
        )
    return total.item() / max(state.seen, 1)


@torch.no_grad()
def evaluate_sharded(
    model: SessionModel, windows: Windows, chunk: int = 256, progress: bool = False
) -> dict[str, float]:
    """HR@20 and MRR@20 in percent, from exact ranks over all items; every rank calls it with the same examples.

    A rank holds `chunk` rows of n scores at a time, fewer where they would be more than `evaluate.CHUNK_SCORES`.

    Raises:
        ValueError: on every rank, if a score is NaN.
    """
    model.eval()
    largest = -(-model.num_items // dist.get_world_size())  # n of the rank that has most: one answer for all of them
    order = length_order(windows, max(1, min(chunk, CHUNK_SCORES // largest)))
    batches = tqdm(order.batches(windows), total=len(order), disable=not progress, desc="evaluate", leave=False)
    ranks = torch.cat([rank_targets(model, batch) for batch in batches])
    hit = ranks <= 20
    return {"HR@20": 100 * hit.float().mean().item(), "MRR@20": 100 * (hit / ranks).mean().item()}
