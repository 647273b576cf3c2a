"""The published tables with ours beside them, computed from records; a missing run is an empty cell, never a guess.

Shapes: E examples.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pandas.io.formats.style import Styler
from torch import Tensor

from sbr_core import published, records
from sbr_core.evaluate import Evaluation, bootstrap

METRICS = ("HR@20", "MRR@20")
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantiles, 1 to 9 degrees


def load(folder: Path | str) -> pd.DataFrame:
    """All records of a folder, those of the variants included, one row each.

    Returns:
        Columns system, variant, dataset, seed, record (path), seconds (of training, all epochs), examples_per_second,
        peak_rss_mb, device, and for both metrics "as published ...", "honest ...", "low ..." and "high ..." (95 %
        session bootstrap of the honest value), in percent.
    """
    folder = Path(folder)
    paths = [*sorted(folder.glob("*.json")), *sorted((folder / "variants").glob("*.json"))]
    return pd.DataFrame([_row(path, records.read(path)) for path in paths], columns=list(_row(None, None)))


def _row(path: Path | None, record: dict | None) -> dict:
    """One record as a row; without a record, a row of the same keys."""
    names = ["system", "variant", "dataset", "seed", "device", "peak_rss_mb"]
    row = {name: record and record[name] for name in names} | {"record": path and str(path)}
    epochs = record["runs"]["final"] if record else []
    row["seconds"] = record and records.training_seconds(record)
    row["examples_per_second"] = np.median([e.get("examples_per_second", np.nan) for e in epochs]) if epochs else None
    for metric in METRICS:
        row[f"as published {metric}"] = record and record["as_published"][metric]
        row[f"honest {metric}"] = record and record["honest"][metric]
        low, high = record["honest"][f"{metric} interval"] if record else (None, None)
        row |= {f"low {metric}": low, f"high {metric}": high}
    return row


def published_table(
    source: str, found: pd.DataFrame, table: str | None = None, ran_on: dict[str, str] | None = None
) -> pd.DataFrame:
    """Every number that a work prints with ours beside it, in the order in which it prints them.

    Args:
        source: tagnn, tagnnpp_v1, tagnnpp_v3, lgsr or scalable_losses.
        found: what `load` returned.
        table: one of the work's tables; None for all.
        ran_on: dataset of the work -> the dataset whose runs stand beside it, where its authors used another
            preparation than the name says (TAGNN++ has yoochoose1_64_dgtn for yoochoose1_64).

    Returns:
        Columns table, method, dataset, metric, published, as published, honest, low, high, difference (as published
        minus published), seeds. Over several seeds: the mean, and its 95 % interval from the seeds and from the test
        sessions, half-widths added as independent errors are.

    Raises:
        ValueError: if there is no such work or table.
    """
    rows = published.table("accuracy")
    known = sorted(rows.source.unique())
    rows = rows[(rows.source == source) & (True if table is None else rows.table == table)]
    if rows.empty:
        raise ValueError(f"nothing is printed in {source!r}, table {table!r}; the works are {', '.join(known)}")
    where = ran_on or {}
    ours = [_ours(found, row.method, where.get(row.dataset, row.dataset), row.metric) for row in rows.itertuples()]
    result = rows.rename(columns={"value": "published"}).drop(columns="source").reset_index(drop=True)
    result = pd.concat([result, pd.DataFrame(ours)], axis=1)
    result["difference"] = result["as published"] - result["published"]
    return result


def _ours(found: pd.DataFrame, method: str, dataset: str, metric: str) -> dict:
    """Our cells for one printed number."""
    system, _, without = method.lower().partition(" - ")
    variant = f"without-{without}" if without else ""
    runs = found[(found.system == system) & (found.variant == variant) & (found.dataset == dataset)]
    values = runs[f"honest {metric}"].to_numpy(dtype=float)
    cells = {"as published": runs[f"as published {metric}"].astype(float).mean(), "honest": np.nan}
    low, high = (runs[f"{end} {metric}"].astype(float).mean() for end in ("low", "high"))
    if len(values):
        cells["honest"] = mean = values.mean()
    if len(values) > 1:
        of_seeds = mean_interval(values)[1] - mean
        low, high = mean - np.hypot(mean - low, of_seeds), mean + np.hypot(high - mean, of_seeds)
    return cells | {"low": low, "high": high, "seeds": len(values)}


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of at least 2 runs (Student's t; of more than 10, a little wider than it need be)."""
    if len(values) < 2:
        raise ValueError(f"an interval is known for the mean of at least 2 runs, got {len(values)}")
    half = STUDENT[min(len(values) - 2, len(STUDENT) - 1)] * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def styled(table: pd.DataFrame, dataset: str, name: str) -> Styler:
    """The rows of `published_table` on one dataset as a page shows them: a line a method, empty cells where no run is.

    Behind ± stands half the width of the 95 % interval.

    Args:
        name: unique on its page (the identity of the HTML table; a random one would change at every run).
    """
    rows = table[table.dataset == dataset]
    wide = {}
    for metric in METRICS:
        part = rows[rows.metric == metric].set_index("method")
        wide[metric, "printed"] = part["published"].map("{:.2f}".format)
        wide[metric, "as published"] = part["as published"].map(_number)
        wide[metric, "honest"] = part.apply(_with_interval, axis=1)
        wide[metric, "Δ"] = part["difference"].map(lambda value: "" if np.isnan(value) else f"{value:+.2f}")
    wide["", "seeds"] = part["seeds"].map(lambda count: str(count) if count else "")
    style = pd.DataFrame(wide).rename_axis(index=None).style.set_properties(**{"white-space": "nowrap"})
    return style.set_table_attributes('class="dataframe" style="font-size: 80%"').set_uuid(name)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"


