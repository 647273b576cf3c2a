"""Sessions drawn: as a line of clicks, as a graph, as a multigraph with shortcuts; equal sessions, equal pictures."""
from collections import Counter
from collections.abc import Sequence

import matplotlib as mpl
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path

from sbr_core.figure_style import COLOURS, INK, STYLE, new_axes, refuse_empty
from sbr_core.graphs import to_multigraph, to_networkx

ARROW = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.6, "color": "#444444", "zorder": 2}



@mpl.rc_context(STYLE)
def draw_session_line(session: Sequence[int], ax: Axes | None = None, names=None) -> Axes:
    """A session as a line of clicks in order; dotted arcs join clicks on the same item.

    Args:
        session: item ids, oldest first.
        names: anything that gives an item's label by ``names[item]``; None shows the ids.
    """
    refuse_empty(session, "a session")
    ax, radius = new_axes(ax, 1.9), 0.3
    latest, top = {}, radius
    for i, item in enumerate(session):
        _node(ax, (i, 0), radius, _name(names, item), last=i == len(session) - 1)
        ax.text(i, -0.52, str(i + 1), ha="center", va="center", fontsize=9, color="#666666")
        if i > 0:
            _arrow(ax, (i - 1 + radius, 0), (i - radius, 0))
        if item in latest:
            apart = i - latest[item]
            height = min(0.15 + 0.15 * apart, 0.9)
            top = max(top, radius + height)
            _arrow(ax, (latest[item], radius), (i, radius), -2 * height / apart, arrowstyle="-", linestyle=":")
        latest[item] = i
    spare = max(0, 8 - len(session)) / 2  # a short session is centred, its nodes no larger than others
    ax.set(xlim=(-0.5 - spare, len(session) - 0.5 + spare), ylim=(-0.7, top + 0.1))
    return _bare(ax)


@mpl.rc_context(STYLE)
def draw_session_graph(session: list[int], ax: Axes | None = None, names=None, edge_weight: str = "count") -> Axes:
    """The session graph: items on a circle in order of first click, steps numbered along the edges.

    A node grows with its clicks; an edge gets thicker with its weight; the item of the last click is dark.

    Args:
        session: item ids, oldest first.
        names: anything that gives an item's label by ``names[item]``; None shows the ids.
        edge_weight: "count" or "binary" (all edges equally thick), as in `sbr_core.graphs.to_networkx`.
    """
    graph, ax = to_networkx(session, edge_weight), new_axes(ax, 3.6)
    place = _nodes_on_circle(ax, graph, session[-1], names)
    curves = []
    for u, v, weight in graph.edges(data="weight"):
        rad = 0.26 if graph.has_edge(v, u) else 0.0
        curves.append(_edge(ax, place, u, v, rad, linewidth=1.0 + 0.8 * weight))
    _number(ax, [", ".join(map(str, order)) for _, _, order in graph.edges(data="order")], curves)
    return _bare(ax)


@mpl.rc_context(STYLE)
def draw_multigraph_with_shortcuts(session: list[int], ax: Axes | None = None, names=None) -> Axes:
    """Every step as an edge of its own, numbered; dashed shortcuts lead from each item to all that came later.

    The shortcut of every item to itself is not drawn. Arguments as in `draw_session_graph`.
    """
    graph, ax = to_multigraph(session, shortcuts=True), new_axes(ax, 3.6)
    place = _nodes_on_circle(ax, graph, session[-1], names)
    drawn, curves = Counter(), []
    for u, v, edge in sorted(graph.edges(data=True), key=lambda e: e[2]["order"] or len(session)):
        if u == v and edge["kind"] == "shortcut":
            continue
        drawn[u, v] += 1
        if edge["kind"] == "step":
            curves.append(_edge(ax, place, u, v, 0.22 * drawn[u, v]))
        else:
            _edge(ax, place, u, v, 0.22 * drawn[u, v], linestyle=(0, (4, 3)), linewidth=1.0, color="#9a9a9a")
    _number(ax, [str(step) for step in range(1, len(session))], curves)
    return _bare(ax)


def _name(names, item) -> str:
    return str(item if names is None else names[item])


