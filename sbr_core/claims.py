"""The claims of a paper, judged by records: held, not held, cannot be told apart, or not recorded; and what choosing an
epoch by the test gained in them.

A system is named as in the names of its records: ``tagnn``, or ``tagnn--average`` for the variant of a recipe.

Shapes: E examples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from sbr_core import records, rerun
from sbr_core.tables import METRICS, STUDENT, compare, mean_interval

HELD, NOT_HELD, OPEN, MISSING = "held", "not held", "cannot be told apart", "not recorded"
GAP = ["system", "dataset", "seed", "epochs", "of recipe's", "picked", "best HR@20", "best MRR@20"]
GAP += ["gain HR@20", "gain MRR@20", "last step"]
COLOURS = {HELD: "#b9d3c3", NOT_HELD: "#e8b4ad", OPEN: "#f3ead2", MISSING: "#ffffff"}


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper of the form "this system is better than these", or "no other than these".

    Args:
        text: the claim, in a few words.
        better: the system that is said to be better.
        worse: the systems that it is said to be better than, all of them.
        within: if given, the claim is that `better` and each of `worse` lie within so many points of each other.
        slack: the points that `better` may be behind; with it the claim is "no further behind than that".
    """

    text: str
    better: str
    worse: str | tuple[str, ...]
    within: float | None = None
    slack: float = 0.0

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


def verdict(found: Difference | None, within: float | None = None, slack: float = 0.0) -> str:
    """What a difference says about "the first is better", "no further behind than `slack`", or "within so many points".
    """
    if found is None:
        return MISSING
    inside, outside = _room(found, within, slack)
    return HELD if inside > 0 else NOT_HELD if outside > 0 else OPEN


def _room(found: Difference, within: float | None, slack: float) -> tuple[float, float]:
    """How far the interval lies inside of what the claim allows, and how far outside of it; negative if it does not."""
    lower, upper = (-slack, np.inf) if within is None else (-within, within)
    return min(found.low - lower, upper - found.high), max(lower - found.high, found.low - upper)


def judge(claim: Claim, found: pd.DataFrame, dataset: str, metric: str) -> dict:
    """One claim on one dataset by one metric.

    A claim against several is held if it holds against each, and not held as soon as it fails against one of them; if
    neither is so and a run is missing, it is not recorded.

    Returns:
        claim, dataset, metric, verdict, against (of those recorded the other that decides), missing (systems
        without a run), difference, low, high and basis (NaN and "" without a run).
    """
    pairs = {other: difference(found, claim.better, other, dataset, metric) for other in claim.others}
    missing = [other for other, pair in pairs.items() if pair is None]
    if len(runs_of(found, claim.better, dataset)) == 0:
        missing = [claim.better]
    recorded = {other: pair for other, pair in pairs.items() if pair is not None}
    each = [verdict(pair, claim.within, claim.slack) for pair in recorded.values()]
    said = NOT_HELD if NOT_HELD in each else MISSING if missing else OPEN if OPEN in each else HELD
    rooms = {other: _room(pair, claim.within, claim.slack) for other, pair in recorded.items()}
    against = min(rooms, key=lambda other: -rooms[other][1] if said == NOT_HELD else rooms[other][0], default="")
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


def starts_apart(deviation: float, starts: int) -> float:
    """How far two starts of one training lie apart in 5 % of the pairs, if runs vary by this deviation over seeds.

    Args:
        starts: of how many runs the deviation is (Student's t with one degree of freedom less; from 10 on that of 10,
            which is a little too wide).
    """
    return STUDENT[min(starts - 1, len(STUDENT)) - 1] * 2**0.5 * deviation


def beyond_starts(table: pd.DataFrame, deviation: float, starts: int) -> tuple[int, int]:
    """How many of the decided cells of `judged` are more than another start, and how many are decided.

    A difference of two single runs counts if it is larger than `starts_apart`. A difference over several seeds has the
    starts in its interval.

    Args:
        table: what `judged` returned, by the metric of the deviation.
        deviation, starts: as `starts_apart` takes them.
    """
    decided = table[table.verdict.isin((HELD, NOT_HELD))]
    large = decided.difference.abs() > starts_apart(deviation, starts)
    return int((large | decided.basis.str.contains("seeds")).sum()), len(decided)


