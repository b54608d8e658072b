# make demo: the main job; make test: checks and tests; make soak: what takes too long for these.
# All set themselves up in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo setup check test soak clean

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
	$(BIN)/python -m pytest -n 2 --dist loadfile

soak: setup
	$(BIN)/python -m pytest tests/soak/schedules.py tests/soak/leaks.py

clean:
	rm -rf .venv runs