def _bare(ax: Axes) -> Axes:
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def _node(ax: Axes, at, radius: float, label: str, last: bool, outward=(0, -1)) -> Circle:
    """A circle with its label inside, or beside it if the label is long."""
    fill = INK if last else "white"
    circle = ax.add_patch(Circle(at, radius, facecolor=fill, edgecolor=INK, linewidth=1.5, zorder=3))
    if len(label) <= 3:
        ax.text(*at, label, ha="center", va="center", color="white" if last else INK, weight="bold", zorder=4)
    else:
        x, y = np.add(at, np.multiply(outward, radius + 0.08))
        side = "center" if abs(outward[0]) < 0.3 else "left" if outward[0] > 0 else "right"
        ax.text(x, y, label, ha=side, va="top" if outward[1] < -0.3 else "bottom" if outward[1] > 0.3 else "center")
    return circle


def _arrow(ax: Axes, begin, end, rad: float = 0.0, **kwargs) -> FancyArrowPatch:
    look = ARROW | kwargs | {"shrinkA": 0, "shrinkB": 0, "connectionstyle": f"arc3,rad={rad}"}
    return ax.add_patch(FancyArrowPatch(begin, end, **look))


def _nodes_on_circle(ax: Axes, graph: nx.Graph, last, names) -> dict:
    """Item -> its circle; items clockwise from the left in order of first click, never closer than 1.5."""
    n = len(graph)
    around = 0.0 if n == 1 else max(1.0, 0.75 / np.sin(np.pi / n))
    angle = np.pi - 2 * np.pi * np.arange(n) / n
    place = {}
    directions = np.stack([np.cos(angle), np.sin(angle)], 1)
    for (item, clicks), direction in zip(graph.nodes(data="clicks"), directions, strict=True):
        radius = min(0.15 + 0.035 * clicks, 0.3)
        place[item] = _node(ax, around * direction, radius, _name(names, item), item == last, direction)
    reach = max(around, 0.6)
    ax.set(xlim=(-reach - 0.8, reach + 0.8), ylim=(-reach - 0.55, reach + 0.55))
    return place


def _edge(ax: Axes, place: dict, u, v, rad: float, **kwargs) -> np.ndarray:
    """A curved arrow between two circles, or a loop on one; returns points along it, (41, 2)."""
    if u == v:
        return _loop(ax, place[u], rad, **kwargs)
    p, q = np.array(place[u].center), np.array(place[v].center)
    _arrow(ax, p, q, rad, patchA=place[u], patchB=place[v], **kwargs)
    bend = (p + q) / 2 + rad * np.array([(q - p)[1], -(q - p)[0]])  # the control point of the quadratic curve
    t = np.linspace(0, 1, 41)[:, None]
    return (1 - t) ** 2 * p + 2 * t * (1 - t) * bend + t**2 * q


def _loop(ax: Axes, circle: Circle, rad: float, **kwargs) -> np.ndarray:
    """An arrow from a circle back to itself, towards the outside of the layout; returns points along it."""
    x, y = circle.center
    direction = np.arctan2(y, x) + 0.9 if x or y else np.pi / 2  # aside of the outward ray, where a long label stands
    rays = [np.array([np.cos(direction + turn), np.sin(direction + turn)]) for turn in (0.5, 0.7, -0.7, -0.5)]
    lengths = circle.radius + np.array([0, 0.45 + rad, 0.45 + rad, 0])
    a, b, c, d = (circle.center + length * ray for length, ray in zip(lengths, rays, strict=True))
    path = Path([a, b, c, d], [Path.MOVETO] + 3 * [Path.CURVE4])
    ax.add_patch(FancyArrowPatch(path=path, **(ARROW | kwargs)))
    t = np.linspace(0, 1, 41)[:, None]
    return (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d


def _number(ax: Axes, labels: Sequence[str], curves: Sequence[np.ndarray]) -> None:
    """A label on each curve on a white ground, near its middle but away from the other curves."""
    ground = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    near_middle = np.arange(13, 29)
    for i, (label, curve) in enumerate(zip(labels, curves, strict=True)):
        others = np.concatenate([np.full((1, 2), np.inf), *curves[:i], *curves[i + 1 :]])
        gap = np.hypot(*(curve[near_middle, None] - others).T).min(0)  # to the nearest other curve
        best = near_middle[np.argmax(np.minimum(gap, 0.25) - 0.004 * abs(near_middle - 18))]
        look = {"ha": "center", "va": "center", "fontsize": 10, "color": COLOURS["graph"], "zorder": 5}
        ax.text(*curve[best], label, bbox=ground, **look)