def started(found: pd.DataFrame, dataset: str, metric: str = "MRR@20") -> list[tuple[str, int, float]]:
    """The systems with several seeds: that with the most first, of as many seeds that which varies most.

    Returns:
        Of each its name, the number of its starts, and the standard deviation of its honest metric over them.
    """
    values = found[found.dataset == dataset].groupby(["system", "variant"])[f"honest {metric}"].agg(["size", "std"])
    several = values[values["size"] > 1].sort_values(["size", "std"], ascending=False)
    return [("--".join(filter(None, row.Index)), int(row.size), float(row.std)) for row in several.itertuples()]


def starts_told(table: pd.DataFrame, found: pd.DataFrame, dataset: str = "yoochoose1_64") -> str:
    """A sentence that holds the verdicts by MRR@20 against another start; "" if no run was started twice.

    Args:
        table: what `judged` returned.
        found: rows of `tables.load`.
        dataset: of the starts, see `started`.
    """
    if not (known := started(found, dataset)):
        return ""
    (name, starts, deviation), *others = known
    less = "".join(f"; `{other}` did by {by:.2f} over {runs}" for other, runs, by in others)
    large, decided = beyond_starts(table[table.metric == "MRR@20"], deviation, starts)
    return (
        f"Of the {decided} verdicts by MRR@20 on real logs that are held or not held, **{large}** "
        f"rest{'s' * (large == 1)} on a difference of more than {starts_apart(deviation, starts):.1f} points. As far "
        f"apart may lie two starts of one training, if all systems vary as `{name}` did: by {deviation:.2f} from start "
        f"to start, a deviation that rests on {starts} starts (Student's t){less}. See "
        "[chapter 44](44_scalable_losses_experiments.ipynb#what-another-start-is-worth), and "
        "[chapter 29](29_side_by_side.ipynb#what-another-start-is-worth) for the demo shop."
    )


def selection_gaps(found: pd.DataFrame) -> pd.DataFrame:
    """What the choice of an epoch by the test gains, in every run of a published recipe that held sessions out.

    Args:
        found: rows of `tables.load`; those of variants and of systems that count are passed over.

    Returns:
        A row a run: system, dataset, seed, epochs, of recipe's (epochs), picked, best HR@20 and best MRR@20 (the epoch
        that the held-out sessions, and that the test picks), gain HR@20 and gain MRR@20 (as published minus honest),
        last step (MRR@20 of the test, last epoch minus the one before; NaN after a single epoch), in points of percent.
    """
    runs = (records.read(Path(path)) for path in found[found.variant == ""].record)
    return pd.DataFrame([_gap(run) for run in runs if "select" in run["runs"]], columns=GAP)


def _gap(run: dict) -> tuple:
    """One record as a row of `selection_gaps`."""
    best, honest, final = run["as_published"], run["honest"], run["runs"]["final"]
    of_recipe = rerun.departures(run).get("epochs", (0, len(final)))[1]
    last = final[-1]["test"]["MRR@20"] - final[-2]["test"]["MRR@20"] if len(final) > 1 else np.nan
    chosen = (honest["epoch"], *(best[f"{metric} epoch"] for metric in METRICS))
    gains = (best[metric] - honest[metric] for metric in METRICS)
    return run["system"], run["dataset"], run["seed"], len(final), of_recipe, *chosen, *gains, last


def gaps_told(gaps: pd.DataFrame) -> str:
    """Sentences on the rows of `selection_gaps`: runs of all epochs of their recipe apart from those cut short."""
    whole = gaps.epochs >= gaps["of recipe's"]
    kinds = {
        "went through all epochs of their recipe": gaps[whole],
        "were stopped before their recipe's last epoch": gaps[~whole],
    }
    text = [f"{len(rows)} of {len(gaps)} runs {what}{_moved(rows)}." for what, rows in kinds.items() if len(rows)]
    latest = gaps[["picked", "best HR@20", "best MRR@20"]].min(axis=1) == gaps.epochs
    ended = gaps[~whole & latest & (gaps.epochs > 1)]["last step"]
    if len(ended):
        text.append(
            f"In {len(ended)} of those stopped the last epoch that was run is the best by every measure, and MRR@20 on "
            f"the test rose by {ended.min():.2f} to {ended.max():.2f} in it: the gap is 0 there because the run ended, "
            "and says nothing about the recipe."
        )
    return " ".join(text)


def _moved(rows: pd.DataFrame) -> str:
    """In how many of these runs the test picks another epoch than the held-out sessions, and for what."""
    gains = rows[["gain HR@20", "gain MRR@20"]]
    gained = int((gains > 0).any(axis=1).sum())
    most = ", for up to {:.2f} HR@20 and {:.2f} MRR@20".format(*gains.max()) if gained else ""
    return f"; in {gained} of these the test would have picked another epoch for one of the metrics{most}"
