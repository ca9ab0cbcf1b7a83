# make demo    what bursty traffic does to users under three policies, from an empty machine (Python 3.11+)
# make test    the tests
# make lint    ruff; make types: mypy

VENV := .venv
BIN := $(VENV)/bin
# the first Python that is new enough; PYTHON=... names another
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint types clean

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/installed
	$(BIN)/simbatch run scenarios/bursty.yaml
	$(BIN)/simbatch compare scenarios/bursty.yaml --policy fixed --policy adaptive --policy priority

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A type checker cannot see in the checkout that sim/ is simbatch.sim: it checks an installed copy.
types: $(VENV)/installed-dev
	rm -rf build
	$(PIP) install --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml --strict -p simbatch

clean:
	rm -rf $(VENV) build results *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Editable: a change in the code needs no new installation, only one in pyproject.toml does.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/installed

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: simbatch needs Python 3.11 or newer, and none is on the PATH;" \
		"install one, or name it: make demo PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment;" \
		"on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
