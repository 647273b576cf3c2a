"""A small Sphinx extension: directives that show the records of all runs, read when the book is built.

``{leaderboard}`` is the table of all records, ``{missing-runs}`` that of the runs that the plan wants and nobody made,
``{gpu-hours} WORKERS`` what they would take on a graphics card, ``{pareto} DATASET`` a picture of accuracy against
cost. The tables sort and filter in the browser: the code for that is part of the page, so it works without a network.
The records are copied beside the page that links to them.
"""

import io
import shutil
from html import escape
from pathlib import Path

import matplotlib
import pandas as pd
from docutils import nodes
from itables import options
from itables.javascript import generate_init_offline_itables_html, to_html_datatable
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator
from sphinx.util.docutils import SphinxDirective

from sbr_core import plan, plots, records, rerun, tables
from sbr_core.costs import Costs
from sbr_core.models import MODELS, SessionModel
from sbr_core.models.base import CountingModel

STYLE = """<style>
.dt-container { font-size: 0.85rem; }
.dt-container th input { width: 100%; min-width: 4.5em; box-sizing: border-box; font-size: inherit; }
.dt-container td code { font-size: 0.8rem; white-space: nowrap; }
</style>"""
TITLES = {"honest HR@20": "HR@20", "honest MRR@20": "MRR@20", "as published HR@20": "best HR@20"}
TITLES |= {"as published MRR@20": "best MRR@20", "examples_per_second": "examples/s"}


def board(folder: Path) -> pd.DataFrame:
    """One line a record: real logs before the demo shop, in each the best honest MRR@20 first.

    Returns:
        Columns system, dataset, seed, HR@20, ± HR, MRR@20, ± MRR, epoch picked by, epochs ("4 of 6" of a run that
        stopped before its recipe's last), best HR@20, best MRR@20, minutes (of training; all of a run that counts),
        examples/s, device, record (a link) and repeat (a command).
    """
    found = tables.load(folder)
    found = found.assign(made_up=found.dataset == "demo", value=-found["honest MRR@20"].astype(float))
    found = found.sort_values(["made_up", "dataset", "value"], kind="stable")
    shown = found.rename(columns=TITLES)
    for metric in ("HR", "MRR"):
        shown[f"± {metric}"] = (found[f"high {metric}@20"] - found[f"low {metric}@20"]).astype(float) / 2
    shown["record"] = [_link(folder, Path(path)) for path in found.record]
    read, of_plan = [records.read(Path(path)) for path in found.record], folder.parent / "plan.toml"
    spent = [records.training_seconds(record) or record["seconds"] for record in read]
    shown["minutes"] = [seconds / 60 for seconds in spent]
    shown["epoch picked by"] = [picked_by(record) for record in read]
    shown["epochs"] = [epochs_of(record, of_plan) for record in read]
    shown["repeat"] = [_command(record, of_plan) for record in read]
    named = found.variant.map(lambda name: f" ({name})" if name else "")
    shown["system"] = (found.system + named).map(escape)
    columns = ["system", "dataset", "seed", "HR@20", "± HR", "MRR@20", "± MRR", "epoch picked by", "epochs"]
    columns += ["best HR@20", "best MRR@20", "minutes", "examples/s", "device", "record", "repeat"]
    return shown[columns].reset_index(drop=True)


def picked_by(record: dict) -> str:
    """What chose the epoch of a record's honest values."""
    if issubclass(MODELS.get(record["system"], SessionModel), CountingModel):
        return "none: fitted once"
    return "held-out sessions" if "select" in record["runs"] else "the last one, fixed before"


def epochs_of(record: dict, path: Path) -> str:
    """How many epochs a record has, and of how many if its recipe has more; "" of a system without epochs.

    Args:
        path: of the plan that defines its variant.
    """
    if issubclass(MODELS.get(record["system"], SessionModel), CountingModel):
        return ""
    if record["system"] not in MODELS:  # a reader's own model
        return str(len(record["runs"]["final"]))
    held, planned = rerun.departures(record, path).get("epochs", (len(record["runs"]["final"]), 0))
    return f"{held} of {planned}" if planned else str(held)


