# `make train` and `make test` each work alone on a machine with Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
PRESET ?= cola-fan-muon

.PHONY: train test test-all lint clean

train: .venv/installed
	$(BIN)/colakit train --preset $(PRESET) --smoke

test: lint
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

# What takes minutes too: two hundred kills, every preset at smoke size.
test-all: lint
	$(BIN)/pytest -n 2 -m "not gpu"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "colakit needs Python >= 3.11: make PYTHON=python3.11 ...")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,eval]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
