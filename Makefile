# `make demo` and `make test` each do everything on a fresh machine: they find a Python, build their own virtual
# environment in .venv and say what they do. A second run starts at once: the stamps in .venv say what is installed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-browser test-neighbours test-oldest fuzz lint docs rooms format compile-check audit lock bench bench-step bench-dialogue bench-episodes bench-micro bench-gpu clean

VENV ?= .venv
BIN := $(VENV)/bin
# The first of these that runs and is 3.11 or newer. `make PYTHON=/path/to/python test` overrides it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
JOBS ?= 2
FUZZ ?= 2000
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Everything is installed by hash from locks/, and nothing beside it (--no-deps). Only torch and triton, with the
# libraries of a CUDA build, are not: which build an index offers decides their hash. HASHES=0: by constraints.txt
# alone, for a mirror with builds of its own.
HASHES ?= 1
ifeq ($(HASHES),1)
install = $(PIP) install --require-hashes --no-deps -r locks/$(1).txt && \
	$(PIP) install -c constraints.txt torch triton && \
	$(PIP) install --no-deps --no-build-isolation -e . && $(PIP) check
else
install = $(PIP) install -c constraints.txt -e '.$(if $(filter dev,$(1)),[dev$(comma)bench])'
endif
comma := ,
# Not a function for `call`, which would cut its text at a comma.
say = @printf '\033[1m==> %s\033[0m\n'

help:
	@echo "make demo            train a small 4-bit model with GRPO on synthetic dialogues (6 minutes on 2 cores)"
	@echo "make test            lint, types, layers, documentation, all tests (about 15 minutes on 2 cores)"
	@echo "make test-oldest     tests of kernels and engine on the oldest versions that are tested (5 GB in .venv-oldest)"
	@echo "make test-browser    the review page in a headless chromium, with the mouse, a finger and keys"
	@echo "make test-neighbours verifiers, ART, W\&B and Trackio beside ours, in environments of their own (1.4 GB)"
	@echo "make fuzz            wrong input of every kind, seeded, and a table of how it ends (FUZZ=2000 cases a class)"
	@echo "make lint            ruff, mypy, import-linter"
	@echo "make docs            links, files and numbers named in the documents (FIX=1 fills tables from records)"
	@echo "make rooms           the rooms of the packages, their floors and imports"
	@echo "make format          ruff format"
	@echo "make compile-check   every Triton kernel compiled for every GPU target (CHECK='--quick --ops rms_norm')"
	@echo "make audit           bandit, and known vulnerabilities of the locked versions (needs a package index)"
	@echo "make lock            locks/ again from pyproject.toml and constraints.txt"
	@echo "make bench           the three comparisons with TRL"
	@echo "make bench-step      one GRPO step beside TRL"
	@echo "make bench-dialogue  one dialogue of 8 turns beside TRL"
	@echo "make bench-episodes  one training step in an environment of several turns beside TRL"
	@echo "make bench-micro     small parts beside their saved ratios (SAVE=1 saves them)"
	@echo "make bench-gpu       on a GPU: everything checked and timed beside its limits (GPU=--quick: 90 s; bench/GPU.md)"
	@echo "make clean           remove .venv, .venv-oldest, .venv-neighbours and caches"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found. Install one (Debian: apt install python3-venv) or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(say) "[1/2] virtual environment in $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt locks/run.txt | $(BIN)/python
	$(say) "[2/2] proactor and what it needs to run (about a minute)"
	@$(call install,run)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt locks/dev.txt | $(BIN)/python
	$(say) "[2/2] proactor with its test tools and the peers that parity is tested against (about a minute)"
	@$(call install,dev)
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/proactor demo

lint: $(VENV)/.installed-dev
	$(say) "lint: ruff"
	@$(BIN)/ruff check .
	$(say) "types: mypy"
	@$(BIN)/mypy
	$(say) "layers: import-linter"
	@PYTHONPATH=. $(BIN)/lint-imports --no-logo

docs: $(VENV)/.installed-dev
	$(say) "docs: links, files, numbers"
	@$(BIN)/python -m bench.docs $(if $(FIX),--write)

format: $(VENV)/.installed-dev
	@$(BIN)/ruff format .

compile-check: $(VENV)/.installed
	@PYTHONPATH=. $(BIN)/python -m proactor.kernels.compile_check $(CHECK)

# Tools of their own environment: what they need is nobody else's.
AUDIT := $(VENV)/audit/bin
$(VENV)/audit/.installed: | $(BIN)/python
	$(say) "bandit, pip-audit and uv in $(VENV)/audit"
	@$(PYTHON) -m venv $(VENV)/audit
	@$(AUDIT)/python -m pip --disable-pip-version-check install -q bandit pip-audit uv
	@touch $@

audit: $(VENV)/audit/.installed
	$(say) "bandit: medium and higher"
	@$(AUDIT)/bandit -q -ll -r engine kernels proactor bench -x proactor/engine,proactor/kernels
	$(say) "pip-audit: known vulnerabilities of the locked versions, and of torch"
	@$(AUDIT)/python -c "from urllib.request import urlopen; urlopen('https://pypi.org/pypi/pip/24.0/json', timeout=20)" 2>/dev/null \
		|| { echo "not checked: pypi.org, which knows of vulnerabilities, cannot be reached" >&2; exit 0; }; \
	grep -E '^(torch|triton)==' constraints.txt > $(VENV)/audit/torch.txt; \
	$(AUDIT)/pip-audit --strict --disable-pip --no-deps -r locks/dev.txt && \
	$(AUDIT)/pip-audit --strict --disable-pip --no-deps -r $(VENV)/audit/torch.txt

