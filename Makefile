# Every target sets up what it needs in .venv; `make` alone lists them.
PYTHON ?= python3
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -c constraints.txt
READY := .venv/ready

# `time` in a recipe prints this after the command.
export TIMEFORMAT := measured time: %0lR

.PHONY: help setup format check test verify signs parity bench bench-quick bench-full mutants clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

setup: $(READY) ## make .venv and install the package for development

format: $(READY) ## lay out the code and repair what the linter can repair
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: $(READY) ## format, lint, types, layers, fast tests (under 90 s)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -m "not slow" -n 2

test: check ## what proves correctness: check, slow tests, logratio verify
	$(BIN)/pytest -m slow -n 2
	time $(BIN)/logratio verify

verify: $(READY) ## closed-form gradients and exact fixed points, one table
	time $(BIN)/logratio verify

signs: $(READY) ## flip every sign and comparison of a loss; none may survive
	time $(BIN)/python tools/signs.py

parity: $(READY)-bench ## compare losses and gradients with TRL
	time $(BIN)/python benchmarks/parity.py

bench: $(READY)-bench ## time a step against TRL's trainers (up to 75 minutes)
	time $(BIN)/python benchmarks/speed.py all

bench-quick: $(READY)-bench ## the same on four small rows (5 minutes)
	time $(BIN)/python benchmarks/speed.py quick

bench-full: $(READY)-bench ## and larger models, and growth curves (hours; goes on where it stopped)
	time $(BIN)/python benchmarks/speed.py full

mutants: $(READY)-mutants ## mutation testing of the mathematics (up to 90 minutes)
	time $(BIN)/python tools/mutants.py

clean: ## remove .venv and every cache
	rm -rf .venv build dist mutants .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	touch $@

$(READY)-%: $(READY)
	$(INSTALL) -e '.[$*]'
	touch $@
