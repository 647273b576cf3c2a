"""What makes a file a record: whole, of this schema, as it was written, and of the data that its name says."""

import hashlib
import json
import math
from pathlib import Path

from sbr_core.sources import FINGERPRINTS

SCHEMA = 1
KINDS = {
    "system": str, "dataset": str, "protocol": str, "fingerprint": str, "seed": int, "recipe": dict,
    "as_published": dict, "honest": dict, "runs": dict, "seconds": float, "device": str, "peak_rss_mb": float,
    "versions": dict,
}  # fmt: skip
OPTIONAL = {  # not every record has them
    "ranks_sha256": str,  # of the bytes of the file of ranks beside the record
    "final_of": str,  # digest of the earlier record that the final run is from
    "constructor": dict,  # all arguments of the model, the defaults of that day included
}


def file_name(model: str, dataset: str, seed: int, variant: str = "") -> str:
    """Path of the record of a run in the folder of the records; variants of a recipe lie in a folder of their own."""
    system = f"variants/{model}--{variant}" if variant else model
    return f"{system}--{dataset}--seed{seed}.json"


def digest(record: dict) -> str:
    """sha256 of all that a record says but its own digest: a changed digit gives another one."""
    body = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def sealed(record: dict) -> dict:
    """The record with its digest."""
    return record | {"digest": digest(record)}


def both_columns(epochs: dict[str, list[dict]], metrics=("HR@20", "MRR@20")) -> dict:
    """Both protocols of a pair of runs: best test value per metric, and the test at the epoch picked without it."""
    final = epochs["final"]
    best = {}
    for name in metrics:
        at = max(final, key=lambda epoch: epoch["test"][name])
        best |= {name: at["test"][name], f"{name} epoch": at["epoch"]}
    picked = final[-1]["epoch"]  # of a number fixed in advance
    if "select" in epochs:
        picked = max(epochs["select"], key=lambda epoch: epoch["validation"]["MRR@20"])["epoch"]
    honest = next((epoch for epoch in final if epoch["epoch"] == picked), final[-1])
    keys = [key for name in metrics for key in (name, f"{name} interval")]
    return {"as_published": best, "honest": {key: honest["test"][key] for key in keys} | {"epoch": honest["epoch"]}}


def parse(path: Path) -> dict:
    """The record in a file.

    Raises:
        ValueError: naming the file, what is wrong with it (half-written, of another schema, changed by hand, named
            after another run, or of other data than its dataset's) and what to do.
    """
    try:
        record = {"variant": ""} | json.loads(path.read_text(encoding="utf-8"))
        wrong = _fault(record, path.name)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        wrong = f"half-written or of another form ({type(error).__name__}: {error})"
    if wrong:
        raise ValueError(f"{path} is not a record: {wrong}; move it away, or fetch its original again")
    return record


def _fault(record: dict, name: str) -> str:
    """The first thing that is wrong with a record in a file of this name; "" if nothing is."""
    if record["schema"] != SCHEMA:
        return f"it has schema {record['schema']}, this package reads {SCHEMA}"
    for key, kind in (KINDS | {key: kind for key, kind in OPTIONAL.items() if key in record}).items():
        if not isinstance(record[key], kind):
            return f"its {key} is {record[key]!r}, not a {kind.__name__}"
    given = Path(file_name(record["system"], record["dataset"], record["seed"], record["variant"])).name
    if name != given:
        return f"it is of another run, its name would be {given}"
    if record["fingerprint"] != FINGERPRINTS.get(record["dataset"], record["fingerprint"]):
        return (
            f"its fingerprint {record['fingerprint'][:12]}... is not that of {record['dataset']}: it ran on other data"
        )
    if digest(record) != record["digest"]:
        return "it was changed after it was written (its digest is of another text)"
    columns = both_columns(record["runs"])
    if columns != {key: record[key] for key in columns}:
        return "its columns are not those of its runs"
    outside = [value for value in _metrics(columns) if not (math.isfinite(value) and 0 <= value <= 100)]
    return f"a metric is {outside[0]}, not within 0 and 100" if outside else ""


def _metrics(columns: dict) -> list[float]:
    """All percentages of both columns, the ends of the intervals among them."""
    cells = [(name, value) for column in columns.values() for name, value in column.items() if "epoch" not in name]
    return [number for name, value in cells for number in (value if "interval" in name else [value])]
