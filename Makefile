# Two commands: `make demo` and `make test`. Both set up what they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test setup setup-dev lint unit lock accuracy benchmark clean

demo: setup
	$(BIN)/xfelproc demo

test: setup-dev lint unit

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python pyproject.toml requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@

setup: $(VENV)/.base

setup-dev: $(VENV)/.dev

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

accuracy: setup-dev
	$(BIN)/python benchmarks/accuracy.py

benchmark: setup-dev
	$(BIN)/python -m pytest benchmarks --benchmark-only
	$(BIN)/python benchmarks/whole_run.py

lock: setup-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --no-emit-index-url --no-header --no-annotate -o requirements.lock

clean:
	rm -rf $(VENV) demo
