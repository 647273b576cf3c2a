"""Every number that the five works print, as data: nothing is typed into a chapter."""

from importlib.resources import files

import pandas as pd

TABLES = ("accuracy", "dataset_statistics")


def table(name: str = "accuracy") -> pd.DataFrame:
    """Published numbers in long form.

    Args:
        name: "accuracy" (columns source, table, method, dataset, metric, value; percent) or "dataset_statistics"
            (source, table, dataset, statistic, value).

    Raises:
        ValueError: if there is no such table.

    Source: the tables of TAGNN, TAGNN++ (both versions), LGSR and the scalable-losses dissertation; ``source`` and
        ``table`` say which.
    """
    if name not in TABLES:
        raise ValueError(f"the published tables are {', '.join(TABLES)}, got {name!r}")
    with (files("sbr_core") / "data" / f"published_{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def value(method: str, dataset: str, metric: str = "HR@20", source: str | None = None) -> float:
    """One published number in percent; where several works print it, the first one's unless `source` says which.

    Args:
        method: as the papers or as `models.MODELS` write it; case does not matter.
        dataset: diginetica, yoochoose1_64 or yoochoose1_4.
        metric: HR@20 or MRR@20.
        source: tagnn, tagnnpp_v1, tagnnpp_v3, lgsr or scalable_losses.

    Raises:
        LookupError: if no work prints it.
    """
    rows = table("accuracy")
    rows = rows[(rows.method.str.lower() == method.lower()) & (rows.dataset == dataset) & (rows.metric == metric)]
    rows = rows if source is None else rows[rows.source == source]
    if rows.empty:
        raise LookupError(f"no published {metric} of {method!r} on {dataset!r}" + (f" in {source}" if source else ""))
    return float(rows.value.iloc[0])
