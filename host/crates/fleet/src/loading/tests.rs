//! Logs of engines that fail to load, as the engines write them, and what is read from them.

use super::*;
use crate::launch_memory::DeviceMemory;

/// Returns the code of the failure that a log shows, and the text for operators.
fn cause(lines: &str) -> Option<(&'static str, String)> {
    let log = LoadLog::new(watch::channel(LaneStatus::default()).0);
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        log.line(line);
    }
    let text = |kind: &FailureKind| kind.problem_because(kind.cause).to_string();
    log.cause().map(|cause| (cause.kind.code, text(cause.kind)))
}

/// Returns what vLLM writes if its engine core fails with this error.
fn vllm(error: &str) -> String {
    let core = "(EngineCore pid=52) ERROR 11-21 03:31:50 [core.py:866]";
    let api = "(APIServer pid=37)";
    let error = error.lines().map(|line| format!("{core} {line}\n")).collect::<String>();
    format!(
        "INFO 11-21 03:31:38 [__init__.py:211] Automatically detected platform rocm.\n\
         {api} INFO 11-21 03:31:40 [utils.py:233] non-default args: {{'trust_remote_code': True}}\n\
         {core} EngineCore failed to start.\n\
         {core} Traceback (most recent call last):\n\
         {core}   File \"/v/core.py\", line 857, in run_engine_core\n\
         {core}     engine_core = EngineCoreProc(*args)\n\
         {error}\
         (EngineCore pid=52) Process EngineCore:\n\
         {api} Traceback (most recent call last):\n\
         {api}   File \"/v/bin/vllm\", line 7, in <module>\n\
         {api} RuntimeError: Engine core initialization failed. Failed core proc(s): {{}}\n"
    )
}

/// Checks that logs show failures with these codes, and that each remedy has these words.
fn check(table: &[(String, &str, &[&str])]) {
    for (log, code, words) in table {
        let Some((found, text)) = cause(log) else { panic!("{code}: {log}") };
        assert_eq!(found, *code, "{log}");
        for word in *words {
            assert!(text.contains(word), "{code}: {word}: {text}");
        }
    }
}

#[test]
fn failures_of_gpus_are_recognised() {
    let access = &["/dev/kfd", "/dev/dri", "video", "render"][..];
    check(&[
        (vllm("RuntimeError: No HIP GPUs are available"), "gpu_not_found", access),
        (vllm("RuntimeError: No CUDA GPUs are available"), "gpu_not_found", access),
        ("Error: Could not find AMD GPU device".into(), "gpu_not_found", &["HIP_VISIBLE_DEVICES"]),
        (
            vllm("torch.AcceleratorError: HIP error: invalid device ordinal"),
            "gpu_not_found",
            access,
        ),
        (
            "Unable to open /dev/kfd read-write: No such file or directory".into(),
            "gpu_not_found",
            access,
        ),
        (
            "ROCk module is loaded\nUnable to open /dev/kfd read-write: Permission denied\n\
             user is not member of \"render\" group, the default DRM access group.\n\
             RuntimeError: Failed to infer device type, please set the environment variable"
                .into(),
            "gpu_access_denied",
            access,
        ),
        (
            "PermissionError: [Errno 13] Permission denied: '/dev/dri/renderD128'".into(),
            "gpu_access_denied",
            access,
        ),
        (vllm("RuntimeError: Failed to infer device type"), "gpu_not_inferred", access),
        (
            vllm("ValueError: non-integer device id in HIP_VISIBLE_DEVICES"),
            "device_uuid",
            &["`device`"],
        ),
        (
            vllm("torch.AcceleratorError: HIP error: invalid device function"),
            "gpu_unsupported",
            &["build"],
        ),
        (
            "rocBLAS error: Cannot read /opt/rocm/lib/rocblas/library/TensileLibrary.dat: No such \
             file or directory for GPU arch : gfx906"
                .into(),
            "gpu_unsupported",
            &["build"],
        ),
        (
            vllm(
                "  File \"/v/triton/backends/amd/compiler.py\", line 340, in make_llir\n\
                 RuntimeError: PassManager::run failed",
            ),
            "triton_unsupported",
            &["gfx906", "build", "enforce-eager"],
        ),
        (
            "Memory access fault by GPU node-1 (Agent handle: 0x55) on address 0x7f".into(),
            "gpu_fault",
            &["hsa-override"],
        ),
        (
            vllm("RuntimeError: get_gfx: gfx1151 is not one of GPU archs of [gfx942]"),
            "aiter_unsupported",
            &["VLLM_ROCM_USE_AITER=0"],
        ),
    ]);
}

