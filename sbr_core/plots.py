"""The book's pictures. Each function takes data and optionally the Axes to draw on, and returns the Axes.

Pictures of one session are made in `sbr_core.drawings`, the style in `sbr_core.figure_style`; both are found here too.
"""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.transforms import Bbox

from sbr_core.drawings import draw_multigraph_with_shortcuts, draw_session_graph, draw_session_line
from sbr_core.figure_style import COLOURS, FAMILIES, INK, MARKERS, PALE, STYLE, family, new_axes, refuse_empty, style

__all__ = [
    "COLOURS", "FAMILIES", "accuracy_against_cost", "draw_multigraph_with_shortcuts", "draw_session_graph",
    "draw_session_line", "family", "funnel", "label_points", "ladder", "learning_curve", "length_strip", "pareto_front",
    "rank_histogram", "style",
]  # fmt: skip


# Data


@mpl.rc_context(STYLE)
def length_strip(lengths: Mapping[str, Sequence[int]], ax: Axes | None = None, longest: int = 20) -> Axes:
    """A heat strip per dataset: the share of its sessions with 1, 2, .. clicks; the last cell is `longest` and more.

    Args:
        lengths: name of the dataset -> clicks of each of its sessions (`Sessions.lengths`).
    """
    refuse_empty(lengths, "length_strip")
    rows = [np.minimum(np.asarray(clicks, dtype=np.int64), longest) for clicks in lengths.values()]
    share = np.stack([np.bincount(row, minlength=longest + 1)[1:] / max(len(row), 1) for row in rows])
    ax = new_axes(ax, 0.9 + 0.5 * len(rows))
    ax.imshow(share, cmap="Greys", norm=PowerNorm(0.6, 0, 1.2 * share.max()), aspect="auto")
    for (row, column), value in np.ndenumerate(share):
        if round(100 * value) > 0:
            colour = "white" if value > 0.4 * share.max() else INK
            ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=9, color=colour)
    ax.set_xticks(range(longest), [*range(1, longest), f"≥{longest}"])
    ax.set_yticks(range(len(rows)), list(lengths))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("clicks in the session (cells: % of sessions)")
    return ax


@mpl.rc_context(STYLE)
def funnel(counts: Mapping[str, int], ax: Axes | None = None) -> Axes:
    """What is left after each step: centred bars with their counts, and the share that each step removed."""
    refuse_empty(counts, "funnel")
    ax, values = new_axes(ax, 0.5 + 0.5 * len(counts)), np.array(list(counts.values()), dtype=float)
    widest, look = values.max(), {"height": 0.72, "color": PALE, "edgecolor": INK, "linewidth": 0.8}
    ax.barh(range(len(values)), values, left=(widest - values) / 2, **look)
    for row, value in enumerate(values):
        inside = value > 0.2 * widest
        x = widest / 2 if inside else (1.02 * widest + value) / 2
        ax.text(x, row, f"{value:,.0f}", ha="center" if inside else "left", va="center")
        if row > 0:
            change = 100 * (value / values[row - 1] - 1) if values[row - 1] else 0.0
            ax.text(1.02 * widest, row, f"{change:+.1f} %".replace("-", "−"), va="center", color="#666666")
    ax.set_yticks(range(len(values)), list(counts))
    ax.set(xlim=(0, 1.15 * widest), ylim=(len(values) - 0.5, -0.5), xticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


# Results


@mpl.rc_context(STYLE)
def rank_histogram(ranks: Sequence[int], ax: Axes | None = None, k: int = 20, colour: str = COLOURS["graph"]) -> Axes:
    """Where the true next items were ranked: share of examples at 1, 2, 3 to 5, 6 to 10, 11 to 20, ..; dark up to k.

    Args:
        ranks: rank of the label of every example, 1 is best.
        k: a bin always ends at k, so that the dark bars add up to HR@k.
    """
    ranks = np.asarray(ranks, dtype=np.int64)
    refuse_empty(ranks, "rank_histogram")
    ends = {step * 10**power for power in range(10) for step in (1, 2, 5)} | {k}
    ends = [end for end in sorted(ends) if end < ranks.max()] + [int(ranks.max())]
    share = 100 * np.diff([(ranks <= end).mean() for end in [0, *ends]])
    ax = new_axes(ax, 3.0)
    colours = [colour if end <= k else PALE for end in ends]
    bars = ax.bar(range(len(ends)), share, width=0.85, color=colours, edgecolor=INK)
    ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    ax.margins(y=0.12)
    ax.set_xticks(range(len(ends)), [_bin(low + 1, high) for low, high in zip([0, *ends], ends, strict=False)])
    ax.tick_params(axis="x", labelsize=9, length=0)
    ax.set(xlabel="rank of the item that was clicked next", ylabel="% of examples")
    ax.set_title(f"HR@{k} = {100 * (ranks <= k).mean():.2f}: the dark bars")
    return ax


def _bin(low: int, high: int) -> str:
    low, high = (f"{n // 1000}k" if n >= 1000 and n % 1000 == 0 else str(n) for n in (low, high))
    return low if low == high else f"≤{high}"


@mpl.rc_context(STYLE)
def learning_curve(
    test: Sequence[float], chosen: int, ax: Axes | None = None, metric: str = "MRR@20", colour: str = COLOURS["graph"]
) -> Axes:
    """Test metric after each epoch, and two dots: the best epoch on the test set, and the one chosen by validation.

    Args:
        test: the metric after epochs 1, 2, .., in percent.
        chosen: the epoch, from 1, that was chosen without the test set.
    """
    refuse_empty(test, "learning_curve")
    if not 1 <= chosen <= len(test):
        raise ValueError(f"the chosen epoch lies between 1 and {len(test)}, got {chosen}")
    ax, best = new_axes(ax, 3.2), int(np.argmax(test)) + 1
    ax.plot(range(1, len(test) + 1), test, color=colour, zorder=2)
    dots = [(best, "chosen on the test set", colour), (chosen, "chosen by validation", "white")]
    for epoch, label, face in dots:
        label = f"{label}: {test[epoch - 1]:.2f} (epoch {epoch})"
        ax.plot(epoch, test[epoch - 1], "o", markersize=9, color=face, markeredgecolor=INK, label=label, zorder=3)
    gap = test[best - 1] - test[chosen - 1]
    ax.set(xlabel="epoch", ylabel=f"{metric} on the test set")
    ax.set_title(f"the selection gap: {gap:.2f}")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="y")
    ax.legend(loc="lower right")
    return ax


