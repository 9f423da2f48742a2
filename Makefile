# For developers; needs an environment with `pip install -e '.[test,dev]'` active.
PYTHON ?= python
CXX_FILES = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help check lint types tidy check-native format test build check-oldest clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

check: lint types tidy ## everything that reads the code without running it

lint:
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CXX_FILES)

types:
	mypy

tidy:
	.ci/check-native tidy

check-native: ## compile with warnings as errors; the kernels against plain loops, NEON and CUDA emulated
	.ci/check-native compile
	.ci/check-native checks
	.ci/check-native cuda
	.ci/check-native emulated
	.ci/check-native neon

format: ## rewrite the code in the house's format
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

test: ## the tests, against what is installed
	$(PYTHON) -m pytest

build: ## sdist, and the wheel from it, into dist/
	$(PYTHON) -m build

check-oldest: ## the tests with the oldest supported Python found here and the oldest torch
	.ci/check-oldest

clean: ## remove what builds and tools left; runs/ stays
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -f _rlal_fast*.so
	find rlal_fast python_tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
