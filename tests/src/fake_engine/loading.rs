//! The output of the engines while they load, and when loading fails.

use std::io::Write as _;
use std::time::Duration;

use super::memory::OutOfMemory;
use super::options::{Flavour, Options};

const TIME: &str = "11-21 03:31:49";

/// Lines, each with the fraction of the load time at which it is printed.
type Lines = Vec<(f64, String)>;

fn api(level: &str, at: &str, text: &str) -> String {
    format!("(APIServer pid={}) {level} {TIME} [{at}] {text}\n", std::process::id())
}

fn core(level: &str, at: &str, text: &str) -> String {
    format!("(EngineCore pid={}) {level} {TIME} [{at}] {text}\n", std::process::id() + 1)
}

/// Returns the lines of vLLM's logo.
fn vllm_logo(model: &str) -> [String; 5] {
    [
        String::new(),
        "       █     █     █▄   ▄█".to_owned(),
        " ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.32.0".to_owned(),
        format!("  █▄█▀ █     █     █     █  model   {model}"),
        "   ▀▀  ▀▀▀▀▀ ▀▀▀▀▀ ▀     ▀".to_owned(),
    ]
    .map(|line| api("INFO", "api_utils.py:347", &line))
}

/// Returns the progress bar of vLLM after this many of 26 shards.
fn vllm_shard(shard: u32) -> String {
    let (percent, left) = (shard * 100 / 26, 26 - shard);
    format!(
        "Loading safetensors checkpoint shards: {percent:>3}% Completed | {shard}/26 \
         [00:{shard:02}<00:{left:02},  1.00it/s]\r"
    )
}

/// Returns the output of vLLM while it loads.
fn vllm(options: &Options) -> Lines {
    let model = options.model.as_deref().unwrap_or("./model");
    let max_model_len = options.max_model_len.unwrap_or(32_768);
    let arguments = format!(
        "non-default args: {{'model_tag': '{model}', 'port': {}, 'model': '{model}'}}",
        options.port
    );
    let mut lines: Lines = vllm_logo(model).map(|line| (0.0, line)).into();
    lines.extend([
        (0.0, api("INFO", "api_utils.py:286", &arguments)),
        (0.1, api("INFO", "model.py:733", "Resolved architecture: LlamaForCausalLM")),
        (0.1, api("INFO", "model.py:2152", &format!("Using max model len {max_model_len}"))),
        (
            0.2,
            core(
                "INFO",
                "core.py:133",
                &format!("Initializing a V1 LLM engine (v0.32.0) with config: model='{model}'"),
            ),
        ),
        (
            0.25,
            core("INFO", "cpu_model_runner.py:68", &format!("Starting to load model {model}...")),
        ),
    ]);
    lines.extend((0..=26).map(|shard| (0.3 + 0.4 * f64::from(shard) / 26.0, vllm_shard(shard))));
    let cache = format!(
        "GPU KV cache size: 123,456 tokens, Maximum concurrency for {max_model_len} tokens per \
         request: 3.77x"
    );
    let address = format!("Starting vLLM server on http://{}:{}", options.host, options.port);
    lines.extend([
        (0.7, "\n".to_owned()),
        (0.72, core("INFO", "default_loader.py:300", "Loading weights took 26.00 seconds")),
        (
            0.75,
            core(
                "INFO",
                "gpu_model_runner.py:3338",
                "Model loading took 1.12 GiB memory and 26.500000 seconds",
            ),
        ),
        (0.8, core("INFO", "gpu_worker.py:352", "Available KV cache memory: 10.25 GiB")),
        (0.8, core("INFO", "kv_cache_utils.py:2327", &cache)),
        (
            0.9,
            core(
                "INFO",
                "gpu_model_runner.py:4100",
                "Graph capturing finished in 2 secs, took 0.25 GiB",
            ),
        ),
        (
            0.9,
            core(
                "INFO",
                "core.py:402",
                "init engine (profile, create kv cache, warmup model) took 1.99 s",
            ),
        ),
        (0.97, api("INFO", "entry.py:136", "Supported tasks: ['generate']")),
        (0.97, api("INFO", "entry.py:140", &address)),
        (0.97, api("INFO", "launcher.py:186", "Available routes are:")),
        (0.97, api("INFO", "launcher.py:195", "Route: /health, Methods: GET")),
        (1.0, format!("INFO:     Started server process [{}]\n", std::process::id())),
        (1.0, "INFO:     Waiting for application startup.\n".to_owned()),
        (1.0, "INFO:     Application startup complete.\n".to_owned()),
    ]);
    lines
}

