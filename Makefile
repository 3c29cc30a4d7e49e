# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Several processes share the cores: waiting threads must sleep, not spin.
export OMP_WAIT_POLICY := passive

.PHONY: demo test evaluate check format

demo: .venv/installed
	$(BIN)/diffedit-batch demo out/demo

test: .venv/installed
	$(BIN)/pytest -n 2 --dist loadgroup

evaluate: .venv/installed
	$(BIN)/python jobs/evaluate.py --tier ci

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
