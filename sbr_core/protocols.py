"""The ways in which the literature turned a click log into training and test sessions, choice by choice.

The papers compare themselves on "the same" data prepared in five ways that differ in the order of clicks, in what dates
a session, in where the boundary day goes and in what a fraction is a fraction of. `Protocol` names these choices and
`PROTOCOLS` holds the five ways; `preprocess.preprocess` does any of them.
"""
from dataclasses import dataclass

from sbr_core.sessions import Sessions, Windows

DAY = 86_400
CHOICES = {
    "order": ("file", "time"),
    "stamp": ("time", "exact"),
    "session_time": ("last_row", "max", "first"),
    "session_order": ("session_time", "first_click"),
    "boundary": ("drop", "test", "train"),
    "fraction_rule": ("examples_by_date", "rows_by_session_id"),
    "vocab": ("full_train", "fraction"),
    "ids": ("first_seen", "frequency"),
    "augment": ("prefix", "suffix"),
}


@dataclass(frozen=True)
class Protocol:
    """The choices between a raw log and examples; the defaults are SR-GNN's.

    Args:
        name: what tables call it.
        order: clicks of a session in the order of the "file", or sorted by "time" (stable; by `Clicks.offset` where the
            log has it, since Diginetica's days would leave its clicks unsorted).
        stamp: what dates a click: its "time" (Diginetica: the day), or its "exact" time (day and timeframe).
        whole_seconds: cut stamps to whole seconds.
        session_time: what dates a session: its "last_row" in the raw file, the "max" or the "first" of the clicks that
            survived the filters.
        session_order: sessions sorted by their time, or by that of their "first_click".
        keep_first: keep the first so many clicks of a session, before items are counted.
        keep_last: keep the last so many clicks of a session, after everything else.
        min_length: sessions with fewer clicks are dropped, before and after rare items are deleted.
        min_support: items with fewer clicks are deleted, once: some that stay end below it.
        test_seconds: the test set is what happened in the last so many seconds of the log.
        boundary: where a session goes whose time equals the cut.
        fraction: train on the latest 1/fraction only (64, 4; 1 is all).
        fraction_rule: of examples in order of date, or of clicks in order of session id (its first session is dropped).
        vocab: items of the full training part, or of the fraction.
        ids: items numbered as first seen in training, or by descending frequency.
        augment: windows of the training sessions: "prefix" or "suffix".
        head: keep the first so many clicks of every input, the label stays; None keeps all.
    """

    name: str = "srgnn"
    order: str = "time"
    stamp: str = "time"
    whole_seconds: bool = True
    session_time: str = "last_row"
    session_order: str = "session_time"
    keep_first: int | None = None
    keep_last: int | None = None
    min_length: int = 2
    min_support: int = 5
    test_seconds: int | float = 7 * DAY
    boundary: str = "drop"
    fraction: int = 1
    fraction_rule: str = "examples_by_date"
    vocab: str = "full_train"
    ids: str = "first_seen"
    augment: str = "prefix"
    head: int | None = None

    def __post_init__(self):
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}")
        least = {"min_length": 2, "min_support": 1, "fraction": 1, "keep_first": 2, "keep_last": 2, "head": 1}
        for field, bound in least.items():
            value = getattr(self, field)
            if value is not None and value < bound:
                raise ValueError(f"{field} must be at least {bound}, got {value}")
        if not self.test_seconds > 0:
            raise ValueError(f"test_seconds must be above 0, got {self.test_seconds}")

    def windows(self, sessions: Sessions, training: bool = True) -> Windows:
        """Examples of prepared sessions; test sessions (`training` False) are always read as prefixes."""
        windows = sessions.suffixes() if training and self.augment == "suffix" else sessions.prefixes()
        return windows if self.head is None else windows.first(self.head)


PROTOCOLS = {
    # SR-GNN, TAGNN, LGSR, GC-SAN: what most tables stand on. Yoochoose: order="file", test_seconds=DAY.
    "srgnn": Protocol(),
    # DGTN and TAGNN++. Its public code keeps the test clicks of Yoochoose in file order; here both splits are sorted.
    "dgtn": Protocol("dgtn", whole_seconds=False, session_time="max", session_order="first_click", boundary="test",
                     fraction_rule="rows_by_session_id", vocab="fraction", ids="frequency"),
    "lessr": Protocol("lessr", stamp="exact", whole_seconds=False, session_time="max", keep_first=20, boundary="test"),
    # The scalable-losses dissertation; its text can also be read as augment="suffix".
    "scalable": Protocol("scalable", session_time="max", keep_last=25, boundary="test"),
    # NARM: clicks in file order (on Diginetica every repeat is then adjacent: scores come out far too high).
    "narm": Protocol("narm", order="file", head=19),
}


def as_protocol(protocol: Protocol | str) -> Protocol:
    """A protocol, by itself or by its name in `PROTOCOLS`."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]
