"""Pictures show their data: patches, labels and values are read back from the Axes."""
import matplotlib
import numpy as np
import pytest
from drawn import close_figures, texts  # noqa: F401
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Circle, FancyArrowPatch

from sbr_core import plots


def circles(ax):
    return {text.get_text(): patch for text, patch in zip(_labels_of_circles(ax), _of(ax, Circle), strict=True)}


def _of(ax, kind):
    return [patch for patch in ax.patches if isinstance(patch, kind)]


def _labels_of_circles(ax):
    return [text for text in ax.texts if not text.get_text()[0].isdigit()]


def test_families_differ_in_grey():
    grey = [np.dot(to_rgb(colour), [0.299, 0.587, 0.114]) for name, colour in plots.COLOURS.items() if name != "other"]
    assert all(a - b > 0.07 for a, b in zip(grey, grey[1:], strict=False))


def test_every_system_of_the_package_has_a_family():
    from sbr_core.models import MODELS

    assert [name for name in MODELS if plots.family(name) == "other"] == []
    assert [plots.family(name) for name in ("POP", "STAN", "GRU4Rec", "STAMP", "SR-GNN", "mine")] == [
        "counting", "neighbours", "recurrent", "attention", "graph", "other",
    ]  # fmt: skip


def test_style_is_applied_and_leaves_nothing_behind():
    before = dict(matplotlib.rcParams)
    assert plots.funnel({"a": 1}).figure.get_size_inches()[0] == 7
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context():
        plots.style()
        assert matplotlib.rcParams["figure.figsize"] == [7.0, 3.6]


def test_session_line():
    ax = plots.draw_session_line([0, 1, 0, 2], names="ABC")
    labels = texts(ax)
    assert [label for label in labels if label.isalpha()] == ["A", "B", "A", "C"]
    assert [label for label in labels if label.isdigit()] == ["1", "2", "3", "4"]
    assert len(_of(ax, Circle)) == 4 and len(_of(ax, FancyArrowPatch)) == 3 + 1  # three steps, one arc A..A
    dark = [to_hex(circle.get_facecolor()) == "#222222" for circle in _of(ax, Circle)]
    assert dark == [False, False, False, True]


def test_session_graph_shows_order_repeats_and_weights():
    ax = plots.draw_session_graph([0, 1, 0, 1, 1, 2], names="ABC")
    assert [t for t in texts(ax) if t.isalpha()] == ["A", "B", "C"]
    assert sorted(t for t in texts(ax) if t[0].isdigit()) == ["1, 3", "2", "4", "5"]  # A-B twice, B-A, loop, B-C
    arrows = _of(ax, FancyArrowPatch)
    assert [arrow.get_linewidth() for arrow in arrows] == pytest.approx([2.6, 1.8, 1.8, 1.8])
    nodes = circles(ax)
    assert nodes["B"].radius > nodes["A"].radius > nodes["C"].radius  # three clicks, two, one
    assert to_hex(nodes["C"].get_facecolor()) == "#222222" and to_hex(nodes["A"].get_facecolor()) == "#ffffff"
    binary = plots.draw_session_graph([0, 1, 0, 1, 1, 2], edge_weight="binary")
    assert {arrow.get_linewidth() for arrow in _of(binary, FancyArrowPatch)} == {1.8}


def test_to_and_fro_edges_do_not_overlap_and_the_layout_is_deterministic():
    one, two = (plots.draw_session_graph([0, 1, 0, 2]) for _ in range(2))
    assert [text.get_position() for text in one.texts] == [text.get_position() for text in two.texts]
    p, q = (np.array(circle.center) for circle in _of(one, Circle)[:2])
    there, back = (np.array(t.get_position()) for t in one.texts if t.get_text() in "12" and t.get_weight() != "bold")
    assert np.hypot(*(there - back)) > 0.3
    left_of_line = [(q - p)[0] * (x - p)[1] - (q - p)[1] * (x - p)[0] for x in (there, back)]
    assert left_of_line[0] * left_of_line[1] < -0.01  # the two steps bend to different sides


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_nodes_stay_apart(n):
    centres = np.array([c.center for c in _of(plots.draw_session_graph(list(range(n))), Circle)])
    gap = np.hypot(*(centres[:, None] - centres).T) + 9 * np.eye(n)
    assert gap.min() > 1.4  # twice the largest radius is 0.6


def test_long_names_stand_beside_their_node():
    ax = plots.draw_session_graph([4, 9], names={4: "teapots 3", 9: "x"})
    position = {text.get_text(): text.get_position() for text in ax.texts}
    left, right = (circle.center for circle in _of(ax, Circle))
    assert position["x"] == pytest.approx(right) and position["teapots 3"][0] < left[0]


def test_multigraph_with_shortcuts():
    ax = plots.draw_multigraph_with_shortcuts([0, 1, 0, 1, 2], names="ABC")
    arrows = _of(ax, FancyArrowPatch)
    dashed = [arrow for arrow in arrows if arrow.get_linestyle() != "solid"]
    assert len(arrows) - len(dashed) == 4  # every step its own edge
    assert len(dashed) == 4  # A-B, B-A, A-C, B-C; none from an item to itself
    assert sorted(t for t in texts(ax) if t.isdigit()) == ["1", "2", "3", "4"]


