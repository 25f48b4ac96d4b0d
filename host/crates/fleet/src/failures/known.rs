//! The failures of engines that are known, as data: code, cause, remedy, and the log lines that
//! show them.

use super::FailureKind;

/// A kind that log lines show: signs decide, hints only count if no line has a sign.
macro_rules! kinds {
    ($(
        $code:literal: $cause:literal, $fix:literal, [$($sign:literal),*], [$($hint:literal),*];
    )+) => {
        /// All kinds. Of the kinds that a line shows, the first one counts.
        pub static FAILURES: &[FailureKind] = &[$(FailureKind {
            code: $code,
            cause: $cause,
            fix: $fix,
            signs: &[$($sign),*],
            hints: &[$($hint),*],
        }),+];
    };
}

kinds! {
    "gpu_access_denied":
        "the host's user may not use the GPU",
        "add the user, or the container, to the groups `video` and `render` (in a container by \
         number), and check the permissions of `/dev/kfd` and `/dev/dri`",
        ["/dev/kfd…denied", "denied…/dev/kfd", "/dev/dri…denied", "denied…/dev/dri",
         "member of…render", "/dev/kfd…not permitted"], [];
    "gpu_not_found":
        "the engine finds no GPU",
        "check that `/dev/kfd` and `/dev/dri` exist (in a container: `--device /dev/kfd --device \
         /dev/dri`), that the user is in the groups `video` and `render`, and that `device` or \
         `HIP_VISIBLE_DEVICES` names a GPU that exists",
        ["no hip gpus are available", "no cuda gpus are available", "could not find amd gpu",
         "no amd gpu", "hiperrornodevice", "no hip-capable device", "found no nvidia driver",
         "/dev/kfd…no such file", "no such file…/dev/kfd", "invalid device ordinal",
         "hiperrorinvaliddevice"],
        ["no rocm-capable device", "no cuda-capable device", "no usable gpu found"];
    "device_uuid":
        "vLLM does not accept a UUID in HIP_VISIBLE_DEVICES",
        "use `device`, which becomes ROCR_VISIBLE_DEVICES",
        ["non-integer device id"], [];
    "device_ids_differ":
        "HIP_VISIBLE_DEVICES and CUDA_VISIBLE_DEVICES differ",
        "unset both in the host's environment and in `env`, and use `device`",
        ["inconsistent gpu visibility", "conflicting visibility"], [];
    "gpu_not_inferred":
        "vLLM found no device that it was built for",
        "check the access to the GPU (`/dev/kfd`, `/dev/dri`, groups `video` and `render`), and \
         that this vLLM was built for it (ROCm or CUDA); without a GPU, set VLLM_TARGET_DEVICE=cpu \
         in `env` and use a build for CPUs",
        ["failed to infer device type"], [];
    "gpu_memory_taken":
        "not enough free memory on the GPU",
        "end the other processes that use the GPU, or lower `gpu-memory-utilization`",
        ["less than desired gpu memory utilization"], [];
    "kv_cache_too_small":
        "the KV cache is too small for max-model-len",
        "lower `max-model-len`, raise `gpu-memory-utilization` or `kv-cache-memory`, or use a \
         quantised model",
        ["larger than the available kv cache memory",
         "larger than the maximum number of tokens that can be stored",
         "no available memory for the cache blocks"], [];
    "gpu_memory_full":
        "the GPU's memory is full",
        "lower `gpu-memory-utilization`, `max-model-len` or `max-num-seqs` (llama.cpp: `context` \
         or `gpu-layers`), or use a quantised model (AWQ, GPTQ, GGUF Q4)",
        ["hip out of memory", "cuda out of memory", "outofmemory", "outofdevicememory",
         "hiperroroutofmemory", "out of memory"], [];
    "shared_memory_full":
        "shared memory (`/dev/shm`) is full",
        "raise it: `--shm-size` or `ipc: host` of the container",
        ["unable to allocate shared memory", "/dev/shm…no space left", "no space left…/dev/shm",
         "bus error"], [];
    "memory_allocation_failed":
        "a memory allocation failed",
        "use a smaller model or context, or end other processes that use memory",
        ["cannot allocate memory", "can't allocate memory", "failed to allocate",
         "unable to allocate"],
        ["bad_alloc", "memoryerror"];
    "aiter_unsupported":
        "VLLM_ROCM_USE_AITER does not work on this GPU",
        "set VLLM_ROCM_USE_AITER=0 in `env`",
        ["one of gpu archs of"], [];
    "triton_unsupported":
        "Triton cannot compile kernels for this GPU, as on gfx906 (MI50)",
        "use a build of vLLM and Triton for this GPU, set `enforce-eager = true`, or serve the \
         model with llama.cpp",
        ["passmanager::run failed", "triton…unsupported target", "unsupported target…gfx",
         "failed to translate…llvm", "llvm error: cannot select", "triton.compiler.errors"], [];
    "gpu_unsupported":
        "the engine was built for another GPU",
        "use a build for this GPU (`rocminfo` shows its name, for example gfx1151); `hsa-override` \
         helps only with a closely related one",
        ["invalid device function", "no kernel image is available", "tensile…no such file",
         "cannot read…tensilelibrary", "hiperrornobinaryforgpu"], [];
    "gpu_fault":
        "invalid GPU memory access, as with an HSA_OVERRIDE_GFX_VERSION of another GPU",
        "remove `hsa-override`, or update the driver and the engine",
        ["memory access fault by gpu", "illegal memory access was encountered"], [];
    "gpu_hung":
        "the GPU hung and was reset",
        "update the kernel (gfx1151 needs 6.18.4 or later) and linux-firmware, and read the \
         kernel's log (`dmesg`)",
        ["reason :gpu hang", "reason: gpu hang", "hw exception by gpu"], [];
    "dtype_unsupported":
        "the GPU does not support the data type of the model",
        "set `dtype = \"float16\"`",
        ["bfloat16 is only supported", "bfloat16…not supported"], [];
    "quantization_unsupported":
        "the engine does not support this quantisation on this GPU",
        "use a model with another quantisation (AWQ or GPTQ), or without",
        ["quantization method…not supported", "quantization is currently not supported",
         "not supported for the current gpu"], [];
    "architecture_unsupported":
        "this version of the engine does not support the model's architecture",
        "use another version of the engine (vLLM drops and adds architectures), or another model",
        ["was supported in vllm until", "are not supported for now", "unknown model architecture",
         "does not recognize this architecture"], [];
    "remote_code_refused":
        "the model needs code of its own, which is not executed by default",
        "review the code, and set `trust-remote-code = true`",
        ["trust_remote_code=true", "custom code which must be executed"], [];
    "argument_unsupported":
        "the engine does not support an argument",
        "compare `arguments` and `command` with `--help` of the installed version",
        ["unrecognized arguments", "error: invalid argument", "error: argument -",
         "error: unknown argument", "invalid choice:"], [];
    "port_taken":
        "the port is in use",
        "end the process that listens on it, or remove `port`, so that the host chooses a free one",
        ["address already in use", "couldn't bind http server socket", "couldn't bind to server"],
        [];
    "vllm_port_invalid":
        "VLLM_PORT is not a port, as Kubernetes sets it for a service with the name `vllm`",
        "unset VLLM_PORT, or give the service another name; the port of the API is `port`",
        ["vllm_port…appears to be a uri", "vllm_port…must be a valid integer"], [];
    "open_files_full":
        "the engine has too many open files",
        "raise the limit of open files (`ulimit -n`, LimitNOFILE of systemd, `--ulimit nofile` of \
         a container), for example to 65535",
        ["too many open files"], [];
    "disk_full":
        "the disk is full",
        "free space where models and caches are (`download-dir`, HF_HOME, `cache-root`, `/tmp`)",
        ["no space left on device", "disk quota exceeded", "os error 28",
         "not enough free disk space"], [];
    "model_broken":
        "a file of the model is broken or incomplete",
        "download the model again, and check that the disk has space for all of it",
        ["headertoolarge", "headertoosmall", "invalidheader", "metadataincompletebuffer",
         "error while deserializing header", "safetensorerror", "safetensors_rust",
         "not within the file bounds", "model is corrupted", "invalid magic",
         "failed finding central directory", "unpicklingerror"], [];
    "model_gated":
        "the model hub requires a token for this model",
        "accept the model's licence on the hub, and give the engine HF_TOKEN (in the host's \
         environment or in `env`)",
        ["gated repo", "gatedrepo", "access to model…is restricted", "invalid user token",
         "token…is invalid or has expired"],
        ["401 client error", "403 client error"];
    "model_unknown":
        "the model does not exist on the hub, or requires a token",
        "check the name or the path in `model`; for a private model, give the engine HF_TOKEN",
        ["repository not found", "repositorynotfound", "not a valid model identifier",
         "repo id must", "hfvalidationerror"], [];
    "model_not_cached":
        "the model is not on this machine, and the hub is disabled (offline mode)",
        "download the model first, or set `offline = false` and remove HF_HUB_OFFLINE and \
         TRANSFORMERS_OFFLINE",
        ["offline mode is enabled", "offlinemodeisenabled", "outgoing traffic has been disabled"],
        [];
    "hub_unreachable":
        "the model hub cannot be reached",
        "check the network, DNS and proxies of this machine, and HF_TOKEN for a gated model; or \
         download the model first and set `offline = true`, with `model` as the path of its folder",
        ["couldn't connect to 'http", "failed to resolve…huggingface", "failed to download model",
         "huggingface.co…max retries exceeded", "max retries exceeded…huggingface",
         "huggingface.co…connection", "cannot find the requested files in the local cache",
         "localentrynotfounderror", "httpx.connecterror", "httpx.connecttimeout",
         "could not resolve host", "failed to get manifest", "error from hf api"],
        ["name resolution", "name or service not known", "network is unreachable"];
    "model_file_missing":
        "a file of the model is missing",
        "check the path in `model` or `command`, and download the model again",
        ["failed to open gguf file", "does not appear to have a file named",
         "cannot find any model weights", "no such file…model", "no such file…config.json",
         "model.safetensors…no such file"], [];
    "system_too_old":
        "the engine needs a newer C or C++ library than this system has",
        "use a build for this system, a newer system, or a container",
        ["version `glibc_…not found", "version `glibcxx_…not found"], [];
    "software_missing":
        "a part of the engine's software is missing",
        "install the engine completely, for this GPU (ROCm or CUDA), and check `program` and the \
         Python environment",
        ["error while loading shared libraries", "cannot open shared object file"],
        ["modulenotfounderror", "no module named"];
    "file_missing":
        "a file is missing",
        "check the paths in the configuration of the lane",
        [], ["no such file"];
    "model_not_loaded":
        "failed to load the model",
        "read the engine's log; the model's files may be broken, or too new for the engine",
        [], ["error loading model", "failed to load model"];
    "engine_core_failed":
        "vLLM's engine core failed to start; the cause is earlier in its log",
        "read the engine's log",
        [], ["engine core initialization failed", "enginecore failed to start"];
    "illegal_instruction":
        "the engine was built for another CPU (SIGILL, illegal instruction)",
        "use a build for this CPU; a vLLM for CPUs needs VLLM_TARGET_DEVICE=cpu in `env`",
        [], ["illegal instruction"];
    "killed":
        "the engine was killed (SIGKILL), often by the kernel because the system's memory was full",
        "read the kernel's log (`dmesg`); lower the memory that the lanes need, or add swap space",
        [], [];
    "container_failed":
        "the container tool could not start the engine",
        "check the image, the options, and the access to the container runtime",
        ["error response from daemon", "cannot connect to the docker daemon", "pull access denied",
         "manifest unknown"], [];
    "program_not_found":
        "the program was not found",
        "install it, or correct `program` or `command`",
        [], ["command not found"];
    "program_not_executable":
        "the program is not executable",
        "correct its permissions, or `program` or `command`",
        [], [];
    "program_not_started":
        "the program could not be started",
        "read the message of the system, and check the limits of processes and memory",
        [], [];
    "no_port":
        "the system has no free port",
        "end processes that listen on many ports, or set `port`",
        [], [];
    "memory_not_free":
        "the memory for the engine did not become free",
        "end the processes that hold it, or correct the budget of the group",
        [], [];
    "start_timeout":
        "the engine was not ready in time",
        "raise `start-timeout` if the load makes progress, and check the disk otherwise",
        [], ["timeout waiting for model to load"];
    "engine_ended":
        "the engine ended",
        "read the engine's log",
        [], [];
    "engine_hung":
        "the engine hung",
        "the host restarts it; if that happens often, read the engine's log and update its driver",
        [], [];
    "engine_unhealthy":
        "the engine reported that it cannot serve",
        "the host restarts it; read the engine's log",
        [], [];
    "engine_unreachable":
        "the external engine is not ready",
        "check that it runs, and `url`",
        [], [];
    "peer_unreachable":
        "the other host cannot be reached, or has been silent for longer than `down-after`",
        "check that it runs, `url`, and that it has the key among its `[[peers]]`",
        [], [];
    "peer_lane_missing":
        "the other host does not have the lane",
        "correct `lane`, or add the lane there",
        [], [];
    "peer_lane_down":
        "the lane is down on the other host",
        "see the status of the lane there",
        [], [];
}
