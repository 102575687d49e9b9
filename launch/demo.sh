#!/usr/bin/env bash
# Draws fundus photographs, trains on them and explains some: nothing to
# download, minutes on a laptop.
#
#   launch/demo.sh --dry-run
#   launch/demo.sh --config.seed=1      # arguments go to iqa_jax.main
#
# The same command again resumes where it was interrupted.

set -euo pipefail

WORKDIR="${WORKDIR:-runs/demo}"

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

private_cache
run "$PYTHON" -m iqa_jax.main --config=demo --workdir="$WORKDIR" \
  --compilation_cache="$CACHE" "$@"
