"""The missing runs of a plan made within a budget of time, and the new records brought back in a folder of their own.

Such a folder holds records and their ranks, nothing else: copied over the folder of the records it fills the book's
tables. Checkpoints stay in the folder of the work.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from sbr_core import plan, records
from sbr_core.plan import Job
from sbr_core.replicate import run_all, run_with_workers


class Until(list):
    """Jobs of which none is begun after `end` (`time.time()`): whoever goes through them meets no more then."""

    def __init__(self, jobs: Sequence[Job] = (), end: float = float("inf")):
        super().__init__(jobs)
        self.end = end

    def __iter__(self) -> Iterator[Job]:
        return takewhile(lambda _: time.time() < self.end, super().__iter__())


def fill(
    jobs: Sequence[Job],
    work: Path,
    results: Path,
    package: Path | None = None,
    budget: float | None = None,
    workers: int = 1,
    device: str = "cpu",
    renew: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Make the runs that are missing, in the plan's order, as many as fit.

    Args:
        work: folder of the checkpoints.
        results: folder of the records; what is recorded there is not run again.
        package: folder that the new records go to instead.
        budget: seconds. When they are over, no run begins, and one that is under way stops after its step; its
            checkpoint is kept. None: no end.
        renew: also run what is recorded but falls short, see `replicate.replicate`.

    Returns:
        The new records' files.

    Raises:
        ValueError: if a record of the plan cannot be read.
        RuntimeError: if a run failed.
    """
    there = package or results
    jobs = plan.affordable(plan.missing(jobs, there, renew), results, budget, renew, device, workers)
    if package and renew:
        _carry(jobs, results, package)
    todo = Until(jobs, time.time() + budget) if budget else jobs
    with _interrupted_after(budget) as over:
        if workers == 1:
            run_all(todo, work, there, device, progress, renew)
        else:
            run_with_workers(todo, workers, work, there, device, renew)
    left = {job.file for job in plan.missing(jobs, there, renew)}
    if over and left:
        print(
            f"the budget is used up, {len(left)} of {len(jobs)} runs are not done: the same command continues",
            file=sys.stderr,
        )
    return [there / job.file for job in jobs if job.file not in left]


def _carry(jobs: Sequence[Job], results: Path, package: Path) -> None:
    """Copy the records that are to be renewed into the package, where they are set aside when the new ones are made."""
    for job in jobs:
        for file in (results / job.file, records.ranks_path(results / job.file)):
            copy = package / file.relative_to(results)
            if file.exists() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


@contextmanager
def _interrupted_after(seconds: float | None) -> Iterator[list]:
    """Inside, Ctrl-C comes by itself after so many seconds, to the workers if there are any, and ends no more than what
    is inside; the list is then no longer empty."""
    over: list = []

    def alarm(number, frame):
        over.append(seconds)
        if workers := multiprocessing.active_children():
            for worker in workers:
                os.kill(worker.pid, signal.SIGINT)
            return
        if not callable(signal.getsignal(signal.SIGINT)):  # a shell's background job ignores Ctrl-C
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
    try:
        yield over
    except KeyboardInterrupt:
        if not over:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
