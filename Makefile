# Two commands need nothing but this file: `make demo` and `make test` set up what they use.
PY      := .venv/bin/python
STAMP   := .venv/.ready
PYTEST  := $(PY) -m pytest

.PHONY: help setup demo test unit check golden lab bench docs netns conformance e2e all clean

help:            ## list these
	@sed -n 's/^\([a-z0-9]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP)  ## system packages (apt, as root), a venv, the project

$(STAMP): pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh

demo: $(STAMP)   ## two racks, six pods, the matrix and the figures; KEEP=1 leaves it up
	@$(PY) -m muslin lab demo labs/two-racks.toml $(if $(KEEP),--keep)

test: $(STAMP)   ## every test this machine can run
	$(PYTEST)

unit: $(STAMP)   ## unit, golden and property tests: seconds, no root
	$(PYTEST) tests/unit tests/property tests/test_house.py

netns: $(STAMP)  ## real kernel in namespaces of its own
	$(PYTEST) tests/netns

conformance: $(STAMP)  ## every store, every kernel against its contract
	$(PYTEST) tests/conformance

e2e: $(STAMP)    ## labs with real agents
	$(PYTEST) tests/e2e

check: $(STAMP)  ## format, lint, types, layers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

golden: $(STAMP) ## rewrite the expected plans; review the diff
	$(PY) -m tests.golden

lab: $(STAMP)    ## bring a lab up: make lab L=two-racks
	$(PY) -m muslin lab up labs/$(or $(L),three-nodes).toml

bench: $(STAMP)  ## pods beside node to node, as ratios, in a lab of its own
	@$(PY) -m muslin lab up labs/two-racks.toml --name bench
	@for pod in web:n1 db:n2 mq:n3 log:n4; do \
	    $(PY) -m muslin lab pod add $${pod%:*} --node $${pod#*:} --lab bench || exit 1; done; \
	$(PY) -m muslin lab bench bench; status=$$?; $(PY) -m muslin lab down bench; exit $$status

docs: $(STAMP)   ## generate docs/backends.md, docs/cli.md and docs/config.md
	$(PY) scripts/docs.py

all: check test  ## what CI runs

clean:           ## remove what make made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
