"""The stored chapters: their form, their order in the book, and that running one again changes nothing."""
import ast
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
chapters = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def load_execute():
    """The script beside the book, as a module."""
    spec = importlib.util.spec_from_file_location("execute", ROOT / "book" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = load_execute()


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def draws(cell: nbformat.NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def names_an_object(cell: nbformat.NotebookNode) -> bool:
    """A styled table's text is its address, which differs at every run."""
    return any("Styler" in output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_the_book_lists_every_chapter_in_order():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    assert [name for name in files if name.startswith("notebooks/")] == [f"notebooks/{path.stem}" for path in PATHS]
    pages = {path.stem for path in (ROOT / "book").glob("*.md")}
    assert {name for name in [contents["root"], *files] if "/" not in name} == pages


def test_the_book_reaches_the_chapters_by_a_link():
    assert (ROOT / "book" / "notebooks").readlink() == Path("../notebooks")


@chapters
def test_normal_form(path):
    assert execute.check(path) == ""


@chapters
def test_title_and_one_parameters_cell_of_literals(path):
    first, *rest = read(path).cells
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    headings = [line for cell in rest if cell.cell_type == "markdown" for line in prose_lines(cell.source)]
    assert not [line for line in headings if line.startswith("# ")], "a chapter has one title"
    (parameters,) = (cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", []))
    statements = ast.parse(parameters.source).body
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in statements}
    assert values["dataset"] == "demo"


def prose_lines(source: str) -> list[str]:
    """Lines of a Markdown cell outside fenced code."""
    return re.sub(r"^(```|~~~).*?^\1", "", source, flags=re.MULTILINE | re.DOTALL).splitlines()


@chapters
def test_cells_were_run_in_order_without_error(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [cell.id for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert any(cell.outputs for cell in cells)


@chapters
def test_every_figure_has_a_name_a_caption_and_a_text(path):
    for cell in filter(draws, code_cells(path)):
        metadata = cell.metadata.get("mystnb", {})
        assert metadata["figure"]["name"].startswith("fig-"), cell.source
        assert len(metadata["figure"]["caption"]) > 20, cell.source
        assert len(metadata["image"]["alt"]) > 10, cell.source


@chapters
def test_every_figure_that_is_announced_is_shown(path):
    announced = [cell for cell in code_cells(path) if "figure" in cell.metadata.get("mystnb", {})]
    assert all(map(draws, announced)), [cell.source for cell in announced if not draws(cell)]


def test_figure_names_are_used_once():
    names = [cell.metadata["mystnb"]["figure"]["name"] for path in PATHS for cell in filter(draws, code_cells(path))]
    assert len(names) == len(set(names))


@chapters
def test_claims_are_text_and_solutions_fold(path):
    checked = [cell for cell in code_cells(path) if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert checked, "no cell's output is compared"
    assert not [cell.source for cell in checked if draws(cell) or not cell.outputs or names_an_object(cell)]
    text = path.read_text(encoding="utf-8")
    assert "## Exercises" in text and ("hide-cell" in text or "dropdown" in text)


def test_normalise_takes_away_what_differs_between_runs():
    cell = new_code_cell("x", metadata={"tags": ["parameters"], "papermill": {"duration": 1.2}, "execution": {}})
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="50%"),
        nbformat.v4.new_output("stream", name="stdout", text="a <f at 0x7f12ab>\n"),
        nbformat.v4.new_output("stream", name="stdout", text="b\n"),
        nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}),
        nbformat.v4.new_output("execute_result", {"text/plain": "<Axes at 0xab>"}, execution_count=1),
    ]
    notebook = new_notebook(cells=[cell, new_markdown_cell("x"), new_markdown_cell("x")])
    notebook.metadata.update(papermill={"start_time": "now"}, language_info={"name": "python", "version": "3.11.7"})
    execute.normalise(notebook)
    stored = [output.get("text", output.get("data")) for output in cell.outputs]
    assert stored == ["a <f>\nb\n", {"text/plain": "<Axes>"}]
    assert cell.metadata == {"tags": ["parameters"]}
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    assert len({cell.id for cell in notebook.cells}) == 3
    before = nbformat.writes(notebook)
    assert nbformat.writes(execute.normalise(nbformat.reads(before, as_version=4))) == before


@pytest.mark.slow
def test_running_again_changes_no_byte(tmp_path, monkeypatch):
    for name, value in execute.SETTINGS.items():
        monkeypatch.setenv(name, value)
    cells = [
        new_code_cell('dataset = "demo"', metadata={"tags": ["parameters"]}),
        new_code_cell("from tqdm.auto import tqdm\nfor _ in tqdm(range(3)):\n    pass\nprint(object())"),
        new_code_cell("import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);"),
    ]
    path = tmp_path / "trial.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    assert execute.execute(path) == "trial.ipynb: renewed"
    assert draws(code_cells(path)[2])
    assert execute.execute(path) == "trial.ipynb: unchanged"
    assert execute.check(path) == ""
