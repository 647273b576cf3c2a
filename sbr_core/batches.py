"""Batches: padded rectangles gathered from windows by one vectorised operation, and the order of an epoch.

Shapes: B examples, L positions (the longest input *of the batch*), E examples of the epoch, V items.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sbr_core.sessions import Windows


@dataclass(frozen=True)
class Batch:
    """Right-padded inputs and their labels.

    Args:
        items: (B, L) item ids, oldest click first; padding is the id V.
        lengths: (B,) real clicks of each row, >= 1.
        target: (B,) the item to predict, 0..V-1.
        session: (B,) number, in its own log, of the session of each row: its place in time. None if nobody knows.
    """

    items: Int[Tensor, "B L"]
    lengths: Int[Tensor, "B"]
    target: Int[Tensor, "B"]
    session: Int[Tensor, "B"] | None = None

    @property
    def mask(self) -> Bool[Tensor, "B L"]:
        """True on real clicks."""
        return torch.arange(self.items.shape[1], device=self.items.device) < self.lengths[:, None]

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        session = None if self.session is None else self.session.to(device)
        return Batch(self.items.to(device), self.lengths.to(device), self.target.to(device), session)

    def part(self, rows: Int[Tensor, "b"]) -> "Batch":
        """Some rows, as narrow as they allow (on a GPU that is a synchronisation)."""
        lengths, session = self.lengths[rows], None if self.session is None else self.session[rows]
        return Batch(self.items[rows, : int(lengths.max())], lengths, self.target[rows], session)

    @classmethod
    def of(cls, prefixes: list[list[int]], num_items: int, target: list[int] | None = None) -> "Batch":
        """A batch from Python lists of item ids, for a look at a few sessions."""
        rows = [torch.tensor(prefix, dtype=torch.long) for prefix in prefixes]
        if not rows or min(len(row) for row in rows) == 0:
            raise ValueError("a batch needs at least one session, and every session at least one click")
        items = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=num_items)
        target = [0] * len(rows) if target is None else target
        return cls(items, torch.tensor([len(row) for row in rows]), torch.tensor(target))


def by_length(function: Callable[[Batch], tuple[Tensor, ...]], batch: Batch, rows: int = 64) -> tuple[Tensor, ...]:
    """What a function says of a batch, session by session, asked in pieces of sessions of similar lengths.

    For batches that are not sorted by length: on a CPU a piece is as wide as its own longest session, not as that of
    the batch. A GPU, which would have to wait for the lengths, is asked once for the whole batch.

    Args:
        function: its answers, (B, ...) each, must not depend on the other sessions of the batch or on the width.
        rows: sessions of a piece.
    """
    if batch.items.is_cuda or len(batch) <= rows:
        return function(batch)
    order = batch.lengths.argsort(stable=True)
    pieces, back = [function(batch.part(piece)) for piece in order.split(rows)], order.argsort()
    return tuple(torch.cat(parts)[back] for parts in zip(*pieces, strict=True))


def gather(windows: Windows, index: Int[Tensor, "B"], width: int | None = None) -> Batch:
    """Read the examples at `index` into one batch, without a loop over sessions.

    Args:
        windows: the examples.
        index: (B,) which of them, on the windows' device.
        width: L. Give it where it is known: finding it out costs a host-device synchronisation.
    """
    chosen = windows[index]
    start, target, lengths = chosen.start.long(), chosen.target.long(), chosen.lengths.long()
    if width is None:
        width = int(lengths.max())
    column = torch.arange(width, device=start.device)
    position = torch.minimum(start[:, None] + column, target[:, None])  # never past the label: stays inside the log
    items = torch.where(column < lengths[:, None], windows.items[position].long(), windows.num_items)  # (B, L)
    return Batch(items, lengths, windows.items[target].long(), chosen.session.long())


@dataclass(frozen=True)
class Order:
    """The batches of one epoch: `index` (E,) on the windows' device, and the width L of every batch, on the host."""

    index: Int[Tensor, "E"]
    widths: list[int]
    batch_size: int

    def __len__(self) -> int:
        return len(self.widths)

    def rows(self, step: int) -> Int[Tensor, "B"]:
        """Numbers of the examples of a batch."""
        return self.index[step * self.batch_size : (step + 1) * self.batch_size]

    def batches(self, windows: Windows, first: int = 0) -> Iterator[Batch]:
        """Gather the batches from number `first` on (a resumed epoch starts in its middle)."""
        for step in range(first, len(self)):
            yield gather(windows, self.rows(step), self.widths[step])


def epoch_order(windows: Windows, batch_size: int, seed: int, epoch: int, block: int = 256) -> Order:
    """Shuffle an epoch so that the sessions of a batch have similar lengths.

    Examples are shuffled; inside each block of `block` batches they are sorted by length and cut into batches, and then
    the full batches are shuffled. The order depends on (seed, epoch) alone and is the same on every device, because the
    random numbers come from the host; the one synchronisation of an epoch brings the widths to the host.

    Args:
        block: batches per sorted block; 1 is a plain shuffle, large values approach a global sort by length.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    count, size = len(windows), batch_size * max(1, block)
    shuffled = torch.randperm(count, generator=generator).to(windows.device)
    lengths = windows.lengths[shuffled].long()
    key = torch.arange(count, device=windows.device) // size * (int(lengths.max()) + 1) + lengths
    index = shuffled[torch.sort(key, stable=True).indices]
    full = count // batch_size
    rows = index[: full * batch_size].view(full, batch_size)[torch.randperm(full, generator=generator).to(index.device)]
    return _order(windows, torch.cat([rows.flatten(), index[full * batch_size :]]), batch_size)


def chronological_order(windows: Windows, batch_size: int) -> Order:
    """All examples in the order of the log, shorter prefixes of a session before longer ones, the same every epoch."""
    return _order(windows, torch.arange(len(windows), device=windows.device), batch_size)


def length_order(windows: Windows, batch_size: int) -> Order:
    """All examples sorted by length: the cheapest order for evaluation, where the order does not matter."""
    return _order(windows, torch.sort(windows.lengths, stable=True).indices, batch_size)


def _order(windows: Windows, index: Tensor, batch_size: int) -> Order:
    lengths = windows.lengths[index].long()
    batches = -(-len(index) // batch_size)
    padded = torch.nn.functional.pad(lengths, (0, batches * batch_size - len(lengths)), value=1)
    return Order(index, padded.view(batches, batch_size).amax(1).tolist(), batch_size)
