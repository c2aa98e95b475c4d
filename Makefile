# The commands of the development loop. The first one sets up what it needs; an interrupted setup is resumed.
#   PYTHON  the Python to set up with (3.10 to 3.13)        make setup PYTHON=python3.12
#   VLLM    auto, vllm (NVIDIA GPUs), cpu, or none          make setup VLLM=none
#   LATEST  1: the newest packages, not constraints.txt's   make test LATEST=1
#   ARGS    more arguments for the command                  make test ARGS="-k judge"
#   WORKERS processes to run the tests, one thread each     make test WORKERS=8

PYTHON ?= python3
VLLM ?= auto
WORKERS ?= 2
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format types docs audit constraints clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv: packages, the vLLM build for this machine, the built-in model
	@$(PYTHON) scripts/setup.py --vllm $(VLLM) $(if $(LATEST),--latest)

demo: setup ## run the whole pipeline on the built-in model, into runs/demo
	@$(BIN)/rlaif demo $(ARGS)

test: setup ## run the tests, including those with real vLLM, in minutes
	@$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: setup ## run the tests that start servers, kill processes or train for long
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: setup ## check style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: setup ## fix style
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: setup ## check types
	@$(BIN)/mypy

docs: setup ## generate docs/commands/ from the command line, and build the site into site/
	@$(BIN)/python scripts/command_pages.py
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt 'mkdocs-material>=9.6'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

audit: setup ## list known vulnerabilities of the installed packages, if the advisories can be reached
	@$(PYTHON) scripts/audit.py

constraints: ## write constraints.txt from what is in .venv, after its tests have passed
	@$(PYTHON) scripts/constraints.py

clean: ## remove .venv and the caches of tools; keeps runs/ and converted models
	rm -rf .venv .venv-audit build dist site .pytest_cache .mypy_cache .ruff_cache
