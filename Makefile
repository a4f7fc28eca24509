# The commands of this project; `make` alone lists them. They need GNU make and Python 3.11 or newer with venv and pip.
#
#   PYTHON=python3.12   the interpreter the environment is made from
#   VENV=path           where the environment lives; empty (VENV=) uses PYTHON's own packages and installs nothing
#   TORCH_INDEX=url     one more package index, for a CPU-only or a CUDA build of torch
#   ARGS="--help"       passed on to `serve`, `bench` and the test runs

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
RUNTIME := supported-python
TOOLS := supported-python
else
PY := $(VENV)/bin/python
RUNTIME := $(VENV)/.runtime-installed
TOOLS := $(VENV)/.tools-installed
endif

PIP_INSTALL = $(PY) -m pip install --no-input --disable-pip-version-check \
	$(if $(strip $(TORCH_INDEX)),--extra-index-url $(TORCH_INDEX))
PYTEST = $(PY) -m pytest
AXE = .page-tools/node_modules/axe-core/axe.min.js

.DEFAULT_GOAL := help
.PHONY: help serve install install-dev check lint format typecheck layers test test-fast test-page page-tools browser test-deploy deploy-tools test-scale test-clients soak bench lock clean supported-python

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | while IFS="$$(printf '\t')" read -r name text; \
	  do printf '  make %-12s %s\n' "$$name" "$$text"; done

# --- running ---------------------------------------------------------------------------------------------------

serve: $(RUNTIME) ## serve the built-in model on http://127.0.0.1:8000
	$(PY) -m service.cli serve $(ARGS)

bench: $(TOOLS) ## measure a running server: ARGS=http://127.0.0.1:8000
	$(PY) -m service.cli bench $(or $(ARGS),--help)

# --- checking --------------------------------------------------------------------------------------------------

check: lint typecheck layers test-fast ## ruff, mypy, the layer rules and the unit tests

lint: $(TOOLS) ## style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(TOOLS) ## rewrite the sources in the project's format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

typecheck: $(TOOLS) ## mypy, strict
	$(PY) -m mypy

layers: $(TOOLS) ## which package may import which
	$(PY) -c 'from importlinter.cli import lint_imports_command as run; run()'

test-fast: $(TOOLS) ## the unit tests
	$(PYTEST) tests/unit -q -m "not slow" $(ARGS)

test: $(TOOLS) ## every test but the slow ones
	$(PYTEST) -m "not slow and not page and not tools and not scale" $(ARGS)

# Whether programs are there; what is missing is installed, as root: $(call debian,PROGRAM:PACKAGE …)
debian = PATH="$$PATH:/usr/sbin:/sbin"; missing=; for pair in $(1); do \
    command -v $${pair%:*} >/dev/null || missing="$$missing $${pair\#*:}"; done; [ -z "$$missing" ] \
  || { apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends $$missing; }

test-deploy: $(TOOLS) ## deploy/ with the programs it is for (make deploy-tools); what is missing is skipped
	$(PYTEST) tests/deploy $(ARGS)

deploy-tools:
	@$(call debian,nginx:nginx prometheus:prometheus systemd-analyze:systemd) \
	  || { echo "error: nginx, prometheus and systemd are missing; apt-get installs them as root" >&2; exit 1; }

test-page: $(TOOLS) page-tools ## the page in real browsers; installs Chromium and Firefox (as root, by apt-get) and axe-core
	$(PYTEST) tests/page -q $(ARGS)

page-tools: browser $(AXE)

$(AXE): | browser
	npm install --silent --no-save --prefix .page-tools axe-core@4.14.1

browser: # Chromium, its driver, and npm for axe-core; Firefox where there is a package of it
	@$(call debian,chromium:chromium chromedriver:chromium-driver npm:npm) \
	  || { echo "error: the tests of the page need chromium, chromedriver and npm; apt-get installs them as root" >&2; exit 1; }
	@$(call debian,firefox-esr:firefox-esr) || echo "LEFT OUT: the page in Firefox, as it could not be installed here" >&2

test-scale: $(TOOLS) ## Ray Serve on a cluster on this machine; installs the extra `scale`
	$(PIP_INSTALL) --quiet -r requirements-scale.lock
	$(PYTEST) tests/scale $(ARGS)

CLIENTS = .venv-clients/.installed

test-clients: $(RUNTIME) $(CLIENTS) ## other people's clients, unchanged, from an environment of their own (Node's where there is npm)
	TEXTGEN_PYTHON="$(abspath $(PY))" .venv-clients/bin/python -m pytest --rootdir tests/clients \
	  --confcutdir tests/clients -p no:cacheprovider $(or $(ARGS),-q) tests/clients

$(CLIENTS): tests/clients/requirements.txt tests/clients/package.json
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --no-input --disable-pip-version-check --quiet -r tests/clients/requirements.txt
	@if command -v npm >/dev/null; then npm install --silent --no-save --prefix tests/clients; else echo "no npm: Node's clients are left out"; fi
	@touch $@

soak: $(TOOLS) ## the slow tests: load, storms, long runs
	$(PYTEST) -m slow --timeout=900 $(ARGS)

# --- the environment -------------------------------------------------------------------------------------------

install: $(RUNTIME) ## what serving needs
install-dev: $(TOOLS) ## what serving, training and testing need

$(VENV)/bin/python: | $(if $(wildcard $(VENV)/bin/python),,supported-python)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime-installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing the locked dependencies into $(VENV) (once, and after they change)"
	$(PIP_INSTALL) -r requirements.lock
	$(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
	@$(PY) -m compileall -q service model_store # else each start compiles them where Python writes no bytecode
	@touch $@

$(VENV)/.tools-installed: requirements-dev.lock $(VENV)/.runtime-installed
	$(PIP_INSTALL) -r requirements-dev.lock
	@touch $@

supported-python:
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no '$(PYTHON)' here; name a Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: '$(PYTHON)' is $$($(PYTHON) -V 2>&1), 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@[ -z "$(strip $(VENV))" ] || $(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "error: '$(PYTHON)' comes without venv or pip; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

lock: $(TOOLS) ## resolve the dependencies anew into the two lock files (ARGS=--upgrade takes newer versions)
	$(PIP_INSTALL) --quiet uv
	$(PY) deploy/lock.py $(ARGS)

clean: ## remove the environment and every cache
	@if [ -n "$(strip $(VENV))" ] && [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist ./*.egg-info
