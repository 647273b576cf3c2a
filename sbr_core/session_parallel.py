"""Session-parallel batches: sessions walk side by side, one click a step, and no click is read twice.

Every slot holds one session. A step reads one click of each and predicts the next one; when a session ends, the next
unused one takes its slot, whose state is set to zero.

Shapes: B slots that are busy at a step, E examples of the epoch, T steps, S sessions.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sbr_core.batches import Batch
from sbr_core.sessions import Windows

ORDERS = ("chronological", "shuffled")
ENDS = ("shrink", "cut")


@dataclass(frozen=True, kw_only=True)
class ParallelBatch(Batch):
    """One step: a click of every busy slot and the click that follows it.

    Args:
        items: (B, 1) the click that is read.
        lengths: (B,) ones.
        target: (B,) the next click of the same session.
        slot: (B,) where the state of each row is kept, ascending.
        fresh: (B,) True where a session begins: the state before it is zero.
    """

    slot: Int[Tensor, "B"]
    fresh: Bool[Tensor, "B"]

    def to(self, device: torch.device | str) -> "ParallelBatch":
        """The same step on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("items", "lengths", "target", "slot", "fresh")}
        return replace(self, **moved)


@dataclass(frozen=True)
class ParallelOrder:
    """The steps of one epoch: step t holds the entries ``bounds[t]`` to ``bounds[t + 1] - 1`` of the other three.

    Args:
        index: (E,) the examples, step by step and slot by slot, on the windows' device.
        slot, fresh: (E,) as in `ParallelBatch`.
        bounds: T + 1 numbers, on the host.
    """

    index: Int[Tensor, "E"]
    slot: Int[Tensor, "E"]
    fresh: Bool[Tensor, "E"]
    bounds: list[int]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def widths(self) -> list[int]:
        """Positions of every batch: one."""
        return [1] * len(self)

    def rows(self, step: int) -> Int[Tensor, "B"]:
        """Numbers of the examples of a step."""
        return self.index[self.bounds[step] : self.bounds[step + 1]]

    def batches(self, windows: Windows, first: int = 0) -> Iterator[ParallelBatch]:
        """The steps from number `first` on (a resumed epoch starts in its middle)."""
        ones = torch.ones(max(self.bounds[1:2], default=0), dtype=torch.long, device=self.index.device)
        for step in range(first, len(self)):
            here = slice(self.bounds[step], self.bounds[step + 1])
            target = windows.target[self.index[here]].long()
            read, predicted = windows.items[target - 1].long(), windows.items[target].long()
            busy = {"slot": self.slot[here], "fresh": self.fresh[here]}
            yield ParallelBatch(read[:, None], ones[: len(target)], predicted, **busy)


def parallel_order(
    windows: Windows,
    slots: int,
    seed: int = 0,
    epoch: int = 0,
    order: str = "chronological",
    end: str = "shrink",
    least: int = 1,
) -> ParallelOrder:
    """Lay the sessions of an epoch into slots.

    Which session enters which slot at which step follows from the lengths alone; it is worked out once an epoch, by a
    heap over sessions, and the steps are cut from one sort.

    Args:
        windows: all prefixes of whole sessions.
        slots: sessions that walk side by side.
        seed, epoch: of the "shuffled" order.
        order: sessions enter as the log has them ("chronological"), or in another order each epoch ("shuffled").
        end: what happens when no session is left for a free slot. "shrink": the batch goes on without it. "cut": the
            epoch is over, and the remainders of the other sessions are not trained, as in the public code of 2016.
        least: fewest busy slots of a step; what would come after is left out. 2 where the other slots' targets are
            all the negatives there are.

    Raises:
        ValueError: on an unknown order or end, or if the examples are not the prefixes of whole sessions.

    Source: specs of GRU4Rec, sections 4.1 and 4.2; hidasib/GRU4Rec (read, not copied).
    """
    if order not in ORDERS or end not in ENDS:
        raise ValueError(f"order is {' or '.join(ORDERS)} and end is {' or '.join(ENDS)}, got {order!r} and {end!r}")
    counts, begin, place = _whole_sessions(windows)
    sequence = torch.arange(len(counts))
    if order == "shuffled":
        sequence = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    slots = min(slots, len(counts))
    entry, over = _enter(counts.cpu()[sequence].tolist(), slots)
    keys = torch.empty(len(counts), dtype=torch.long)
    keys[sequence] = torch.tensor(entry, dtype=torch.long)
    key = keys.to(place.device).repeat_interleave(counts) + place * slots  # step * slots + slot, of every example
    key, index = key.sort()
    step = key // slots
    busy = torch.bincount(step)
    last = int((busy >= min(least, slots)).sum()) if end == "shrink" else over
    bounds = [0, *busy[:last].cumsum(0).tolist()]
    index = index[: bounds[-1]]
    return ParallelOrder(index, key[: bounds[-1]] % slots, place[index] == 0, bounds)


def _whole_sessions(windows: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """Examples of each session (S,), its first example (S,), and the place of every example in its session (E,)."""
    _, counts = windows.session.unique_consecutive(return_counts=True)
    begin = counts.cumsum(0) - counts
    place = torch.arange(len(windows), device=windows.device) - begin.repeat_interleave(counts)
    if windows.head is not None or not bool((windows.target - windows.start == place + 1).all()):
        raise ValueError(
            "batches='session-parallel' reads every session from its first click on: it wants "
            "augmentation='prefix' and max_len=None"
        )
    return counts, begin, place


def _enter(steps: list[int], slots: int) -> tuple[list[int], int]:
    """When each session enters, as ``step * slots + slot``, and the first step at which a free slot finds none."""
    free, entry = list(range(slots)), []  # a heap: the slot that is free first, the lower number first
    for count in steps:
        entry.append(free[0])
        heapq.heapreplace(free, free[0] + count * slots)
    return entry, free[0] // slots
