#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it, runs on all its workers, and after a
# preemption creates it again and resumes, until the run is complete.
#
#   PROJECT=my-project FILESTORE=10.0.0.2:/share launch/tpu_slice.sh --dry-run
#   PROJECT=... FILESTORE=... launch/tpu_slice.sh --config.model.dtype=bfloat16
#
# Needs gcloud, logged in, and a Filestore share (NFS) in the slice's network:
# all workers read the data there and write the run there, and it outlives the
# slice. Arguments go to iqa_jax.main. Delete the slice yourself if you stop
# this script (the last line it prints says how): it costs money while it is.

set -euo pipefail

PROJECT="${PROJECT:-my-project}"
ZONE="${ZONE:-us-east5-b}"
NAME="${NAME:-iqa}"
TYPE="${TYPE:-v6e-16}"  # 16 chips: 4 workers
VERSION="${VERSION:-v2-alpha-tpuv6e}"  # the runtime that belongs to TYPE
FILESTORE="${FILESTORE:-10.0.0.2:/share}"
CONFIG="${CONFIG:-demo}"
TPU_PYTHON="${TPU_PYTHON:-3.12}"  # uv brings it: the image's may be too old
WORKDIR="${WORKDIR:-/mnt/iqa/runs/$CONFIG}"  # on the share, mounted at /mnt/iqa
ATTEMPTS="${ATTEMPTS:-50}"  # slices to try before giving up
PAUSE="${PAUSE:-60}"  # seconds between them: there may be no capacity

# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

where=(--project="$PROJECT" --zone="$ZONE")
tpu=(gcloud compute tpus tpu-vm)
archive="$(mktemp -u "${TMPDIR:-/tmp}/iqa_jax.XXXXXX").tar.gz"
trap 'rm -f "$archive"' EXIT

on_all_workers() {
  run "${tpu[@]}" ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}

create() {
  # Spot: a fraction of the price, and taken away at any time.
  run "${tpu[@]}" create "$NAME" "${where[@]}" --accelerator-type="$TYPE" \
    --version="$VERSION" --spot
}

install_on_workers() {
  run git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --prefix=iqa_jax/ \
    --output="$archive" HEAD &&
    run "${tpu[@]}" scp "$archive" "$NAME:iqa_jax.tar.gz" "${where[@]}" \
      --worker=all &&
    on_all_workers "sudo mkdir -p /mnt/iqa && (mountpoint -q /mnt/iqa ||\
 sudo mount -t nfs $FILESTORE /mnt/iqa) && python3 -m venv uv &&\
 uv/bin/pip install -q uv &&\
 uv/bin/uv venv -q --allow-existing --python=$TPU_PYTHON iqa &&\
 uv/bin/uv pip install -q --python=iqa './iqa_jax.tar.gz[tpu]'"
}

train() {
  local main
  printf -v main '%q ' iqa/bin/python -m iqa_jax.main --config="$CONFIG" \
    --workdir="$WORKDIR" --compilation_cache='.cache/iqa_jax/xla' "$@"
  # The cache is in each worker's own home, which nobody else can write to. No
  # XLA flags and no memory settings: libtpu's defaults are tuned for the chip.
  # JAX finds the other workers by itself on a TPU. 143 from a slice that lives
  # on is a maintenance event: resume at once.
  on_all_workers "install -d -m 700 .cache/iqa_jax/xla; code=143;\
 while [ \$code = 143 ]; do code=0; $main|| code=\$?; done; exit \$code"
}

state() {
  "${tpu[@]}" describe "$NAME" "${where[@]}" --format='value(state)' \
    2>/dev/null || echo MISSING
}

delete=("${tpu[@]}" delete "$NAME" "${where[@]}" --quiet)
if [[ $DRY_RUN ]]; then
  create
  install_on_workers
  train "$@"
  echo '# after a preemption, this and all of the above again:'
  run "${delete[@]}"
  exit 0
fi

for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
  if [[ $(state) != READY ]]; then
    # What a preemption leaves behind has to go before the name is free.
    "${delete[@]}" 2>/dev/null || true
    if ! create; then
      sleep "$PAUSE"
      continue
    fi
  fi
  if install_on_workers && train "$@"; then
    "${delete[@]}"
    exit 0
  fi
  # An error on a slice that is still there would only come again.
  if [[ $(state) == READY ]]; then
    echo "the run failed; the slice is still there: ${delete[*]}" >&2
    exit 1
  fi
done
echo "gave up after $ATTEMPTS slices: ${delete[*]}" >&2
exit 1
