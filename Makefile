# Every target makes what it needs in a virtual environment of its own (.venv); nothing is installed elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test test-long check docs gpu-check gpu-records speedrun clean

demo: $(VENV)/installed
	$(BIN)/dinoforge demo out=demo-out

test: $(VENV)/installed-dev
	$(THREADS) $(BIN)/python -m pytest -q -n 2 -m "not long and not gpu"

test-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -m "long and not gpu"

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Warnings are errors: a dead link or anchor, a page that is in no list. Open docs/_build/index.html.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

# On a machine with a CUDA device; writes gpu-check.json. Without an installation: PYTHONPATH=src python3 bench/gpu_check.py
gpu-check: $(VENV)/installed-dev
	$(BIN)/python bench/gpu_check.py

# On a machine with a CUDA device: CIFAR-10 from scratch, in calls of under 9 minutes until it says that it is done.
gpu-records: $(VENV)/installed-dev
	$(BIN)/python bench/gpu_records.py

# How many seconds of training until the toy world is known; appends to speedrun.jsonl. docs/records.md has the table.
speedrun: $(VENV)/installed
	$(BIN)/python bench/speedrun.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "dinoforge needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The pinned torch first: on a machine without a GPU its pin takes the processor build.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) docs/_build demo-out .pytest_cache .mypy_cache .ruff_cache