# Python 3.11's versions serve newer ones too: each hash of a release is listed.
LOCK = $(AUDIT)/uv pip compile -q pyproject.toml -c constraints.txt --python-version 3.11 --generate-hashes \
	--no-annotate --no-header --no-emit-package torch --no-emit-package triton --find-links "$${PIP_FIND_LINKS:-.}"
lock: $(VENV)/audit/.installed
	@echo hatchling > $(VENV)/audit/build.in
	@$(LOCK) $(VENV)/audit/build.in -o locks/run.txt
	@$(LOCK) --extra dev --extra bench -o locks/dev.txt

# Hypothesis draws the same examples each time here; pytest by itself draws new ones.
test: lint docs
	$(say) "tests: $(JOBS) processes"
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -p no:benchmark --hypothesis-profile=ci -n $(JOBS) --dist worksteal --durations 10 $(TESTS)

# Parts beside references of the same moment; a part that takes 1.6 times its saved ratio fails. SAVE=1 saves ratios.
bench-micro: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 0 --benchmark-max-time=0.3 --benchmark-disable-gc \
		--benchmark-columns=min,median,rounds $(if $(SAVE),--save-baseline) bench/micro

# Of no use to anybody else, so not in the locks: playwright, and its chromium (150 MB) where none is installed.
test-browser: $(VENV)/.installed-dev
	$(say) "playwright, and a chromium where there is none"
	@$(PIP) install -q playwright==1.65.2
	@command -v chromium chromium-browser google-chrome >/dev/null || $(BIN)/python -m playwright install chromium
	$(say) "tests: the review page in a browser"
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 0 tests/proactor/review/test_browser.py

# The oldest versions (locks/oldest.txt), in an environment of their own; what that file does not name is as in
# constraints.txt. torch of that age comes with CUDA's libraries (3 GB), without which it cannot be imported.
OLDEST := .venv-oldest
PYTHON_OLDEST ?= $(shell for p in python3.12 $(HOME)/.pyenv/versions/3.12*/bin/python $(PYTHON); do \
	$$p -c 'import venv, ensurepip' >/dev/null 2>&1 && { echo $$p; break; }; done)

$(OLDEST)/.installed: pyproject.toml constraints.txt locks/oldest.txt
	$(say) "[1/2] virtual environment in $(OLDEST) with $(PYTHON_OLDEST)"
	@$(PYTHON_OLDEST) -m venv $(OLDEST)
	$(say) "[2/2] torch, triton and transformers of locks/oldest.txt (5 GB, two minutes)"
	@grep -vFf <(grep -o '^.*==' locks/oldest.txt) constraints.txt | \
		cat locks/oldest.txt - > $(OLDEST)/constraints.txt
	@$(OLDEST)/bin/python -m pip --disable-pip-version-check install -c $(OLDEST)/constraints.txt \
		-e . pytest pytest-xdist hypothesis peft
	@touch $@

test-oldest: $(OLDEST)/.installed
	$(say) "kernels compiled for sm_90 by the oldest triton"
	@PYTHONPATH=. $(OLDEST)/bin/python -m proactor.kernels.compile_check --targets sm_90
	$(say) "tests of kernels and engine, and the pretended driver: $(JOBS) processes"
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(OLDEST)/bin/python -m pytest -n $(JOBS) --dist worksteal \
		tests/kernels tests/engine tests/card/test_driver.py

# Other projects, whose pins exclude ours and one another: an environment each, beside ours with server and engine.
# ART 0.5.18 does not name it, but its client fails with openai 3, which left httpx.
NEIGHBOURS := .venv-neighbours
PACKAGES_verifiers := verifiers==0.4.0
PACKAGES_art := openpipe-art==0.5.18 'openai<3'
PACKAGES_trackers := wandb==0.31.0 trackio==0.43.0

$(NEIGHBOURS)/%/.installed: | $(BIN)/python
	$(say) "$(PACKAGES_$*) in $(NEIGHBOURS)/$*"
	@$(PYTHON) -m venv $(NEIGHBOURS)/$*
	@$(NEIGHBOURS)/$*/bin/python -m pip --disable-pip-version-check install -q $(PACKAGES_$*)
	@touch $@

test-neighbours: $(VENV)/.installed-dev $(foreach n,verifiers art trackers,$(NEIGHBOURS)/$(n)/.installed)
	$(say) "tests: other projects beside ours"
	@NEIGHBOURS=$(abspath $(NEIGHBOURS)) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 0 tests/neighbours

fuzz: $(VENV)/.installed-dev
	$(say) "fuzzers: $(FUZZ) cases a class"
	@FUZZ=$(FUZZ) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 0 tests/fuzz

rooms: $(VENV)/.installed-dev
	@PYTHONPATH=. $(BIN)/python -m bench.rooms

bench: bench-step bench-dialogue bench-episodes

bench-step: $(VENV)/.installed-dev
	@$(BIN)/python -m bench.step --peer trl --workload short

bench-dialogue: $(VENV)/.installed-dev
	@$(BIN)/python -m bench.dialogue --peer trl

bench-episodes: $(VENV)/.installed-dev
	@$(BIN)/python -m bench.episodes --peer trl

bench-gpu: $(VENV)/.installed
	@PYTHONPATH=. $(BIN)/python -m bench.gpu $(GPU)

clean:
	rm -rf $(VENV) $(OLDEST) $(NEIGHBOURS) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
