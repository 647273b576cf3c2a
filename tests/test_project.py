"""The files around the package agree with each other."""
import ast
import re
import sys
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pybtex.database import parse_file

import sbr_core
from sbr_core import datasets, train
from sbr_core.models import MODELS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {"typing_extensions": "typing-extensions", "yaml": "pyyaml", "mpl_toolkits": "matplotlib"}
IMPORT_NAMES |= {"faiss": "faiss-cpu"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pins() -> dict[str, str]:
    lines = [line for line in read("requirements.lock").splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in PROJECT["dependencies"] + extras["book"] + extras["test"]]


def test_the_lock_holds_exact_versions_and_nothing_else():
    lines = [line for line in read("requirements.lock").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)  # no hosts, no paths, no +cpu
    assert list(pins()) == sorted(pins()) and len(lines) == len(pins())
    assert pins()["torch"] == "2.13.0"


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lock_satisfies_pyproject(requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_conda_users_get_the_same_versions():
    environment = yaml.safe_load(read("environment.yml"))
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (from_pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    python = next(entry.split("=")[1] for entry in plain if entry.startswith("python="))
    assert from_pip == ["-r requirements.lock", "-e ."]
    assert {entry.split("=")[0] for entry in plain} == {"python", "pip"}  # conda pins nothing that the lock pins
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    assert f'python-version: "{python}"' in read(".github/workflows/ci.yml")


def test_versions_agree():
    assert yaml.safe_load(read("CITATION.cff"))["version"] == sbr_core.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", sbr_core.__version__)
    assert PROJECT["dynamic"] == ["version"]


def imported(path: Path) -> set[str]:
    """Names of the packages that a file imports, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"sbr_core"}


def test_the_package_imports_only_what_it_declares():
    lines = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["index"]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    used = set().union(*(imported(path) for path in (ROOT / "sbr_core").rglob("*.py")))
    optional = {"IPython", "triton"}  # only looked for where they are there
    assert {canonicalize_name(IMPORT_NAMES.get(name, name)) for name in used - optional} <= declared


def test_every_subpackage_is_installed():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "sbr_core").rglob("__init__.py")}
    assert set(tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["packages"]) == folders


def test_the_reference_page_lists_every_module():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "sbr_core").rglob("*.py")}
    modules = {name for name in modules if not name.endswith("__init__")} - {"sbr_core.__main__"}
    listed = re.findall(r"^\.\. automodule:: (\S+)$", read("book/api.md"), re.MULTILINE)
    assert sorted(listed) == sorted(modules)


def test_the_readme_claims_only_records_that_are_there():
    named = {"Yoochoose 1/64": "yoochoose1_64", "Diginetica": "diginetica", "demo": "demo"}
    named |= {"Yoochoose 1/64 (dgtn)": "yoochoose1_64_dgtn"}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in read("README.md").splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[2].startswith("`models/")]
    systems = [(re.findall("`([^`]+)`", row[1]), row[4].split(", ")) for row in rows]
    claims = [(system, title) for names, titles in systems for system in names for title in titles]
    assert {system for system, _ in claims} == set(MODELS)
    for system, title in claims:
        assert (ROOT / "book" / "results" / f"{system}--{named[title]}--seed0.json").is_file(), (system, title)


def test_the_readme_s_example_runs_whatever_the_ids_are(capsys, monkeypatch):
    demo = datasets.load("demo")
    renamed = replace(demo, item_ids=demo.item_ids + 5000, test=demo.test.select(0, 50))
    monkeypatch.setattr(datasets, "load", lambda name: renamed)
    (code,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    fit = train.fit
    monkeypatch.setattr(train, "fit", lambda model, examples, config: fit(model, examples[:1000], config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of clicks that are unknown
        exec(code, {})
    metrics, shelf = capsys.readouterr().out.splitlines()
    assert "HR@20" in metrics and all(5000 <= int(item) < 5280 for item in re.findall(r"\d+", shelf.split("]")[0]))


def test_the_page_on_a_model_of_your_own_runs(capsys, monkeypatch, tmp_path):
    (tmp_path / "book").symlink_to(ROOT / "book")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(MODELS, "mean-mlp", None)  # forgotten again at the end
    exec(re.findall(r"```python\n(.*?)```", read("book/own_model.md"), re.DOTALL)[0], {"__name__": "own"})
    honest, comparison = capsys.readouterr().out.splitlines()
    assert "'epoch'" in honest and comparison.startswith("Comparison(difference=-")
    assert (tmp_path / "my-results" / "variants" / "mean-mlp--first--demo--seed0.json").exists()


def test_citations_are_complete():
    works = yaml.safe_load(read("CITATION.cff"))["references"]
    assert len(works) == 5
    library = parse_file(ROOT / "book" / "references.bib")
    titles = {re.sub(r"[{}]", "", entry.fields["title"]).lower() for entry in library.entries.values()}
    assert {work["title"].lower() for work in works} <= titles
    for key, entry in library.entries.items():
        assert entry.persons["author"] and entry.fields["title"], key
    dois = [entry.fields["doi"] for entry in library.entries.values() if "doi" in entry.fields]
    assert len(dois) == len(set(dois))
    assert {work["doi"] for work in works if "doi" in work} <= set(dois)


def test_the_commands_are_there():
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    assert {"book", "test", "lab", "notebooks", "bench", "clean"} <= targets
    assert read(".ci/run").splitlines()[-1] == "exec make test"
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
