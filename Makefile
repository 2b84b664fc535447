# Everything happens in .venv; nothing outside this folder is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint clean

help:
	@echo "make demo      restore the bundled clip: daemon, subscriber, file; results in demo/"
	@echo "make test      lint, types, and the tests (minutes)"
	@echo "make test-all  those, and the long tests"
	@echo "make clean     remove .venv and everything made"

# What runs: the package as a user installs it.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deblurd needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

# What the tests need besides: torch (a build for the processor is enough) and the development tools.
$(VENV)/developed: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(or $(TORCH),torch)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[train,int8,dev]'
	touch $@

install: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/python benchmarks/demo.py --out demo

lint: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -q -m 'not long'

test-all: lint
	$(BIN)/pytest -q

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
