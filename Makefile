# Two targets for a newcomer: `make demo` and `make test`. Both make the environment they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

MINUTES ?= 60

.PHONY: demo test bench campaign docs clean

demo: $(VENV)/.demo
	$(BIN)/layerprobe demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

campaign: $(VENV)/.test
	$(BIN)/python tests/campaign.py --budget-minutes $(MINUTES)

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/quickstart.py

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/python -m zensical build --clean --strict

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "layerprobe needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist docs/reference .cache .pytest_cache .mypy_cache .ruff_cache
