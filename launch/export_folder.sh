#!/usr/bin/env bash
# Exports heatmaps of a folder on this machine: one process a GPU, or one on
# the processor, and then one manifest.
#
#   RUN=runs/eyeq IMAGES=photographs OUTPUT=maps launch/export_folder.sh
#
# Stop it as you like; the same command again finishes what is left. Arguments
# go to iqa_jax.export_heatmaps (--help lists methods, targets and pictures).

set -euo pipefail

RUN="${RUN:-runs/demo}"
IMAGES="${IMAGES:-images}"
OUTPUT="${OUTPUT:-heatmaps}"
# JOBS processes at a time: as many as GPUs. One on the processor, since one
# already decodes, computes and writes on all of its cores.
JOBS="${JOBS:-}"
SHARDS="${SHARDS:-}"  # parts of the folder; as many as JOBS

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

gpus=()
while read -r gpu; do gpus+=("$gpu"); done < <(list_gpus)
JOBS="${JOBS:-$((${#gpus[@]} > 1 ? ${#gpus[@]} : 1))}"
SHARDS="${SHARDS:-$JOBS}"

# Prints one shard's command a line; shards take turns on the GPUs.
commands() {
  local DRY_RUN=1 shard
  for ((shard = 0; shard < SHARDS; shard++)); do
    local where=()
    if ((${#gpus[@]} > 0)); then
      where=(env CUDA_VISIBLE_DEVICES="${gpus[shard % ${#gpus[@]}]}")
      # Shards that meet on a GPU must not each reserve most of its memory.
      ((SHARDS <= ${#gpus[@]})) || where+=(XLA_PYTHON_CLIENT_PREALLOCATE=false)
    fi
    run ${where[@]+"${where[@]}"} "$PYTHON" -m iqa_jax.export_heatmaps \
      --workdir="$RUN" --images="$IMAGES" --output="$OUTPUT" \
      --shard_index="$shard" --num_shards="$SHARDS" \
      --compilation_cache="$CACHE" "$@"
  done
}

private_cache
if [[ $DRY_RUN ]]; then
  commands "$@"
elif ! commands "$@" | tr '\n' '\0' |
  xargs -0 -P "$JOBS" -I{} bash -c 'exec {}'; then
  echo "some shards are unfinished; the same command resumes them" >&2
  exit 1
fi
run exec "$PYTHON" -m iqa_jax.export_heatmaps --workdir="$RUN" \
  --output="$OUTPUT" --num_shards="$SHARDS" --merge "$@"
