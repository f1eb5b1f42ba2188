# Two commands do everything: `make book` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do $$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/installed
DATASET ?= movielens
PROFILE ?= laptop
SEED ?= 0
LLM ?= $(if $(filter paper,$(PROFILE)),facebook/opt-6.7b,pocket)
DEVICE ?= $(if $(filter paper,$(PROFILE)),cuda,cpu)
DATASETS ?= $(DATASET)
SEEDS ?= $(SEED)
LLMS ?= $(LLM)
JOBS ?= 1
CHAPTERS ?= 01 02 03 04 05 06
SIZE ?= opt-6.7b
BATCH ?= 4
RUN := $(BIN)/python -m allmrec_lib.runner

# Packages are installed uncompiled: their bytecode is written where it is first used, also in an image that forbids it
# (every process would otherwise compile torch and transformers anew: 15 s instead of 6 to import them).
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup book test chapter tune ledger grid bench bench-paper html notebooks clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## a virtual environment in .venv with everything pinned

$(STAMP): pyproject.toml
	@test -x $(BIN)/python -o -n "$(PYTHON)" || (echo "Python 3.11 or 3.12 is needed and was not found; say where: make setup PYTHON=/path/to/python3.11" && exit 2)
	@test -x $(BIN)/python || (rm -rf .venv && $(PYTHON) -m venv .venv)
	@echo "installing (about two minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check torch==$$(sed -n 's/.*"torch==\([^"]*\)".*/\1/p' pyproject.toml)
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[book,test]'
	@touch $@

book: $(STAMP) ## run the chapters on real data and render the book: DATASET=movielens CHAPTERS="01 02"
	@$(RUN) book $(CHAPTERS) --dataset $(DATASET) --profile $(PROFILE) --seed $(SEED) --llm $(LLM) --device $(DEVICE)
	@$(MAKE) --no-print-directory html

chapter: $(STAMP) ## run one chapter: CH=03 DATASET=beauty PROFILE=laptop
	@test -n "$(CH)" || (echo "say which chapter: make chapter CH=03" && exit 2)
	@$(RUN) chapter $(CH) --dataset $(DATASET) --profile $(PROFILE) --seed $(SEED) --llm $(LLM) --device $(DEVICE)

tune: $(STAMP) ## try the paper's learning rates on validation: MODEL=GRU4Rec DATASET=beauty
	@test -n "$(MODEL)" || (echo "say which model: make tune MODEL=GRU4Rec" && exit 2)
	@$(BIN)/python -m allmrec_lib.tune $(MODEL) --dataset $(DATASET) --profile $(PROFILE) --seed $(SEED) --llm $(LLM) --device $(DEVICE)

grid: $(STAMP) ## chapters x datasets x seeds: DATASETS="movielens beauty" SEEDS="0 1" LLMS=pocket CHAPTERS="01 02" JOBS=1 GRID="options of snakemake"
	@test -x $(BIN)/snakemake || $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[grid]'
	@PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --jobs $(JOBS) --keep-going --nolock --rerun-incomplete --rerun-triggers mtime params --quiet rules $(GRID) \
	  --config datasets="$(DATASETS)" seeds="$(SEEDS)" llms="$(LLMS)" chapters="$(CHAPTERS)" profile=$(PROFILE) device=$(DEVICE)

ledger: $(STAMP) ## write the page of the paper's claims from the recorded results
	@$(BIN)/python -m allmrec_lib.ledger

bench: $(STAMP) ## every speed comparison, the profiles and the cost constants, in minutes; writes both pages
	@OMP_NUM_THREADS=1 ALLMREC_QUIET=1 $(BIN)/python -m tests.bench

bench-paper: $(STAMP) ## Table 10, Stage 2, inference, memory with OPT of true size and random weights: SIZE=opt-6.7b BATCH=4 DEVICE=cuda
	@ALLMREC_QUIET=1 $(BIN)/python -m tests.bench paper --llm $(SIZE) --batch $(BATCH) --device $(DEVICE)

notebooks: $(STAMP) ## run the chapters' sources in place at the smoke profile
	@$(RUN) sources

html: $(STAMP) ## render what is there: _build/html/index.html (warnings are errors)
	@$(BIN)/jupyter-book build . -W -n --keep-going --quiet
	@echo "the book: _build/html/index.html"

test: $(STAMP) ## the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

clean: ## delete what was made (not .venv, not downloads)
	rm -rf _build data/artifacts data/processed
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