def test_length_strip():
    ax = plots.length_strip({"one": [2, 2, 3, 9], "two": [1, 1, 1, 1]}, longest=5)
    image = ax.images[0].get_array()
    np.testing.assert_allclose(image, [[0, 0.5, 0.25, 0, 0.25], [1, 0, 0, 0, 0]])
    assert sorted(texts(ax)) == ["100", "25", "25", "50"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "3", "4", "≥5"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one", "two"]


def test_funnel():
    ax = plots.funnel({"log": 2000, "sessions": 1500, "items": 1500, "test": 15})
    assert [bar.get_width() for bar in ax.patches] == [2000, 1500, 1500, 15]
    assert [bar.get_x() + bar.get_width() / 2 for bar in ax.patches] == [1000] * 4
    assert texts(ax) == ["2,000", "1,500", "−25.0 %", "1,500", "+0.0 %", "15", "−99.0 %"]


def test_rank_histogram_bins_add_up():
    ranks = [1, 1, 2, 3, 5, 7, 20, 21, 300, 301]
    ax = plots.rank_histogram(ranks)
    heights = {t.get_text(): bar.get_height() for t, bar in zip(ax.get_xticklabels(), ax.patches, strict=True)}
    assert heights == pytest.approx(
        {"1": 20, "2": 10, "≤5": 20, "≤10": 10, "≤20": 10, "≤50": 10, "≤100": 0, "≤200": 0, "≤301": 20}
    )
    dark = [bar.get_height() for bar in ax.patches if to_hex(bar.get_facecolor()) == plots.COLOURS["graph"]]
    assert sum(dark) == pytest.approx(70) and ax.get_title(loc="left") == "HR@20 = 70.00: the dark bars"
    assert len(plots.rank_histogram([1, 4], k=3).patches) == 4  # 1, 2, 3, 4: a bin ends at k


def test_learning_curve_dots():
    ax = plots.learning_curve([14.0, 16.0, 16.5, 16.2], chosen=2)
    curve, best, chosen = ax.lines
    assert list(curve.get_ydata()) == [14.0, 16.0, 16.5, 16.2] and list(curve.get_xdata()) == [1, 2, 3, 4]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (3, 16.5)
    assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (2, 16.0)
    assert ax.get_title(loc="left") == "the selection gap: 0.50"
    with pytest.raises(ValueError, match="between 1 and 2, got 0"):
        plots.learning_curve([1.0, 2.0], chosen=0)


def test_ladder():
    values = {"pop": 6.5, "gru4rec": 60.0, "sr-gnn": 70.0}
    ax = plots.ladder(values, intervals={"sr-gnn": (69.0, 71.0)}, published={"gru4rec": 50.5}, line=("copied", 33.0))
    assert [bar.get_width() for bar in ax.patches] == [6.5, 60.0, 70.0]
    colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colours == [plots.COLOURS[name] for name in ("counting", "recurrent", "graph")]
    assert texts(ax) == ["6.50", "60.00", "70.00"]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(values) and ax.yaxis_inverted()
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]
    assert ([50.5], [1]) in drawn and ([69.0, 71.0], [2, 2]) in drawn and ([33.0, 33.0], [0, 1]) in drawn
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"copied: 33.00", "published"}
    assert plots.ladder(values).get_legend() is None


POINTS = {"pop": (0.1, 1.0), "markov": (1.0, 12.0), "stan": (2.0, 18.0), "tagnn": (90.0, 18.0), "sr-gnn": (50.0, 17.5)}


def test_pareto_front_by_hand():
    assert plots.pareto_front(POINTS) == ["pop", "markov", "stan"]
    assert plots.pareto_front({"a": (1.0, 5.0), "b": (1.0, 6.0), "c": (2.0, 6.5)}) == ["b", "c"]


def test_accuracy_against_cost():
    ax = plots.accuracy_against_cost(POINTS, ceiling=20.0)
    drawn = [tuple(map(float, points.get_offsets()[0])) for points in ax.collections]
    assert drawn == list(POINTS.values()) and ax.get_xscale() == "log"
    assert [tuple(p) for p in ax.lines[0].get_xydata()] == [POINTS[name] for name in ("pop", "markov", "stan")]
    assert sorted(texts(ax)) == sorted([*POINTS, "best possible: 20.00"])
    assert {t.get_text() for t in ax.texts if t.get_weight() == "bold"} == {"pop", "markov", "stan"}


def test_crowded_names_do_not_hide_each_other():
    names = ("narm", "stamp", "sr-gnn", "tagnn", "lessr", "gc-san")
    ax = plots.accuracy_against_cost({name: (100.0 + i, 17 + 0.02 * i) for i, name in enumerate(names)} | POINTS)
    boxes = []
    for text in ax.texts:
        text.get_window_extent()
        boxes.append(matplotlib.text.Text.get_window_extent(text))
    assert not [(i, j) for i in range(len(boxes)) for j in range(i) if boxes[i].overlaps(boxes[j])]


def test_axes_given_are_used():
    _, axes = plt.subplots(1, 2)
    assert plots.funnel({"a": 1}, axes[0]) is axes[0]
    assert plots.draw_session_graph([1, 2], axes[1]) is axes[1] and len(plt.get_fignums()) == 1


def test_nothing_to_draw_is_refused():
    for draw in (plots.funnel, plots.ladder, plots.length_strip, plots.accuracy_against_cost):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw({})
    for draw in (plots.draw_session_line, plots.rank_histogram):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw([])
    with pytest.raises(ValueError, match="above 0"):
        plots.accuracy_against_cost({"pop": (0.0, 1.0)})
