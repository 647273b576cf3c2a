"""``sbr data``: what there is, what it holds, and preparing it."""

import time
import warnings

import typer

from sbr_core.cli_options import DatasetName, Json, Log, load_dataset, show

app = typer.Typer(no_args_is_help=True, help="Datasets: what there is, what they hold, preparing them.")


@app.command("list")
def data_list(as_json: Json = False) -> None:
    """Every dataset, whether it is on this machine, and how to get it."""
    from sbr_core import datasets

    show(
        {row.pop("name"): row if as_json else f"{row['status']:10} {row['note']}" for row in datasets.catalogue()},
        as_json,
    )


@app.command("stats")
def data_stats(dataset: DatasetName = "demo", log: Log = None, as_json: Json = False) -> None:
    """Counts of a dataset, checked against the published ones where there are any; of a log, what preparing it left."""
    found = load_dataset(dataset, log)
    tell(found.statistics(), found, as_json)


@app.command("prepare")
def data_prepare(dataset: DatasetName = "demo", log: Log = None, as_json: Json = False) -> None:
    """Read and check a dataset; what is prepared from a raw log is kept in the cache."""
    begun = time.perf_counter()
    found = load_dataset(dataset, log)
    seconds = time.perf_counter() - begun
    tell(
        {"dataset": found.name, "fingerprint": found.fingerprint, "protocol": found.protocol, "seconds": seconds},
        found,
        as_json,
    )


def tell(result: dict, dataset, as_json: bool) -> None:
    """Show a result and, where the dataset was prepared from a log, how many rows repeat another and its funnel."""
    if dataset.funnel is None:
        show(result, as_json)
        return
    result = result | {"repeated_rows": dataset.repeated.clicks}
    if as_json:
        show(result | {"funnel": [step._asdict() for step in dataset.funnel]}, as_json)
    else:
        show(result, as_json)
        for step, sessions, clicks, items in dataset.funnel:
            print(f"  {step:36} {sessions:>11,} sessions {clicks:>11,} clicks {items:>11,} items")
    rows = dataset.funnel[0].clicks
    if 2 * dataset.repeated.clicks >= rows:
        warnings.warn(
            f"{dataset.name}: {dataset.repeated.clicks} of its {rows} rows repeat another (the same session, item and "
            "time), as if every click were there twice; delete the repeated rows",
            stacklevel=2,
        )
