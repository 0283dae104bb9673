# Every target sets up what it needs. PYTHON=/path/to/python chooses the interpreter for .venv.
SHELL := /bin/bash
BIN := .venv/bin
SAMPLE := studies/sample

.PHONY: answer-times docs-cases docs-figures wheel test-wheel first-minute help setup setup-dev serve demo lint format test test-all test-learning test-page test-browser bench

help:
	@echo "make setup      .venv with everything that runs (repeated calls are instant)"
	@echo "make serve      a page to click in on http://127.0.0.1:8000, with a generated study (ARGS='--port 8001')"
	@echo "make demo       an archive with a generated DICOM study, and the server for it: OHIF shows it (installs Orthanc)"
	@echo "make test       lint, types, tests with coverage (ARGS='-k geometry')"
	@echo "make test-all   the same with the slow tests"
	@echo "make test-learning what a training on ten real cases must gain (20 minutes; DUALCLICKMED_REAL_DATA)"
	@echo "make test-page  an annotator on the page in a headless browser (installs Chromium; a minute)"
	@echo "make test-browser  the page and OHIF in a headless browser (installs Chromium and Orthanc)"
	@echo "make test-server   fuzzing, kills, load, replicas and a soak of the running server (an hour or more)"
	@echo "make bench      size, speed and memory of the networks on this machine (ARGS=--quick)"
	@echo "make docs-figures  writes the numbers and pictures of README and docs anew (scripts/docs_figures.py explains)"
	@echo "make docs-cases    draws docs/figures.md: five modalities, successes and failures (some minutes)"
	@echo "make wheel      dist/dualclickmed-*.whl: the package with app, page and weights"
	@echo "make test-wheel    that wheel in a fresh environment: segment, serve, click, page (some minutes)"
	@echo "make answer-times  how long a click waits for its mask over HTTP here; writes docs/fusion.md"
	@echo "make first-minute  how long a new user waits here: set-up, start, commands, page (ARGS=--reuse: this .venv)"
	@echo "make lint       ruff, mypy, the layers of the rooms and eslint only;  make format: let ruff rewrite"

setup: .venv/setup.stamp
	@:

setup-dev: .venv/setup-dev.stamp
	@:

.venv/setup.stamp: requirements.txt constraints.txt pyproject.toml setup.py scripts/setup.sh $(wildcard stand-ins/wheels/*) \
    scripts/page.sh package-lock.json
	@echo "Setting up .venv (a few minutes the first time)"
	@scripts/setup.sh requirements.txt
	@scripts/page.sh
	@touch $@

.venv/setup-dev.stamp: requirements.txt requirements-dev.txt constraints.txt pyproject.toml setup.py scripts/setup.sh $(wildcard stand-ins/wheels/*) \
    scripts/page.sh package-lock.json
	@echo "Setting up .venv for development (a few minutes the first time)"
	@scripts/setup.sh requirements.txt requirements-dev.txt
	@scripts/page.sh --dev
	@touch .venv/setup.stamp $@

$(SAMPLE)/trunk_ct.nii.gz: | .venv/setup.stamp
	@$(BIN)/python main.py sample --out $(SAMPLE)

serve: setup $(SAMPLE)/trunk_ct.nii.gz
	@$(BIN)/python main.py serve --studies $(SAMPLE) $(ARGS)

demo: setup
	@scripts/browser.sh archive
	@$(BIN)/python main.py demo --out studies/archive $(ARGS)

docs-cases: setup-dev
	$(BIN)/python scripts/case_pages.py $(ARGS)

docs-figures: setup-dev
	$(BIN)/python scripts/docs_figures.py $(ARGS)

wheel: setup
	@scripts/wheel.sh

test-wheel: setup-dev
	$(BIN)/python -m pytest -m slow tests/packaging/test_wheel.py $(ARGS)

answer-times: setup-dev
	@$(BIN)/python scripts/answer_times.py $(ARGS)

first-minute: setup
	@$(BIN)/python scripts/first_minute.py $(ARGS)

bench: setup
	@$(BIN)/python main.py bench $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd apps/dualclickmed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml main.py
	PYTHONPATH=apps $(BIN)/lint-imports
	@PATH=$(CURDIR)/$(BIN):$$PATH; if [[ -x node_modules/.bin/eslint ]]; then npm run --silent lint; \
	    else echo "lint: no eslint, so the page's scripts were not looked at (scripts/page.sh --dev)"; fi

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two processes, a file of tests each at a time; WORKERS=0 tests in one, which a debugger needs.
WORKERS ?= 2

test: lint
	$(BIN)/python -m pytest -m "not slow" --ignore tests/browser -n $(WORKERS) --dist loadfile \
	    --cov --cov-report=term $(ARGS)

test-learning: setup-dev
	$(BIN)/python -m pytest -m slow tests/learning $(ARGS)

test-all: lint
	$(BIN)/python -m pytest --ignore tests/browser --cov --cov-report=term $(ARGS)

.venv/setup-browser.stamp: requirements-browser.txt constraints.txt .venv/setup-dev.stamp
	@scripts/setup.sh requirements.txt requirements-dev.txt requirements-browser.txt
	@touch $@

test-page: .venv/setup-browser.stamp
	@scripts/browser.sh page
	$(BIN)/python -m pytest tests/browser/test_page.py $(ARGS)

test-browser: .venv/setup-browser.stamp
	@scripts/browser.sh
	$(BIN)/python -m pytest tests/browser $(ARGS)

# The replicas need Debian's packages orthanc, orthanc-dicomweb and nginx-light, and are skipped without them.
test-server: setup-dev
	$(BIN)/python -m pytest tests/server tests/integration/test_server.py tests/integration/test_login.py \
	    tests/integration/test_fuzz.py tests/integration/test_load.py tests/integration/test_kill.py \
	    tests/integration/test_soak.py tests/integration/test_replicas.py -o log_cli=true -o log_cli_level=INFO $(ARGS)
