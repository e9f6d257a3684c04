#!/bin/sh
# Makes .venv from the locks: `requirements/setup.sh cpu|cuda|apple|auto [PARAMS] [dev]`. Does nothing when it is done already.
# Where PARAMS (params.yaml or a recipe) has the stages run in containers, only what the host needs is installed.
#   PYTHON=python3.12   the interpreter (3.11 to 3.13)
#   TORCH_INDEX=URL     where PyTorch's CPU build lies, when pip's own index does not have it
#   FALLBACK=no         fail where it lies nowhere, in place of taking the default build
set -eu
environment=$1
params=${2:-params.yaml}
kind=${3:-run}
say() { printf '%s\n' "$*" >&2; }
locks_of() { if [ "$1" = cpu ]; then echo "requirements/torch-cpu.lock requirements/cpu.lock"; else echo "requirements/$1.lock"; fi; }
cd "$(dirname "$0")/.."

if [ -n "${FINETUNE_IMAGE:-}" ]; then # inside an image of ours, which has its own packages
    here=$(cat $(locks_of "$(expr "$FINETUNE_IMAGE" : '.*finetune-\([a-z]*\)')") | sha256sum | cut -d ' ' -f 1)
    if [ "$here" = "$FINETUNE_LOCKS" ] && [ "$kind" = run ]; then exit 0; fi
    say "error: this image ($FINETUNE_IMAGE) was built from other locks than requirements/ has, or without the tests' packages"
    exit 4
fi

runtime=${FINETUNE_RUNTIME:-$(sed -n 's/^runtime: *\([a-z]*\).*/\1/p' "$params" 2>/dev/null || true)}
if [ "$environment" = auto ]; then
    environment=cpu
    if [ "$(uname -s)" = Darwin ]; then environment=apple; fi
    if nvidia-smi >/dev/null 2>&1; then environment=cuda; fi
    case "$environment $(cat .venv/installed-run 2>/dev/null)" in "cpu cuda "*) environment=cuda ;; esac # a login node: GPUs are elsewhere
fi
[ -f "requirements/$environment.lock" ] || { say "error: ENVIRONMENT=$environment: no requirements/$environment.lock; use cpu, cuda or apple"; exit 2; }

installed() { # installed KIND ENVIRONMENT: whether .venv has it, of these very locks
    locks=$(locks_of "$2")
    if [ "$1" = dev ]; then locks="$locks requirements/dev.lock"; fi
    wanted="$2 $(cat $locks | cksum)"
    [ -x .venv/bin/finetune ] && [ "$(cat ".venv/installed-$1" 2>/dev/null)" = "$wanted" ]
}
if installed "$kind" "$environment"; then exit 0; fi
if [ "$kind" = run ] && { [ "$runtime" = docker ] || [ "$runtime" = podman ]; }; then
    for environment in cpu cuda base; do
        if installed run "$environment"; then exit 0; fi
    done
fi

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    if [ -n "${PYTHON:-}" ] && ! supported "$PYTHON"; then say "error: PYTHON=$PYTHON is not Python 3.11 to 3.13"; exit 4; fi
    for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11 none; do
        if [ "$python" != none ] && supported "$python"; then break; fi
    done
    [ "$python" != none ] || { say "error: no Python 3.11 to 3.13 was found; name one: PYTHON=/path/to/python"; exit 4; }
    say "setting up .venv for $environment with $("$python" --version): a few minutes, once"
    "$python" -m venv --clear .venv >&2 || { say "error: $python makes no virtual environments (Debian, Ubuntu: apt install python3-venv)"; exit 4; }
fi
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes "$@"; }

rm -f .venv/installed-*
lock=requirements/$environment.lock
if [ "$environment" = cpu ]; then
    if ! install -r requirements/torch-cpu.lock ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} 2>.venv/torch.log; then
        grep -q "No matching distribution" .venv/torch.log || { cat .venv/torch.log >&2; exit 1; }
        if [ "${FALLBACK:-}" = no ]; then
            say "error: PyTorch's CPU build is not on pip's index; set TORCH_INDEX to the CPU index that PyTorch's installation page names"
            exit 4
        fi
        say "PyTorch's CPU build is not on pip's index: taking the default build, with its CUDA libraries (some GB)."
        say "To avoid that, stop here and set TORCH_INDEX to the CPU index that PyTorch's installation page names."
        lock=requirements/cuda.lock
    fi
fi
install -r "$lock"
if [ "$kind" = dev ]; then install -r requirements/dev.lock; fi
# By all cores, where pip would use one. Some packages carry files that are no Python of today, and are never imported:
# they alone may fail, and without bytecode everything works, only starts more slowly.
.venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null || true
# The command `finetune`: of the tree that one is in, as a queued experiment has its own; else of the tree above .venv.
for packages in .venv/lib/python3*/site-packages; do echo ../../../../src > "$packages/finetune.pth"; done
printf '%s\n' '#!/bin/sh' 'PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} exec "$(dirname "$0")/python" -m finetune "$@"' > .venv/bin/finetune
chmod +x .venv/bin/finetune
for done in run $kind; do
    installed "$done" "$environment" || printf '%s' "$wanted" > ".venv/installed-$done"
done
