#!/bin/sh
# Installs the locked packages into .venv: `requirements/setup.sh auto|cpu|cuda|apple [PARAMS] [run|dev]`. Does nothing if they are there.
# If PARAMS (params.yaml or a recipe) runs the stages in containers, only the packages that the host needs are installed.
#   PYTHON=python3.12   interpreter to use (3.11 to 3.13)
#   TORCH_INDEX=URL     package index with PyTorch's CPU build, used if pip's own index does not have it
#   FALLBACK=no         fail if neither has the CPU build, instead of installing the default build
# Exit codes: 2 for incorrect usage, 4 if this machine cannot be set up. The output of pip and uv goes to .venv/setup.log.
set -eu
environment=${1:-}
params=${2:-params.yaml}
kind=${3:-run}
index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
log=.venv/setup.log
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { # fail CODE MESSAGE
    say "error: $2"
    exit "$1"
}
case "$environment" in
    auto | cpu | cuda | apple) ;;
    *) fail 2 "ENVIRONMENT=$environment is not an environment; use auto, cpu, cuda or apple" ;;
esac
case "$kind" in
    run | dev) ;;
    *) fail 2 "requirements/setup.sh: $kind is not a set of packages; use run or dev" ;;
esac

# ------------------------------------------------------------------------------------------------------ what to install
locks_of() { # locks_of ENVIRONMENT
    if [ "$1" = cpu ]; then echo "requirements/torch-cpu.lock requirements/cpu.lock"; else echo "requirements/$1.lock"; fi
}

if [ -n "${FINETUNE_IMAGE:-}" ]; then # inside one of our images, which has its own packages
    here=$(cat $(locks_of "$(expr "$FINETUNE_IMAGE" : '.*finetune-\([a-z]*\)')") | sha256sum | cut -d ' ' -f 1)
    if [ "$here" = "$FINETUNE_LOCKS" ] && [ "$kind" = run ]; then exit 0; fi
    fail 4 "this image ($FINETUNE_IMAGE) was built from locks that differ from requirements/, or lacks the packages for tests"
fi

if [ "$environment" = auto ]; then
    environment=cpu
    if [ "$(uname -s)" = Darwin ]; then environment=apple; fi
    if nvidia-smi >/dev/null 2>&1; then environment=cuda; fi
    # A login node has no GPU, but shares .venv with the nodes that have one.
    case "$environment $(cat .venv/installed-run 2>/dev/null)" in "cpu cuda "*) environment=cuda ;; esac
fi

installed() { # installed KIND ENVIRONMENT: whether .venv was made from the present locks
    locks=$(locks_of "$2")
    if [ "$1" = dev ]; then locks="$locks requirements/dev.lock"; fi
    wanted="$2 $(cat $locks | cksum)"
    [ -x .venv/bin/python ] && [ -x .venv/bin/finetune ] && [ "$(cat ".venv/installed-$1" 2>/dev/null)" = "$wanted" ]
}

if installed "$kind" "$environment"; then exit 0; fi
runtime=${FINETUNE_RUNTIME:-$(sed -n 's/^runtime: *\([a-z]*\).*/\1/p' "$params" 2>/dev/null || true)}
if [ "$kind" = run ] && { [ "$runtime" = docker ] || [ "$runtime" = podman ]; }; then
    for environment in cpu cuda base; do
        if installed run "$environment"; then exit 0; fi
    done
fi

# ----------------------------------------------------------------------------------------------- the virtual environment
supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
find_python() { # prints the interpreter to use
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" || fail 4 "PYTHON=$PYTHON is not Python 3.11 to 3.13"
        echo "$PYTHON"
        return
    fi
    for python in python3 python3.13 python3.12 python3.11; do
        if supported "$python"; then
            echo "$python"
            return
        fi
    done
    fail 4 "no Python 3.11 to 3.13 found; set one: PYTHON=/path/to/python"
}

if .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "updating .venv for $environment"
else
    python=$(find_python)
    say "setting up .venv for $environment with $("$python" --version) (once, takes a few minutes)"
    problem=$("$python" -m venv --clear .venv 2>&1) || {
        say "$problem"
        fail 4 "$python cannot create a virtual environment in $PWD/.venv (Debian, Ubuntu: apt install python3-venv)"
    }
fi

# -------------------------------------------------------------------------------------------------------------- packages
pip_install() {
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes "$@" \
        >>"$log" 2>&1
}
give_up() { # give_up LOCK: show the end of the log, and fail
    grep -v "^WARNING: Location .* is ignored" "$log" | tail -n 15 >&2
    remedy="check the network and pip's settings (.venv/bin/python -m pip config list), then run the command again"
    if grep -q "DO NOT MATCH THE HASHES" "$log"; then remedy="a file differs from the locked one; check which index pip downloads it from"; fi
    if grep -Eqi "no space left|quota exceeded" "$log"; then remedy="the disk is full; free disk space, then run the command again"; fi
    fail 4 "cannot install $1: $remedy; full log: $log"
}

