# `make demo` and `make test` do everything on a fresh machine: both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
OLDEST := .venv-oldest

.PHONY: demo test slow lint docs coverage test-oldest clean

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

# Warnings are errors. The first page is site/docs/index.html.
docs: $(STAMP)
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --conf-dir docs . site

# At least 90 % of the lines (pyproject.toml), by the quick tests.
coverage: $(STAMP)
	$(BIN)/pytest -n 2 --cov --cov-report=term

# The quick tests with the lowest versions that pyproject.toml allows, in an environment of its own. Old packages warn of
# newer ones, so warnings are no errors here.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pytest -n 2 -W default

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev,docs]"
	touch $(STAMP)

$(OLDEST)/.installed: pyproject.toml scripts/oldest.py
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(PYTHON) scripts/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/constraints.txt -e ".[dev]"
	touch $(OLDEST)/.installed

clean:
	rm -rf .venv $(OLDEST) runs site .coverage .mypy_cache .ruff_cache .pytest_cache
