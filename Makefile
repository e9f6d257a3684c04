# Entry points. Every target first sets up what it needs, and fails if its command fails. Only DVC tracks staleness.
# Not make's default shell: with the default, make 3.81 of macOS runs simple lines directly and ignores our PATH.
SHELL := /bin/bash
ENVIRONMENT ?= auto
ifndef FINETUNE_IMAGE  # images have their own packages
export PATH := $(CURDIR)/.venv/bin:$(PATH)
endif
ifeq ($(origin RUNTIME),command line)
export FINETUNE_RUNTIME := $(RUNTIME)
endif
ifeq ($(origin IMAGE),command line)
export FINETUNE_IMAGE_NAME := $(IMAGE)
endif
export PYTHONPATH := src
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev repro test test-fast test-end-to-end test-images test-real lint check image-cpu image-cuda chaos bench bench-quick lock clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {sub("%", "RECIPE", $$1); printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo "  ENVIRONMENT=cpu|cuda|apple overrides the detected environment, RUNTIME=native|docker|podman the runtime in params.yaml"
	@echo "  everything else: ./finetune --help"

setup: ## install the locked packages into .venv (other targets do this when needed)
	@requirements/setup.sh $(ENVIRONMENT) params.yaml

setup-dev:
	@requirements/setup.sh $(ENVIRONMENT) params.yaml dev

repro: setup ## set up and run the pipeline to a verdict (DETACH=1: in the background)
	@finetune check
	@$(if $(DETACH),finetune detach $@,dvc repro)
	@$(if $(DETACH),,finetune report)

train-%: ## apply a recipe and run it to a verdict as a named experiment (DETACH=1: in the background)
	@requirements/setup.sh $(ENVIRONMENT) "recipes/$*.yaml" && finetune check "$*"
	@finetune $(if $(DETACH),detach "$@",use "$*")
	@$(if $(DETACH),,dvc exp run --name "$*-$$(date +%Y%m%d-%H%M%S)")

test: setup-dev ## set up and run the tests
	@python -m pytest -n auto --dist loadfile -m "not end_to_end and not images and not real"

test-fast: setup-dev ## run the tests that do not train a model
	@python -m pytest -n auto --dist loadfile -m "not slow and not end_to_end and not images and not real"

test-end-to-end: setup-dev ## test the pipeline through DVC, faults, and a rehearsal of each kind of recipe
	@python -m pytest -n auto --dist loadfile -m end_to_end

test-images: setup-dev ## build the images and run the pipeline in one (needs buildah and podman)
	@python -m pytest -m images -rs

test-real: setup-dev ## run the stages on a real base model, SmolLM2-135M-Instruct (downloads 93 MB once)
	@python -m pytest tests/real -m real -rs

lint: setup-dev ## check style, spelling, prose and types
	@ruff check . && ruff format --check . && codespell
	@proselint check --config .proselintrc.json *.md docs/*.md */README.md
	@mypy

check: lint test ## run lint and all tests

image-cpu: setup ## build the CPU image for stages, with docker, podman or buildah
	@finetune image cpu

image-cuda: setup ## build the CUDA image (FLASH_ATTN=version compiles flash-attn: takes hours)
	@finetune image cuda

chaos: setup-dev ## inject 60 seeded faults into the small pipeline and check the results (ROUNDS=60 SEED=1)
	@python -m tests.chaos --rounds $(or $(ROUNDS),60) --seed $(or $(SEED),1)

bench: setup-dev ## run all benchmarks against other tools; takes hours (ONLY="train start")
	@python -m pip install --quiet --no-deps --require-hashes -r requirements/bench.lock
	@benchmarks/peers.sh work/peers
	@python benchmarks/run.py $(if $(ONLY),--only $(ONLY))

bench-quick: setup-dev ## run the benchmarks at their smallest sizes, without saving results (needs a finished run: make repro)
	@python -m pip install --quiet --no-deps --require-hashes -r requirements/bench.lock
	@python benchmarks/run.py --quick

lock: setup-dev ## compile pyproject.toml to requirements/*.lock
	@requirements/lock.sh

clean: ## remove the outputs of the stages (not .venv or DVC's cache)
	@rm -rf data/prepared data/validated out reports work
