"""The look of the book's pictures: one style, one colour per family of systems, readable in grey at 700 pixels.

The colours of the families differ in lightness too, in the order of `COLOURS`; the ceiling is always black.
"""
import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    "counting": "#c6c6c6",
    "neighbours": "#e9a63c",
    "recurrent": "#5aa0d6",
    "attention": "#2e8b57",
    "graph": "#9e2a2b",
    "ceiling": "#111111",
    "other": "#868686",
}
MARKERS = dict(zip(COLOURS, "os^DP*X", strict=True))
FAMILIES = {
    "counting": ("pop", "s-pop", "markov", "bpr-mf", "fpmc"),
    "neighbours": ("item-knn", "s-knn", "v-sknn", "stan", "vstan"),
    "recurrent": ("gru4rec", "gru4rec-2016", "gru4rec-2018", "narm", "csrm", "repeatnet"),
    "attention": ("stamp", "sasrec", "transformer"),
    "graph": ("sr-gnn", "gc-san", "tagnn", "lessr", "dgtn", "tagnn++", "lgsr"),
    "ceiling": ("ceiling", "best possible"),
}
STYLE = {
    "figure.figsize": (7.0, 3.6),
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "svg.hashsalt": "sbr_core",
}
INK, PALE = "#222222", "#e4e4e4"


def style() -> None:
    """Use the book's style for every figure that follows (the functions here use it anyway).

    The first figure of a notebook turns its display on. Made here, that is not undone by the end of an `rc_context`.
    """
    plt.close(plt.figure())
    mpl.rcParams.update(STYLE)


def family(system: str) -> str:
    """Family of a system, by its name in any case: a key of `COLOURS`, "other" if it is not one the book knows."""
    return next((name for name, members in FAMILIES.items() if system.lower() in members), "other")


def new_axes(ax: Axes | None, height: float | None = None) -> Axes:
    """The Axes given, or new ones of the book's width and this height, in inches."""
    if ax is not None:
        return ax
    return plt.subplots(figsize=(7.0, height or STYLE["figure.figsize"][1]))[1]


def refuse_empty(values, what: str) -> None:
    """ValueError if there is nothing to draw."""
    if len(values) == 0:
        raise ValueError(f"{what}: nothing to draw, got an empty {type(values).__name__}")
