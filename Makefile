# Everything runs in .venv; the first target that needs it makes it from requirements.lock.
#   make book       environment, chapters executed, pages built        make test    lint, unit tests, chapters compared
#   make lab        the chapters in JupyterLab                         make bench   speed of one training step
#   make notebooks  chapters executed and stored in their normal form  make clean   remove what was built (not .venv)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: book test lab notebooks bench clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
PAGE := $(CURDIR)/book/_build/html/index.html

# Real data, where they are at hand: tests that want them run, and the benchmark uses them.
DATA := $(or $(SBR_DATA),$(abspath $(wildcard ../shared/data)))
WITH_DATA := $(if $(DATA),SBR_DATA="$(DATA)")
# One thread a process and two processes: the same arithmetic everywhere, and both cores of a small machine busy.
TWO := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
BENCH := $(if $(wildcard $(DATA)/diginetica),diginetica,demo)

book: notebooks
	$(BIN)/jupyter-book build book/ -W -n --keep-going
	@echo "Open file://$(PAGE)"

test: $(READY)
	$(BIN)/ruff check .
	$(WITH_DATA) $(TWO) $(BIN)/pytest -n 2 tests
	$(TWO) $(BIN)/pytest -n 2 --dist loadscope --nbval-lax notebooks

notebooks: $(READY)
	$(BIN)/python book/execute.py

lab: $(READY)
	$(WITH_DATA) $(BIN)/jupyter lab --notebook-dir=notebooks

bench: $(READY)
	$(WITH_DATA) $(BIN)/sbr bench --model sr-gnn --dataset $(BENCH) --steps 50

clean:
	rm -rf book/_build build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@
