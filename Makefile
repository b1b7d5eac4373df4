# `make demo` and `make test` do everything on a machine with Python >= 3.11 and make.

PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= runs/demo
PYTEST_ARGS ?=
# A process a core, up to four: each takes 1 to 3 GB.
PYTEST_WORKERS ?= -n auto --maxprocesses 4 --dist worksteal

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format docs clean

help:
	@echo "make demo    set up $(VENV), then train on photographs, sample, calibrate, draw (minutes)"
	@echo "make test    set up $(VENV), then run the tests; PYTEST_ARGS is handed on to pytest"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite the sources"
	@echo "make docs    build the site into docs/_build/html; warnings are errors"
	@echo "make setup   only set up $(VENV)"
	@echo "make clean   remove what the other targets made, $(VENV) included"

setup: $(VENV)/.installed-photos

demo: $(VENV)/.installed-photos
	$(BIN)/vfm-inverse demo --out $(DEMO_OUT)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache
	find vfm_inverse operators problems tests docs -name __pycache__ -prune -exec rm -rf {} +

# One stamp per set of extras: a second run finds it and installs nothing, a changed pyproject.toml
# installs again.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.created
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vfm_inverse needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name another one, as in make demo PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Setting up $(VENV) (the first time this downloads torch: some minutes)"
	$(PYTHON) -m venv $(VENV)
	@touch $@
