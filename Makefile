PYTHON ?= python3
DEMO_ARGS ?=
PYTEST_ARGS ?=

BIN := .venv/bin
READY := .venv/.asyncckpt-ready

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python examples/async_cartpole.py --demo $(DEMO_ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* htmlcov
	find asyncckpt tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
