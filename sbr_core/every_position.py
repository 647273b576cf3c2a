"""Training on every position of whole sessions at once: the examples of their prefixes, at a fraction of the cost.

A session of n clicks has n - 1 prefixes. A causal model computes the queries of all of them in one pass over the
session, where the prefixes one by one are n - 1 passes. Which (prefix, target) pairs there are is said by the same
`Windows` as everywhere; those that start at the same click are prefixes of the longest of them, and become one row.

Shapes: E examples, R rows, B rows of a batch, L positions, N examples of a batch, D width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sbr_core.batches import Batch, gather
from sbr_core.sessions import Windows


@dataclass(frozen=True, kw_only=True)
class SessionBatch(Batch):
    """Sessions with several examples each; its length is the number of examples.

    Args:
        items, lengths: (B, L) and (B,), as in `Batch`.
        target: (N,) the items to predict.
        place: (N,) where the query of each is among the B * L positions.
    """

    target: Int[Tensor, "N"]
    place: Int[Tensor, "N"]

    def __len__(self) -> int:
        return len(self.target)

    def to(self, device: torch.device | str) -> "SessionBatch":
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("items", "lengths", "target", "place")}
        return replace(self, **moved)


def queries(model: nn.Module, batch: SessionBatch) -> Float[Tensor, "N D"]:
    """The queries of all examples of the batch, from one pass over its sessions."""
    return model.states(batch).flatten(0, 1).index_select(0, batch.place)


def encoder(model: nn.Module, max_len: int | None) -> Callable[[SessionBatch], Tensor]:
    """`queries` of the model, which is checked.

    Raises:
        ValueError: if the model has no queries of all positions, or sessions may be longer than it reads at once.
    """
    if not model.has_states:
        raise ValueError(
            "batches='every-position' wants a model with a query for every position; "
            f"{type(model).__name__} has none: use batches='examples', or transformer"
        )
    if max_len is None or max_len > model.max_positions:
        raise ValueError(
            f"batches='every-position' wants max_len to be at most the model's max_positions={model.max_positions}, "
            f"got max_len={max_len}"
        )
    return partial(queries, model)


@dataclass(frozen=True)
class SessionOrder:
    """The batches of one epoch: tensors on the windows' device, lists on the host.

    Args:
        final: (R,) of each row its longest example, by number.
        count: (R,) of each row its examples.
        bounds: where the rows of each batch begin, and the end.
        widths, sizes: L and N of every batch.
    """

    final: Int[Tensor, "R"]
    count: Int[Tensor, "R"]
    bounds: list[int]
    widths: list[int]
    sizes: list[int]

    def __len__(self) -> int:
        return len(self.widths)

    def rows(self, step: int) -> Int[Tensor, "B"]:
        """The longest example of every row of a batch, by number."""
        return self.final[self.bounds[step] : self.bounds[step + 1]]

    def batches(self, windows: Windows, first: int = 0) -> Iterator[SessionBatch]:
        """Gather the batches from number `first` on (a resumed epoch starts in its middle)."""
        for step in range(first, len(self)):
            final, count = self.rows(step), self.count[self.bounds[step] : self.bounds[step + 1]]
            width, size = self.widths[step], self.sizes[step]
            whole = gather(windows, final, width)
            row = torch.arange(len(count), device=count.device).repeat_interleave(count, output_size=size)  # (N,)
            before_end = count.cumsum(0)[row] - 1 - torch.arange(size, device=row.device)  # 0 for a row's longest
            target = windows.items[windows.target[final].long()[row] - before_end].long()
            place = row * width + whole.lengths[row] - 1 - before_end
            yield SessionBatch(items=whole.items, lengths=whole.lengths, target=target, place=place)


def rows_of(windows: Windows) -> tuple[Int[Tensor, "R"], Int[Tensor, "R"]]:
    """Examples that are prefixes of one another, put together: (longest example, number of examples) of each row.

    Raises:
        ValueError: if the inputs are cut to their first clicks: their labels do not follow them.
    """
    if windows.head is not None:
        raise ValueError("batches of whole sessions want keep='last': cut to its first clicks, an input ends too soon")
    start, target = windows.start, windows.target
    ends = torch.ones(len(windows), dtype=torch.bool, device=windows.device)
    ends[:-1] = (start[1:] != start[:-1]) | (target[1:] != target[:-1] + 1)
    final = ends.nonzero()[:, 0]
    return final, final.diff(prepend=final.new_full((1,), -1))


def session_order(windows: Windows, batch_size: int, seed: int, epoch: int, block: int = 256) -> SessionOrder:
    """Shuffle an epoch of whole sessions so that a batch has about `batch_size` examples of sessions as long.

    Rows are shuffled; inside blocks of about `block` batches they are sorted by length and cut where the number of
    examples passes a multiple of `batch_size` (a row is never cut), and then the batches are shuffled. The order
    depends on (seed, epoch) alone; host and device synchronise a few times an epoch, and not once a batch.

    Args:
        block: batches per sorted block; 1 is a plain shuffle, large values approach a global sort by length.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    final, count = rows_of(windows)
    shuffled = torch.randperm(len(final), generator=generator).to(windows.device)
    final, count = final[shuffled], count[shuffled]
    lengths = windows.lengths[final].long()
    blocks = (count.cumsum(0) - count) // (batch_size * max(1, block))
    order = torch.sort(blocks * (int(lengths.max()) + 1) + lengths, stable=True).indices
    final, count, lengths = final[order], count[order], lengths[order]
    batch = ((count.cumsum(0) - count) // batch_size).unique_consecutive(return_inverse=True)[1]  # (R,)
    batches = int(batch[-1]) + 1
    batch = torch.randperm(batches, generator=generator).to(batch.device)[batch]
    order = torch.sort(batch, stable=True).indices
    zeros = torch.zeros(batches, dtype=torch.long, device=batch.device)
    rows, sizes = zeros.scatter_add(0, batch, torch.ones_like(count)), zeros.scatter_add(0, batch, count)
    widths = zeros.scatter_reduce(0, batch, lengths, "amax")
    bounds, widths, sizes = torch.stack([rows.cumsum(0), widths, sizes]).tolist()
    return SessionOrder(final[order], count[order], [0, *bounds], widths, sizes)