#[test]
fn failures_of_memory_and_disk_are_recognised() {
    let less = &["gpu-memory-utilization", "max-model-len", "quantised"][..];
    check(&[
        (
            vllm("torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB"),
            "gpu_memory_full",
            less,
        ),
        ("Error: CUDA out of memory. Tried to allocate 2.5GB".into(), "gpu_memory_full", less),
        (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 18432.00 MiB on device 0: \
             cudaMalloc failed: out of memory\n\
             alloc_tensor_range: failed to allocate ROCm0 buffer of size 19327352832\n\
             llama_model_load: error loading model: unable to allocate ROCm0 buffer"
                .into(),
            "gpu_memory_full",
            less,
        ),
        (
            vllm(
                "ValueError: Free memory on device cuda:0 (1.1/15.9 GiB) on startup is less than \
                 desired GPU memory utilization (0.9, 14.3 GiB).",
            ),
            "gpu_memory_taken",
            &["gpu-memory-utilization"],
        ),
        (
            vllm(
                "ValueError: To serve at least one request with the models's max seq len (131072), \
                 (16.0 GiB KV cache is needed, which is larger than the available KV cache memory \
                 (3.1 GiB).",
            ),
            "kv_cache_too_small",
            less,
        ),
        (vllm("ValueError: No available memory for the cache blocks."), "kv_cache_too_small", less),
        (vllm("OSError: [Errno 28] No space left on device"), "disk_full", &["free space"]),
        (
            "terminate called: std::bad_alloc\nBus error (core dumped)".into(),
            "shared_memory_full",
            &["--shm-size"],
        ),
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 17179869184 bytes"
                .into(),
            "memory_allocation_failed",
            &["smaller"],
        ),
    ]);
}

#[test]
fn failures_of_hubs_are_recognised() {
    let network = &["network", "DNS", "download the model first", "offline"][..];
    check(&[
        (
            vllm(
                "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: \
                 https://huggingface.co/meta-llama/Llama-3.2-11B/resolve/main/config.json\n\
                 huggingface_hub.errors.GatedRepoError: 401 Client Error.\n\
                 OSError: You are trying to access a gated repo.",
            ),
            "model_gated",
            &["HF_TOKEN"],
        ),
        (
            vllm(
                "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error.\n\
                 Repository Not Found for url: https://huggingface.co/api/models/nope.",
            ),
            "model_unknown",
            &["HF_TOKEN", "`model`"],
        ),
        (
            vllm(
                "urllib3.exceptions.NameResolutionError: <urllib3.connection.HTTPSConnection \
                 object at 0x7f>: Failed to resolve 'huggingface.co' ([Errno -3] Temporary failure \
                 in name resolution)\n\
                 OSError: We couldn't connect to 'https://huggingface.co' to load the files",
            ),
            "hub_unreachable",
            network,
        ),
        (
            vllm(
                "httpx.ConnectError: [Errno 111] Connection refused\n\
                 huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to \
                 locate the file on the Hub and we cannot find the requested files in the local \
                 cache. Please check your connection and try again.",
            ),
            "hub_unreachable",
            network,
        ),
        ("Error: Failed to download model from Hugging Face".into(), "hub_unreachable", network),
        (
            vllm(
                "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach \
                 https://huggingface.co/api/models/x: offline mode is enabled. To disable it, \
                 please unset the `HF_HUB_OFFLINE` environment variable.",
            ),
            "model_not_cached",
            &["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"],
        ),
    ]);
}

