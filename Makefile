# lumid: everything a developer runs. `make help` lists it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= lumid-demo
JOBS   ?= 2
CORE   := $(VENV)/.installed-train
DEV    := $(VENV)/.installed-test

.PHONY: help demo test test-all lint format docs sheets bench clean

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lumid needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(CORE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[train]'
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[train,eval,test]'
	@touch $(CORE) $@

demo: $(CORE) ## install lumid, build a small data set, query it, pre-train on it, draw a reconstruction
	$(BIN)/lumid demo --out $(DEMO)

test: lint ## style, types, layers, and the fast tests
	$(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist loadfile

test-all: lint ## the slow tests too
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(DEV) ## ruff, mypy, and that imports only go down
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

format: $(DEV) ## let ruff put things in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DEV) ## write the pages that are generated
	$(BIN)/python -m lumid.catalog.schema_page > docs/catalog.md

sheets: $(DEV) ## contact sheets of every real image at hand, to be looked at, in build/sheets
	$(BIN)/python -m tests.contact_sheets build/sheets

bench: $(DEV) ## run the benchmarks; each prints its ratios
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

clean: ## remove the environment and what tools left
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
