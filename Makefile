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
FINETUNE := python -m finetune

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev repro status stop test test-end-to-end test-images test-fast chaos bench bench-quick lint check recipes use pin plan rehearse doctor sweep exps compare seeds try report gate merge verify image-cpu image-cuda push pull bundle check-bundle lock clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {sub("%", "RECIPE", $$1); printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo "  ENVIRONMENT=cpu|cuda|apple overrides what is found on this machine, RUNTIME=native|docker|podman what params.yaml says"

setup: ## install the locked packages into .venv (done by the others when needed)
	@requirements/setup.sh $(ENVIRONMENT) params.yaml

setup-dev:
	@requirements/setup.sh $(ENVIRONMENT) params.yaml dev

repro: setup ## set up and run the whole pipeline to its verdict (DETACH=1: in the background)
	@$(FINETUNE) check
	@$(if $(DETACH),$(FINETUNE) detach $@,dvc repro)
	@$(if $(DETACH),,$(FINETUNE) report)

status: setup ## what runs in this folder and how far it is, or how the last run ended (JSON=1 for a program)
	@$(FINETUNE) status $(if $(JSON),--json)

stop: setup ## end what runs in this folder and keep its state; the same command goes on
	@$(FINETUNE) stop

test: setup-dev ## set up and run the tests
	@python -m pytest -n 2 --dist loadfile -m "not end_to_end and not images"

test-end-to-end: setup-dev ## the pipeline through DVC, and rehearsals of every recipe: half an hour
	@python -m pytest -n 2 --dist loadfile -m end_to_end

test-images: setup-dev ## build the images, and run the whole pipeline in one: needs buildah and podman
	@python -m pytest -m images -rs

chaos: setup-dev ## break the small pipeline in 60 seeded ways and judge what is left: ROUNDS=60 SEED=1
	@python -m tests.chaos --rounds $(or $(ROUNDS),60) --seed $(or $(SEED),1)

bench: setup-dev ## measure all against its peers, for hours; the tables of docs/benchmarks.md are made from it (ONLY="train start")
	@python -m pip install --quiet --no-deps --require-hashes -r requirements/bench.lock
	@benchmarks/peers.sh work/peers
	@python benchmarks/run.py $(if $(ONLY),--only $(ONLY))

bench-quick: setup-dev ## the benchmarks on their smallest sizes; nothing is kept (on a finished run: make repro first)
	@python -m pip install --quiet --no-deps --require-hashes -r requirements/bench.lock
	@python benchmarks/run.py --quick

test-fast: setup-dev ## the tests that train nothing
	@python -m pytest -n 2 --dist loadfile -m "not slow and not end_to_end and not images"

lint: setup-dev ## style and types
	@ruff check . && ruff format --check .
	@mypy

check: lint test ## lint and all tests

recipes: setup ## list the recipes, and what params.yaml changes in its own
	@$(FINETUNE) recipes

use: setup ## put a recipe into params.yaml: make use RECIPE=tiny
	@$(FINETUNE) use "$(or $(RECIPE),$(error name one: make use RECIPE=tiny))"

pin: setup ## pin a recipe's base to the commit of today: make pin RECIPE=h100
	@$(FINETUNE) pin "$(or $(RECIPE),$(error name one: make pin RECIPE=h100))"

plan: setup ## steps, memory, time and cost before the run: make plan RECIPE=h100 EXAMPLES=15000 LENGTH=1500 PRICE=2.5 PROBE=1
	@$(FINETUNE) plan $(RECIPE) $(if $(EXAMPLES),--examples $(EXAMPLES)) $(if $(LENGTH),--length $(LENGTH)) $(if $(PRICE),--price $(PRICE)) $(if $(PROBE),--probe)

rehearse: setup ## every stage of a recipe on a shrunken base, on this machine: make rehearse RECIPE=h100
	@$(FINETUNE) rehearse $(RECIPE)

doctor: setup ## what this machine has and lacks, and the recipe that fits best (RECIPE=h100 asks for that one)
	@$(FINETUNE) doctor $(if $(RECIPE),--recipe $(RECIPE)) $(if $(JSON),--json) $(if $(QUICK),--quick)

sweep: setup ## an example: four runs of the recipe tiny over learning rate and rank, compared
	@dvc exp run --queue -S train.learning_rate=1.0e-3,2.0e-3 -S adapter.r=8,16
	@dvc exp run --run-all
	@$(FINETUNE) exps

train-%: ## apply a recipe and run it to its verdict as a named experiment (DETACH=1: in the background)
	@requirements/setup.sh $(ENVIRONMENT) "recipes/$*.yaml" && $(FINETUNE) check "$*"
	@$(FINETUNE) $(if $(DETACH),detach "$@",use "$*")
	@$(if $(DETACH),,dvc exp run --name "$*-$$(date +%Y%m%d-%H%M%S)")

exps: setup ## the experiments, the best by the gate's first measure first
	@$(FINETUNE) exps

compare: setup ## two runs' answers, cost and params: make compare A=main B=workspace (experiments too; JSON=1, MARKDOWN=1)
	@$(FINETUNE) compare "$(or $(A),$(error name two: make compare A=main B=workspace))" "$(or $(B),workspace)" $(if $(JSON),--json) $(if $(MARKDOWN),--markdown)

seeds: setup ## run params.yaml under several seeds, and how far they lie apart: make seeds N=5 (or SEEDS=1,2,3; FORCE=1)
	@$(FINETUNE) check
	@$(FINETUNE) seeds $(if $(N),--count "$(N)") $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(FORCE),--force)

