"""A click log as one flat tensor, and windows on it.

All clicks of a split are one tensor ``items``; ``offsets`` marks where sessions begin. A training or test example is a
*window*: its input is ``items[start:target]``, its label ``items[target]``. Augmentation, truncation and splits in time
make new windows or new offsets; the clicks themselves are never copied.

Shapes: N clicks, S sessions, E examples, V items. Item ids are 0..V-1; V itself is the padding id.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Examples on a click log: the input ``items[start:target]`` and the label ``items[target]`` of each.

    Args:
        items: the clicks, shared with the `Sessions` they come from.
        start: first click of each input.
        target: position of each label; ``target > start``.
        session: number of the session that each example belongs to (examples of one session are not independent).
        num_items: V, the size of the catalogue.
        head: if set, an input keeps only its *first* ``head`` clicks (what NARM's public code does); the label stays.
    """

    items: Int[Tensor, "N"]
    start: Int[Tensor, "E"]
    target: Int[Tensor, "E"]
    session: Int[Tensor, "E"]
    num_items: int
    head: int | None = None

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: Tensor | slice) -> "Windows":
        """The examples at `index` (a slice, or a tensor of positions or booleans), on the same clicks."""
        return replace(self, start=self.start[index], target=self.target[index], session=self.session[index])

    @property
    def device(self) -> torch.device:
        """Where the clicks lie."""
        return self.items.device

    @property
    def lengths(self) -> Int[Tensor, "E"]:
        """Number of input clicks of each example."""
        lengths = self.target - self.start
        return lengths if self.head is None else lengths.clamp(max=self.head)

    @property
    def labels(self) -> Int[Tensor, "E"]:
        """The item to be predicted, one per example."""
        return self.items[self.target]

    @property
    def nbytes(self) -> int:
        """Bytes held on the device, the clicks included."""
        return sum(t.numel() * t.element_size() for t in (self.items, self.start, self.target, self.session))

    def last(self, count: int) -> "Windows":
        """Keep the last `count` input clicks of every example (the most recent ones)."""
        _at_least_one(count)
        end = self.start + self.lengths  # where the input ends: before the label, or earlier after `first`
        head = None if self.head is None else min(self.head, count)
        return replace(self, start=torch.maximum(self.start, end - count), head=head)

    def first(self, count: int) -> "Windows":
        """Keep the first `count` input clicks of every example: the most recent ones are lost."""
        _at_least_one(count)
        return replace(self, head=count if self.head is None else min(self.head, count))

    def to(self, device: torch.device | str) -> "Windows":
        """The same examples on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("items", "start", "target", "session")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Sessions:
    """Sessions in order of time: session ``s`` is ``items[offsets[s]:offsets[s + 1]]``.

    Args:
        items: the clicks, ids 0..num_items-1.
        offsets: non-decreasing; a part of a log shares the log's `items` and holds some of its offsets.
        num_items: V, the size of the catalogue (it may exceed the number of items that occur).
        times: seconds since 1970 of each session where the log knows them, else None.
    """

    items: Int[Tensor, "N"]
    offsets: Int[Tensor, "S1"]
    num_items: int
    times: Int[Tensor, "S"] | None = None

    @classmethod
    def from_lists(
        cls, sessions: Iterable[Sequence[int]], num_items: int, times: Sequence[int] | None = None
    ) -> "Sessions":
        """Build from Python lists of item ids 0..num_items-1."""
        sessions = [list(session) for session in sessions]
        lengths = torch.tensor([0] + [len(session) for session in sessions])
        items = torch.tensor([item for session in sessions for item in session], dtype=torch.int64)
        if times is not None and len(times) != len(sessions):
            raise ValueError(f"{len(sessions)} sessions need as many times, got {len(times)}")
        if len(items) and not 0 <= int(items.min()) <= int(items.max()) < num_items:
            raise ValueError(f"item ids must lie in 0..{num_items - 1}, found {int(items.min())}..{int(items.max())}")
        return cls(items.int(), lengths.cumsum(0), num_items, None if times is None else torch.tensor(times))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> list[int]:
        """Clicks of one session, as a list."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"session {index} of {len(self)}")
        index %= len(self)
        return self.items[self.offsets[index] : self.offsets[index + 1]].tolist()

    @property
    def lengths(self) -> Int[Tensor, "S"]:
        """Clicks per session."""
        return self.offsets.diff()

    @property
    def num_clicks(self) -> int:
        """Clicks of these sessions."""
        return int(self.offsets[-1] - self.offsets[0])

    @property
    def clicks(self) -> Int[Tensor, "M"]:
        """The clicks of these sessions only, as a view of `items`."""
        return self.items[int(self.offsets[0]) : int(self.offsets[-1])]

    def to(self, device: torch.device | str) -> "Sessions":
        """The same sessions on another device."""
        times = None if self.times is None else self.times.to(device)
        return replace(self, items=self.items.to(device), offsets=self.offsets.to(device), times=times)

    def select(self, begin: int, end: int) -> "Sessions":
        """Sessions begin..end-1, without copying a click."""
        begin, end, _ = slice(begin, end).indices(len(self))
        times = None if self.times is None else self.times[begin:end]
        return replace(self, offsets=self.offsets[begin : max(begin, end) + 1], times=times)

    def split_latest(self, fraction: float) -> tuple["Sessions", "Sessions"]:
        """All but the latest `fraction` of the sessions, and that latest part (sessions are in order of time)."""
        if not 0 < fraction < 1:
            raise ValueError(f"the fraction held out must lie between 0 and 1, got {fraction}")
        cut = len(self) - max(1, round(len(self) * fraction))
        return self.select(0, cut), self.select(cut, len(self))

    def among(self, other: "Sessions") -> Bool[Tensor, "S"]:
        """Which of these sessions have the very clicks of a session of `other`, in the same order.

        Sessions are told apart by 64 bits: a random number for each item times one for each place, summed.
        """
        word = partial(torch.randint, -(2**63), 2**63 - 1, generator=torch.Generator().manual_seed(0))
        longest = max(int(part.lengths.max()) if len(part) else 0 for part in (self, other))
        item = word((max(self.num_items, other.num_items),)).to(self.items.device)
        place = (word((longest,)) | 1).to(self.items.device)
        return torch.isin(self._sums(item, place), other._sums(item, place))

    def _sums(self, item: Int[Tensor, "V"], place: Int[Tensor, "L"]) -> Int[Tensor, "S"]:
        offsets = self.offsets - self.offsets[0]
        at = torch.arange(self.num_clicks, device=item.device) - offsets[:-1].repeat_interleave(self.lengths)
        total = torch.nn.functional.pad((item[self.clicks.long()] * place[at]).cumsum(0), (1, 0))  # (M + 1,), mod 2^64
        return total[offsets[1:]] - total[offsets[:-1]]

    def prefixes(self) -> Windows:
        """Every click but a session's first is a label; the input is all that came before it in the session."""
        return self._windows(lambda begin, end, position: (begin, position))

    def suffixes(self) -> Windows:
        """The label is always the session's last click; the input starts at each earlier click in turn."""
        return self._windows(lambda begin, end, position: (position - 1, end - 1))

    def _windows(self, rule) -> Windows:
        """One example for each click but a session's first; `rule` maps (begin, end, position) to (start, target)."""
        lengths = self.lengths
        session = torch.arange(len(self), device=lengths.device).repeat_interleave(lengths)
        position = torch.arange(len(session), device=lengths.device) + self.offsets[0]
        later = position > self.offsets[session]
        session, position = session[later], position[later]
        start, target = rule(self.offsets[session], self.offsets[session + 1], position)
        return Windows(self.items, start.int(), target.int(), session.int(), self.num_items)


def _at_least_one(count: int) -> None:
    if count < 1:
        raise ValueError(f"a window keeps at least one click, got {count}")
