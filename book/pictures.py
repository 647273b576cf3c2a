"""The README's two pictures, made by the project: a figure from the records and a page of the built book.

    python book/pictures.py        after `make book`; the page needs a headless chromium on the machine
"""
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from sbr_core import plots, published, records  # noqa: E402

BOOK = Path(__file__).parent
DATASET, METRIC = "yoochoose1_64", "HR@20"
PAGE = BOOK / "_build" / "html" / "notebooks" / "15_srgnn.html"


def results(path: Path) -> None:
    """Every recorded system on one dataset at its honest epoch, with intervals, beside what the papers print."""
    rows = [r for r in records.load(BOOK / "results") if r["dataset"] == DATASET and r["seed"] == 0]
    rows.sort(key=lambda r: r["honest"][METRIC])
    values = {r["system"]: r["honest"][METRIC] for r in rows}
    intervals = {r["system"]: r["honest"][f"{METRIC} interval"] for r in rows}
    printed = {}
    for system in values:
        try:
            printed[system] = published.value(system, DATASET, METRIC)
        except LookupError:
            continue  # no paper of the five prints it
    axes = plots.ladder(values, metric=f"{METRIC} on Yoochoose 1/64", intervals=intervals, published=printed)
    axes.figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(axes.figure)


def page(path: Path) -> None:
    """A chapter as a reader sees it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser or not PAGE.exists():
        sys.exit("the page's picture wants the built book (make book) and a chromium on the PATH")
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=8000 --window-size=1300,1000"
    command = [browser, *flags.split(), f"--screenshot={path}", PAGE.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    (BOOK / "images").mkdir(exist_ok=True)
    results(BOOK / "images" / "results.png")
    page(BOOK / "images" / "page.png")
