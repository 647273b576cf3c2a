"""What the replication chapters show beside a paper: its figures drawn again from records, with room for what is
missing, and words for how far a run is from its printed row.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from sbr_core import claims, published, records, rerun
from sbr_core.figure_style import COLOURS, INK, MARKERS, STYLE, family, new_axes, refuse_empty
from sbr_core.plots import label_points
from sbr_core.tables import METRICS

BANDS = dict.fromkeys(("POP", "S-POP", "Item-KNN"), (0.5, 0.5)) | dict.fromkeys(("SR-GNN", "TAGNN"), (0.6, 0.4))
BANDS |= dict.fromkeys(("GC-SAN", "LGSR", "TAGNN++", "Transformer"), (1.0, 0.6))  # how near in HR@20 and MRR@20
OTHERS = (1.0, 0.7)
UNBANDED = ("GRU4REC", "BPR-MF", "FPMC")  # of these rows another model is known, or none
OF_COUNTING = (
    "counting knows no luck, so the copied row is of another cut, another formula or another rule for ties: "
    "[chapter 04](04_simple_baselines.ipynb#what-the-public-code-does-differently)"
)
OF_FACTORS = (
    "no code of the printed row is known, so how much of the distance is training and how much another system under "
    "the same name cannot be said: [chapter 04](04_simple_baselines.ipynb#on-real-data)"
)
OF_GRU = (
    "another model. Ours is a plain GRU with the full softmax on every prefix, the copied row a single run whose "
    "settings no table prints: [chapter 10](10_gru4rec.ipynb#why-the-copied-row-is-so-low)"
)
COPIED = dict.fromkeys(("POP", "S-POP", "Item-KNN"), OF_COUNTING) | dict.fromkeys(("BPR-MF", "FPMC"), OF_FACTORS)
COPIED |= {"GRU4REC": OF_GRU}


@mpl.rc_context(STYLE)
def dots(
    values: Mapping[str, tuple[float, float, float] | None],
    ax: Axes | None = None,
    metric: str = "MRR@20",
    published: Mapping[str, float] | None = None,
    highlight: Sequence[str] = (),
    systems: Mapping[str, str] | None = None,
) -> Axes:
    """Variants as dots with their 95 % intervals, one below the other; one without a run says so.

    Args:
        values: variant -> (value, low, high) in percent, or None where there is no run.
        published: variant -> the printed value, drawn as a diamond that a dot in its middle does not hide.
        highlight: variants drawn in the colour of the graph family; the others are grey.
        systems: variant -> the system whose family's colour its dot has; with `highlight`, this wins.
    """
    refuse_empty(values, "dots")
    ax, published = new_axes(ax, 1.0 + 0.38 * len(values)), published or {}
    kinds = dict.fromkeys(highlight, "graph") | {label: family(system) for label, system in (systems or {}).items()}
    for row, (label, found) in enumerate(values.items()):
        if label in published:
            ax.plot(published[label], row, "D", markersize=11, color="white", markeredgecolor=INK, zorder=1)
        if found is None:
            continue
        value, low, high = found
        colour = COLOURS[kinds.get(label, "counting")]
        ax.plot([low, high], [row, row], color=INK, linewidth=1.4, marker="|", markersize=8, zorder=2)
        ax.plot(value, row, "o", markersize=9, color=colour, markeredgecolor=INK, zorder=3)
    ax.set_yticks(range(len(values)), list(values))
    ax.set(ylim=(len(values) - 0.5, -0.5), xlabel=f"{metric} (%)")
    ax.margins(x=0.12)
    middle = sum(ax.get_xlim()) / 2
    for row, (label, found) in enumerate(values.items()):
        if found is None:
            _say_no_run(ax, row, left=bool(published.get(label, middle) > middle))
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    if not published and not any(values.values()):
        ax.set_xticks([])
    return ax


def _say_no_run(ax: Axes, row: int, left: bool) -> None:
    """At the right end of a row, or at its left end where a diamond may stand on the right."""
    at, side = (0.02, "left") if left else (0.98, "right")
    ax.text(at, row, "no run", transform=ax.get_yaxis_transform(), ha=side, va="center", color="#777777", fontsize=9)


@mpl.rc_context(STYLE)
def printed_to_ours(
    points: Mapping[str, tuple[tuple[float, float], tuple[float, float] | None]],
    ax: Axes | None = None,
    bold: Sequence[str] = (),
    bend: float = 0.0,
) -> Axes:
    """HR@20 against MRR@20: a hollow diamond where a paper puts a system, a line to the mark where our run puts it.

    A mark is smaller than a diamond, so that neither hides the other.

    Args:
        points: system -> (printed (HR, MRR), ours (HR, MRR) or None without a run), in percent.
        bold: systems whose names are set in bold.
        bend: of the lines, so that one passes beside what lies straight between its ends; 0.12 is a little.
    """
    refuse_empty(points, "printed_to_ours")
    ax = new_axes(ax, 4.4)
    for system, (printed, ours) in points.items():
        kind = family(system)
        if ours is not None:
            line = {"arrowstyle": "-", "color": "#999999", "linewidth": 1.0}
            line["connectionstyle"] = f"arc3,rad={-bend}"
            ax.annotate("", ours, printed, arrowprops=line, zorder=1)
            ax.scatter(*ours, s=42, marker=MARKERS[kind], color=COLOURS[kind], edgecolors=INK, linewidths=0.9, zorder=3)
        ax.plot(*printed, "D", markersize=9, color="white", markeredgecolor=INK, zorder=2)
    ax.set(xlabel="HR@20 (%)", ylabel="MRR@20 (%)")
    ax.margins(0.1, 0.12)
    low, high = ax.get_xlim()
    ax.set_xlim(low, high + 0.18 * (high - low))  # room for the names
    ax.grid()
    ours_alone = [ours for _, ours in points.values() if ours is not None]
    label_points(ax, {system: printed for system, (printed, _) in points.items()}, bold, ours_alone)
    for name in ax.texts:
        name.set_path_effects([withStroke(linewidth=3, foreground="white")])  # a line may pass behind a name
    return ax


@mpl.rc_context(STYLE)
def response(
    values: Mapping[float | int, tuple[float, float, float] | None],
    ax: Axes | None = None,
    name: str = "",
    metric: str = "HR@20",
    default: float | int | None = None,
) -> Axes:
    """A metric against one setting: dots with 95 % intervals, a line through those next to each other that were run.

    Args:
        values: setting -> (value, low, high) in percent, or None where there is no run.
        name: of the setting.
        default: the setting of the recipe, marked.
    """
    refuse_empty(values, "response")
    ax, settings = new_axes(ax, 2.6), list(values)
    found = [values[setting] or (np.nan,) * 3 for setting in settings]
    middle, low, high = np.array(found, dtype=float).T
    place = np.arange(len(settings))
    ax.vlines(place, low, high, color=INK, linewidth=1.4)
    ax.plot(place, middle, "-", color=COLOURS["graph"], linewidth=1.4, zorder=1)
    for at, setting in enumerate(settings):
        face = COLOURS["graph"] if setting == default else "white"
        ax.plot(at, middle[at], "o", markersize=7, color=face, markeredgecolor=INK, zorder=2)
        if values[setting] is None:
            where = ax.get_xaxis_transform()
            ax.text(at, 0.04, "no run", transform=where, ha="center", rotation=90, color="#777777", fontsize=9)
    ax.set_xticks(place, [f"{setting:g}" for setting in settings])
    ax.set(xlim=(-0.5, len(settings) - 0.5), xlabel=name, ylabel=f"{metric} (%)")
    ax.grid(axis="y")
    if not any(values.values()):
        ax.set_yticks([])
    return ax


@mpl.rc_context(STYLE)
def attention_map(
    weights: np.ndarray, rows: Sequence[str] | None = None, ax: Axes | None = None, columns: Sequence[str] | None = None
) -> Axes:
    """Attention weights as a map, darker for more; white where nothing may be looked at.

    Args:
        weights: (R, L), NaN for a pair that the model forbids.
        rows, columns: labels of the R rows and of the L columns; numbers from 1 without them.
    """
    refuse_empty(weights, "attention_map")
    ax = new_axes(ax, 1.0 + 0.22 * len(weights))
    ax.imshow(weights, cmap="Greys", vmin=0, aspect="auto")
    for axis, labels, count in ((ax.xaxis, columns, weights.shape[1]), (ax.yaxis, rows, weights.shape[0])):
        axis.set_ticks(range(count), labels or [str(number) for number in range(1, count + 1)], fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def outside_band(method: str, dataset: str, metric: str, difference: float) -> bool:
    """Whether our best test value is further from a printed one than a repetition may be, as `bands_told` says it.

    Args:
        method: as the papers write it.
        difference: ours minus the printed one, in points of percent.
    """
    if method in UNBANDED:
        return True
    if dataset == "diginetica" and method not in BANDS:
        return difference < -max(OTHERS)
    return abs(difference) > BANDS.get(method, OTHERS)[metric == "MRR@20"]


def bands_told(methods: Iterable[str]) -> str:
    """The rule of `outside_band` in a sentence, for these methods."""
    named: dict[tuple[float, float], list[str]] = {}
    for method in (methods := list(dict.fromkeys(methods))):
        if method in BANDS:
            named.setdefault(BANDS[method], []).append(method)
    bands = "; ".join(f"{', '.join(who)} {hr:g} and {mrr:g}" for (hr, mrr), who in named.items())
    free = [method for method in UNBANDED if method in methods]
    return (
        f"A repetition may differ, in points of HR@20 and MRR@20: {bands}; all others {OTHERS[0]:g} and {OTHERS[1]:g}, "
        "except that on Diginetica, where the copied rows are weak, they may lie above by any distance, and below by "
        f"{max(OTHERS):g} in either metric."
        + (f" For {', '.join(free)} no band is set, and every distance is listed." if free else "")
    )


def narm_told(found: pd.DataFrame, source: str) -> str:
    """What the truncation of NARM's public code explains of a work's row on Yoochoose 1/64, if that run is recorded."""
    rows = claims.runs_of(found, "narm--first-19", "yoochoose1_64")
    text = "see [chapter 11](11_narm.ipynb#published-and-measured)"
    if rows.empty:
        return text
    hr, mrr = (rows[f"as published {m}"].mean() - published.value("NARM", "yoochoose1_64", m, source) for m in METRICS)
    return (
        "the public code reads the first 19 clicks of long sessions, ours the last; with the first ones our run is "
        f"{hr:+.2f} HR@20 and {mrr:+.2f} MRR@20 from the row; {text}"
    )


def beside_srgnn(
    found: pd.DataFrame,
    method: str,
    dataset: str,
    source: str,
    path: Path | str = "",
    untried: Mapping[str, str] | None = None,
) -> str:
    """Sentences on how far a run is from its row and SR-GNN's run from its own, and on what was not tested; "" without
    a seed that both have.

    Args:
        found: rows of `tables.load`.
        source: the work that prints both rows.
        path: of the plan that defines variants.
        untried: variant of the method -> what its run would change, named if that run is missing.
    """
    gaps = [claims.difference(found, method.lower(), "sr-gnn", dataset, metric) for metric in METRICS]
    if None in gaps:
        return ""
    pair = {name: claims.runs_of(found, name.lower(), dataset) for name in (method, "SR-GNN")}
    row = {name: np.array([published.value(name, dataset, m, source) for m in METRICS]) for name in pair}
    off = {name: rows[[f"as published {m}" for m in METRICS]].mean() - row[name] for name, rows in pair.items()}
    run, other = (records.read(Path(rows.record.iloc[0])) for rows in pair.values())
    leads = [f"{g.difference:+.2f} [{g.low:+.2f}, {g.high:+.2f}] {m}" for g, m in zip(gaps, METRICS, strict=True)]
    open_ = _untested(found, run, path, untried or {})
    return (
        f"ours has {_extent(run, path)}, and is {_two(off[method])} from its row{_last_step(run)}. SR-GNN's run there "
        f"has {_extent(other, path)}, and is {_two(off['SR-GNN'])} from its own. {method} minus SR-GNN is "
        f"{' and '.join(leads)} here, where the paper prints {_two(row[method] - row['SR-GNN'])}: of the distance "
        f"{_two(off[method] - off['SR-GNN'])} come from this lead, the rest is SR-GNN's as well"
        + (f". Not tested there: {', '.join(open_)}" if open_ else "")
    )


def _two(values: Iterable[float]) -> str:
    """A pair of HR@20 and MRR@20 in words."""
    return " and ".join(f"{value:+.2f} {metric}" for value, metric in zip(values, METRICS, strict=True))


def _extent(run: dict, path: Path | str) -> str:
    """How much of its recipe a run went through, in words."""
    lack, done = rerun.departures(run, path), len(run["runs"]["final"])
    epochs = f"{done} of {lack['epochs'][1]} epochs" if "epochs" in lack else f"all {done} epochs of its recipe"
    rough = f", in {rerun.PRECISIONS[lack['precision'][0]]}" if "precision" in lack else ""
    return epochs + rough + (", without a select run" if "final-only" in lack else "")


def _last_step(run: dict) -> str:
    """What the last epoch of a run moved the test by; "" after a single one."""
    curve = [[epoch["test"][m] for m in METRICS] for epoch in run["runs"]["final"]]
    if len(curve) < 2:
        return ""
    return f"; its last epoch still moved it by {_two(np.subtract(curve[-1], curve[-2]))}"


def _untested(found: pd.DataFrame, run: dict, path: Path | str, untried: Mapping[str, str]) -> list[str]:
    """What no record of a system tries on a run's dataset."""
    system, dataset, lack = run["system"], run["dataset"], rerun.departures(run, path)
    words = {"epochs": "the rest of the epochs", "precision": "full precision"}
    words["final-only"] = "an epoch chosen on held-out sessions"
    text = [said for key, said in words.items() if key in lack]
    text += ["another start"] if len(claims.runs_of(found, system, dataset)) == 1 else []
    return text + [w for v, w in untried.items() if claims.runs_of(found, f"{system}--{v}", dataset).empty]
