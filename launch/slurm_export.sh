#!/usr/bin/env bash
# Exports heatmaps of a big folder as a Slurm array, then merges the shards;
# run it on the login node.
#
#   RUN=runs/eyeq IMAGES=/shared/photographs OUTPUT=/shared/maps \
#     launch/slurm_export.sh --dry-run
#
# Each array task takes one shard, skips what it has done and may be stopped at
# any time: the same command again finishes what is left. Arguments go to
# iqa_jax.export_heatmaps. RUN, IMAGES and OUTPUT must lie on a file system that
# every node sees. SBATCH_ACCOUNT, SBATCH_PARTITION, ... are sbatch's own.

set -euo pipefail

RUN="${RUN:-runs/demo}"
IMAGES="${IMAGES:-images}"
OUTPUT="${OUTPUT:-heatmaps}"
SHARDS="${SHARDS:-16}"
GPUS="${GPUS:-1}"  # of each shard; 0 exports on the processor
CPUS="${CPUS:-8}"  # of each shard: they decode and write
TIME="${TIME:-02:00:00}"
LOG="${LOG:-slurm-%x-%A_%a.log}"

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

export_heatmaps=("$PYTHON" -m iqa_jax.export_heatmaps --workdir="$RUN"
  --output="$OUTPUT" --num_shards="$SHARDS")

if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
  here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
  printf -v task '%q ' "$here/$(basename "$0")" "$@"
  printf -v merge '%q ' "${export_heatmaps[@]}" --merge "$@"
  export RUN IMAGES OUTPUT SHARDS CPUS
  array=(sbatch --parsable --export=ALL --job-name=iqa-export
    --array="0-$((SHARDS - 1))" --ntasks=1 --gpus="$GPUS"
    --cpus-per-task="$CPUS" --time="$TIME" --signal=TERM@60 --requeue
    --open-mode=append --output="$LOG" --wrap="exec ${task% }")
  job=ARRAY_JOB_ID
  if [[ $DRY_RUN ]]; then
    run "${array[@]}"
  else
    job="$("${array[@]}")"
  fi
  run sbatch --export=ALL --job-name=iqa-merge --ntasks=1 --time="$TIME" \
    --dependency="afterok:${job%%;*}" --output="$LOG" --wrap="exec ${merge% }"
  [[ $DRY_RUN ]] || exit 0
  echo '# and in each task of the array:'
fi

private_cache
code=0
# srun, because --signal warns job steps only.
run srun --ntasks=1 --cpus-per-task="$CPUS" "${export_heatmaps[@]}" \
  --images="$IMAGES" --shard_index="${SLURM_ARRAY_TASK_ID:-0}" \
  --compilation_cache="$CACHE" "$@" || code=$?
# Interrupted: queue this task again. Anything else, trying again would repeat.
[[ ! $DRY_RUN ]] || echo '# and when that ends with 130 or 143:'
if ((code == 130 || code == 143)) || [[ $DRY_RUN ]]; then
  run scontrol requeue "${SLURM_JOB_ID:-JOB_ID}"
fi
exit "$code"
