"""Pictures of the replication chapters: a paper's figures drawn again from records, with room for what is missing."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from sbr_core.figure_style import COLOURS, INK, MARKERS, STYLE, family, new_axes, refuse_empty
from sbr_core.plots import label_points


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
