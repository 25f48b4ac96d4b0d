//! Settings of vLLM, and their validation.

use std::fmt;

/// A fraction in thousandths, displayed as a decimal: `Permille(450)` as `0.45`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permille(pub u16);

impl Permille {
    /// Parses a decimal above 0 and up to 1, such as `0.45`; more than three decimals are rounded.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let part: f64 = text.trim().parse().ok()?;
        let thousandths = (part * 1000.0).round();
        (1.0..=1000.0).contains(&thousandths).then_some(Self(thousandths as u16))
    }
}

impl fmt::Display for Permille {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:03}", self.0 % 1000);
        let decimals = decimals.trim_end_matches('0');
        write!(f, "{}.{}", self.0 / 1000, if decimals.is_empty() { "0" } else { decimals })
    }
}

/// The GPU that an engine may use. Passed as `ROCR_VISIBLE_DEVICES`, the only variable of ROCm that
/// accepts both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuSelector {
    /// Index in ROCm's list, from 0. May change when cards are added.
    Index(u32),
    /// `GPU-` and the UUID that `rocminfo` shows, which does not change.
    Uuid(String),
}

impl GpuSelector {
    /// Parses `0` or `GPU-0e54792172da5eeb`; `None` for anything else, lists included.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if is_uuid(text) {
            return Some(Self::Uuid(text.to_owned()));
        }
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse().ok().map(Self::Index) } else { None }
    }
}

impl fmt::Display for GpuSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

