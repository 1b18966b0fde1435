# `make demo` and `make test` each do everything on a fresh machine: they find a Python, build their own virtual
# environment in .venv and say what they do. A second run starts at once: the stamps in .venv say what is installed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test fuzz lint docs rooms format compile-check bench bench-step bench-dialogue bench-gpu clean

VENV ?= .venv
BIN := $(VENV)/bin
# The first of these that runs and is 3.11 or newer. `make PYTHON=/path/to/python test` overrides it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
JOBS ?= 2
FUZZ ?= 2000
PIP := $(BIN)/python -m pip --disable-pip-version-check
say = @printf '\033[1m==> %s\033[0m\n' $(1)

help:
	@echo "make demo            train a small 4-bit model with GRPO on synthetic dialogues (7 minutes on 2 cores)"
	@echo "make test            lint, types, layers, documentation, all tests (below 10 minutes on 2 cores)"
	@echo "make fuzz            wrong input of every kind, seeded, and a table of how it ends (FUZZ=2000 cases a class)"
	@echo "make lint            ruff, mypy, import-linter"
	@echo "make docs            links, files and numbers named in the documents (FIX=1 fills tables from records)"
	@echo "make rooms           the rooms of the packages, their floors and imports"
	@echo "make format          ruff format"
	@echo "make compile-check   every Triton kernel compiled for every GPU target (CHECK='--quick --ops rms_norm')"
	@echo "make bench-step      one GRPO step beside TRL"
	@echo "make bench-dialogue  one dialogue of 8 turns beside TRL"
	@echo "make bench-gpu       on a GPU: every operation checked and timed beside its peers (GPU=--quick: 90 s)"
	@echo "make clean           remove .venv and caches"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found. Install one (Debian: apt install python3-venv) or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(call say,"[1/2] virtual environment in $(VENV) with $(PYTHON)")
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call say,"[2/2] proactor and what it needs to run (about a minute)")
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call say,"[2/2] proactor with its test tools and the peers that parity is tested against (about a minute)")
	@$(PIP) install -c constraints.txt -e '.[dev,bench]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/proactor demo

lint: $(VENV)/.installed-dev
	$(call say,"lint: ruff")
	@$(BIN)/ruff check .
	$(call say,"types: mypy")
	@$(BIN)/mypy
	$(call say,"layers: import-linter")
	@PYTHONPATH=. $(BIN)/lint-imports --no-logo

docs: $(VENV)/.installed-dev
	$(call say,"docs: links and files and numbers")
	@$(BIN)/python -m bench.docs $(if $(FIX),--write)

format: $(VENV)/.installed-dev
	@$(BIN)/ruff format .

compile-check: $(VENV)/.installed
	@PYTHONPATH=. $(BIN)/python -m proactor.kernels.compile_check $(CHECK)

test: lint docs
	$(call say,"tests: $(JOBS) processes")
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 10 $(TESTS)

fuzz: $(VENV)/.installed-dev
	$(call say,"fuzzers: $(FUZZ) cases a class")
	@FUZZ=$(FUZZ) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 0 tests/fuzz

rooms: $(VENV)/.installed-dev
	@PYTHONPATH=. $(BIN)/python -m bench.rooms

bench: bench-step bench-dialogue

bench-step: $(VENV)/.installed-dev
	@$(BIN)/python -m bench.step --peer trl --workload short

bench-dialogue: $(VENV)/.installed-dev
	@$(BIN)/python -m bench.dialogue --peer trl

bench-gpu: $(VENV)/.installed
	@PYTHONPATH=. $(BIN)/python -m bench.gpu $(GPU)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
