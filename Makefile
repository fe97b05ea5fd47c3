.PHONY: help setup test test-all test-fast test-everything fuzz lint faults mutants demo bench-gpu clean

PYTHON ?= python
SHAPE ?= llama-1b
FUZZ_CASES ?= 1000
WORKERS ?= 2

# ruff and mypy run beside the tests.
MAKEFLAGS += --jobs=2

# Each worker has a core: more threads would wait for those of the other worker. Files are handed out
# in their own order, so that the last ones are small.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help:
	@echo "make demo      both stages on a real model and real preferences (6 minutes on 2 cores)"
	@echo "make test      set up, ruff, mypy and every kind of test (13 minutes of tests on 2 cores)"
	@echo "make test-all  the same with every variant"
	@echo "make fuzz      broken input for every reader, $(FUZZ_CASES) cases each"
	@echo "make lint      ruff and mypy only"
	@echo "make faults    hundreds of kills, failing writes and flipped bits (20 minutes)"
	@echo "make mutants   faults planted in the code, each of which make test finds"
	@echo "make clean     remove .venv and what the demo made"
	@echo "make bench-gpu  time stage one on this machine's GPU (PYTHON=$(PYTHON) SHAPE=$(SHAPE))"

setup:
	@.ci/setup

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint test-fast
test-all: lint test-everything

test-fast: setup
	$(PYTEST) -m "not slow"

test-everything: setup
	$(PYTEST)

fuzz: setup
	FUZZ_CASES=$(FUZZ_CASES) .venv/bin/python -m pytest -m fuzz

faults: setup
	REFLOGP_FAULTS=1 .venv/bin/python -m pytest tests/faults tests/verify/test_integrity.py

mutants: setup
	.venv/bin/python -m tests.mutants

demo: setup
	.venv/bin/python examples/fetch_smollm2.py .demo/SmolLM2-135M-Instruct
	.venv/bin/reflogp run --config examples/demo.yaml

bench-gpu:
	$(PYTHON) -m benchmarks.gpu --shape $(SHAPE) --json bench-gpu-$(SHAPE).json

clean:
	rm -rf .venv .demo