#[test]
fn failures_of_models_and_programs_are_recognised() {
    check(&[
        (
            vllm(
                "safetensors_rust.SafetensorError: Error while deserializing header: \
                 HeaderTooLarge",
            ),
            "model_broken",
            &["download the model again", "disk"],
        ),
        (
            "llama_model_load: error loading model: tensor 'blk.3.ffn_up.weight' data is not \
             within the file bounds, model is corrupted or incomplete\n\
             llama_model_load_from_file_impl: failed to load model"
                .into(),
            "model_broken",
            &["download the model again"],
        ),
        (
            "gguf_init_from_file: failed to open GGUF file '/m/x' (No such file or directory)\n\
             llama_model_load: error loading model: llama_model_loader: failed to load model"
                .into(),
            "model_file_missing",
            &["path"],
        ),
        (
            "ValueError: Model architecture MllamaForConditionalGeneration was supported in vLLM \
             until v0.10.2, and is not supported anymore."
                .into(),
            "architecture_unsupported",
            &["another version"],
        ),
        (
            "vllm: error: unrecognized arguments: --swap-space 4".into(),
            "argument_unsupported",
            &["--help"],
        ),
        (
            "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): \
             address already in use"
                .into(),
            "port_taken",
            &["`port`"],
        ),
        (
            "docker: Error response from daemon: pull access denied for nope.".into(),
            "container_failed",
            &["image"],
        ),
        (
            "/bin/sh: line 1: 4711 Illegal instruction (core dumped)".into(),
            "illegal_instruction",
            &["CPU"],
        ),
    ]);
}

#[test]
fn signs_count_more_than_hints_and_unknown_failures_have_no_cause() {
    let warning = "WARNING: rocm-smi: No such file or directory\n";
    assert_eq!(cause(warning).unwrap().0, "file_missing");
    let log = format!("{warning}RuntimeError: No HIP GPUs are available\nOut of memory");
    assert_eq!(cause(&log).unwrap().0, "gpu_not_found");
    assert_eq!(cause(&vllm("AssertionError: 3 != 4")).unwrap().0, "engine_core_failed");
    assert_eq!(cause("Traceback (most recent call last):\nAssertionError"), None);
}

/// A serving engine may log what clients send.
#[tokio::test(start_paused = true)]
async fn old_lines_of_a_serving_engine_are_not_its_cause() {
    let log = LoadLog::new(watch::channel(LaneStatus::default()).0);
    log.line("RuntimeError: No HIP GPUs are available");
    log.ready();
    assert!(log.has_served() && log.cause().is_none());
    log.line("INFO prompt: 'what does out of memory mean?'");
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(log.cause().is_none());
    log.line("Memory access fault by GPU node-1");
    assert_eq!(log.cause().unwrap().kind.code, "gpu_fault");
}

#[test]
fn reported_memory_is_compared_with_the_estimate() {
    const MIB: u64 = 1 << 20;
    let lines = [
        "load_tensors:   CPU_Mapped model buffer size =    92.00 MiB",
        "llama_kv_cache: size =   90.00 MiB (  2048 cells,  30 layers,  2/2 seqs), K (f16): 45 MiB",
        "sched_reserve:        CPU compute buffer size =    18.00 MiB",
    ];
    let estimate = MemoryEstimate {
        weights: 92 * MIB,
        kv: Some(90 * MIB),
        compute: Some(16 * MIB),
        total: 600 * MIB,
    };
    for (estimate, percent, off) in
        [(estimate, -1.0, false), (MemoryEstimate { kv: Some(45 * MIB), ..estimate }, -23.5, true)]
    {
        let (status, shown) = watch::channel(LaneStatus::default());
        let log = LoadLog::new(status).with_estimate(Some(estimate));
        lines.iter().for_each(|line| log.line(line));
        assert_eq!(shown.borrow().estimate, None);
        log.ready();
        let status = shown.borrow().clone();
        assert_eq!((status.compute_bytes, status.estimate), (Some(18 * MIB), Some(estimate)));
        let found = status.memory_comparison().unwrap();
        assert_eq!((found.reported, found.percent(), found.is_off()), (200 * MIB, percent, off));
        // A second time, as after sleeping: the figures stay.
        log.ready();
        assert_eq!(shown.borrow().estimate, Some(estimate));
        assert_eq!(shown.borrow().weights_bytes, Some(92 * MIB));
    }
}

#[test]
fn device_of_a_refused_start_is_kept_for_the_next_one() {
    const GIB: u64 = 1 << 30;
    let (status, shown) = watch::channel(LaneStatus::default());
    let refused = LoadLog::new(status);
    refused.line("ValueError: Free memory on device cuda:0 (8.0/64.0 GiB) on startup is less");
    let device = DeviceMemory { total: Some(64 * GIB), free: Some(8 * GIB) };
    assert_eq!(shown.borrow().device, Some(device));
}