@mpl.rc_context(STYLE)
def ladder(
    values: Mapping[str, float],
    ax: Axes | None = None,
    metric: str = "HR@20",
    intervals: Mapping[str, tuple[float, float]] | None = None,
    published: Mapping[str, float] | None = None,
    line: tuple[str, float] | None = None,
) -> Axes:
    """Systems as horizontal bars, the first at the top, coloured by family.

    Args:
        values: system -> metric, in percent.
        intervals: system -> (low, high), drawn as a whisker.
        published: system -> the published value, drawn as a diamond.
        line: label and value of one vertical line across all bars.
    """
    refuse_empty(values, "ladder")
    ax, intervals, published = new_axes(ax, 0.9 + 0.36 * len(values)), intervals or {}, published or {}
    highs = [high for _, high in intervals.values()]
    largest = max([*values.values(), *published.values(), *highs, line[1] if line else 0])
    for row, (system, value) in enumerate(values.items()):
        low, high = intervals.get(system, (value, value))
        ax.barh(row, value, height=0.7, color=COLOURS[family(system)], edgecolor=INK, linewidth=0.8)
        if system in intervals:
            for colour, width in (("white", 4.5), (INK, 1.5)):  # a white edge: seen on dark bars too
                ax.plot([low, high], [row, row], color=colour, linewidth=width, marker="|", markersize=8, mew=width)
        if system in published:
            ax.plot(published[system], row, "D", markersize=8, color="white", markeredgecolor=INK, zorder=4)
        end = max(value, high, published.get(system, 0))
        ax.annotate(f"{value:.2f}", (end, row), (9, 0), textcoords="offset points", va="center")
    if line:
        ax.axvline(line[1], color=INK, linestyle=(0, (4, 3)), linewidth=1.4, label=f"{line[0]}: {line[1]:.2f}")
    if published:
        ax.plot([], [], "D", markersize=8, color="white", markeredgecolor=INK, label="published")
    if line or published:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    ax.set_yticks(range(len(values)), list(values))
    ax.set(xlim=(0, 1.12 * largest), ylim=(len(values) - 0.4, -0.6), xlabel=f"{metric} (%)")
    ax.tick_params(axis="y", length=0)
    return ax


