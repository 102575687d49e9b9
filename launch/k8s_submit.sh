#!/usr/bin/env bash
# Submits launch/k8s_jobset.yaml, a training on several GPU nodes.
#
#   IMAGE=registry.example/iqa_jax:1 CLAIM=runs NODES=4 launch/k8s_submit.sh \
#     --dry-run --config.data.data_dir=/runs/data
#
# IMAGE has python with iqa_jax[cuda]; CLAIM is a ReadWriteMany volume claim
# whose root user 1000 can write to. Arguments go to iqa_jax.main. Interrupted
# pods resume by themselves; `kubectl delete jobset NAME` ends it for good.

set -euo pipefail

CONFIG="${CONFIG:-demo}"
NAME="${NAME:-iqa-${CONFIG//_/-}}"  # also the folder of the run, in CLAIM
IMAGE="${IMAGE:-iqa_jax:latest}"
CLAIM="${CLAIM:-runs}"
NODES="${NODES:-2}"
GPUS="${GPUS:-8}"  # of each node
RESTARTS="${RESTARTS:-5}"  # after crashes; interruptions don't count
GRACE="${GRACE:-120}"  # seconds to save in

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A JSON list is a YAML list, whatever the arguments hold.
ARGUMENTS="["
for argument in --config="$CONFIG" "$@"; do
  # shellcheck disable=SC2001  # Bash 5.2 reads \ in a replacement differently
  ARGUMENTS+="\"$(sed 's/[\\"]/\\&/g' <<<"$argument")\", "
done
ARGUMENTS="${ARGUMENTS%, }]"

jobset="$(<"$(dirname "${BASH_SOURCE[0]}")/k8s_jobset.yaml")"
for variable in NAME IMAGE CLAIM NODES GPUS RESTARTS GRACE MEM_FRACTION \
  MULTI_GPU_FLAGS ARGUMENTS; do
  jobset=${jobset//"\${$variable}"/"${!variable}"}
done

if [[ $DRY_RUN ]]; then
  echo "# kubectl apply -f - <<YAML"
  printf '%s\n' "$jobset"
else
  kubectl apply -f - <<<"$jobset"
fi
