#!/usr/bin/env bash
# Trains and evaluates on every GPU of this machine, in one process.
#
#   launch/gpu_node.sh --dry-run                       # what would it do?
#   CONFIG=eyeq_vgg16 WORKDIR=runs/eyeq launch/gpu_node.sh \
#     --config.data.manual_dir="$HOME/data/eyeq" --config.model.dtype=bfloat16
#
# The same command again resumes: after Ctrl-C (exit code 130), after SIGTERM
# (143), after a crash. Arguments go to iqa_jax.main.

set -euo pipefail

CONFIG="${CONFIG:-demo}"
WORKDIR="${WORKDIR:-runs/$CONFIG}"
MODE="${MODE:-train_and_evaluate}"
# Which GPUs: set CUDA_VISIBLE_DEVICES=0,1; all of them by default.

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

flags="${XLA_FLAGS:-}"
if (($(list_gpus | wc -l) > 1)); then
  flags="$MULTI_GPU_FLAGS $flags"
fi
private_cache
# exec: a SIGTERM to this script must reach Python, which then saves.
run exec env XLA_CLIENT_MEM_FRACTION="$MEM_FRACTION" XLA_FLAGS="$flags" \
  "$PYTHON" -m iqa_jax.main --config="$CONFIG" --workdir="$WORKDIR" \
  --mode="$MODE" --compilation_cache="$CACHE" "$@"