def _command(record: dict, path: Path) -> str:
    known = record["system"] in MODELS
    return f"<code>{escape(rerun.repeat(record, path))}</code>" if known else "a model of its maker's own"


def _link(folder: Path, path: Path) -> str:
    place = path.relative_to(folder).as_posix()
    return f'<a href="results/{escape(place)}">{escape(path.stem)}</a>'


def points(folder: Path, dataset: str) -> dict[str, tuple[float, float]]:
    """System -> (milliseconds of training per example, honest MRR@20), where both are known, from the first seed."""
    found, speeds = tables.load(folder), plan.speeds(folder)
    runs = found[(found.dataset == dataset) & (found.variant == "")].sort_values("seed").drop_duplicates("system")
    costs = ((row.system, speeds.get((row.system, dataset)), row["honest MRR@20"]) for _, row in runs.iterrows())
    return {system: (cost, value) for system, cost, value in costs if cost}


def interactive(frame: pd.DataFrame, name: str, **look) -> str:
    """A table that sorts and filters in the browser; cells are HTML.

    Args:
        name: its identity on the page.
        look: further options of `itables`.
    """
    settings = {"connected": False, "allow_html": True, "showIndex": False, "classes": "display compact nowrap"}
    settings |= {"column_filters": "header", "scrollX": True, "table_id": name, "maxBytes": 0}
    settings |= {"lengthMenu": [10, 25, 50, 100], "pageLength": 25}
    with pd.option_context("display.float_format", "{:.2f}".format):
        return to_html_datatable(frame, **settings | look)


def page_code() -> str:
    """The scripts and styles that all tables of a page share, as HTML."""
    return generate_init_offline_itables_html(options.dt_bundle) + STYLE


class Records(SphinxDirective):
    """What the directives have in common: they read the folder ``results`` beside the book's pages."""

    @property
    def folder(self) -> Path:
        """Where the records are."""
        return Path(self.env.srcdir, "results")

    def run(self) -> list[nodes.Node]:
        """HTML that is made again whenever a record changes."""
        for path in [*self.folder.rglob("*.json"), Path(self.env.srcdir, "plan.toml")]:
            self.env.note_dependency(str(path))
        return [nodes.raw("", self.html(), format="html")]


class Leaderboard(Records):
    """``{leaderboard}``."""

    def html(self) -> str:
        """A sentence and the table."""
        shown = board(self.folder)
        counts = ", ".join(f"{count} on {name}" for name, count in shown.dataset.value_counts(sort=False).items())
        table = interactive(shown, "table-of-records")
        return f"{page_code()}<p>{len(shown)} records: {escape(counts)}.</p><div>{table}</div>"


class MissingRuns(Records):
    """``{missing-runs}``."""

    def html(self) -> str:
        """A sentence with the sum of the times, and the table."""
        todo = rerun.missing(plan.read(Path(self.env.srcdir, "plan.toml")), self.folder)
        if todo.empty:
            return "<p>Nothing: every run of the plan has its record.</p>"
        text = f"{len(todo)} runs are missing, on a CPU {rerun.hours(todo)}."
        shown = todo.assign(command=todo.command.map(lambda line: f"<code>{escape(line)}</code>"))
        shown["order"] = range(1, len(shown) + 1)
        shown["minutes"] = shown.minutes.astype(float).round().astype("Int64")
        shown = shown[["order", "system", "dataset", "seed", "minutes", "time", "why", "command"]]
        return f"<p>{text}</p><div>{interactive(shown, 'table-of-missing-runs', pageLength=10)}</div>"


class ShortRuns(Records):
    """``{short-runs}``."""

    def html(self) -> str:
        """A sentence and the table."""
        found = rerun.short(plan.read(Path(self.env.srcdir, "plan.toml")), self.folder)
        if found.empty:
            return "<p>None: every record holds what the plan asks for.</p>"
        shown = found.assign(command=found.command.map(lambda line: f"<code>{escape(line)}</code>"))
        table = interactive(shown, "table-of-short-runs", pageLength=10)
        return f"<p>{len(shown)} records hold less than the plan asks for.</p><div>{table}</div>"


