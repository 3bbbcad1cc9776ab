#!/usr/bin/env bash
# Any command of Unmask on the nodes of a Slurm job, from a checkout that all nodes see:
#   sbatch --nodes 4 --gpus-per-node 4 cluster/slurm.sh python -m train.fit --recipe dfdc-b7 --data FACES --out MODEL
# Ray starts on every node, the command runs on the first, and Ray ends with it. The job has its exit code. Nodes are not
# shared with other jobs: at the end all of Ray on them is stopped.
#SBATCH --job-name=unmask
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
# Where the time runs out, the same command goes on from the last state that it wrote (an epoch, or save_every_steps).
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "usage: sbatch [--nodes N] [--gpus-per-node N] cluster/slurm.sh COMMAND..." >&2
    exit 2
fi
: "${SLURM_JOB_ID:?submit this with sbatch}" "${SLURM_NNODES:?}" "${SLURM_JOB_NODELIST:?}"
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Two jobs one after the other on a node do not meet.
port=$((6400 + SLURM_JOB_ID % 1000))
# Paths of sockets must be short.
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID" RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

exec srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 \
    ray symmetric-run --address="$first:$port" --min-nodes="$SLURM_NNODES" \
    --num-cpus="${SLURM_CPUS_ON_NODE:-$(nproc)}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --include-dashboard=false -- \
    env RAY_ADDRESS="$first:$port" "$@"
