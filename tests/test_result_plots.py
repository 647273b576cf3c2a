"""The figures of the replication chapters show their data and what is missing; their words tell a run from its row."""

import numpy as np
import pytest
import toys
from drawn import close_figures, texts  # noqa: F401
from matplotlib.colors import to_hex

from sbr_core import plots, published, records, result_plots, tables


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


@pytest.mark.parametrize(
    "method,dataset,metric,inside,outside",
    [
        ("TAGNN", "diginetica", "MRR@20", (0.39, -0.39), (0.41, -0.41)),
        ("Transformer", "diginetica", "HR@20", (0.99, -0.99), (1.01, -1.01)),
        ("POP", "yoochoose1_64", "MRR@20", (0.49, -0.49), (0.51, -0.51)),
        ("NARM", "yoochoose1_64", "HR@20", (0.99, -0.99), (1.01, -1.01)),
        ("NARM", "yoochoose1_64", "MRR@20", (0.69, -0.69), (0.71, -0.71)),
        ("NARM", "diginetica", "MRR@20", (9.0, -0.99), (-1.01,)),
        ("NARM", "diginetica", "HR@20", (9.0, -0.99), (-1.01,)),
        ("GRU4REC", "diginetica", "HR@20", (), (0.0, 9.0)),
    ],
)
def test_the_bands_of_a_repetition(method, dataset, metric, inside, outside):
    assert not any(result_plots.outside_band(method, dataset, metric, gap) for gap in inside)
    assert all(result_plots.outside_band(method, dataset, metric, gap) for gap in outside)


def test_the_bands_are_told_as_they_are_applied():
    told = result_plots.bands_told(["SR-GNN", "TAGNN", "NARM", "TAGNN"])
    assert "SR-GNN, TAGNN 0.6 and 0.4; all others 1 and 0.7" in told and "below by 1 in either metric." in told
    assert "no band" not in told and "POP" not in told
    assert result_plots.bands_told(["GRU4REC"]).endswith("For GRU4REC no band is set, and every distance is listed.")


def row_of(folder, system, off, short=None, variant="", **changes):
    """A record on Diginetica that is so many points of both metrics from TAGNN's printed row for the system."""
    hr, mrr = (published.value(system, "diginetica", m, "tagnn") + off for m in tables.METRICS)
    found = toys.record(system.lower(), "diginetica", 0, variant, hr, mrr)
    found["recipe"]["config"] |= {"epochs": 2 if short else found["recipe"]["config"]["epochs"]} | changes
    if short:
        found["runs"].pop("select")
        found |= records.both_columns(found["runs"])
    toys.put(folder, found)


def test_a_distance_is_told_beside_that_of_sr_gnn(tmp_path):
    def told():
        untried = {"average": "the mean alone"}
        return result_plots.beside_srgnn(tables.load(tmp_path), "TAGNN", "diginetica", "tagnn", untried=untried)

    row_of(tmp_path, "TAGNN", -0.5, short=True, precision="bf16")
    assert told() == ""
    row_of(tmp_path, "SR-GNN", -0.25)
    assert told().startswith("ours has 2 of 6 epochs, in bfloat16, without a select run, and is -0.50 HR@20 and ")
    assert "run there has all 2 epochs of its recipe, and is -0.25 HR@20 and -0.25 MRR@20 from its own" in told()
    assert "its last epoch still moved it by +1.00 HR@20 and +1.00 MRR@20" in told()
    assert "paper prints +0.58 HR@20 and +0.44 MRR@20: of the distance -0.25 HR@20 and -0.25 MRR@20 come from" in told()
    not_tested = "the rest of the epochs, full precision, an epoch chosen on held-out sessions, another start"
    assert told().endswith(f"Not tested there: {not_tested}, the mean alone")
    row_of(tmp_path, "TAGNN", -0.5)
    row_of(tmp_path, "TAGNN", -0.5, variant="average")
    assert told().endswith("Not tested there: another start")


def test_the_reason_of_narm_needs_its_run(tmp_path):
    assert result_plots.narm_told(tables.load(tmp_path), "tagnn").startswith("see [chapter 11]")
    hr, mrr = (published.value("NARM", "yoochoose1_64", m, "tagnn") for m in tables.METRICS)
    toys.put(tmp_path, toys.record("narm", "yoochoose1_64", 0, "first-19", hr - 0.25, mrr + 0.5))
    told = result_plots.narm_told(tables.load(tmp_path), "tagnn")
    assert "our run is -0.25 HR@20 and +0.50 MRR@20 from the row" in told
