# The commands, for people and CI alike.  `make setup` is quick when nothing changed.
PYTHON ?= python3
BIN := .venv/bin
RESULTS := build/results.json
WORKERS ?= 3
READY := .venv/.ready

.PHONY: setup dev test prove check bench docs

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

dev: setup
	$(BIN)/waypost dev

test: setup
	$(BIN)/python -m pytest -m 'not prove' -n $(WORKERS) --dist loadfile --no-loadscope-reorder --results=$(RESULTS); tests=$$?; \
	$(BIN)/python -m docs.compatibility --results $(RESULTS) --check && exit $$tests

prove: setup
	$(BIN)/python -m pytest -m prove --every-server -n 2 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.generate --check

bench: setup
	$(BIN)/python -m bench

docs: setup
	$(BIN)/python -m docs.generate
	$(BIN)/python -m docs.compatibility --results $(RESULTS)
