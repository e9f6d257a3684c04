#!/bin/sh
# Makes .venv from the locks: `requirements/setup.sh cpu|cuda|apple|auto [dev]`. Does nothing when it is done already.
#   PYTHON=python3.12   the interpreter (3.11 to 3.13)
#   TORCH_INDEX=URL     where PyTorch's CPU build lies, when pip's own index does not have it
set -eu
cd "$(dirname "$0")/.."
environment=$1
kind=${2:-run}
say() { printf '%s\n' "$*" >&2; }

if [ "$environment" = auto ]; then
    environment=cpu
    if [ "$(uname -s)" = Darwin ]; then environment=apple; fi
    if nvidia-smi >/dev/null 2>&1; then environment=cuda; fi
fi
lock=requirements/$environment.lock
[ -f "$lock" ] || { say "error: ENVIRONMENT=$environment: no $lock; use cpu, cuda or apple"; exit 2; }

locks="$lock requirements/torch-cpu.lock"
if [ "$kind" = dev ]; then locks="$locks requirements/dev.lock"; fi
stamp=.venv/installed-$kind
wanted="$environment $(cat $locks | cksum)"
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    if [ -n "${PYTHON:-}" ] && ! supported "$PYTHON"; then say "error: PYTHON=$PYTHON is not Python 3.11 to 3.13"; exit 4; fi
    for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11 none; do
        if [ "$python" != none ] && supported "$python"; then break; fi
    done
    [ "$python" != none ] || { say "error: no Python 3.11 to 3.13 was found; name one: PYTHON=/path/to/python"; exit 4; }
    say "setting up .venv for $environment with $("$python" --version): a few minutes, once"
    "$python" -m venv --clear .venv
fi
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes "$@"; }

rm -f .venv/installed-*
if [ "$environment" = cpu ]; then
    if ! install -r requirements/torch-cpu.lock ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} 2>.venv/torch.log; then
        grep -q "No matching distribution" .venv/torch.log || { cat .venv/torch.log >&2; exit 1; }
        say "PyTorch's CPU build is not on pip's index: taking the default build, with its CUDA libraries (some GB)."
        say "To avoid that, stop here and set TORCH_INDEX to the CPU index that PyTorch's installation page names."
        lock=requirements/cuda.lock
    fi
fi
install -r "$lock"
if [ "$kind" = dev ]; then install -r requirements/dev.lock; printf '%s' "$environment $(cat "requirements/$environment.lock" requirements/torch-cpu.lock | cksum)" > .venv/installed-run; fi
printf '%s' "$wanted" > "$stamp"
