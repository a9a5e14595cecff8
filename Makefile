# Two commands need nothing but this file: `make demo` and `make test` set up what they use.
PY      := .venv/bin/python
STAMP   := .venv/.ready
PYTEST  := $(PY) -m pytest

.PHONY: help setup demo test unit check golden lab bench scale soak shim docs netns conformance e2e runtimes image all clean

help:            ## list these
	@sed -n 's/^\([a-z0-9]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP)  ## system packages (apt, as root), a venv, the project

$(STAMP): pyproject.toml setup.py scripts/setup.sh src/muslin/cni/shim.c
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

# Only what is said on make's own command line: a KUBECONFIG in the environment is somebody's.
CLUSTER := $(if $(filter command line,$(origin KUBECONFIG)),$(KUBECONFIG))

e2e: $(STAMP)    ## labs with real agents; KUBECONFIG=… after it: and what goes by that cluster
	$(PYTEST) tests/e2e
	$(if $(CLUSTER),$(PYTEST) tests --cluster=$(CLUSTER))

runtimes: $(STAMP)  ## containerd and podman in labs; installs them (60 MB) where they are missing
	@RUNTIMES=1 sh scripts/setup.sh
	$(PYTEST) tests/runtimes

image: $(STAMP)  ## the OCI image, built from Debian without pulling any, and the agent in it; 2 minutes
	@IMAGE=1 sh scripts/setup.sh
	IMAGE=1 $(PYTEST) tests/image

check: $(STAMP)  ## format, lint, types, layers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

golden: $(STAMP) ## rewrite the expected plans; review the diff
	$(PY) -m tests.golden

lab: $(STAMP)    ## bring a lab up: make lab L=two-racks
	$(PY) -m muslin lab up labs/$(or $(L),three-nodes).toml

soak: $(STAMP)   ## ten minutes of pods and kills, then an exact audit: make soak MINUTES=10
	$(PY) -m bench.soak --minutes $(or $(MINUTES),10)

scale: $(STAMP)  ## 1000 nodes, simulated: one agent, the controller, a restart; into docs/scale.md
	$(PY) -m bench.scale --write docs

bench: $(STAMP)  ## ADD and DEL beside the reference plugins, pods beside nodes: ratios, into docs/
	@command -v apt-get >/dev/null && { [ -x /usr/lib/cni/bridge ] || apt-get install -y -qq \
	    --no-install-recommends containernetworking-plugins iptables >/dev/null; } || true
	$(PY) -m bench.cni --samples $(or $(SAMPLES),500) --write docs
	@$(PY) -m muslin lab up labs/two-racks.toml --name bench
	@for pod in web:n1 db:n2 mq:n3 log:n4; do \
	    $(PY) -m muslin lab pod add $${pod%:*} --node $${pod#*:} --lab bench || exit 1; done; \
	$(PY) -m muslin lab bench bench; status=$$?; $(PY) -m muslin lab down bench; exit $$status

shim: $(STAMP)   ## compile the CNI plugin after a change or a new compiler
	$(PY) -m muslin.cni.build

docs: $(STAMP)   ## generate what is generated: pages of docs/, CRDs, the chart, package data
	$(PY) scripts/docs.py
	$(PY) scripts/manifests.py

all: check test  ## what CI runs

clean:           ## remove what make made
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
	rm -f src/muslin/cni/muslin-cni.*
