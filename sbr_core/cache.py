"""What is kept on disk between runs: downloaded files with their checksums, and prepared arrays, never as a pickle.

A file appears under its name only when it is whole: it is written under another name first and then renamed, so two
processes may read and write at once, and a killed one leaves nothing that is ever read.
"""
import hashlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pooch
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sbr_core.files import replaced
from sbr_core.pickles import DataError
from sbr_core.preprocess import Prepared, Step
from sbr_core.sessions import Sessions

FORMAT = 2  # raise it whenever the preparation changes: old entries are then never met again
STALE = 3600  # seconds after which an unfinished file of a killed process is swept away


def folder() -> Path:
    """Where things are kept: ``$SBR_CACHE``, else the platform's cache folder."""
    return Path(os.environ.get("SBR_CACHE") or pooch.os_cache("sbr_core"))


def key(source: Path, *how) -> str:
    """Name of the prepared form of a file, or of the files of a folder: it changes with their place, size or date, and
    with `how`."""
    source = Path(source)
    stats = [file.stat() for file in ([source] if source.is_file() else sorted(source.iterdir()))]
    facts = [FORMAT, str(source.resolve()), *(x for s in stats for x in (s.st_size, s.st_mtime_ns)), *map(repr, how)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def prepared(name: str, build: Callable[[], Prepared]) -> Prepared:
    """The arrays kept under `name` (see `key`), or built now and kept; a damaged file is built again."""
    path = folder() / "prepared" / f"{name}.safetensors"
    found = _read(path)
    if found is None:
        found = build()
        try:
            _write(path, found)
        except OSError as error:
            warnings.warn(f"{path}: could not be kept ({error}); set SBR_CACHE to a writable folder", stacklevel=2)
    return found


def _arrays(data: Prepared) -> dict[str, np.ndarray]:
    arrays = {}
    for name, part in (("train", data.train), ("test", data.test)):
        arrays |= {f"{name}.{field}": getattr(part, field).numpy() for field in ("items", "offsets", "times")}
    text = json.dumps(data.item_ids.tolist()).encode()
    return arrays | {"item_ids": np.frombuffer(text, np.uint8)}


def digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 of arrays, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(np.ascontiguousarray(arrays[name]).data)
    return total.hexdigest()


def _write(path: Path, data: Prepared) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob("*.unfinished"):
        if time.time() - old.stat().st_mtime > STALE:
            old.unlink(missing_ok=True)
    arrays = _arrays(data)
    about = {"digest": digest(arrays), "funnel": json.dumps(data.funnel)}
    beside = path.with_name(f"{path.stem[:16]}.{uuid.uuid4().hex}.unfinished")
    try:
        save_file(arrays, beside, metadata=about)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _read(path: Path) -> Prepared | None:
    """What lies at `path`, or None if nothing does or it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = file.metadata()
        if about["digest"] != digest(arrays):
            return None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
    item_ids = np.array(json.loads(arrays["item_ids"].tobytes()))
    train, test = (Sessions(*(torch.from_numpy(arrays[f"{name}.{field}"]) for field in ("items", "offsets")),
                            len(item_ids), torch.from_numpy(arrays[f"{name}.times"])) for name in ("train", "test"))
    return Prepared(train, test, item_ids, [Step(*step) for step in json.loads(about["funnel"])])


def download(urls: dict[str, str], into: Path) -> None:
    """Fetch files that are not there yet, with a progress bar; note the checksum of each at its first download.

    Args:
        urls: file name -> URL.
        into: folder; it also gets ``checksums.json``.

    Raises:
        DataError: no network, or a file that differs from the one first downloaded.
    """
    known = _checksums(into)
    for name, url in urls.items():
        try:
            path = pooch.retrieve(url, known.get(name), fname=name, path=into, progressbar=True)
        except (OSError, ValueError) as error:  # no network, an error page, another checksum
            raise DataError(f"{url}: download failed ({error}); get the file in another way and put it at "
                            f"{into / name}") from None
        known.setdefault(name, pooch.file_hash(path))
    with replaced(into / "checksums.json") as beside:
        beside.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")


def verify(where: Path) -> None:
    """Compare downloaded files with the checksums noted at their first download.

    Raises:
        DataError: a file has changed since.
    """
    for name, expected in _checksums(where).items():
        if (where / name).is_file() and pooch.file_hash(str(where / name)) != expected:
            raise DataError(f"{where / name}: changed since its download (its sha256 is not {expected}, as noted "
                            "in checksums.json); delete it to download it again")


def _checksums(where: Path) -> dict[str, str]:
    path = where / "checksums.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
