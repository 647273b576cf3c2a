"""Leaks on purpose: a test cut at random from the examples, and what a memory that is written at test time is worth, by
the order in which the test is asked.

Shapes: E test examples, B examples of a batch.
"""

from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sbr_core import datasets
from sbr_core.batches import chronological_order
from sbr_core.blend import trained
from sbr_core.evaluate import Evaluation, ranks_from_scores
from sbr_core.models.csrm import CSRM
from sbr_core.sessions import Windows

BATCH = 128  # sessions that are asked, and then written, together


def random_share(windows: Windows, share: float = 0.1, seed: int = 0) -> tuple[Windows, Windows]:
    """The examples, not the sessions, cut at random in two, as some public code cuts what it then tests on.

    Returns:
        The share that is asked, and the rest to train on, both in the order of the log. Most sessions lie on both
        sides, and a longer input in the rest contains the answer to a shorter one.
    """
    drawn = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).to(windows.device)
    count = round(share * len(windows))
    return windows[drawn[:count].sort().values], windows[drawn[count:].sort().values]


def orders(windows: Windows, seed: int = 0) -> dict[str, Int[Tensor, "E"]]:
    """Four ways of asking the same test examples."""
    lengths = windows.lengths
    shuffled = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return {
        "of the log": torch.arange(len(windows)),
        "shuffled": shuffled,
        "shortest first": lengths.argsort(stable=True),
        "longest first": lengths.argsort(stable=True, descending=True),
    }


@torch.no_grad()
def ask(model: CSRM, windows: Windows, switch: str, size: int = BATCH) -> Evaluation:
    """Ranks of the targets in the order given, beginning with the memory that training left.

    Args:
        switch: `CSRM.memory_at_test`, "off" or "streaming".
    """
    model.memory_at_test = switch
    model.train().eval()  # the memory of training
    batches = chronological_order(windows, size).batches(windows)
    ranks = torch.cat([ranks_from_scores(model.score(model.encode(batch)), batch.target) for batch in batches])
    model.train()  # forgets what was streamed
    model.memory_at_test = "off"
    model.eval()
    return Evaluation(ranks, windows.session, windows.lengths, windows.labels, "conservative")


def answers(windows: Windows, capacity: int, size: int = BATCH) -> Bool[Tensor, "E"]:
    """Whether the memory holds a longer input of the very session, and so the answer, when an example is asked.

    Args:
        windows: in the order in which they are asked, `size` at a time; a batch is written after it was read.
        capacity: vectors that the memory holds.
    """
    found, earlier = torch.zeros(len(windows), dtype=torch.bool), {}
    for place, (session, length) in enumerate(zip(windows.session.tolist(), windows.lengths.tolist(), strict=True)):
        written = place // size * size
        of_session = earlier.setdefault(session, [])
        found[place] = any(written - capacity <= at < written and longer > length for at, longer in of_session)
        of_session.append((place, length))
    return found


def stream_study(work: Path, dataset: str) -> dict:
    """CSRM at the end of its final run, with the memory frozen and written at test time, in four orders of the test.

    Args:
        work: folder of the checkpoints of `replicate`.

    Raises:
        ValueError: if CSRM has no run there, or one of other data.
    """
    data = datasets.load(dataset)
    model = trained("csrm", data, data.train, work / f"csrm--{dataset}--seed0-final")
    test = data.test_windows()
    frozen = ask(model, test, "off")
    rows = {"frozen": _row(frozen) | {"answers": 0.0}}
    for name, order in orders(test).items():
        windows = test[order]
        held = answers(windows, len(model.memory.rows))
        rows[name] = _row(ask(model, windows, "streaming")) | {"answers": 100 * held.float().mean().item()}
    rows["frozen"] |= {f"{metric} interval": list(frozen.interval(metric)) for metric in ("HR@20", "MRR@20")}
    return {"dataset": dataset, "fingerprint": data.fingerprint, "examples": len(test), "batch": BATCH, "orders": rows}


def _row(found: Evaluation) -> dict:
    return {metric: found.metric(metric) for metric in ("HR@20", "MRR@20")}
