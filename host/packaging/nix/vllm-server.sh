# Replaces itself by `vllm serve`, configured by environment variables.
# usage: vllm-server [ARGUMENT...]
#
# Most variables that deployments of vLLM set are not variables of vLLM: it has arguments for them.
# They are translated here, and removed from its environment. Arguments are appended, so they win.

warn() {
  echo "vllm-server: $1" >&2
}

fail() {
  warn "$1"
  exit 64 # EX_USAGE
}

# take NAME: sets $value to that of a variable, and removes the variable. Fails if there is none;
# "None" is what Python programs write then.
take() {
  value=${!1:-}
  unset "$1"
  [ -n "$value" ] && [ "$value" != None ]
}

# is_true NAME: takes a variable, and succeeds if it is true.
is_true() {
  take "$1" || return 1
  case ${value,,} in
    1 | true | yes | on) return 0 ;;
    0 | false | no | off) return 1 ;;
    *) fail "$1: invalid boolean \"$value\": expected true or false" ;;
  esac
}

# argument NAME FLAG: appends FLAG with the value of a variable.
argument() {
  if take "$1"; then
    arguments+=("$2" "$value")
  fi
}

# unused NAME WHY: removes a variable that has no counterpart.
unused() {
  if take "$1"; then
    warn "$1 is ignored: $2"
  fi
}

path=${MODEL_PATH:-}
model=${VLLM_MODEL:-$path}
unset MODEL_PATH VLLM_MODEL
if [ -z "$model" ]; then
  fail "missing model: set VLLM_MODEL to a folder, or to a name on the Hugging Face Hub"
fi
if [ -n "$path" ] && [ "$path" != "$model" ]; then
  fail "VLLM_MODEL is \"$model\" and MODEL_PATH \"$path\": remove one of them"
fi
case $model in
  *.safetensors) fail "invalid model \"$model\": expected the folder of the file" ;;
esac

# VLLM_PORT is a variable of vLLM: the first of its internal ports.
host=${VLLM_HOST:-127.0.0.1}
port=${VLLM_PORT:-8000}
unset VLLM_HOST VLLM_PORT
case $port in
  *[!0-9]*) fail "VLLM_PORT: invalid port \"$port\": expected an integer" ;;
esac

arguments=("$model" --host "$host" --port "$port")
if take VLLM_SERVED_MODEL_NAME; then
  read -r -a names <<< "${value//,/ }"
  arguments+=(--served-model-name "${names[@]}")
fi
argument VLLM_GPU_MEMORY_UTILIZATION --gpu-memory-utilization
argument VLLM_MAX_MODEL_LEN --max-model-len
argument VLLM_MAX_NUM_SEQS --max-num-seqs
argument VLLM_DTYPE --dtype
argument VLLM_QUANTIZATION --quantization
argument VLLM_TENSOR_PARALLEL_SIZE --tensor-parallel-size
argument VLLM_PIPELINE_PARALLEL_SIZE --pipeline-parallel-size
argument VLLM_BLOCK_SIZE --block-size
argument VLLM_NUM_GPU_BLOCKS_OVERRIDE --num-gpu-blocks-override
if is_true VLLM_ENFORCE_EAGER; then arguments+=(--enforce-eager); fi
if is_true VLLM_LOG_REQUESTS; then arguments+=(--enable-log-requests); fi
if is_true TRANSFORMERS_TRUST_REMOTE_CODE; then arguments+=(--trust-remote-code); fi

offline=false
for name in TRANSFORMERS_OFFLINE HF_DATASETS_OFFLINE; do
  if is_true "$name"; then offline=true; fi
done
if [ "$offline" = true ]; then export HF_HUB_OFFLINE=1; fi
if take VLLM_LOG_LEVEL; then
  export VLLM_LOGGING_LEVEL="${VLLM_LOGGING_LEVEL:-${value^^}}"
fi
# vLLM takes any text as a key, also "None".
if take VLLM_API_KEY; then export VLLM_API_KEY="$value"; fi

# vLLM accepts only the numbers of GPUs there; ROCm has another variable for UUIDs.
case ${HIP_VISIBLE_DEVICES:-} in
  GPU-*)
    export ROCR_VISIBLE_DEVICES="$HIP_VISIBLE_DEVICES"
    unset HIP_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES
    ;;
esac

unused VLLM_SWAP_SPACE "vLLM has no swap space any more; see its argument --kv-offloading-size"
unused VLLM_CPU_ONLY "the device is decided when vLLM is built"
unused VLLM_ROCM_GEMM_TUNING "vLLM does not read it"
unused LOG_DIRECTORY "the log goes to standard output and standard error"
if [ -n "${HSA_OVERRIDE_GFX_VERSION:-}" ]; then
  warn "HSA_OVERRIDE_GFX_VERSION is set: a wrong version crashes the GPU, and gfx1151 needs none"
fi
case ${VLLM_ROCM_USE_AITER:-} in
  1 | true | True) warn "VLLM_ROCM_USE_AITER is set: it fails on gfx1151" ;;
esac

exec vllm serve "${arguments[@]}" "$@"