fn is_uuid(text: &str) -> bool {
    text.strip_prefix("GPU-").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

/// Settings of a lane's vLLM; a setting that is `None` or empty is left to vLLM's default.
#[derive(Debug, Clone, PartialEq)]
pub struct VllmSettings {
    /// Program, and arguments before `serve`: `["vllm"]`, `["/opt/venv/bin/vllm"]` or
    /// `["docker", "run", …]`.
    pub program: Vec<String>,
    /// Folder of the model, or name of the model on the hub.
    pub model: String,
    /// Served model names (`--served-model-name`); responses contain the first.
    pub served_names: Vec<String>,
    /// Data type of the weights in memory, such as `bfloat16` (`--dtype`).
    pub dtype: Option<String>,
    /// Quantization method (`--quantization`); by default that of the model's configuration.
    pub quantization: Option<String>,
    /// Maximum length of prompt and response in tokens (`--max-model-len`).
    pub max_model_len: Option<u32>,
    /// Maximum number of concurrent requests (`--max-num-seqs`).
    pub max_num_seqs: Option<u32>,
    /// Fraction of the GPU's memory that vLLM may use in total (`--gpu-memory-utilization`; the
    /// default of vLLM 0.32 is 0.92).
    pub gpu_memory_utilization: Option<Permille>,
    /// Bytes of the KV cache, overriding what the memory utilization leaves
    /// (`--kv-cache-memory-bytes`).
    pub kv_cache_bytes: Option<u64>,
    /// Number of GPUs that share each layer (`--tensor-parallel-size`).
    pub tensor_parallel: Option<u32>,
    /// Number of GPUs among which the layers are distributed (`--pipeline-parallel-size`).
    pub pipeline_parallel: Option<u32>,
    /// Neither compile nor capture graphs: starts faster, responds slower (`--enforce-eager`).
    pub enforce_eager: bool,
    /// Tokens in a block of the KV cache (`--block-size`).
    pub block_size: Option<u32>,
    /// Run Python code from the model's repository (`--trust-remote-code`).
    pub trust_remote_code: bool,
    /// Parser of the model's tool calls (`--tool-call-parser`, with `--enable-auto-tool-choice`).
    pub tool_call_parser: Option<String>,
    /// Parser of the model's reasoning (`--reasoning-parser`).
    pub reasoning_parser: Option<String>,
    /// LoRA adapters by name, with their folders or names on the hub (`--enable-lora` and
    /// `--lora-modules`).
    pub adapters: Vec<(String, String)>,
    /// Folder for downloads (`--download-dir`).
    pub download_dir: Option<String>,
    /// Format of the weights, such as `auto` or `dummy` (`--load-format`).
    pub load_format: Option<String>,
    /// Schedule requests with a lower `priority` first (`--scheduling-policy priority`).
    pub priority_scheduling: bool,
    /// Seconds that running requests may take after SIGTERM (`--shutdown-timeout`); 0, vLLM's
    /// default, aborts them immediately.
    pub shutdown_timeout_s: u32,
    /// Enable sleep mode (`--enable-sleep-mode` and `VLLM_SERVER_DEV_MODE=1`).
    pub sleep_mode: bool,
    /// Never access the hub (`HF_HUB_OFFLINE=1`).
    pub offline: bool,
    /// The GPU (`ROCR_VISIBLE_DEVICES`); `HIP_VISIBLE_DEVICES` and `CUDA_VISIBLE_DEVICES` are
    /// removed if set.
    pub device: Option<GpuSelector>,
    /// Override of the GPU's version (`HSA_OVERRIDE_GFX_VERSION`); never set otherwise.
    pub hsa_override: Option<String>,
    /// Folder of compiled code (`VLLM_CACHE_ROOT`); if it is not kept, each start compiles again.
    pub cache_root: Option<String>,
    /// Additional arguments, appended last.
    pub arguments: Vec<String>,
    /// Additional environment variables; the settings above take precedence.
    pub env: Vec<(String, String)>,
}

impl Default for VllmSettings {
    fn default() -> Self {
        Self {
            program: vec!["vllm".to_owned()],
            model: String::new(),
            served_names: Vec::new(),
            dtype: None,
            quantization: None,
            max_model_len: None,
            max_num_seqs: None,
            gpu_memory_utilization: None,
            kv_cache_bytes: None,
            tensor_parallel: None,
            pipeline_parallel: None,
            enforce_eager: false,
            block_size: None,
            trust_remote_code: false,
            tool_call_parser: None,
            reasoning_parser: None,
            adapters: Vec::new(),
            download_dir: None,
            load_format: None,
            priority_scheduling: true,
            shutdown_timeout_s: 0,
            sleep_mode: false,
            offline: false,
            device: None,
            hsa_override: None,
            cache_root: None,
            arguments: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// Flags that are not allowed among the additional arguments, and why. The first ones are set by
/// the router; the others were removed from vLLM, and 0.32 exits with code 2.
const DENIED_FLAGS: [(&str, &str); 7] = [
    ("--port", "the router chooses the port"),
    ("--host", "vLLM listens on 127.0.0.1 for the router only"),
    ("--uds", "the router chooses the address"),
    ("--served-model-name", "the names are those of the lane"),
    ("--model", "use `model`"),
    ("--swap-space", "removed from vLLM, which would exit with code 2; use --kv-offloading-size"),
    (
        "--disable-log-requests",
        "removed from vLLM, which would exit with code 2; requests are not logged by default",
    ),
];

/// A setting that vLLM cannot be started with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct SettingProblem {
    /// The key of the setting in the configuration.
    pub key: &'static str,
    /// The cause and a hint.
    pub message: String,
}

impl SettingProblem {
    fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

impl VllmSettings {
    /// Returns the number of GPUs that the engine uses.
    pub(super) fn devices(&self) -> u64 {
        let (tensor, pipeline) = (self.tensor_parallel, self.pipeline_parallel);
        u64::from(tensor.unwrap_or(1).max(1)).saturating_mul(pipeline.unwrap_or(1).max(1).into())
    }

    /// Returns the problems of the settings; empty if vLLM can be started with them.
    #[must_use]
    pub fn check(&self) -> Vec<SettingProblem> {
        let mut problems = Vec::new();
        if self.program.first().is_none_or(String::is_empty) {
            problems.push(SettingProblem::new("program", "empty: expected for example [\"vllm\"]"));
        }
        self.check_model(&mut problems);
        self.check_numbers(&mut problems);
        self.check_values(&mut problems);
        self.check_arguments(&mut problems);
        self.check_adapters(&mut problems);
        self.check_environment(&mut problems);
        problems
    }

    fn check_model(&self, problems: &mut Vec<SettingProblem>) {
        let lower = self.model.to_lowercase();
        if self.model.trim().is_empty() {
            problems.push(SettingProblem::new(
                "model",
                "missing: expected a folder, or a model on the hub",
            ));
        } else if lower.ends_with(".safetensors") {
            let message = format!(
                "\"{}\" is a single file: expected the folder that contains it and config.json",
                self.model
            );
            problems.push(SettingProblem::new("model", message));
        } else if lower.ends_with(".gguf") {
            let message =
                format!("\"{}\" is a GGUF file, which needs the llama.cpp driver", self.model);
            problems.push(SettingProblem::new("model", message));
        }
    }

    fn check_numbers(&self, problems: &mut Vec<SettingProblem>) {
        if let Some(Permille(part)) = self.gpu_memory_utilization
            && !(1..=1000).contains(&part)
        {
            let message = format!("{} is out of range: expected (0, 1]", Permille(part));
            problems.push(SettingProblem::new("gpu-memory-utilization", message));
        }
        let counts = [
            ("max-model-len", self.max_model_len),
            ("max-num-seqs", self.max_num_seqs),
            ("tensor-parallel", self.tensor_parallel),
            ("pipeline-parallel", self.pipeline_parallel),
            ("block-size", self.block_size),
        ];
        let zeros = counts.iter().filter(|(_, count)| *count == Some(0)).map(|(key, _)| *key);
        for key in zeros.chain((self.kv_cache_bytes == Some(0)).then_some("kv-cache-memory")) {
            problems.push(SettingProblem::new(key, "0 is out of range: expected at least 1"));
        }
    }

    /// Returns the texts that become arguments unchanged.
    fn values(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let optional = [
            ("dtype", &self.dtype),
            ("quantization", &self.quantization),
            ("tool-call-parser", &self.tool_call_parser),
            ("reasoning-parser", &self.reasoning_parser),
            ("download-dir", &self.download_dir),
            ("load-format", &self.load_format),
        ];
        let optional =
            optional.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        let names = self.served_names.iter().map(|name| ("served-names", name.as_str()));
        [("model", self.model.as_str())].into_iter().chain(names).chain(optional)
    }

    fn check_values(&self, problems: &mut Vec<SettingProblem>) {
        for (key, value) in self.values() {
            // vLLM would parse such a value as a flag.
            if value.starts_with('-') {
                let message = format!("\"{}\" starts with a dash", value.escape_debug());
                problems.push(SettingProblem::new(key, message));
            }
            if value.is_empty() && key != "model" {
                problems.push(SettingProblem::new(key, "must not be empty"));
            }
        }
        let program = self.program.iter().map(|word| ("program", word.as_str()));
        let arguments = self.arguments.iter().map(|word| ("arguments", word.as_str()));
        for (key, word) in self.values().chain(program).chain(arguments) {
            if has_line_break_or_nul(word) {
                let message = format!("\"{}\" contains a line break or NUL", word.escape_debug());
                problems.push(SettingProblem::new(key, message));
            }
        }
    }

    fn check_arguments(&self, problems: &mut Vec<SettingProblem>) {
        for word in self.arguments.iter().filter(|word| word.starts_with("--")) {
            // vLLM treats underscores in a flag like dashes.
            let flag = word.split('=').next().unwrap_or(word).replace('_', "-");
            let denied = DENIED_FLAGS.iter().find(|(name, _)| *name == flag);
            if let Some((name, why)) = denied {
                let message = format!("flag {name} is not allowed here: {why}");
                problems.push(SettingProblem::new("arguments", message));
            }
        }
    }

    fn check_adapters(&self, problems: &mut Vec<SettingProblem>) {
        for (name, path) in &self.adapters {
            // vLLM reads `name=path`, or JSON.
            let is_name = !name.is_empty() && !name.starts_with(['-', '{']) && !name.contains('=');
            if !is_name
                || path.is_empty()
                || [name, path].into_iter().any(|text| has_line_break_or_nul(text))
            {
                let message = format!("invalid adapter \"{}\"", name.escape_debug());
                problems.push(SettingProblem::new("adapters", message));
            }
            if self.served_names.contains(name) {
                let message = format!("\"{name}\" is also a name of the model itself");
                problems.push(SettingProblem::new("adapters", message));
            }
        }
        let is_lora = |word: &String| word.replace('_', "-").starts_with("--lora-modules");
        if !self.adapters.is_empty() && self.arguments.iter().any(is_lora) {
            let message = "conflicts with --lora-modules in `arguments`; move those here";
            problems.push(SettingProblem::new("adapters", message));
        }
    }

    fn check_environment(&self, problems: &mut Vec<SettingProblem>) {
        for (name, value) in &self.env {
            if name.is_empty() || name.contains('=') || has_line_break_or_nul(name) {
                let message = format!("invalid variable name \"{}\"", name.escape_debug());
                problems.push(SettingProblem::new("env", message));
            }
            // The value is not quoted, because it may be a secret.
            if has_line_break_or_nul(value) {
                let message =
                    format!("the value of {} contains a line break or NUL", name.escape_debug());
                problems.push(SettingProblem::new("env", message));
            }
        }
        for (key, value) in [("hsa-override", &self.hsa_override), ("cache-root", &self.cache_root)]
        {
            if value
                .as_deref()
                .is_some_and(|value| value.is_empty() || has_line_break_or_nul(value))
            {
                problems.push(SettingProblem::new(key, "empty, or contains a line break or NUL"));
            }
        }
        if let Some(GpuSelector::Uuid(uuid)) = &self.device
            && !is_uuid(uuid)
        {
            let message = format!(
                "invalid GPU \"{}\": expected an index, or \"GPU-\" and a UUID",
                uuid.escape_debug()
            );
            problems.push(SettingProblem::new("device", message));
        }
    }
}

/// Returns true if the text cannot be an argument (NUL) or part of a log line (line break).
fn has_line_break_or_nul(text: &str) -> bool {
    text.contains(['\n', '\r', '\0'])
}
