//! The command line and the environment of a vLLM process.

use super::settings::VllmSettings;
use crate::drivers::process_section::is_container;

/// Variables found in settings for vLLM that do not exist in `envs.py` of 0.32.0, and what to use
/// instead.
const NOT_VLLM: [(&str, &str); 15] = [
    ("VLLM_MODEL", "--model, here `model`"),
    ("VLLM_GPU_MEMORY_UTILIZATION", "--gpu-memory-utilization, here `gpu-memory-utilization`"),
    ("VLLM_MAX_MODEL_LEN", "--max-model-len, here `max-model-len`"),
    ("VLLM_DTYPE", "--dtype, here `dtype`"),
    ("VLLM_SWAP_SPACE", "--kv-offloading-size, as --swap-space was removed"),
    ("VLLM_ENFORCE_EAGER", "--enforce-eager, here `enforce-eager`"),
    ("VLLM_TENSOR_PARALLEL_SIZE", "--tensor-parallel-size, here `tensor-parallel`"),
    ("VLLM_PIPELINE_PARALLEL_SIZE", "--pipeline-parallel-size, here `pipeline-parallel`"),
    ("VLLM_BLOCK_SIZE", "--block-size, here `block-size`"),
    ("VLLM_NUM_GPU_BLOCKS_OVERRIDE", "--num-gpu-blocks-override, which is for tests"),
    ("VLLM_HOST", "--host, which the router sets"),
    ("VLLM_LOG_REQUESTS", "--enable-log-requests"),
    ("VLLM_LOG_LEVEL", "VLLM_LOGGING_LEVEL"),
    ("VLLM_CPU_ONLY", "no replacement: decided when vLLM is built"),
    ("VLLM_ROCM_GEMM_TUNING", "no replacement"),
];

/// The address that vLLM listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen<'a> {
    /// A port of 127.0.0.1.
    Port(u16),
    /// A Unix socket at this path.
    Socket(&'a str),
}

/// A command to start vLLM. The process inherits the host's environment, without
/// [`remove_env`](Self::remove_env) and with [`env`](Self::env).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments, which no shell interprets.
    pub words: Vec<String>,
    /// Variables to set; names are unique.
    pub env: Vec<(String, String)>,
    /// Variables to remove from the inherited environment; none of them is in `env`.
    pub remove_env: Vec<String>,
    /// Messages for the log, without values that may be secret.
    pub warnings: Vec<String>,
}

/// Builds the command for vLLM with these settings. `inherited` is the host's own environment.
///
/// Settings with problems that [`VllmSettings::check`] reports give a command that does not work.
#[must_use]
pub fn command(
    settings: &VllmSettings,
    listen: Listen<'_>,
    inherited: &[(String, String)],
) -> Command {
    let mut environment = Environment::new(settings, inherited);
    environment.resolve_devices(settings);
    environment.resolve_hsa_override(settings);
    environment.remove_unsupported();
    environment.set_defaults(settings);
    let Environment { set, remove, mut warnings, .. } = environment;
    if is_container(&settings.program) {
        warnings.push(
            "the program is a container tool, and the environment is not passed into the \
             container; add -e NAME for each variable, and --network host to share 127.0.0.1"
                .to_owned(),
        );
    }
    if settings
        .arguments
        .iter()
        .any(|word| word.starts_with("--api-key") || word.starts_with("--api_key"))
    {
        warnings.push(
            "--api-key exposes the key to all users who can list processes, and the router's own \
             requests would need it; vLLM listens on 127.0.0.1 only and needs no key"
                .to_owned(),
        );
    }
    Command { words: arguments(settings, listen), env: set, remove_env: remove, warnings }
}

/// Builds the argument vector of `vllm serve`.
fn arguments(settings: &VllmSettings, listen: Listen<'_>) -> Vec<String> {
    let mut words = settings.program.clone();
    let mut push = |parts: &[&str]| words.extend(parts.iter().map(|&part| part.to_owned()));
    push(&["serve", &settings.model]);
    match listen {
        Listen::Port(port) => push(&["--host", "127.0.0.1", "--port", &port.to_string()]),
        Listen::Socket(path) => push(&["--uds", path]),
    }
    if !settings.served_names.is_empty() {
        push(&["--served-model-name"]);
        settings.served_names.iter().for_each(|name| push(&[name]));
    }
    // The first returns the request id in the response; the second keeps the access log, which the
    // router has itself, out of the engine's log.
    push(&["--enable-request-id-headers", "--disable-uvicorn-access-log"]);
    let options = [
        ("--dtype", settings.dtype.clone()),
        ("--quantization", settings.quantization.clone()),
        ("--max-model-len", settings.max_model_len.map(|tokens| tokens.to_string())),
        ("--max-num-seqs", settings.max_num_seqs.map(|count| count.to_string())),
        ("--gpu-memory-utilization", settings.gpu_memory_utilization.map(|part| part.to_string())),
        ("--kv-cache-memory-bytes", settings.kv_cache_bytes.map(|bytes| bytes.to_string())),
        ("--tensor-parallel-size", settings.tensor_parallel.map(|count| count.to_string())),
        ("--pipeline-parallel-size", settings.pipeline_parallel.map(|count| count.to_string())),
        ("--block-size", settings.block_size.map(|tokens| tokens.to_string())),
        ("--tool-call-parser", settings.tool_call_parser.clone()),
        ("--reasoning-parser", settings.reasoning_parser.clone()),
        ("--download-dir", settings.download_dir.clone()),
        ("--load-format", settings.load_format.clone()),
        ("--scheduling-policy", settings.priority_scheduling.then(|| "priority".to_owned())),
        (
            "--shutdown-timeout",
            (settings.shutdown_timeout_s > 0).then(|| settings.shutdown_timeout_s.to_string()),
        ),
    ];
    for (flag, value) in &options {
        if let Some(value) = value {
            push(&[flag, value]);
        }
    }
    let flags = [
        ("--enable-auto-tool-choice", settings.tool_call_parser.is_some()),
        ("--enforce-eager", settings.enforce_eager),
        ("--trust-remote-code", settings.trust_remote_code),
        ("--enable-sleep-mode", settings.sleep_mode),
    ];
    for (flag, is_set) in flags {
        if is_set {
            push(&[flag]);
        }
    }
    if !settings.adapters.is_empty() {
        push(&["--enable-lora", "--lora-modules"]);
        settings.adapters.iter().for_each(|(name, path)| push(&[&format!("{name}={path}")]));
    }
    words.extend(settings.arguments.iter().cloned());
    words
}

/// The environment of the process while it is being built.
struct Environment<'a> {
    inherited: &'a [(String, String)],
    set: Vec<(String, String)>,
    remove: Vec<String>,
    warnings: Vec<String>,
}

impl<'a> Environment<'a> {
    fn new(settings: &VllmSettings, inherited: &'a [(String, String)]) -> Self {
        let mut environment =
            Self { inherited, set: Vec::new(), remove: Vec::new(), warnings: Vec::new() };
        for (name, value) in &settings.env {
            environment.set(name, value);
        }
        environment
    }

    /// Returns the value that the process would see.
    fn get(&self, name: &str) -> Option<&str> {
        if let Some((_, value)) = self.set.iter().find(|(known, _)| known == name) {
            return Some(value);
        }
        if self.remove.iter().any(|known| known == name) {
            return None;
        }
        self.inherited
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: &str) {
        self.remove.retain(|known| known != name);
        self.set.retain(|(known, _)| known != name);
        self.set.push((name.to_owned(), value.to_owned()));
    }

