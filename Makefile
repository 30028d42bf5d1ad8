# Two commands do everything on a machine with Python 3.11+ and a package index:
#   make demo    one turn of the loop on real ratings and a real model -> out/demo/report.html
#   make test    the whole test suite
# Others: check, format, proofs, clean. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# `make demo` installs only what it needs, but a development install has that already.
DEMO_STAMP := $(if $(wildcard $(VENV)/.dev),$(VENV)/.dev,$(VENV)/.demo)

.DEFAULT_GOAL := help
.PHONY: help demo test check format proofs clean
.NOTPARALLEL:

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(DEMO_STAMP)
	$(BIN)/harken demo

# Four processes at most: each has torch in memory.
test: $(VENV)/.dev
	$(BIN)/pytest -q -n auto --maxprocesses 4

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/test_house.py tests/test_docs.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

proofs: $(VENV)/.dev
	$(BIN)/pytest -q -m slow

clean:
	rm -rf dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Harken needs Python 3.11 or newer, found: $$($(PYTHON) --version 2>&1);" \
	       "install one and name it: make PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "could not make $(VENV); on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing Harken with its test tools into $(VENV) (a few minutes, torch is large)"
	@$(PIP) install -q -c constraints.txt -e '.[dev]' || { echo "$(INSTALL_HELP)"; exit 1; }
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing Harken into $(VENV) (a few minutes, torch is large)"
	@$(PIP) install -q -c constraints.txt -e '.[demo]' || { echo "$(INSTALL_HELP)"; exit 1; }
	@touch $@

INSTALL_HELP := the installation failed: see the lines above; check that pip reaches a package \
index ($(BIN)/python -m pip config list shows which), then run the same command again
