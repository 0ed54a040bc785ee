# One command for each thing that a developer does; CONTRIBUTING.md says more.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup test lint bench fuzz docs proto profile

# Also after a change to a .pyx or .pxd: it compiles what is older than its source.
setup:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -e '.[test,lint,bench,docs]'

test:
	$(BIN)/pytest

lint:
	.ci/run lint

bench:
	$(BIN)/python -m bench

# Writes the generated pages anew and builds the site, which is not committed.
docs:
	$(BIN)/python docs/generate_reference.py
	$(BIN)/mkdocs build --strict

# For hours, or FUZZ_SECONDS=600 make fuzz: the time of each target, two of them side by side.
fuzz:
	$(BIN)/pip install --quiet -e '.[fuzz]'
	$(BIN)/python -m fuzz

proto:
	$(BIN)/python proto/generate.py

# Small requests under perf, with the extensions built with symbols; `make clean-ext setup` goes back.
profile: clean-ext
	BACKSTREAM_PROFILE=1 $(BIN)/pip install -e .
	perf record -F 999 -g -o perf.data -- $(BIN)/python -m bench run --only small --duration 5
	perf report -i perf.data --no-children

.PHONY: clean-ext
clean-ext:
	find backstream -name '*.so' -delete