/// Returns the output of llama-server while it loads.
fn llama(options: &Options) -> Lines {
    let model = options.model.as_deref().unwrap_or("model.gguf");
    let address = format!("http://{}:{}", options.host, options.port);
    let mut lines = vec![
        (0.0, "main: loading model\n".to_owned()),
        (0.0, format!("srv    load_model: loading model '{model}'\n")),
        (
            0.1,
            "load_tensors: loading model tensors, this can take a while... (mmap = true)\n"
                .to_owned(),
        ),
        (0.2, "load_tensors: offloaded 31/31 layers to GPU\n".to_owned()),
        (0.2, "load_tensors:        ROCm0 model buffer size =    92.10 MiB\n".to_owned()),
    ];
    lines.extend((0..40).map(|dot| (0.2 + 0.6 * f64::from(dot) / 40.0, ".".to_owned())));
    let slots = options.slots;
    lines.extend([
        (0.8, "\n".to_owned()),
        (0.9, format!("srv    load_model: initializing slots, n_slots = {slots}\n")),
        (1.0, "main: model loaded\n".to_owned()),
        (1.0, format!("main: server is listening on {address}\n")),
    ]);
    lines
}

fn format_size(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    format!("{gib:.2}")
}

/// Returns the output of an engine for which there is too little memory.
pub(super) fn out_of_memory(options: &Options, full: Option<OutOfMemory>) -> String {
    let full = full.unwrap_or(OutOfMemory { free: 3 << 30, total: 16 << 30, requested: 15 << 30 });
    if options.flavour == Flavour::LlamaCpp {
        return format!(
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating {}.00 MiB on device 0: \
             cudaMalloc failed: out of \
             memory\nllama_model_load: error loading model: unable to allocate ROCm0 buffer\n\
             llama_model_load_from_file_impl: failed to load model\n\
             srv    load_model: failed to load model, '{}'\n\
             main: exiting due to model loading error\n",
            full.requested >> 20,
            options.model.as_deref().unwrap_or("model.gguf")
        );
    }
    let part = full.requested as f64 / full.total.max(1) as f64;
    let text = format!(
        "ValueError: Free memory on device cuda:0 ({}/{} GiB) on startup is less than desired GPU \
         memory utilization \
         ({part:.2}, {} GiB). Decrease GPU memory utilization or reduce GPU memory used by other \
         processes.",
        format_size(full.free),
        format_size(full.total),
        format_size(full.requested)
    );
    core("ERROR", "core.py:1120", &text) + &failure(1)
}

/// Returns the last output of a vLLM whose core failed to start.
fn failure(code: u8) -> String {
    let mut lines = core("ERROR", "core.py:1120", "EngineCore failed to start.");
    let text = format!(
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core \
         proc(s): \
         {{'EngineCore_DP0': {code}}}"
    );
    lines += &format!("(APIServer pid={}) {text}\n", std::process::id());
    lines
}

/// Returns the output of an engine that runs out of memory while it serves.
pub(super) fn out_of_memory_while_serving(options: &Options) -> String {
    if options.flavour == Flavour::LlamaCpp {
        return "ggml_cuda_error: out of memory\n".to_owned();
    }
    core("ERROR", "core.py:1390", "EngineCore encountered a fatal error.")
        + &core(
            "ERROR",
            "core.py:1390",
            "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB.",
        )
}

/// Returns the output of a vLLM that is stopping.
pub(super) fn shutdown_lines(options: &Options) -> String {
    let mode = if options.shutdown_timeout > 0 { "drain" } else { "abort" };
    let text = format!(
        "[shutdown] API server: stopping engine client mode={mode} timeout={}s",
        options.shutdown_timeout
    );
    api("INFO", "launcher.py:254", "[shutdown] API server: shutdown triggered")
        + &api("INFO", "launcher.py:270", &text)
}

/// Prints the lines of the load at their times; returns the exit code if the load fails.
pub(super) async fn load(options: &Options) -> Option<u8> {
    let silent = options.load_ms == 0 && !options.faithful();
    if silent && !options.oom && options.fail_load.is_none() {
        return None;
    }
    let start = tokio::time::Instant::now();
    let whole = Duration::from_millis(options.load_ms);
    let lines = if options.vllm() { vllm(options) } else { llama(options) };
    for (part, line) in lines {
        if options.oom && part >= 0.25 {
            warn_text!(out_of_memory(options, None));
            return Some(1);
        }
        if let Some(code) = options.fail_load.filter(|_| part >= 0.5) {
            tokio::time::sleep_until(start + whole.mul_f64(0.5)).await;
            let llama = "\nllama_model_load: error loading model: tensor data is not within the \
                file bounds\n";
            warn_text!(if options.vllm() { failure(code) } else { llama.to_owned() });
            return Some(code);
        }
        tokio::time::sleep_until(start + whole.mul_f64(part)).await;
        if !silent {
            // The parent may have closed the pipe.
            std::io::stderr().write_all(line.as_bytes()).ok();
        }
    }
    None
}