# The prompt goes through the environment to the letter: make would expand its dollars, and the shell its quotes.
unexport PROMPT
export FINETUNE_PROMPT = $(if $(filter command,$(origin PROMPT)),$(value PROMPT))
try: setup ## ask base and candidate: make try PROMPT="..." (AGENT=name, MAX_NEW_TOKENS=64); without PROMPT a session
	@$(FINETUNE) try $(if $(AGENT),--agent "$(AGENT)") $(if $(MAX_NEW_TOKENS),--max-new-tokens "$(MAX_NEW_TOKENS)")

report: setup ## where the report is, and the verdict
	@$(FINETUNE) report

gate: setup ## fail unless the verdict is deploy (python -m finetune gate: 0 deploy, 10 iterate, 20 abort)
	@$(FINETUNE) gate

merge: setup ## the adapter and its base as one 16-bit model in out/merged, compared with base + adapter first
	@$(FINETUNE) merge

verify: setup ## repeat the finished run in a fresh folder and compare hashes: make verify STEPS=100 REPEATS=3
	@$(FINETUNE) verify $(if $(STEPS),--steps $(STEPS)) $(if $(REPEATS),--repeats $(REPEATS))

image-cpu: setup ## build the image that stages run in without a GPU, by docker, podman or buildah
	@$(FINETUNE) image cpu

image-cuda: setup ## the same for NVIDIA GPUs (FLASH_ATTN=version compiles flash-attn: hours)
	@$(FINETUNE) image cuda

push: setup ## upload the run's data, adapter and cache to DVC's remote, checked first
	@$(FINETUNE) push

pull: setup ## restore the run of this commit from DVC's remote, and check it
	@$(FINETUNE) pull

bundle: setup ## one archive to hand on: adapter, card, report, params, locks, bill of materials (SIGN=key)
	@$(FINETUNE) bundle $(if $(SIGN),--sign "$(SIGN)") $(if $(OUTPUT),--output "$(OUTPUT)")

check-bundle: setup ## whether an archive is whole and tells the truth: make check-bundle BUNDLE=x.tar.gz (SIGNERS=file)
	@$(FINETUNE) check-bundle "$(or $(BUNDLE),$(error name one: make check-bundle BUNDLE=x.tar.gz))" $(if $(SIGNERS),--signers "$(SIGNERS)") $(if $(IDENTITY),--identity "$(IDENTITY)")

lock: setup-dev ## compile pyproject.toml to requirements/*.lock
	@requirements/lock.sh

clean: ## remove what the stages made (not .venv, not DVC's cache)
	@rm -rf data/prepared data/validated out reports work
