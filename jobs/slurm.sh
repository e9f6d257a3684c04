#!/bin/bash
# Runs this folder as a Slurm job that may be stopped and requeued at any time; at most the last step is lost.
#
# Submit from the root of the repository, on a disk that all nodes share:
#   sbatch jobs/slurm.sh h100                                   make train-h100
#   sbatch jobs/slurm.sh                                        make repro, with params.yaml unchanged
#   sbatch --nodes=2 --gpus-per-node=4 jobs/slurm.sh            train.distributed: {nodes: 2, devices: 8, ...}
#   sbatch --export=ALL,IMAGE=finetune-cuda.sif jobs/slurm.sh h100   in one of our images: apptainer for x.sif and
#                                                               docker://x, else pyxis
# For nodes without a network, run make setup ENVIRONMENT=cuda and download the base on the login node first.
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -u
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
target=${1:+train-$1}
target=${target:-repro}
patience=${PATIENCE:-240} # seconds to save; less than in --signal, so that the job is requeued before its time limit

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer inherits it from sbatch
export PYTHONPATH=src PATH="$PWD/.venv/bin:$PATH"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))

# As in src/finetune/containers/command_line.py: mount the tree and the model cache under their own paths. MOUNTS adds paths
# elsewhere, such as linked checkpoints: MOUNTS=/scratch/checkpoints:/scratch/checkpoints,/data:/data
options=() prefix=()
if [ -n "${IMAGE:-}" ]; then
    export HF_HUB_CACHE=${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}
    mkdir -p "$HF_HUB_CACHE" work/apptainer
    mounts=$PWD:$PWD,$HF_HUB_CACHE:$HF_HUB_CACHE${MOUNTS:+,$MOUNTS}
fi
case ${IMAGE:-} in
'') ;;
*.sif | docker://*)
    prefix=(apptainer exec --nv --contain --workdir "$PWD/work/apptainer" --bind "$mounts" --pwd "$PWD" "$IMAGE")
    ;;
*) options=("--container-image=$IMAGE" "--container-mounts=$mounts" "--container-workdir=$PWD") ;;
esac
on_head() { srun --nodes=1 --ntasks=1 --nodelist="$MASTER_ADDR" "${options[@]}" "$@"; }

signals=0
on_signal() {
    signals=$((signals + 1))
    echo "slurm.sh: stopping; the job will be requeued and resume from its checkpoint"
    on_head --overlap "${prefix[@]}" timeout "$patience" finetune stop || kill "$run"
}

on_head "${prefix[@]}" make setup || exit
# The trap keeps bash alive when a signal ends the run; finetune stop then waits for a stage that is still saving, if any.
NODE_RANK=0 on_head "${prefix[@]}" bash -c 'trap : TERM USR1; make "$1"; code=$?; finetune stop; exit $code' job "$target" &
run=$!
trap on_signal USR1
others=
if [ "${#nodes[@]}" -gt 1 ]; then
    count=$((${#nodes[@]} - 1))
    srun --nodes="$count" --ntasks="$count" --exclude="$MASTER_ADDR" "${options[@]}" "${prefix[@]}" \
        bash -c 'PYTHONPATH=src NODE_RANK=$((SLURM_PROCID + 1)) exec finetune join' & # use this folder's source, not the image's
    others=$!
fi

waited=-1
while [ "$waited" -ne "$signals" ]; do # a trapped signal makes `wait` return its own code, but does not end the run
    waited=$signals
    wait "$run"
    code=$?
done
[ -z "$others" ] || kill "$others" 2>/dev/null # they have ended with the training, or are waiting for one that never started
if [ "$signals" -gt 0 ] && [ "$code" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
