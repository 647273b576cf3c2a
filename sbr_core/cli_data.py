"""``sbr data``: what there is, what it holds, and preparing it."""

import time

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
    """Counts of a dataset, checked against the published ones where there are any."""
    show(load_dataset(dataset, log).statistics(), as_json)


@app.command("prepare")
def data_prepare(dataset: DatasetName = "demo", log: Log = None, as_json: Json = False) -> None:
    """Read and check a dataset; what is prepared from a raw log is kept in the cache."""
    begun = time.perf_counter()
    found = load_dataset(dataset, log)
    seconds = time.perf_counter() - begun
    show(
        {"dataset": found.name, "fingerprint": found.fingerprint, "protocol": found.protocol, "seconds": seconds},
        as_json,
    )
