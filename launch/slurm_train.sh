#!/usr/bin/env bash
# Trains on several nodes of a Slurm cluster; run it on the login node.
#
#   launch/slurm_train.sh --dry-run
#   NODES=4 GPUS=8 CONFIG=eyeq_vgg16 WORKDIR=/shared/runs/eyeq \
#     SBATCH_PARTITION=gpu launch/slurm_train.sh --config.train.batch_size=512
#
# The job saves and queues itself again two minutes before its time limit and
# when it is preempted, until the run is complete; `scancel` ends it for good.
# WORKDIR and the data must lie on a file system that every node sees. Every GPU
# has a process of its own: train.batch_size is over all of them and must be a
# multiple of NODES x GPUS; train.cache_gb is of each. SBATCH_ACCOUNT,
# SBATCH_PARTITION, ... are sbatch's own variables.

set -euo pipefail

CONFIG="${CONFIG:-demo}"
WORKDIR="${WORKDIR:-runs/$CONFIG}"
NODES="${NODES:-2}"
GPUS="${GPUS:-8}"  # of each node
CPUS="${CPUS:-8}"  # of each GPU: they decode the photographs
TIME="${TIME:-08:00:00}"
GRACE="${GRACE:-120}"  # seconds to save in before the time is up
LOG="${LOG:-slurm-%x-%j.log}"

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
  printf -v job '%q ' "$here/$(basename "$0")" "$@"
  # One process a GPU is how JAX reads a Slurm job. --signal without B: warns
  # the processes, not this script, which has to stay to queue the job again.
  run env CONFIG="$CONFIG" WORKDIR="$WORKDIR" CPUS="$CPUS" sbatch \
    --export=ALL --job-name="iqa-$CONFIG" --nodes="$NODES" \
    --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
    --cpus-per-task="$CPUS" --time="$TIME" --signal="TERM@$GRACE" --requeue \
    --open-mode=append --output="$LOG" --wrap="exec ${job% }"
  [[ $DRY_RUN ]] || exit 0
  echo '# and in the job:'
fi

private_cache
# --wait: when one process ends, the others get two minutes to end by themselves
# (they save together, or notice that a peer is gone) and are then stopped.
code=0
run srun --cpus-per-task="$CPUS" --wait=120 \
  env XLA_CLIENT_MEM_FRACTION="$MEM_FRACTION" \
  XLA_FLAGS="$MULTI_GPU_FLAGS ${XLA_FLAGS:-}" \
  "$PYTHON" -m iqa_jax.main --config="$CONFIG" --workdir="$WORKDIR" \
  --compilation_cache="$CACHE" "$@" || code=$?
# 130 and 143 are "interrupted, saved, ready to resume"; anything else is an
# error that trying again would only repeat.
[[ ! $DRY_RUN ]] || echo '# and when that ends with 130 or 143:'
if ((code == 130 || code == 143)) || [[ $DRY_RUN ]]; then
  run scontrol requeue "${SLURM_JOB_ID:-JOB_ID}"
fi
exit "$code"
