# lumid: everything a developer runs. `make help` lists it.
PYTHON ?= python3
VENV   ?= .venv
LOWEST ?= .venv-lowest
BIN    := $(VENV)/bin
DEMO   ?= lumid-demo
JOBS   ?= 2
CORE   := $(VENV)/.installed-train
DEV    := $(VENV)/.installed-test
# what the images of the Dockerfile hold: a Python, a processor, and Debian's C library, 2.41
IMAGE_PYTHON ?= 3.13
IMAGE_ARCH   ?= x86_64
IMAGE_TAGS    = $(foreach minor,$(shell seq 41 -1 17),manylinux_2_$(minor)) manylinux2014 manylinux2010 manylinux1
EXTRAS_cpu   := kubernetes
EXTRAS_gpu   := train,eval

.PHONY: help demo quick test test-all lowest lint format docs sheets bench wheels wheels-gpu clean

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

quick: $(DEV) ## the tests while you work: all but whole builds and trainings, in minutes
	$(BIN)/python -m pytest -m 'not slow and not whole' -n $(JOBS) --dist loadfile

test: lint ## style, types, layers, and the fast tests
	$(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist loadfile

test-all: lint ## the slow tests too
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lowest: ## the quick tests with the least versions of what lumid needs, in an environment of their own
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip compile --quiet --no-deps --resolution lowest-direct --extra train pyproject.toml -o $(LOWEST)/least.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python -c $(LOWEST)/least.txt -e '.[train,eval,test]'
	$(LOWEST)/bin/python -m pytest -m 'not slow and not whole' -n $(JOBS) --dist loadfile

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
	@for file in $(filter-out benchmarks/synthetic_%,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file; done

wheels: $(BIN)/python ## fetch what the CPU image is made of into wheels/cpu; the Dockerfile then needs no network
	$(call fetch_wheels,cpu)

wheels-gpu: $(BIN)/python ## the same for the GPU image, with PyTorch and CUDA, into wheels/gpu
	$(call fetch_wheels,gpu)

define fetch_wheels
rm -rf wheels/$(1)
$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir wheels/$(1) .
$(BIN)/python -m pip download --quiet --dest wheels/$(1) --only-binary=:all: --python-version $(IMAGE_PYTHON) \
	$(foreach tag,$(IMAGE_TAGS),--platform $(tag)_$(IMAGE_ARCH)) "$$(echo wheels/$(1)/lumid-*.whl)[$(EXTRAS_$(1))]"
endef

clean: ## remove the environment and what tools left
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis
