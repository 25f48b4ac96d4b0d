//! From settings to the words and the environment of the process.

use super::settings::VllmSettings;

/// Names found in settings for vLLM that it does not have (`envs.py` of 0.32.0), and what to use instead.
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
    ("VLLM_HOST", "--host, which the host gives itself"),
    ("VLLM_LOG_REQUESTS", "--enable-log-requests"),
    ("VLLM_LOG_LEVEL", "VLLM_LOGGING_LEVEL"),
    ("VLLM_CPU_ONLY", "no flag: the build of vLLM decides"),
    ("VLLM_ROCM_GEMM_TUNING", "no flag"),
];

/// Where vLLM is to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen<'a> {
    /// On this port of 127.0.0.1.
    Port(u16),
    /// On the Unix socket at this path.
    Socket(&'a str),
}

/// How to start the process. It gets what it would inherit, without [`remove_env`](Self::remove_env), with
/// [`env`](Self::env).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments; no shell has a look at them.
    pub words: Vec<String>,
    /// Environment variables to set; no name is there twice.
    pub env: Vec<(String, String)>,
    /// Environment variables to take out of what it would inherit; none of them is in `env`.
    pub remove_env: Vec<String>,
    /// Sentences for the log; no values that may be secret.
    pub warnings: Vec<String>,
}

/// The command for a vLLM with these settings. `inherited` is the host's own environment, names and values.
///
/// Settings that [`VllmSettings::check`] objects to give a command too, but not one that works.
#[must_use]
pub fn command(
    settings: &VllmSettings,
    listen: Listen<'_>,
    inherited: &[(String, String)],
) -> Command {
    let mut environment = Environment::new(settings, inherited);
    environment.settle_devices(settings);
    environment.settle_override(settings);
    environment.settle_names();
    environment.settle_rest(settings);
    let Environment { set, remove, mut warnings, .. } = environment;
    if is_container(&settings.program) {
        warnings.push(
            "the program is a container tool: the environment goes to the tool, not into the container; add -e NAME for \
             each variable and --network host, so that 127.0.0.1 is the host's"
                .to_owned(),
        );
    }
    if settings
        .arguments
        .iter()
        .any(|word| word.starts_with("--api-key") || word.starts_with("--api_key"))
    {
        warnings.push(
            "--api-key shows the key to everybody who can list processes, and the host's own requests need it; it listens \
             on 127.0.0.1 alone and can do without"
                .to_owned(),
        );
    }
    Command { words: words(settings, listen), env: set, remove_env: remove, warnings }
}

fn is_container(program: &[String]) -> bool {
    let name = program.first().map(|word| word.rsplit('/').next().unwrap_or(word));
    matches!(name, Some("docker" | "podman" | "nerdctl"))
}

