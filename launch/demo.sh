#!/usr/bin/env bash
# Judges drawn fundus photographs with the model that comes with the package,
# then trains another on such drawings and explains the same ones with it:
# nothing to download, minutes on a laptop.
#
#   launch/demo.sh --dry-run
#   launch/demo.sh --config.seed=1      # arguments go to iqa_jax.main
#   IMAGES=~/photographs launch/demo.sh # explain your own
#
# The same command again resumes where it was interrupted.

set -euo pipefail

WORKDIR="${WORKDIR:-runs/demo}"
IMAGES="${IMAGES:-}"  # empty: a dozen new ones are drawn

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

private_cache
if [[ -z $IMAGES ]]; then
  IMAGES="$WORKDIR/photographs"
  run "$PYTHON" -m iqa_jax.simulation.gallery --output="$IMAGES" \
    --photographs=16 --size=512 --seed=9000000
fi
run "$PYTHON" -m iqa_jax.export_heatmaps \
  --images="$IMAGES" --output="$WORKDIR/judged" --compilation_cache="$CACHE"
run echo "look at $WORKDIR/judged/index.html; now a network is trained"
run "$PYTHON" -m iqa_jax.main --config=demo --workdir="$WORKDIR" \
  --compilation_cache="$CACHE" "$@"
run "$PYTHON" -m iqa_jax.export_heatmaps --workdir="$WORKDIR" \
  --images="$IMAGES" --output="$WORKDIR/heatmaps" --compilation_cache="$CACHE"
run echo "look at $WORKDIR/report/index.html and $WORKDIR/heatmaps/index.html"
