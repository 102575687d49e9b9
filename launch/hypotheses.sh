#!/usr/bin/env bash
# Answers the earlier work's two hypotheses on BRSet: does it help to learn from
# EyeQ first, and does a balanced subset suffice?
#
#   BRSET=~/brset EYEQ=~/eyeq launch/hypotheses.sh --dry-run
#   BRSET=~/brset EYEQ=~/eyeq launch/hypotheses.sh --config.seed=1
#
# Three arms over five folds each (baseline, pretrained, subset), after one run
# on EyeQ, then one report of all: WORKDIR/comparison/report.md. The same
# command again resumes. Arguments go to all trainings.

set -euo pipefail

BRSET="${BRSET:-brset}"
EYEQ="${EYEQ:-eyeq}"
WORKDIR="${WORKDIR:-runs/hypotheses}"
NOTE="${NOTE:-}"  # said first in the report

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

flags="${XLA_FLAGS:-}"
if (($(list_gpus | wc -l) > 1)); then
  flags="$MULTI_GPU_FLAGS $flags"
fi

# train COMMAND CONFIG NAME DATA ARGUMENT...: what of its own comes last, and
# counts.
train() {
  local command="$1" config="$2" name="$3" data="$4"
  shift 4
  run env XLA_CLIENT_MEM_FRACTION="$MEM_FRACTION" XLA_FLAGS="$flags" \
    "$PYTHON" -m "iqa_jax.$command" --config="$config" \
    --workdir="$WORKDIR/$name" --compilation_cache="$CACHE" "$@" \
    --config.data.manual_dir="$data"
}

private_cache
train main eyeq_resnet50 eyeq "$EYEQ" "$@"
train cross_validate brset_resnet50 baseline "$BRSET" "$@"
train cross_validate eyeq_to_brset pretrained "$BRSET" "$@" \
  --config.model.pretrained="$WORKDIR/eyeq"
train cross_validate brset_balanced_subset subset "$BRSET" "$@"
run "$PYTHON" -m iqa_jax.compare_runs --output="$WORKDIR/comparison" \
  --workdirs="$WORKDIR/baseline,$WORKDIR/pretrained,$WORKDIR/subset" \
  --note="$NOTE"
