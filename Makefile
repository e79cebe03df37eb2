# make repro   the whole pipeline on the built-in benchmark        make test   the tests
PY ?= python3
VENV ?= .venv
# dvc runs a stage's command through the shell: without this the system's python would answer
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true

.DEFAULT_GOAL := help
.PHONY: help setup repro study bench test test-all lint ui kfp-local image-test gsm8k-logged lock clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: $(VENV)/.ok ## create the environment from the lock file
$(VENV)/.ok: requirements.lock pyproject.toml
	@$(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed; name one with make PY=python3.11" >&2; exit 1; }
	@echo "creating $(VENV): about two minutes" >&2
	$(PY) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# Stages that do not need each other side by side: two processes of one thread each are faster than one of two, whose
# threads wait for each other at every layer of so small a model. A GPU is left to one process.
JOBS ?= $(if $(shell command -v nvidia-smi),1,2)
ifneq ($(JOBS),1)
repro: export OMP_NUM_THREADS ?= 1
endif
repro: setup ## run the pipeline of dvc.yaml on params.yaml; only what has changed runs again (JOBS=1: a stage at a time)
ifneq ($(JOBS),1)
	@dvc repro -q inputs
	@[ "$$(dvc status --json)" = '{"inputs": ["always changed"]}' ] || { dvc repro prepare && $(call together,base sft,second_model) && $(call together,grpo,rairl) \
		&& dvc repro -s sample && $(call together,posttrain,rerank) && $(call together,localise,audit); }
endif
	@dvc repro
	@rairl summary

together = { dvc repro -s $(1) & first=$$!; dvc repro -s $(2); second=$$?; wait $$first && [ $$second = 0 ]; }

study: setup ## every study of studies/ on five seeds, into runs/studies and docs/results.md: hours; it resumes
	@rairl study studies/*.yaml --jobs $(JOBS) --docs docs/results.md

bench: setup ## speed beside what else could be used, into runs/bench and docs/performance.md: 10 minutes, after make repro
	@OMP_NUM_THREADS=1 TQDM_DISABLE=1 python -m benchmarks --docs docs/performance.md

test: setup ## the tests, except the slow ones
	@HYPOTHESIS_PROFILE=quick pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: setup ## every test
	@pytest -q -n auto --dist loadfile --no-loadscope-reorder

lint: setup ## style, types, and which folder may import which
	@ruff check .
	@ruff format --check .
	@lint-imports --no-logo
	@mypy

ui: setup ## the MLflow page of all runs, on http://127.0.0.1:5000
	@rairl ui

kfp-local: setup ## the same stages as a Kubeflow pipeline, run on this machine
	@rairl pipeline run-local

image-test: setup ## build the image and run the pipeline in its containers; BUILD has options for docker build
	@python scripts/image_test.py -- $(BUILD)

gsm8k-logged: setup ## learn a reward offline from logged GSM8K traces, into runs/gsm8k-logged
	@rairl run --params rairl/presets/gsm8k-logged.yaml --dir runs/gsm8k-logged
	@rairl summary --dir runs/gsm8k-logged

lock: ## write requirements.lock anew from pyproject.toml
	$(PY) -m venv .venv-tools
	.venv-tools/bin/pip install -q --disable-pip-version-check pip-tools
	.venv-tools/bin/pip-compile -q --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --strip-extras \
		--no-header --no-annotate --extra trl --extra dev -o requirements.lock pyproject.toml
	sed -i -E 's/^(torch==[0-9.]+)\+cpu/\1/' requirements.lock

clean: ## remove caches, scratch folders and checkpoints of unfinished stages; results stay
	rm -rf .rairl local_outputs .pytest_cache .ruff_cache .mypy_cache .hypothesis build
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	find . -name '.part-*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +
