"""The claims of a paper, judged by records: held, not held, cannot be told apart, or not recorded.

A system is named as in the names of its records: ``tagnn``, or ``tagnn--average`` for the variant of a recipe.

Shapes: E examples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from sbr_core import records
from sbr_core.tables import METRICS, compare, mean_interval

HELD, NOT_HELD, OPEN, MISSING = "held", "not held", "cannot be told apart", "not recorded"
COLOURS = {HELD: "#b9d3c3", NOT_HELD: "#e8b4ad", OPEN: "#f3ead2", MISSING: "#ffffff"}


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper of the form "this system is better than these".

    Args:
        text: the claim, in a few words.
        better: the system that is said to be better.
        worse: the systems that it is said to be better than, all of them.
    """

    text: str
    better: str
    worse: str | tuple[str, ...]

    @property
    def others(self) -> tuple[str, ...]:
        """`worse` as a tuple."""
        return (self.worse,) if isinstance(self.worse, str) else tuple(self.worse)


@dataclass(frozen=True)
class Difference:
    """The honest metric of one system minus that of another, in points of percent, with its 95 % interval.

    Args:
        basis: "paired" (the same examples, ranks kept for both) or "intervals" (of each for itself, which is wider),
            with the number of seeds where there are several.
    """

    difference: float
    low: float
    high: float
    basis: str


def runs_of(found: pd.DataFrame, system: str, dataset: str) -> pd.DataFrame:
    """The rows of `tables.load` that are runs of a system (``name`` or ``name--variant``) on a dataset, by seed."""
    name, _, variant = system.partition("--")
    rows = found[(found.system == name) & (found.variant == variant) & (found.dataset == dataset)]
    return rows.set_index("seed").sort_index()


def difference(
    found: pd.DataFrame, first: str, second: str, dataset: str, metric: str = "MRR@20", resamples: int = 500
) -> Difference | None:
    """Two systems on the same dataset, from the seeds that both have; None if they have none in common.

    The interval is that of the test sessions (a paired bootstrap where the ranks of both are kept, else that of two
    independent samples, which is wider), and over several seeds that of the seeds beside it: half-widths are added as
    independent errors are.
    """
    ours, theirs = (runs_of(found, system, dataset) for system in (first, second))
    seeds = ours.index.intersection(theirs.index)
    if seeds.empty:
        return None
    gaps = (ours.loc[seeds, f"honest {metric}"] - theirs.loc[seeds, f"honest {metric}"]).to_numpy(dtype=float)
    below, above, basis = _of_sessions(ours.loc[seeds[0]], theirs.loc[seeds[0]], metric, resamples)
    if len(gaps) > 1:
        low, high = mean_interval(gaps)
        below, above = (float(np.hypot(half, (high - low) / 2)) for half in (below, above))
        basis += f", {len(gaps)} seeds"
    mean = float(gaps.mean())
    return Difference(mean, mean - below, mean + above, basis)


def _of_sessions(one: pd.Series, other: pd.Series, metric: str, resamples: int) -> tuple[float, float, str]:
    """How far the 95 % interval of a difference reaches below and above it, and from what that is known."""
    kept = [records.read_ranks(Path(row.record)) for row in (one, other)]
    if all(kept) and len(kept[0][0]) == len(kept[1][0]):
        found = compare(kept[0][0], kept[1][0], kept[0][1], metric, resamples)
        return found.difference - found.low, found.high - found.difference, "paired"
    halves = [(row[f"high {metric}"] - row[f"low {metric}"]) / 2 for row in (one, other)]
    half = float(np.hypot(*halves))
    return half, half, "intervals"


def verdict(found: Difference | None) -> str:
    """What a difference says about "the first is better"."""
    if found is None:
        return MISSING
    return HELD if found.low > 0 else NOT_HELD if found.high < 0 else OPEN


def judge(claim: Claim, found: pd.DataFrame, dataset: str, metric: str) -> dict:
    """One claim on one dataset by one metric.

    A claim against several is held if it holds against each, and not held as soon as one of them is better; if neither
    is so and a run is missing, it is not recorded.

    Returns:
        claim, dataset, metric, verdict, against (of those recorded the other that decides), missing (systems
        without a run), difference, low, high and basis (NaN and "" without a run).
    """
    pairs = {other: difference(found, claim.better, other, dataset, metric) for other in claim.others}
    missing = [other for other, pair in pairs.items() if pair is None]
    if len(runs_of(found, claim.better, dataset)) == 0:
        missing = [claim.better]
    recorded = {other: pair for other, pair in pairs.items() if pair is not None}
    each = [verdict(pair) for pair in recorded.values()]
    said = NOT_HELD if NOT_HELD in each else MISSING if missing else OPEN if OPEN in each else HELD
    bound = "high" if said == NOT_HELD else "low"
    against = min(recorded, key=lambda other: getattr(recorded[other], bound), default="")
    pair = recorded.get(against, Difference(np.nan, np.nan, np.nan, ""))
    row = {"claim": claim.text, "dataset": dataset, "metric": metric, "verdict": said, "against": against}
    row |= {"missing": tuple(missing), "difference": pair.difference, "low": pair.low, "high": pair.high}
    return row | {"basis": pair.basis}


def judged(
    claims: Iterable[Claim], found: pd.DataFrame, datasets: Sequence[str], metrics: Sequence[str] = METRICS
) -> pd.DataFrame:
    """Every claim on every dataset by every metric: the rows of `judge`, in that order."""
    return pd.DataFrame(
        [judge(c, found, dataset, metric) for c in claims for dataset in datasets for metric in metrics]
    )


def styled(table: pd.DataFrame, name: str, titles: dict[str, str] | None = None) -> Styler:
    """The verdicts as a page shows them: a line a claim, a column a dataset and metric, with the deciding difference.

    Args:
        table: what `judged` returned.
        name: unique on its page (the identity of the HTML table).
        titles: dataset -> what its column is called.
    """
    titles = titles or {}
    cells = table.assign(cell=table.apply(_cell, axis=1), dataset=table.dataset.map(lambda key: titles.get(key, key)))
    columns = list(dict.fromkeys(zip(cells.dataset, cells.metric, strict=True)))
    wide = cells.pivot(index="claim", columns=["dataset", "metric"], values="cell")
    wide = wide.loc[list(dict.fromkeys(table.claim)), columns]
    wide.columns.names, wide.index.name = [None, None], None
    return wide.style.map(_look).set_table_attributes('class="dataframe verdicts"').set_uuid(name)


def _cell(row: pd.Series) -> str:
    return MISSING if row.verdict == MISSING else f"{row.verdict}<br>{row.difference:+.2f}"


def _look(cell: str) -> str:
    said = cell.partition("<")[0]
    ink = "#888888" if said == MISSING else "#222222"
    return f"background-color: {COLOURS[said]}; color: {ink}; text-align: center"


def tally(table: pd.DataFrame) -> dict[str, int]:
    """How many cells of `judged` have each verdict, in the order held, not held, cannot be told apart, not recorded."""
    counts = table.verdict.value_counts()
    return {said: int(counts.get(said, 0)) for said in COLOURS}
