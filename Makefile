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

# Where the proxy's time goes under small requests; `python -m bench.profile --help` has the agent, bulk and the rest.
profile:
	$(BIN)/python -m bench.profile perf