/// Argument vector of `vllm serve`.
fn words(settings: &VllmSettings, listen: Listen<'_>) -> Vec<String> {
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
    // The first makes answers carry the id of our request; the second leaves the log to what matters, we log requests.
    push(&["--enable-request-id-headers", "--disable-uvicorn-access-log"]);
    let texts = [
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
    for (flag, value) in &texts {
        if let Some(value) = value {
            push(&[flag, value]);
        }
    }
    let switches = [
        ("--enable-auto-tool-choice", settings.tool_call_parser.is_some()),
        ("--enforce-eager", settings.enforce_eager),
        ("--trust-remote-code", settings.trust_remote_code),
        ("--enable-sleep-mode", settings.sleep_mode),
    ];
    for (flag, on) in switches {
        if on {
            push(&[flag]);
        }
    }
    words.extend(settings.arguments.iter().cloned());
    words
}

/// The process's environment in the making.
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

    /// What the process would see now.
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

    fn set_unless_there(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.set(name, value);
        }
    }

    /// Take `name` away, and say whether it was there.
    fn remove(&mut self, name: &str) -> bool {
        let was_there = self.get(name).is_some();
        self.set.retain(|(known, _)| known != name);
        if !self.remove.iter().any(|known| known == name) {
            self.remove.push(name.to_owned());
        }
        was_there
    }

    /// See to it that one variable at most chooses the GPU. vLLM fails on import when HIP's and CUDA's differ, and on a UUID
    /// in either; ROCr takes both forms, and HIP's numbers count within ROCr's choice.
    fn settle_devices(&mut self, settings: &VllmSettings) {
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
                    "{name}={value} is left out: vLLM takes no UUID there, and ROCR_VISIBLE_DEVICES chooses the GPU already"
                ));
            } else {
                self.warnings.push(format!(
                    "{name}={value} becomes ROCR_VISIBLE_DEVICES: vLLM takes no UUID in {name}; write it as `device`"
                ));
                self.set("ROCR_VISIBLE_DEVICES", &value);
            }
        }
        if let (Some(hip), Some(cuda)) =
            (self.get("HIP_VISIBLE_DEVICES"), self.get("CUDA_VISIBLE_DEVICES"))
            && hip != cuda
        {
            let text = format!(
                "CUDA_VISIBLE_DEVICES={cuda} is left out: vLLM does not start when it differs from HIP_VISIBLE_DEVICES={hip}"
            );
            self.remove("CUDA_VISIBLE_DEVICES");
            self.warnings.push(text);
        }
    }

    /// Pass on a pretended GPU only if this lane's settings ask for it.
    fn settle_override(&mut self, settings: &VllmSettings) {
        const NAME: &str = "HSA_OVERRIDE_GFX_VERSION";
        if let Some(version) = &settings.hsa_override {
            self.set(NAME, version);
        }
        if let Some((_, version)) = self.set.iter().find(|(name, _)| name == NAME) {
            self.warnings.push(format!(
                "{NAME}={version} is meant for other chips; gfx1151 is supported natively since ROCm 7.0.2, and memory \
                 access faults were reported with it"
            ));
        } else if self.remove(NAME) {
            self.warnings.push(format!(
                "{NAME} of the host's environment is left out: gfx1151 is supported natively since ROCm 7.0.2; write \
                 `hsa-override` if this GPU needs it"
            ));
        }
    }

    /// Take away names that vLLM does not know or understands otherwise than people mean them.
    fn settle_names(&mut self) {
        // vLLM counts its internal ports up from this one, which may be another lane's.
        if self.remove("VLLM_PORT") {
            self.warnings.push(
                "VLLM_PORT is left out: it is where vLLM's internal ports begin, not its port; the host chooses that"
                    .to_owned(),
            );
        }
        match self.get("VLLM_API_KEY").map(str::trim) {
            Some(key) if key.is_empty() || key.eq_ignore_ascii_case("none") => {
                self.remove("VLLM_API_KEY");
                self.warnings.push(
                    "VLLM_API_KEY is left out: vLLM would take the text in it for the key; without it, it asks for none"
                        .to_owned(),
                );
            }
            Some(_) => self.warnings.push(
                "VLLM_API_KEY is set: vLLM will ask the host for that key with each request"
                    .to_owned(),
            ),
            None => {}
        }
        let mut foreign = Vec::new();
        for (name, instead) in NOT_VLLM {
            if self.get(name).is_some() {
                self.remove(name);
                foreign.push(format!("{name} ({instead})"));
            }
        }
        if !foreign.is_empty() {
            self.warnings.push(format!(
                "vLLM has no such variables, they are left out: {}",
                foreign.join(", ")
            ));
        }
    }

    fn settle_rest(&mut self, settings: &VllmSettings) {
        if matches!(self.get("VLLM_ROCM_USE_AITER"), Some("1" | "true" | "True" | "TRUE")) {
            self.warnings.push(
                "VLLM_ROCM_USE_AITER=1 breaks gfx1151 (\"One of GPU archs of ['gfx1151'] is invalid or not supported\")"
                    .to_owned(),
            );
        }
        self.set_unless_there("VLLM_NO_USAGE_STATS", "1");
        self.set_unless_there("VLLM_DO_NOT_TRACK", "1");
        if let Some(folder) = &settings.cache_root {
            self.set("VLLM_CACHE_ROOT", folder);
        }
        if settings.sleep_mode {
            self.set("VLLM_SERVER_DEV_MODE", "1");
        }
        if settings.offline {
            self.set("HF_HUB_OFFLINE", "1");
        }
    }
}
