# Each target sets up what it needs by itself, and again when a lock file has changed.

VENV := .venv
PYTHON ?= python3
PORT ?= 5000
BIN := $(VENV)/bin
PATH := $(abspath $(BIN)):$(PATH)
export PATH
# Users have patients' images: nothing is reported to anyone.
export DVC_NO_ANALYTICS = 1
export DO_NOT_TRACK = true
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: run test faults check ui clean help

help:  ## Say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

run: $(VENV)/.run-installed  ## Images to ONNX: run every stage that is not up to date
	dvc repro
	@echo "Every genome is in MLflow: make ui. The classifier is artifacts/deploy/model.onnx."

test: $(VENV)/.dev-installed  ## Run the whole test suite
	python -m pytest

faults: $(VENV)/.dev-installed  ## Kill, fill and break everything for half an hour, and count what survives
	BIOTUNE_FAULTS=full python -m pytest -q tests/faults

check: $(VENV)/.dev-installed  ## Format, lint and types
	ruff format --check .
	ruff check .
	mypy

ui: $(VENV)/.run-installed  ## Serve MLflow at http://127.0.0.1:5000 (PORT=5001 for another)
	biotune ui --port $(PORT)

clean:  ## Remove the artifacts and the environment; DVC's cache, the evaluation store and MLflow stay
	rm -rf artifacts $(VENV) .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.run-installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "BioTune needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat --editable .
	touch $@

$(VENV)/.dev-installed: requirements-dev.lock $(VENV)/.run-installed
	python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	touch $@
