# make demo    install, train on the embedded corpus, print the performance matrix
# make test    install with the development tools, then every check that CI runs
# make lint, types, tests, notebook, wheel    one of these checks
# make test-matrix    the tests under Python 3.11 to 3.13, with the lowest and the newest versions
# make format  let ruff rewrite what it can
# make clean   remove the environment and the caches; runs/ stays
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install -c constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-matrix lint format types tests notebook wheel clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# Everything after installation works offline; these say so to the libraries that would look.
demo test tests notebook wheel: export HF_HUB_OFFLINE := 1
demo test tests notebook wheel: export WANDB_MODE := disabled
test tests notebook: export OMP_NUM_THREADS := 1

$(BIN)/python:
	@echo "== environment: $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== install (some minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "== install, with the development tools (some minutes the first time)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# The defaults are the quickstart: the embedded corpus in six stages. --overwrite replaces a run of
# an earlier demo; the command prints the matrix and where the figures are.
demo: $(VENV)/.installed
	@echo "== train: runs/quickstart"
	@$(BIN)/dsi train --overwrite output=runs name=quickstart

test: lint types tests notebook wheel
	@echo "== all checks passed"

# Environments of its own, some GB each; MATRIX="3.11-lowest 3.13-newest" chooses among the six.
test-matrix:
	@.ci/test-matrix $(MATRIX)

lint: $(VENV)/.installed-dev
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	@echo "== types"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

tests: $(VENV)/.installed-dev
	@echo "== tests"
	@$(BIN)/pytest --quiet --tb short -n auto --maxprocesses 4 --ignore tests/test_wheel.py \
		--cov --cov-report term --cov-fail-under 85

notebook: $(VENV)/.installed-dev
	@echo "== notebook"
	@$(BIN)/dsi train output=runs name=notebook training.updates=40 training.updates_per_stage=10 \
		--overwrite > /dev/null
	@DSI_RUN=runs/notebook $(BIN)/pytest --quiet --nbmake --nbmake-timeout 300 notebooks

wheel: $(VENV)/.installed-dev
	@echo "== wheel"
	@$(BIN)/pytest --quiet tests/test_wheel.py

clean:
	rm -rf $(VENV) .venv-matrix build dist *.egg-info .coverage .pytest_cache .ruff_cache .hypothesis
