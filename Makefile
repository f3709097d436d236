# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# Another Python: make test PYTHON=python3.12. Extras to install beside what the tests need: make test EXTRAS=test,parity.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: help quickstart test test-slow equivalence releases admit torture attack lint format types benchmark drawings notebooks clean

help:           ## these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("cnnjax needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-$(EXTRAS): $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	touch $@

quickstart: $(VENV)/.installed                  ## watch LeNet-5 learn handwritten digits (half a minute, no download)
	$(BIN)/python -m experiments.quickstart

test: $(VENV)/.installed-$(EXTRAS)              ## the tests, some minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.installed-$(EXTRAS)         ## the tests that take longer
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

equivalence: $(VENV)/.installed-$(EXTRAS)       ## every convolution against its definition, alone and in fused programs
	$(BIN)/python tests/ops/equivalence.py --workers $(WORKERS) --write docs/equivalence.md
	$(BIN)/python tests/ops/fused_programs.py --workers $(WORKERS) --write docs/equivalence.md
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m equivalence

releases:       ## the same on every release of JAX that is allowed, in environments of their own (hours)
	$(PYTHON) tests/every_release.py

admit:          ## what a new release of JAX must pass: make admit JAX=0.11.3 (docs/releases.md)
	$(PYTHON) tests/every_release.py --admit $(or $(JAX),$(error which release? make admit JAX=0.11.3))

torture: $(VENV)/.installed                    ## runs killed and checkpoints damaged at random, nothing lost (15 minutes)
	$(BIN)/python tests/training/torture.py

attack: $(VENV)/.installed-$(EXTRAS)            ## 2,500 attacks on commands, run folders and data: a line each (20 minutes)
	$(BIN)/python tests/attack/attack.py --write docs/attacks.md

lint: $(VENV)/.installed-dev                    ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev                  ## ruff, mending what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev                   ## ty
	$(BIN)/ty check --python $(VENV)

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

benchmark: $(VENV)/.installed                   ## LeNet-5's training step against the same network in plain Flax
	$(BIN)/python benchmarks/lenet5.py

drawings: $(VENV)/.installed                    ## the drawings of networks in the docs
	for name in lenet5 googlenet resnet50 densenet121; do \
	  $(BIN)/cnnjax summary $$name --svg docs/images/$$name.svg >/dev/null || exit; done

notebooks: $(VENV)/.installed-$(EXTRAS)         ## run the notebooks; write those whose paired script has changed
	$(BIN)/python tests/update_notebooks.py

clean:          ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .releases .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
