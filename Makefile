# One command for everything; CI uses the same words.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint types docs reference figures bench lock clean help

help:           ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: .venv/.installed   ## everything, pinned, into .venv

.venv/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: install   ## train, inspect, prune, fine-tune and pack a small network: demo/report.html
	$(BIN)/espalier demo --output demo

test: install lint types docs   ## every check and every test (CI runs this)
	$(BIN)/python -m pytest -n 2

lint: install   ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install  ## static types
	$(BIN)/mypy

docs: install   ## build the documentation strictly into site/
	$(BIN)/mkdocs build --strict

reference: install  ## write docs/cli.md and docs/api.md anew
	$(BIN)/python -m docs.generate

figures: install  ## draw and write up results/ anew
	$(BIN)/python -m results.figures

bench: install  ## speed and memory, ratios in one run
	$(BIN)/python -m benchmarks

lock:           ## pin every version anew (names no index)
	$(BIN)/uv pip compile --universal --no-header --no-annotate --no-emit-index-url --group dev --extra all pyproject.toml --output-file requirements.lock
	sed -i '/^-/d' requirements.lock

clean:          ## remove what was built
	rm -rf demo site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