install_torch_cpu() { # fails if no index has the CPU build
    if pip_install -r requirements/torch-cpu.lock; then return 0; fi
    # An index that does not answer at all ("Retrying") is the same to pip as one without PyTorch.
    if grep -q "Retrying" "$log" && grep -q "from versions: none" "$log"; then give_up requirements/torch-cpu.lock; fi
    # With a constraint on torch in its settings, pip calls a missing build a conflict.
    grep -Eq "No matching distribution|ResolutionImpossible" "$log" || give_up requirements/torch-cpu.lock
    say "pip's index does not have PyTorch's CPU build: trying $index"
    # Whether the index answers must be known in seconds; the download may take its time. (macOS has no `timeout`.)
    limit=$(command -v timeout >/dev/null && echo "timeout 15" || true)
    found=$($limit .venv/bin/python -m pip index versions torch --index-url "$index" --retries 0 --timeout 5 2>>"$log") || true
    version=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' requirements/torch-cpu.lock)
    case "$found" in *"$version"*) ;; *) return 1 ;; esac
    pip_install -r requirements/torch-cpu.lock --index-url "$index" || give_up requirements/torch-cpu.lock
}

# uv takes a fraction of pip's time, but reads none of pip's settings. It gets those that say where packages are; some
# make no difference here; with any other, pip does the work.
passed_on="index-url|extra-index-url|find-links|cert|cache-dir|no-cache-dir"
ignored="config-file|timeout|default-timeout|retries|constraint|disable-pip-version-check|progress-bar|quiet|no-color|no-input|root-user-action"
prepare_uv() { # installs uv and sets its variables; fails if pip must do the work
    [ -f requirements/dev.lock ] || return 1 # the build of an image, in which uv would only be left over
    all=$(.venv/bin/python -m pip config list 2>>"$log") || return 1
    # By precedence: the environment, [install], [global].
    settings=$(for section in :env: install global; do printf '%s\n' "$all" | grep "^$section\." || true; done)
    if printf '%s' "$settings" | grep -Eqv "^[^=]*\.($passed_on|$ignored)='"; then return 1; fi
    awk '/^[a-z]/ {mine = /^uv==/} mine' requirements/dev.lock | pip_install -r /dev/stdin || return 1
    pass_on index-url UV_DEFAULT_INDEX
    pass_on extra-index-url UV_INDEX
    pass_on find-links UV_FIND_LINKS ,
    pass_on cert SSL_CERT_FILE
    pass_on cache-dir UV_CACHE_DIR
    pass_on no-cache-dir UV_NO_CACHE
    export UV_INDEX_STRATEGY=unsafe-best-match # all indexes are equal, as they are for pip: the hashes decide
    export UV_LINK_MODE=copy # otherwise a file that is edited in .venv would also be edited in uv's cache
}
pass_on() { # pass_on PIP_SETTING UV_VARIABLE [SEPARATOR]
    value=$(printf '%s\n' "$settings" | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | head -n 1 | sed 's/\\n/ /g; s/^ *//; s/ *$//')
    if [ -n "$value" ]; then export "$2=$(printf '%s' "$value" | tr -s ' ' "${3:- }")"; fi
}

install() { # install LOCK
    if [ "$uv" = yes ]; then
        if .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --require-hashes -r "$1" >>"$log" 2>&1; then return; fi
        say "uv cannot install $1 (reason in $log): trying pip"
        uv=no
    fi
    pip_install -r "$1" || give_up "$1"
}

rm -f .venv/installed-*
: >"$log"
lock=requirements/$environment.lock
if [ "$environment" = cpu ] && ! install_torch_cpu; then
    remedy="set TORCH_INDEX to an index that has the CPU build"
    if [ "${FALLBACK:-}" = no ]; then fail 4 "PyTorch's CPU build is neither on pip's index nor on $index; $remedy"; fi
    say "not found there either: installing the default build, which includes CUDA libraries (several GB)"
    say "to avoid that, stop here and $remedy"
    lock=requirements/cuda.lock
fi
uv=no
if prepare_uv; then uv=yes; fi
install "$lock"
if [ "$kind" = dev ]; then install requirements/dev.lock; fi

# Bytecode is compiled on all cores, where pip would use one, and not for the libraries' own tests. Some packages have
# files that are not valid Python today and are never imported; only those fail. Without bytecode, starts are slower.
.venv/bin/python -m compileall -q -j 0 -x '/tests?/' .venv/lib >/dev/null || true
# The command `finetune`: of the tree that one is in, as a queued experiment has its own; else of the tree above .venv.
for packages in .venv/lib/python3*/site-packages; do echo ../../../../src > "$packages/finetune.pth"; done
printf '%s\n' '#!/bin/sh' 'PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} exec "$(dirname "$0")/python" -m finetune "$@"' > .venv/bin/finetune
chmod +x .venv/bin/finetune
for done in run $kind; do
    installed "$done" "$environment" || printf '%s' "$wanted" >".venv/installed-$done"
done
