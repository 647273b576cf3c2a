"""A small Sphinx extension: docstring notes on one line become sections.

The package writes ``Source: paper section 3`` with its continuation indented; Napoleon wants the text below the word.
"""
import re

NOTE = re.compile(r"^(\s*)(Shapes|Source|Differs|Example): +(\S.*)$")


def split_notes(app, what, name, obj, options, lines: list[str]) -> None:
    """Put the text of each such note on a line of its own, indented (in place, before Napoleon reads the docstring)."""
    lines[:] = [part for line in lines for part in _split(line)]


def _split(line: str) -> list[str]:
    note = NOTE.match(line)
    if note is None:
        return [line]
    indent, word, text = note.groups()
    return ["", f"{indent}{word}:", f"{indent}    {text}"]


def setup(app) -> dict[str, bool]:
    """Register with Sphinx, ahead of Napoleon."""
    app.connect("autodoc-process-docstring", split_notes, priority=100)
    return {"parallel_read_safe": True}
