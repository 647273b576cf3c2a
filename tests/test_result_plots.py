"""The figures of the replication chapters show their data, and say where a run is missing."""

import numpy as np
import pytest
from drawn import close_figures, texts  # noqa: F401
from matplotlib.colors import to_hex

from sbr_core import plots, result_plots


def lines(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


def test_dots_with_intervals_and_an_empty_row():
    values = {"full": (31.0, 30.5, 31.4), "L": None, "Avg": (20.0, 19.0, 21.0)}
    ax = result_plots.dots(values, published={"L": 30.0}, highlight=["full"])
    assert [line.get_xydata().tolist() for line in lines(ax, "o")] == [[[31.0, 0.0]], [[20.0, 2.0]]]
    assert [line.get_xdata().tolist() for line in lines(ax, "|")] == [[30.5, 31.4], [19.0, 21.0]]
    assert [line.get_xydata().tolist() for line in lines(ax, "D")] == [[[30.0, 1.0]]]
    assert texts(ax) == ["no run"] and [t.get_text() for t in ax.get_yticklabels()] == list(values)
    assert ax.texts[0].get_position() == (0.02, 1)  # the diamond of this row stands on the right
    assert result_plots.dots(values, published={"L": 21.0}).texts[0].get_position() == (0.98, 1)
    assert to_hex(lines(ax, "o")[0].get_color()) == plots.COLOURS["graph"]
    assert result_plots.dots({"a": None}).get_xticks().tolist() == []


def test_dots_in_the_colours_of_their_families_and_on_diamonds():
    values = {"GRU4Rec, one": (31.0, 30.5, 31.4), "SR-GNN, one": (20.0, 19.0, 21.0), "what else": (1.0, 0.5, 1.5)}
    systems = {label: label.partition(",")[0] for label in values}
    ax = result_plots.dots(values, published={"SR-GNN, one": 20.0}, systems=systems)
    colours = [to_hex(line.get_color()) for line in lines(ax, "o")]
    assert colours == [plots.COLOURS[kind] for kind in ("recurrent", "graph", "other")]
    (diamond,), dot = lines(ax, "D"), lines(ax, "o")[1]
    assert diamond.get_markersize() > dot.get_markersize()  # and its corners reach further by a factor of √2


def test_printed_points_and_ours():
    points = {"NARM": ((68.0, 28.0), (69.0, 29.0)), "TAGNN": ((71.0, 31.0), None)}
    ax = result_plots.printed_to_ours(points, bold=["TAGNN"])
    assert [line.get_xydata()[0].tolist() for line in lines(ax, "D")] == [[68.0, 28.0], [71.0, 31.0]]
    (ours,) = ax.collections
    assert ours.get_offsets().tolist() == [[69.0, 29.0]]
    assert ours.get_sizes()[0] ** 0.5 < lines(ax, "D")[0].get_markersize()
    assert ax.get_xlim()[1] - 71.0 > 68.0 - ax.get_xlim()[0]
    named = {text.get_text(): text.get_weight() for text in ax.texts if text.get_text()}
    assert named == {"NARM": "normal", "TAGNN": "bold"}


def test_response_to_a_setting():
    ax = result_plots.response({60: (70.0, 69.0, 71.0), 80: None, 100: (71.0, 70.0, 72.0)}, name="d", default=100)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["60", "80", "100"] and ax.get_xlabel() == "d"
    (joined,) = lines(ax, "None")
    assert joined.get_ydata()[[0, 2]].tolist() == [70.0, 71.0] and np.isnan(joined.get_ydata()[1])
    marked = [to_hex(line.get_markerfacecolor()) for line in lines(ax, "o")]
    assert marked[2] == plots.COLOURS["graph"] != marked[0]
    assert texts(ax) == ["no run"]


def test_attention_map():
    weights = np.array([[1.0, np.nan], [0.25, 0.75]])
    ax = result_plots.attention_map(weights, columns=["kettle", "cup"])
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), weights)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["kettle", "cup"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["1", "2"]


@pytest.mark.parametrize("draw", [result_plots.dots, result_plots.printed_to_ours, result_plots.response])
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({})
