.PHONY: help setup test lint faults demo clean

help:
	@echo "make demo   both stages on a real model and real preferences (6 minutes on 2 cores)"
	@echo "make test   set up, ruff, mypy and all tests"
	@echo "make lint   ruff and mypy only"
	@echo "make faults hundreds of kills, failing writes and flipped bits (15 minutes)"
	@echo "make clean  remove .venv and what the demo made"

setup:
	@.ci/setup

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: lint
	.venv/bin/python -m pytest

faults: setup
	REFLOGP_FAULTS=1 .venv/bin/python -m pytest tests/faults tests/verify/test_integrity.py

demo: setup
	.venv/bin/python examples/fetch_smollm2.py .demo/SmolLM2-135M-Instruct
	.venv/bin/reflogp run --config examples/demo.yaml

clean:
	rm -rf .venv .demo