    fn set_default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.set(name, value);
        }
    }

    /// Removes a variable, and returns true if it was set.
    fn remove(&mut self, name: &str) -> bool {
        let was_set = self.get(name).is_some();
        self.set.retain(|(known, _)| known != name);
        if !self.remove.iter().any(|known| known == name) {
            self.remove.push(name.to_owned());
        }
        was_set
    }

    /// Ensures that at most one variable selects the GPU. vLLM fails on import if those of HIP and
    /// CUDA differ, or if either contains a UUID. ROCr accepts both forms, and HIP's indices count
    /// within ROCr's selection.
    fn resolve_devices(&mut self, settings: &VllmSettings) {
        if let Some(device) = &settings.device {
            self.set("ROCR_VISIBLE_DEVICES", &device.to_string());
            self.remove("HIP_VISIBLE_DEVICES");
            self.remove("CUDA_VISIBLE_DEVICES");
            return;
        }
        for name in ["HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"] {
            let Some(value) = self.get(name).filter(|value| value.contains("GPU-")) else {
                continue;
            };
            let value = value.to_owned();
            self.remove(name);
            if self.get("ROCR_VISIBLE_DEVICES").is_some() {
                self.warnings.push(format!(
                    "ignored {name}={value}: vLLM does not accept a UUID there, and \
                     ROCR_VISIBLE_DEVICES selects the GPU already"
                ));
            } else {
                self.warnings.push(format!(
                    "{name}={value} is passed as ROCR_VISIBLE_DEVICES: vLLM does not accept a \
                     UUID in {name}; use `device` instead"
                ));
                self.set("ROCR_VISIBLE_DEVICES", &value);
            }
        }
        if let (Some(hip), Some(cuda)) =
            (self.get("HIP_VISIBLE_DEVICES"), self.get("CUDA_VISIBLE_DEVICES"))
            && hip != cuda
        {
            let text = format!(
                "ignored CUDA_VISIBLE_DEVICES={cuda}: vLLM does not start if it differs from \
                 HIP_VISIBLE_DEVICES={hip}"
            );
            self.remove("CUDA_VISIBLE_DEVICES");
            self.warnings.push(text);
        }
    }

    /// Passes an overridden GPU version on only if the lane's own settings contain it.
    fn resolve_hsa_override(&mut self, settings: &VllmSettings) {
        const NAME: &str = "HSA_OVERRIDE_GFX_VERSION";
        if let Some(version) = &settings.hsa_override {
            self.set(NAME, version);
        }
        if let Some((_, version)) = self.set.iter().find(|(name, _)| name == NAME) {
            self.warnings.push(format!(
                "{NAME}={version} is meant for other chips; gfx1151 is supported natively since \
                 ROCm 7.0.2, and memory access faults were reported with the override"
            ));
        } else if self.remove(NAME) {
            self.warnings.push(format!(
                "ignored {NAME} of the host's environment: gfx1151 is supported natively since \
                 ROCm 7.0.2; set `hsa-override` if this GPU needs it"
            ));
        }
    }

    /// Removes variables that vLLM does not have, or that have another meaning than their name
    /// suggests.
    fn remove_unsupported(&mut self) {
        // vLLM allocates its internal ports upwards from this one, which may be another lane's.
        if self.remove("VLLM_PORT") {
            self.warnings.push(
                "ignored VLLM_PORT: it is the first of vLLM's internal ports, not the port of the \
                 server, which the router chooses"
                    .to_owned(),
            );
        }
        match self.get("VLLM_API_KEY").map(str::trim) {
            Some(key) if key.is_empty() || key.eq_ignore_ascii_case("none") => {
                self.remove("VLLM_API_KEY");
                self.warnings.push(
                    "ignored VLLM_API_KEY: vLLM would use its text as the key; without the \
                     variable no key is required"
                        .to_owned(),
                );
            }
            Some(_) => self.warnings.push(
                "VLLM_API_KEY is set: vLLM will require the key in each of the router's requests"
                    .to_owned(),
            ),
            None => {}
        }
        let mut unsupported = Vec::new();
        for (name, instead) in NOT_VLLM {
            if self.get(name).is_some() {
                self.remove(name);
                unsupported.push(format!("{name} ({instead})"));
            }
        }
        if !unsupported.is_empty() {
            self.warnings.push(format!(
                "ignored variables that vLLM does not have: {}",
                unsupported.join(", ")
            ));
        }
    }

    fn set_defaults(&mut self, settings: &VllmSettings) {
        if matches!(self.get("VLLM_ROCM_USE_AITER"), Some("1" | "true" | "True" | "TRUE")) {
            self.warnings.push(
                "VLLM_ROCM_USE_AITER=1 breaks gfx1151 (\"One of GPU archs of ['gfx1151'] is \
                 invalid or not supported\")"
                    .to_owned(),
            );
        }
        self.set_default("VLLM_NO_USAGE_STATS", "1");
        self.set_default("VLLM_DO_NOT_TRACK", "1");
        if let Some(dir) = &settings.cache_root {
            self.set("VLLM_CACHE_ROOT", dir);
        }
        if settings.sleep_mode {
            self.set("VLLM_SERVER_DEV_MODE", "1");
        }
        if settings.offline {
            self.set("HF_HUB_OFFLINE", "1");
        }
    }
}
