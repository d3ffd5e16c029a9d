# Needs Python 3.11 or newer, make and a network; everything else is installed into .venv and .cache.

PYTHON ?= python3
BIN := .venv/bin
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .cache/uv/bin/uv)

.PHONY: demo test lint format lock faults bench clean

demo: .venv/.synced
	@$(BIN)/onceflow demo

test: .venv/.synced
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.synced
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: .venv/.synced
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# The long form of the kill tests: make faults N=200
faults: .venv/.synced
	@$(BIN)/python -m tests.faults --kills $(or $(N),200)

bench: .venv/.synced
	@$(BIN)/onceflow bench

clean:
	rm -rf .venv .cache .onceflow dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.venv/.synced: pyproject.toml requirements.lock $(filter .cache/%,$(UV))
	@test -x $(BIN)/python || $(UV) venv --quiet --python-preference only-system
	@$(UV) pip sync --quiet --python $(BIN)/python --compile-bytecode requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# The exact versions of everything that a developer's environment holds.
lock: $(filter .cache/%,$(UV))
	@$(UV) export --quiet --no-hashes --no-emit-project --all-extras --all-groups --no-header --no-annotate > requirements.lock

# Only where uv is not on PATH: a home of its own, for it would remove itself from the environment that it keeps exact.
.cache/uv/bin/uv:
	@$(PYTHON) -m venv .cache/uv
	@.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