def _with_interval(row: pd.Series) -> str:
    return "" if np.isnan(row.honest) else f"{row.honest:.2f} ± {(row.high - row.low) / 2:.2f}"


def training_told(found: pd.DataFrame, titles: dict[str, str]) -> str:
    """What these rows of `load` cost: hours of training on each dataset and the devices; "" if nothing was trained.

    Args:
        titles: dataset -> what it is called; other datasets are passed over.
    """
    runs = found.assign(seconds=found.seconds.astype(float))
    runs = runs[runs.dataset.isin(titles) & (runs.seconds > 0)]
    parts = []
    for key, title in titles.items():
        seconds = runs[runs.dataset == key].seconds
        if count := len(seconds):
            parts.append(f"{seconds.sum() / 3600:.1f} hours on {title} ({count} run{'s' * (count > 1)})")
    where = "; ".join(sorted(runs.device.str.replace(" 1 threads", " 1 thread").unique()))
    return f"{', '.join(parts)}: training alone, without evaluations ({where})" if parts else ""


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same test examples.

    Args:
        difference: metric of the first minus metric of the second, in points of percent.
        low, high: 95 % interval of the difference.
        verdict: "better", "worse" or "cannot be told apart".
    """

    difference: float
    low: float
    high: float
    verdict: str


def compare(
    ranks: Float[Tensor, "E"],
    other: Float[Tensor, "E2"],
    session: Int[Tensor, "E"],
    metric: str = "MRR@20",
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Paired comparison by a bootstrap over sessions: both systems answer the same examples in every resample.

    Raises:
        ValueError: if the two do not rank the same number of examples, or the metric counts ranks that records do not
            keep (from 255 on).
    """
    if len(ranks) != len(other):
        raise ValueError(f"a paired comparison wants the same examples, got {len(ranks)} and {len(other)}")
    first, second = (_values(each, session, metric).double() for each in (ranks, other))
    groups = session.long().unique(return_inverse=True)[1]
    total = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(0, groups, first - second)
    count = torch.zeros_like(total).index_add_(0, groups, torch.ones_like(first))
    low, high = bootstrap(total, count, resamples, seed)
    verdict = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
    return Comparison(100 * (first - second).mean().item(), low, high, verdict)


def _values(ranks: Tensor, session: Tensor, metric: str) -> Tensor:
    if int(metric.partition("@")[2]) >= records.LAST_RANK == ranks.max():
        raise ValueError(f"{metric}: ranks that are kept beside a record end at {records.LAST_RANK}; cut off before it")
    nothing = torch.zeros(len(ranks), dtype=torch.long)
    return Evaluation(ranks, session, nothing, nothing, "conservative").values(metric)
