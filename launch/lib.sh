# shellcheck shell=bash
# What the scripts beside this one share; they source it, nobody runs it.
# It takes their first argument when that is --dry-run or --help.

PYTHON="${PYTHON:-python}"
# Compiled programs, kept between runs, so that a resumed run starts in seconds.
CACHE="${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/iqa_jax/xla}"
DRY_RUN=""

case "${1:-}" in
  --dry-run)
    DRY_RUN=1
    shift
    ;;
  --help | -h)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

# run COMMAND...: runs it, or with --dry-run prints it as you would type it.
run() {
  if [[ ! $DRY_RUN ]]; then
    "$@"
    return
  fi
  local word line="" quote="'\\''"
  for word in "$@"; do
    if [[ -z $word || $word == *[!A-Za-z0-9_@%+=:,./-]* ]]; then
      word="'${word//\'/$quote}'"
    fi
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

# Programs are loaded and executed from the cache: a folder that others can
# write to would let them run code as you, so it is made for you alone, and
# the script ends here when it belongs to somebody else.
private_cache() {
  run install -d -m 700 "$CACHE"
}

# Prints the numbers of the NVIDIA GPUs to use, one a line: those in
# CUDA_VISIBLE_DEVICES (none if it is empty), or all of this machine.
list_gpus() {
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed '/^$/d'
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index --format=csv,noheader || true
  fi
}

# 90 % of a GPU's memory instead of JAX's 75 %: nothing else needs it, because
# TensorFlow is its CPU build; the rest is for cuDNN, cuBLAS and NCCL, which
# allocate outside JAX's pool.
MEM_FRACTION="${MEM_FRACTION:-${XLA_CLIENT_MEM_FRACTION:-0.9}}"
unset XLA_PYTHON_CLIENT_MEM_FRACTION  # its old name; JAX refuses to have both

# Sends a layer's gradients to the other GPUs while the next layer's are still
# being computed. Sums of 0.1 MB and more go alone: put together with others
# they wait, and what waits keeps maps alive (ResNet50 of 256 photographs a GPU,
# compiled: 12.9 GB, so 11.2). jaxlib 0.10 and 0.12 know these flags; one that
# they don't would end the process at once. Your XLA_FLAGS come last.
# shellcheck disable=SC2034
MULTI_GPU_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true\
 --xla_gpu_all_reduce_combine_threshold_bytes=100000"
