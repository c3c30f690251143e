# `make demo` and `make test` do everything on a fresh machine: both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test slow lint clean

demo: $(STAMP)
	$(BIN)/python -m experiments.demo.run

test: lint
	$(BIN)/pytest -n 2 --durations=10

slow: $(STAMP)
	$(BIN)/pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache
