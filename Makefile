# make demo    install, index the embedded corpus in five ways, print one table and one figure
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

# The default beside three of the paper's methods and BM25: six stages of the embedded corpus each.
# --overwrite replaces the runs of an earlier demo.
PAPER := training.updates=600 training.updates_per_stage=150
TRAIN := $(BIN)/dsi train --overwrite output=runs
demo: $(VENV)/.installed
	@echo "== runs/quickstart: the default"
	@$(TRAIN) name=quickstart
	@echo "== runs/bm25: no model"
	@$(TRAIN) name=bm25 method=bm25 > /dev/null
	@echo "== runs/cl_new: keep training on new documents"
	@$(TRAIN) name=cl_new method=cl_new $(PAPER) > /dev/null
	@echo "== runs/cl_seen: on all documents"
	@$(TRAIN) name=cl_seen method=cl_seen $(PAPER) > /dev/null
	@echo "== runs/genmem_sam: and on pseudo-queries, sharpness-aware (DSI++)"
	@$(TRAIN) name=genmem_sam method=genmem_seen sharpness=sam $(PAPER) > /dev/null
	@$(BIN)/dsi report runs/quickstart runs/cl_new runs/cl_seen runs/genmem_sam runs/bm25

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
	@$(BIN)/dsi train output=runs name=notebook method=windows training.updates=40 training.updates_per_stage=10 \
		--overwrite > /dev/null
	@DSI_RUN=runs/notebook $(BIN)/pytest --quiet --nbmake --nbmake-timeout 300 notebooks

wheel: $(VENV)/.installed-dev
	@echo "== wheel"
	@$(BIN)/pytest --quiet tests/test_wheel.py

clean:
	rm -rf $(VENV) .venv-matrix build dist *.egg-info .coverage .pytest_cache .ruff_cache .hypothesis
