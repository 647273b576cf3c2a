"""The page of what is replicated: every printed table and figure has its line, and every link of it leads somewhere."""

import re
from pathlib import Path

import nbformat
import pytest

from sbr_core import published

BOOK = Path(__file__).resolve().parent.parent / "book"
FIGURES = {"tagnn": 2, "tagnnpp_v1": 3, "tagnnpp_v3": 3, "lgsr": 8, "scalable_losses": 10}
LINK = re.compile(r"\]\(([^)#]+)#?([^)]*)\)")


def lines_of(page: str) -> dict[tuple[str, str], str]:
    """(source, what is printed) -> the cell that says where it is made."""
    found = {}
    for section in page.split("\n## ")[1:]:
        source = re.search(r"\(`(\w+)`\)", section.partition("\n")[0])[1]
        for printed, where in re.findall(r"^\| ((?:Table|Figure) \w+) \|[^|]*\| (.*) \|$", section, re.MULTILINE):
            assert (source, printed) not in found, f"{printed} of {source} has two lines"
            found[source, printed] = where
    return found


def anchors(path: Path) -> set[str]:
    """Of the headings of a page or a notebook, as the book makes them."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lost_links(page: str, book: Path) -> list[str]:
    """Targets of a page's links that are no file, or no heading of it."""
    lost = []
    for file, anchor in LINK.findall(page):
        path = book / file
        if not path.exists() or (anchor and anchor not in anchors(path)):
            lost.append(f"{file}#{anchor}")
    return lost


@pytest.fixture(scope="module")
def page() -> str:
    return (BOOK / "coverage.md").read_text(encoding="utf-8")


def test_every_printed_table_has_a_line(page):
    columns = ["source", "table"]
    tables = {pair for name in published.TABLES for pair in published.table(name).groupby(columns).groups}
    assert tables <= lines_of(page).keys()
    assert ("scalable_losses", "Table 2") in lines_of(page)  # words alone: no number of it is in the package


def test_every_figure_has_a_line(page):
    wanted = {(source, f"Figure {k}") for source, count in FIGURES.items() for k in range(1, count + 1)}
    assert wanted == {pair for pair in lines_of(page) if pair[1].startswith("Figure")}


def test_every_line_links_to_a_heading_that_exists(page):
    assert not [pair for pair, where in lines_of(page).items() if not LINK.search(where)]
    assert lost_links(page, BOOK) == []


def test_a_lost_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# One heading: it's here\n")
    page = "[a](there.md#one-heading-its-here) [b](there.md#another) [c](gone.md)"
    assert lost_links(page, tmp_path) == ["there.md#another", "gone.md#"]


def test_the_dissertation_copies_what_lgsr_prints():
    rows = published.table().set_index(["method", "dataset", "metric"])
    copied = rows[(rows.source == "scalable_losses") & (rows.table == "Table 1")].value
    printed = rows[(rows.source == "lgsr") & (rows.table == "Table 2")].value
    assert len(copied) and (printed[copied.index] == copied).all()
