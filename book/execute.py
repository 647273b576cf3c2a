"""Execute the notebooks with their default parameters, in place, and store them in one normal form.

Run from anywhere: ``python book/execute.py [notebook ...]``; without names, all of ``notebooks/``. A second run without
a change writes the same bytes. ``--check`` executes nothing and fails if a stored notebook is not in the normal form.
"""
import argparse
import hashlib
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
KEPT_CELL_METADATA = {"tags", "mystnb", "jupyter"}
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
SETTINGS = {  # the same arithmetic and the same output wherever the book is made
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove, in place, whatever differs between two runs of the same notebook; returns it.

    Gone: times, papermill's notes, versions of kernel and Python, widgets, standard error (progress bars), memory
    addresses. Cells are named after their text, so that an unchanged cell keeps its name.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    names: set[str] = set()
    for cell in notebook.cells:
        cell.source = cell.source.rstrip()
        kept = {name: value for name, value in cell.metadata.items() if name in KEPT_CELL_METADATA and value}
        cell.metadata = nbformat.from_dict(kept)
        cell.id = _name(cell, names)
        if cell.cell_type == "code":
            cell.outputs = _outputs(cell.outputs)
    return notebook


def _name(cell: nbformat.NotebookNode, taken: set[str]) -> str:
    """A cell's name: a hash of its text, told apart from equal cells before it by a count."""
    name = base = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
    count = 1
    while name in taken:
        count += 1
        name = f"{base}-{count}"
    taken.add(name)
    return name


def _outputs(outputs: list) -> list:
    """The outputs worth storing: no standard error, no widgets; pieces of one stream joined; addresses cut off."""
    kept = []
    for output in outputs:
        if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            continue
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
            continue
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = ADDRESS.sub("", output.text)
        elif "data" in output:
            output.metadata = nbformat.from_dict({})
            for kind, value in output.data.items():
                if kind.startswith("text/"):
                    output.data[kind] = ADDRESS.sub("", value)
    return kept


def execute(path: Path) -> str:
    """Run one notebook from its own folder and store it if its normal form changed; returns a line about it."""
    import papermill

    with TemporaryDirectory() as folder:
        draft = Path(folder, path.name)
        papermill.execute_notebook(path, draft, cwd=path.parent, progress_bar=False, kernel_name="python3")
        text = nbformat.writes(normalise(nbformat.read(draft, as_version=4))) + "\n"
    if text == path.read_text(encoding="utf-8"):
        return f"{path.name}: unchanged"
    path.write_text(text, encoding="utf-8")
    return f"{path.name}: renewed"


def check(path: Path) -> str:
    """An empty string if a stored notebook is in the normal form, else what is wrong with it."""
    text = path.read_text(encoding="utf-8")
    normal = nbformat.writes(normalise(nbformat.reads(text, as_version=4))) + "\n"
    return "" if text == normal else f"{path.name}: not in the normal form; run `make notebooks`"


def attempt(path: Path) -> tuple[bool, str]:
    """Whether a notebook ran, and a line about it, or the cell and the error it stopped at."""
    from papermill.exceptions import PapermillExecutionError

    try:
        return True, execute(path)
    except (OSError, nbformat.reader.NotJSONError, PapermillExecutionError, RuntimeError) as error:
        return False, f"{path.name}: failed\n{error}"


def execute_all(paths: list[Path], jobs: int) -> bool:
    """Run notebooks side by side, each in a kernel with no settings of the user's; False if one of them failed."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(jobs) as pool:
        profile = Path(folder, "profile_default")
        profile.mkdir()
        (profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 'ERROR'\n")
        os.environ.update(SETTINGS, IPYTHONDIR=folder)
        outcomes = []
        for ran, line in pool.map(attempt, paths):
            print(line, file=sys.stderr, flush=True)
            outcomes.append(ran)
    return all(outcomes)


def main() -> int:
    """Entry point; the exit code is 0, or 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="notebooks at a time")
    parser.add_argument("--check", action="store_true", help="execute nothing, only look at the stored form")
    arguments = parser.parse_args()
    paths = [path.resolve() for path in arguments.notebooks] or sorted(NOTEBOOKS.glob("*.ipynb"))
    if not arguments.check:
        return int(not execute_all(paths, arguments.jobs))
    faults = [fault for fault in map(check, paths) if fault]
    print("\n".join(faults), end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
