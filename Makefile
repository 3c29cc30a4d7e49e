# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
DEVICE ?= cuda
# Several processes share the cores: waiting threads must sleep, not spin.
export OMP_WAIT_POLICY := passive

.PHONY: demo test chaos evaluate benchmark check format

demo: .venv/installed
	$(BIN)/diffedit-batch demo out/demo

test: .venv/installed
	$(BIN)/pytest -n 2 --dist loadgroup -m 'not chaos'

chaos: .venv/installed
	$(BIN)/pytest -m chaos

evaluate: .venv/installed
	$(BIN)/python jobs/evaluate.py --tier ci

benchmark: .venv/installed
	$(BIN)/python jobs/benchmark.py all --device $(DEVICE)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