@mpl.rc_context(STYLE)
def accuracy_against_cost(
    points: Mapping[str, tuple[float, float]],
    ax: Axes | None = None,
    cost: str = "seconds to train",
    metric: str = "MRR@20",
    ceiling: float | None = None,
) -> Axes:
    """Systems as points, cost on a logarithmic axis; the stepped line joins those that no other beats on both.

    Args:
        points: system -> (cost > 0, metric in percent).
        ceiling: the best possible value, drawn as a black line.
    """
    refuse_empty(points, "accuracy_against_cost")
    if min(price for price, _ in points.values()) <= 0:
        raise ValueError("accuracy_against_cost: the axis is logarithmic, every cost must be above 0")
    ax = new_axes(ax, 4.2)
    front = pareto_front(points)
    steps = zip(*(points[system] for system in front), strict=True)
    ax.step(*steps, where="post", color="#999999", linewidth=1.2, zorder=1)
    for system, at in points.items():
        kind = family(system)
        ax.scatter(*at, s=75, marker=MARKERS[kind], color=COLOURS[kind], edgecolors=INK, linewidths=0.9, zorder=3)
    if ceiling is not None:
        ax.axhline(ceiling, color=COLOURS["ceiling"], linewidth=1.4)
        ax.text(0.01, ceiling, f"best possible: {ceiling:.2f}", transform=ax.get_yaxis_transform(), va="bottom")
    ax.set(xscale="log", xlabel=cost, ylabel=f"{metric} (%)")
    ax.margins(0.32, 0.12)  # room for the longest name beside the leftmost mark
    ax.grid(axis="y")
    label_points(ax, points, bold=front)
    return ax


@mpl.rc_context(STYLE)
def verdict_matrix(
    systems: Sequence[str], differences: Mapping[tuple[str, str], object], ax: Axes | None = None
) -> Axes:
    """Every pair of systems: the row's difference to the column, shaded where it can be told from noise.

    Args:
        systems: in the order of rows and columns, the best first.
        differences: (row, column) -> `tables.Comparison`, for every pair with the row before the column.
    """
    refuse_empty(systems, "verdict_matrix")
    ax = new_axes(ax, 1.2 + 0.38 * len(systems))
    for i, row in enumerate(systems):
        for j, column in enumerate(systems):
            if j <= i:
                continue
            found = differences[row, column]
            told = found.verdict != "cannot be told apart"
            ax.add_patch(mpl.patches.Rectangle((j - 0.5, i - 0.5), 1, 1, color="#b9d3c3" if told else "white", ec=PALE))
            ax.text(
                j,
                i,
                f"{found.difference:+.1f}",
                ha="center",
                va="center",
                fontsize=8,
                weight="normal" if told else "bold",
            )
    ax.set_xticks(range(len(systems)), systems, rotation=90)
    ax.set_yticks(range(len(systems)), systems)
    ax.set(xlim=(-0.5, len(systems) - 0.5), ylim=(len(systems) - 0.5, -0.5))
    ax.tick_params(length=0)
    return ax


def label_points(
    ax: Axes, points: Mapping[str, tuple[float, float]], bold: Sequence[str], others: Sequence[tuple[float, float]] = ()
) -> None:
    """A name beside every point, where it hides no other name and no point and is nearer to its own point than to
    another named one, as far as there is room; far names get a thin leader.

    Args:
        bold: points whose names are set in bold.
        others: points without a name, to be kept free as well.
    """
    ax.figure.draw_without_rendering()  # fixes the scale that points are measured in
    marks = ax.transData.transform([*points.values(), *others])
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in marks]
    named = dict(zip(points, map(tuple, marks.tolist()), strict=False))
    beside, above = ((9, "left"), (-9, "right")), ((-5, "left"), (5, "right"))
    spots = [(*at, dy) for dys, sides in (((7, -8), beside), ((15, -16), above)) for dy in dys for at in sides]
    spots += [(*at, dy) for dy in (18, -19, 30, -31, 42, -43) for at in beside]
    for system in sorted(points, key=lambda name: -points[name][1]):
        look = {"textcoords": "offset points", "fontsize": 10, "va": "center", "zorder": 4}
        look["weight"] = "bold" if system in bold else "normal"
        tried = {}
        for dx, ha, dy in spots:
            label = ax.annotate(system, points[system], (dx, dy), ha=ha, **look)
            box = label.get_window_extent()
            label.remove()
            tried[dx, ha, dy] = sum(box.overlaps(other) for other in taken), _astray(box, system, named), box
        dx, ha, dy = min(spots, key=lambda spot: tried[spot][:2])
        look["arrowprops"] = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.8} if abs(dy) > 16 else None
        ax.annotate(system, points[system], (dx, dy), ha=ha, **look)
        taken.append(tried[dx, ha, dy][2])


def _astray(box: Bbox, system: str, named: Mapping[str, tuple[float, float]]) -> bool:
    """Whether a label is nearer to the point of another system than to its own."""
    far = {
        name: max(box.x0 - x, x - box.x1, 0) ** 2 + max(box.y0 - y, y - box.y1, 0) ** 2
        for name, (x, y) in named.items()
    }
    return bool(far[system] > min(far.values()))


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Systems that no other beats in accuracy at the same cost or less, cheapest first."""
    front: list[str] = []
    for system in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[system][1] > points[front[-1]][1]:
            front.append(system)
    return front
