# One command for each thing that a developer does; CONTRIBUTING.md says more.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup test lint bench proto profile

# Also after a change to a .pyx or .pxd: it compiles what is older than its source.
setup:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -e '.[test,lint,bench]'

test:
	$(BIN)/pytest

lint:
	.ci/run lint

bench:
	$(BIN)/python -m bench

proto:
	$(BIN)/python proto/generate.py

# Small requests under perf, with the extensions built with symbols; `make clean-ext setup` goes back.
profile: clean-ext
	BACKSTREAM_PROFILE=1 $(BIN)/pip install -e .
	perf record -F 999 -g -o perf.data -- $(BIN)/python -m bench --only small --duration 5
	perf report -i perf.data --no-children

.PHONY: clean-ext
clean-ext:
	find backstream -name '*.so' -delete
