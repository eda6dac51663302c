# Each target sets up what it needs by itself, and again when a lock file has changed.

VENV := .venv
PYTHON ?= python3
PORT ?= 5000
# What builds and runs containers, and, for a build without a connection, where packages are.
ENGINE ?= docker
WHEELHOUSE ?= wheelhouse
BIN := $(VENV)/bin
PATH := $(abspath $(BIN)):$(PATH)
export PATH
# Users have patients' images: nothing is reported to anyone.
export DVC_NO_ANALYTICS = 1
export DO_NOT_TRACK = true
export MLFLOW_DISABLE_TELEMETRY = true

# Podman's own format has no HEALTHCHECK.
export BUILDAH_FORMAT = docker

# Two processes on two cores; tests/conftest.py says what stays together, and what begins first.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-slow coverage faults mutants check ui images wheelhouse test-containers gpu-check clean help

help:  ## Say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

run: $(VENV)/.run-installed  ## Images to ONNX: run every stage that is not up to date
	dvc repro
	@echo "Every genome is in MLflow: make ui. The classifier is artifacts/deploy/model.onnx."

test: $(VENV)/.dev-installed  ## Test every stage and module, in minutes
	python -m pytest $(SIDE_BY_SIDE) -m "not slow and not containers"

test-slow: $(VENV)/.dev-installed  ## Test what make test leaves out: all networks, faults, the browser
	python -m pytest $(SIDE_BY_SIDE) -m "slow and not containers"

coverage: $(VENV)/.dev-installed  ## Run make test and say what it covers; it fails if a room is below 80 %
	python -m pytest $(SIDE_BY_SIDE) -m "not slow and not containers" --cov --cov-report=
	status=0; for room in biotune/* pipeline/* pipeline stages; do \
		if [ -d $$room ] && ls $$room/*.py > /dev/null 2>&1; then \
			echo "$$room: $$(coverage report --include="$$room/*" --format=total) %"; \
			coverage report --include="$$room/*" --fail-under=80 > /dev/null || status=$$?; \
		fi; \
	done; exit $$status

faults: $(VENV)/.dev-installed  ## Kill, fill and break everything for most of an hour, and count what survives
	BIOTUNE_FAULTS=full python -m pytest -q tests/faults

mutants: $(VENV)/.dev-installed  ## Plant faults in a copy of the tree, one at a time, and say which the tests notice (ARGS=serving)
	python -m tests.mutants $(ARGS)

check: $(VENV)/.dev-installed  ## Format, lint and types
	ruff format --check .
	ruff check .
	mypy

ui: $(VENV)/.run-installed  ## Serve MLflow at http://127.0.0.1:5000 (PORT=5001 for another)
	biotune ui --port $(PORT)

images:  ## Build the images biotune-pipeline and biotune-serve (ENGINE=podman, BASE_IMAGE=another)
	set -e; for target in serve pipeline; do \
		$(ENGINE) build --target $$target --tag biotune-$$target \
			$(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
			$(if $(wildcard $(WHEELHOUSE)),--build-context wheelhouse=$(WHEELHOUSE)) \
			--build-arg LOCK_SHA256=$$($(PYTHON) -c 'import hashlib; print(hashlib.sha256(open("requirements.lock", "rb").read()).hexdigest())') \
			--build-arg VERSION=$$($(PYTHON) -c 'from biotune import __version__; print(__version__)') \
			--build-arg REVISION=$$(git describe --always --dirty --abbrev=40 --exclude '*') \
			$(BUILD_ARGS) .; \
	done

wheelhouse: $(VENV)/.run-installed  ## Fetch every package, so that `make images` needs no connection
	cmp --silent requirements.lock $(WHEELHOUSE)/requirements.lock || { \
		python -m pip wheel --quiet --disable-pip-version-check --no-deps \
			--requirement requirements.lock --wheel-dir $(WHEELHOUSE) \
		&& cp requirements.lock $(WHEELHOUSE); }

test-containers: $(VENV)/.dev-installed  ## Build the images and run every stage in its container
	python -m pytest -m containers tests/containers

gpu-check:  ## Check and measure all that runs on a GPU, in some seven minutes; benchmarks/gpu/README.md (ARGS="--device cpu --tiny" without one)
	PYTHONPATH=.gpu-packages$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m benchmarks.gpu $(ARGS)

clean:  ## Remove the artifacts and the environment; DVC's cache, the evaluation store and MLflow stay
	rm -rf artifacts $(VENV) .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.run-installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "BioTune needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	python .ci/install requirements.lock .
	touch $@

$(VENV)/.dev-installed: requirements-dev.lock $(VENV)/.run-installed
	python .ci/install requirements-dev.lock
	touch $@
