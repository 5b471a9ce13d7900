SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COVERED := tests/models tests/flow tests/parity
PACKAGES := acestep tests benchmarks docs/hooks train.py evaluate.py infer.py

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(STAMP) ## Create .venv with all dependencies (about 6 GB), if it is missing or outdated

# The first Python that is new enough; 3.11 first, since constraints.txt was taken from it.
$(BIN)/python:
	@for python in python3.11 python3.12 python3; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "need Python 3.11 or newer on the PATH" >&2; exit 1

# Without build isolation, so that a second run with a changed pyproject.toml needs no network.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (a few minutes on first use)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt setuptools
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[train,eval,sweep,docs,dev]'
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Synthesise songs, fine-tune, sweep guidance and write runs/demo/report.html
	@$(BIN)/python -m acestep demo

.PHONY: lint
lint: $(STAMP) ## Style, format, types and import rules
	@$(BIN)/ruff check -q $(wildcard $(PACKAGES))
	@$(BIN)/ruff format -q --check $(wildcard $(PACKAGES))
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >/dev/null || $(BIN)/lint-imports

.PHONY: test
test: lint ## Lint, then the tests: those of networks and flow under the coverage gate, then the others
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 4 $(COVERED) --cov --cov-report term
	@OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 4 $(addprefix --ignore=,$(COVERED))

.PHONY: test-all
test-all: ## The same with the long tests: kills, sweeps, reproductions, documentation
	@ACESTEP_LONG=1 $(MAKE) test

.PHONY: docs
docs: $(STAMP) ## Build the documentation in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q
	@echo build/site/index.html

.PHONY: notebooks
notebooks: $(STAMP) ## Execute every notebook, from its first cell to its last, in build/notebooks
	@rm -rf build/notebooks && mkdir -p build/notebooks && cp notebooks/*.ipynb build/notebooks
	@cd build/notebooks && PYTHONPATH=$(CURDIR) ../../$(BIN)/jupyter execute --inplace *.ipynb

.PHONY: format
format: $(STAMP) ## Format the sources with ruff
	@$(BIN)/ruff check -q --fix $(wildcard $(PACKAGES))
	@$(BIN)/ruff format -q $(wildcard $(PACKAGES))

.PHONY: clean
clean: ## Remove caches and build products; .venv and runs stay
	@rm -rf build *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	@find acestep tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
