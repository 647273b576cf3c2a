"""What all tests share. The package is imported inside the fixtures, after the hook that checks shapes is in place."""
import json
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("project", derandomize=True, deadline=None)  # the same examples at every run, on any machine
settings.load_profile("project")


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """Each device in turn; CUDA is skipped where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real datasets: $SBR_DATA, else ../shared/data beside the project."""
    folder = Path(os.environ.get("SBR_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set SBR_DATA to the folder that holds diginetica/ and the others")
    return folder


@pytest.fixture
def toy_sessions():
    """Ten sessions on seven items: a to-and-fro, a repeat, a single click, a long one; item 6 is never clicked."""
    from sbr_core.sessions import Sessions

    clicks = [[0, 1, 0, 2], [3, 3, 4], [5], [1, 2], [2, 1, 2, 1, 2]]
    clicks += [[4, 0], [0, 1, 2, 3, 4, 5, 0, 1], [3, 4], [5, 0, 5], [2, 3]]
    return Sessions.from_lists(clicks, num_items=7, times=[1000 + 60 * number for number in range(len(clicks))])


@pytest.fixture
def sbr(monkeypatch, capsys):
    """sbr("train", ...) -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command puts its own in place

    from sbr_core import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sbr", *map(str, arguments)])
        capsys.readouterr()
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            warnings.simplefilter("always")
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def sbr_json(sbr):
    """The one JSON object that a command prints."""

    def run(*arguments):
        code, out, err = sbr(*arguments, "--json")
        assert code == 0, err
        assert out.count("\n") == 1 and out.endswith("\n")
        return json.loads(out)

    return run
