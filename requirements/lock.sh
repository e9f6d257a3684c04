#!/bin/sh
# Compiles pyproject.toml to exact, hashed locks: one per environment, valid for Python 3.11 to 3.13. Needs uv (dev.lock).
set -eu
cd "$(dirname "$0")/.."
compile() { # compile LOCK ARGUMENTS...
    lock=$1
    shift
    uv pip compile --quiet --universal --generate-hashes --no-annotate --python-version 3.11 \
        --custom-compile-command "make lock" pyproject.toml "$@" --output-file "requirements/$lock.lock"
}
compile base
compile cuda --extra stages --constraints requirements/base.lock
compile apple --extra stages --constraints requirements/cuda.lock
# The CPU build of PyTorch comes from torch-cpu.lock; the CUDA libraries of the default build stay out.
compile cpu --extra stages --constraints requirements/cuda.lock \
    --excludes requirements/cuda-only.txt --no-emit-package torch
compile dev --extra dev --constraints requirements/cuda.lock
compile forgetting --extra forgetting --constraints requirements/cuda.lock
compile bench --extra bench --constraints requirements/cuda.lock
