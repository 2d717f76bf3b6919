# The two commands of a newcomer are `make run` and `make test`; both need Python 3.11 and nothing else.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux, a plain install of torch brings gigabytes of CUDA; an index of CPU builds (see "Get started" on
# pytorch.org for its address) does not: make run TORCH_INDEX=...
TORCH_INDEX ?=
PIP_OF := -m pip --disable-pip-version-check --quiet
PIP := $(BIN)/python $(PIP_OF)
PEERS ?= .venv-peers
ARGS ?=

.PHONY: run up down test setup lint types unit bench peers soak pictures clean

run: setup
	$(BIN)/python flows/sweep_and_fetch.py --test-local $(ARGS)

# The local stack: Prefect and MLflow servers and a worker, with all data in .plato/stack; see docs/deploying.md.
up: setup
	$(BIN)/plato up

down:
	@if [ -x $(BIN)/plato ]; then $(BIN)/plato down; else echo "nothing is up: there is no $(VENV)"; fi

# In the order of their names: those of tests/e2e take longest, and at the end both workers have short ones.
test: lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV); this takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install torch --constraint constraints.txt --index-url $(TORCH_INDEX))
	$(PIP) install --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m plato_core.prefect_database
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: setup
	$(BIN)/python -m pytest -n 2 tests/unit

# All of docs/performance.md: an hour and three quarters, on a machine that does nothing else meanwhile.
bench: setup peers
	$(BIN)/python benchmarks/main_job.py --rounds 3 --sides stock sb3 ours --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/main_job.py --rounds 3 --sides stock sb3 ours --peers $(PEERS)/bin/python --stop-when first
	$(BIN)/python benchmarks/efficiency.py
	$(BIN)/python benchmarks/cpu_places.py
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/tracking_loop.py
	$(BIN)/python benchmarks/result_throughput.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/transfer.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/aml_watch.py
	$(BIN)/python benchmarks/code_folder.py

# What the main job is held against, in an environment of its own: it shares nothing with the project's.
peers: $(PEERS)/.installed

$(PEERS)/.installed: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(if $(TORCH_INDEX),$(PEERS)/bin/python $(PIP_OF) install torch --index-url $(TORCH_INDEX))
	$(PEERS)/bin/python $(PIP_OF) install --requirement benchmarks/peers.txt
	touch $@

# What is too long for CI. Then sweeps are killed with `kill -9` at random moments, 50 times, and their nodes, and go on:
# an hour on 2 cores. Then one worker watches 50 jobs of Azure ML: some 15 minutes. Then each endpoint of Azure ML that a
# run asks fails in each of 9 ways, a run each, and in 3 of them for long: many hours.
soak: setup
	PLATO_THOROUGH=1 PLATO_SOAK=1 $(BIN)/python -m pytest -v -m soak tests
	$(BIN)/python -m pytest -v tests/e2e/soak_kills.py tests/e2e/soak_nodes.py
	$(BIN)/python -m pytest -v -s tests/e2e/soak_aml_watch.py tests/e2e/soak_aml_faults.py

# Renews docs/images/ from a sweep in the pages' own test; it needs Debian's chromium. Paths in them begin with /tmp.
pictures: setup
	PLATO_REQUIRE_DEBIAN=1 PLATO_RENEW_PICTURES=1 $(BIN)/python -m pytest tests/e2e/test_pages.py --basetemp /tmp/plato

clean:
	rm -rf $(VENV) $(PEERS) build *.egg-info
