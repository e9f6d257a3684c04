#!/bin/sh
# Makes the environments of the peers from their locks in FOLDER: `benchmarks/peers.sh FOLDER`. Minutes, and 8 GB of disk.
#   PYTHON=python3.11 the interpreter, for which the locks were made
#   TORCH_INDEX=URL   package index with PyTorch's CPU build, if pip's own index does not have it
# LLaMA-Factory has PyTorch's default build: torchvision and torchaudio, which it needs, fit no other on pip's index.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
for peer in llamafactory soup; do
    lock=$(cksum < "$here/peers/$peer.lock")
    [ "$(cat "$peer/done" 2>/dev/null)" = "$lock" ] && continue
    "${PYTHON:-python3.11}" -m venv --clear "$peer"
    install() { "$peer/bin/pip" install --quiet --no-deps --require-hashes "$@"; }
    install -r "$here/peers/$peer.lock"
    [ "$peer" = llamafactory ] ||
        install -r "$here/../requirements/torch-cpu.lock" ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
    echo "$lock" > "$peer/done"
done