class GpuHours(Records):
    """``{gpu-hours} WORKERS``."""

    required_arguments = 1

    def html(self) -> str:
        """A line on the published recipes of both logs, on their final runs, and on all that is missing; estimates, and
        said to be; and which of them are under an hour."""
        workers, costs = int(self.arguments[0]), Costs(self.folder, "cuda")
        jobs = plan.read(Path(self.env.srcdir, "plan.toml"))
        logs = ("yoochoose1_64", "diginetica")
        plain = [job for job in jobs if job.dataset in logs and not (job.seed or job.recipe.variant)]
        todo = [job for job in jobs if plan.state(job, self.folder)[0] == "missing"]
        parts = {
            f"the {len(plain)} published recipes on {' and '.join(logs)} with one seed": plain,
            "the final runs of these recipes alone (<code>--final-only</code>)": plan.without_select(plain),
            f"the {len(todo)} runs that are missing": todo,
        }
        lines, shared = [], {name: costs.total(part, workers) / 3600 for name, part in parts.items()}
        for name, part in parts.items():
            hours, alone = costs.total(part) / 3600, sum(map(costs.undivided, part)) / 3600
            unknown = sum(costs.seconds(job)[0] is None for job in part)
            text = f"{name} take {hours:.2f} hours in one process and {shared[name]:.2f} with {workers} workers, "
            text += f"{alone:.2f} of them the card's arithmetic"
            lines.append(text + (f"; {unknown} of unknown length do not count" if unknown else ""))
        under = [name for name in parts if parts[name] and shared[name] < 1]
        return (
            "<p>Estimated, not measured; workers that share a card divide the part of its host and not the card's "
            f"arithmetic.</p><ul><li>{'</li><li>'.join(lines)}</li></ul>"
            f"<p>Under an hour with {workers} workers: {' and '.join(under) or 'none of these'}.</p>"
        )


class Pareto(Records):
    """``{pareto} DATASET``; the caption is the content."""

    required_arguments, has_content = 1, True

    def html(self) -> str:
        """A figure, or a sentence that says what is missing for one."""
        dataset = self.arguments[0]
        found = points(self.folder, dataset)
        if not found:
            return f"<p>On {escape(dataset)} nothing has both a record and a measured speed yet.</p>"
        caption = f'<figcaption><span class="caption-text">{escape(" ".join(self.content))}</span></figcaption>'
        alt = f"Scatter plot of {len(found)} systems on {dataset}: MRR@20 against milliseconds of training per example"
        return f'<figure role="img" aria-label="{alt}">{drawn(found)}{caption}</figure>'


def drawn(found: dict[str, tuple[float, float]]) -> str:
    """The picture, as SVG."""
    with matplotlib.rc_context({"svg.hashsalt": "sbr_core"}):
        ax = plots.accuracy_against_cost(found, cost="milliseconds of training per example")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        ax.xaxis.set_minor_formatter("{x:g}")
        buffer = io.StringIO()
        ax.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=False)
        plt.close(ax.figure)
    return buffer.getvalue().partition("<svg")[2].join(["<svg", ""]).replace("<svg", '<svg style="max-width: 100%"', 1)


def copy_records(app, error: Exception | None) -> None:
    """Put the records beside the pages that link to them."""
    folder = Path(app.srcdir, "results")
    if error is None and app.builder.format == "html" and folder.exists():
        only = shutil.ignore_patterns("ranks", "studies", ".*")
        shutil.copytree(folder, Path(app.outdir, "results"), ignore=only, dirs_exist_ok=True)


def setup(app) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("leaderboard", Leaderboard)
    app.add_directive("missing-runs", MissingRuns)
    app.add_directive("short-runs", ShortRuns)
    app.add_directive("gpu-hours", GpuHours)
    app.add_directive("pareto", Pareto)
    app.connect("build-finished", copy_records)
    return {"parallel_read_safe": True}
