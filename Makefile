# The front door. Every target sets up what it needs first and fails when its command fails; staleness is DVC's alone.
# Not make's default shell: with that, macOS's make (3.81) runs simple lines by itself, and does not see our PATH.
SHELL := /bin/bash
ENVIRONMENT ?= auto
ifndef FINETUNE_IMAGE  # an image of ours has its own packages
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
.PHONY: help setup setup-dev repro test test-fast test-end-to-end test-images lint check image-cpu image-cuda chaos bench bench-quick lock clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {sub("%", "RECIPE", $$1); printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo "  ENVIRONMENT=cpu|cuda|apple overrides what is found on this machine, RUNTIME=native|docker|podman what params.yaml says"
	@echo "  everything else: ./finetune --help"

setup: ## install the locked packages into .venv (done by the others when needed)
	@requirements/setup.sh $(ENVIRONMENT) params.yaml

setup-dev:
	@requirements/setup.sh $(ENVIRONMENT) params.yaml dev

repro: setup ## set up and run the whole pipeline to its verdict (DETACH=1: in the background)
	@finetune check
	@$(if $(DETACH),finetune detach $@,dvc repro)
	@$(if $(DETACH),,finetune report)

train-%: ## apply a recipe and run it to its verdict as a named experiment (DETACH=1: in the background)
	@requirements/setup.sh $(ENVIRONMENT) "recipes/$*.yaml" && finetune check "$*"
	@finetune $(if $(DETACH),detach "$@",use "$*")
	@$(if $(DETACH),,dvc exp run --name "$*-$$(date +%Y%m%d-%H%M%S)")

test: setup-dev ## set up and run the tests
	@python -m pytest -n auto --dist loadfile -m "not end_to_end and not images"

test-fast: setup-dev ## the tests that train nothing
	@python -m pytest -n auto --dist loadfile -m "not slow and not end_to_end and not images"

test-end-to-end: setup-dev ## the pipeline through DVC, faults, and a rehearsal of each kind of recipe
	@python -m pytest -n auto --dist loadfile -m end_to_end

test-images: setup-dev ## build the images, and run the whole pipeline in one: needs buildah and podman
	@python -m pytest -m images -rs

lint: setup-dev ## style, spelling, prose and types
	@ruff check . && ruff format --check . && codespell
	@proselint check --config .proselintrc.json *.md docs/*.md */README.md
	@mypy

check: lint test ## lint and all tests

image-cpu: setup ## build the image that stages run in without a GPU, by docker, podman or buildah
	@finetune image cpu

image-cuda: setup ## the same for NVIDIA GPUs (FLASH_ATTN=version compiles flash-attn: hours)
	@finetune image cuda

chaos: setup-dev ## break the small pipeline in 60 seeded ways and judge what is left: ROUNDS=60 SEED=1
	@python -m tests.chaos --rounds $(or $(ROUNDS),60) --seed $(or $(SEED),1)

bench: setup-dev ## measure all against its peers, for hours; the tables of docs/benchmarks.md are made from it (ONLY="train start")
	@python -m pip install --quiet --no-deps --require-hashes -r requirements/bench.lock
	@benchmarks/peers.sh work/peers
	@python benchmarks/run.py $(if $(ONLY),--only $(ONLY))

bench-quick: setup-dev ## the benchmarks on their smallest sizes; nothing is kept (on a finished run: make repro first)
	@python -m pip install --quiet --no-deps --require-hashes -r requirements/bench.lock
	@python benchmarks/run.py --quick

lock: setup-dev ## compile pyproject.toml to requirements/*.lock
	@requirements/lock.sh

clean: ## remove what the stages made (not .venv, not DVC's cache)
	@rm -rf data/prepared data/validated out reports work
