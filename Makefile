PYTHON ?= python3
DEMO_ARGS ?=
PYTEST_ARGS ?=

BIN := .venv/bin
READY := .venv/.asyncckpt-ready
BENCH_BIN := build/bench-venv/bin
BENCH_READY := build/bench-venv/.asyncckpt-ready
BENCH_ARGS ?=

RIGS_ARGS ?=
MINUTES ?= 60
RUNS ?= 10
STRESS_ARGS ?=

.PHONY: demo test frameworks stress-test lint bench bench-quick rigs torture clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python examples/async_cartpole.py --demo $(DEMO_ARGS)

# In a random order, whose seed is printed at the top; PYTEST_ARGS=--randomly-seed=SEED repeats it. The seed also chooses
# the loop of most async tests; PYTEST_ARGS=--loops=both runs them on both.
test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not rigs" --loops=either $(PYTEST_ARGS)

# PyTorch, JAX and the libraries of the integrations, without which the tests that need them are skipped. They are large, so only this installs them.
frameworks: .venv/.frameworks-ready

.venv/.frameworks-ready: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,frameworks]'
	touch $@

# All tests RUNS times, including those of the rigs, with 2 and 4 workers in turns; every third run is under load.
stress-test: $(READY)
	$(BIN)/python tests/stress.py --runs $(RUNS) $(STRESS_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(BENCH_READY)
	$(BENCH_BIN)/python -m benchmarks.run $(BENCH_ARGS)

bench-quick: $(BENCH_READY)
	$(BENCH_BIN)/python -m benchmarks.run --quick $(BENCH_ARGS)

# The tests of the reliability rigs, and a short run of the rigs. A rig that cannot run here is skipped, visibly;
# RIGS_ARGS=--require makes that a failure.
rigs: $(READY)
	$(BIN)/python -m pytest -n 2 -m rigs $(PYTEST_ARGS)
	$(BIN)/python -m tests.reliability --quick --minutes 35 --ledger build/reliability/quick.jsonl $(RIGS_ARGS)

# Continues where the last run stopped, for MINUTES, and writes the report of all runs. Other libraries are tried, too, if
# `make bench` has made their environment.
torture: $(READY)
	$(or $(wildcard $(BENCH_BIN)/python),$(BIN)/python) -m tests.reliability --minutes $(MINUTES) \
	  --report docs/reliability.md $(RIGS_ARGS)

# The libraries to compare with take gigabytes, so they have an environment of their own. One that cannot be installed is
# left out, and the benchmark's table says so.
$(BENCH_READY): pyproject.toml
	test -x $(BENCH_BIN)/python || $(PYTHON) -m venv build/bench-venv
	$(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' \
	|| { $(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[rigs]' matplotlib && \
	     for peer in torch==2.13.0 torch-checkpointing moonclip orbax-checkpoint safetensors; do \
	       $(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check $$peer || true; done; }
	touch $@

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* htmlcov
	find asyncckpt tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
