# make demo: the main job; make test: checks and tests. Both set themselves up in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo setup check test clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[torch,examples,dev]"
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

test: check
	$(BIN)/python -m pytest

clean:
	rm -rf .venv runs
