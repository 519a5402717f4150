# Two commands: `make demo` and `make test`. Both set up what they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS := 4
# without its byte code each of the hundreds of processes that tests start would compile the package anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test setup setup-dev lint warm unit lock accuracy benchmark clean

demo: setup
	$(BIN)/xfelproc demo

# the kernels are compiled beside the linters, by one process, rather than by each worker of pytest
test: setup-dev
	$(MAKE) --jobs 2 --output-sync=target lint warm
	$(MAKE) unit

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

warm: setup-dev
	$(BIN)/xfelproc warm

# more workers than CPUs of a small machine: many tests wait for clocks, queues and other processes; BLAS as in every run
unit: export OPENBLAS_NUM_THREADS := 1
unit: export OMP_NUM_THREADS := 1
unit: setup-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 40 tests

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
