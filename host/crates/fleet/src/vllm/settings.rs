//! What the operator says about a vLLM, and what is wrong with it.

use std::fmt;

/// A part of a whole, in thousandths. Shown as a decimal fraction: `Permille(450)` as `0.45`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Permille(pub u16);

impl Permille {
    /// Read a decimal fraction above 0 and up to 1, such as `0.45`; more than three decimals are rounded.
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

/// Which GPU an engine may use. Goes to `ROCR_VISIBLE_DEVICES`, the only variable of ROCm's that knows both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuSelector {
    /// Its place in ROCm's list, from 0. May change when cards are added.
    Index(u32),
    /// `GPU-` and what `rocminfo` shows as its UUID. Stays the same.
    Uuid(String),
}

impl GpuSelector {
    /// Read `0` or `GPU-0e54792172da5eeb`; `None` for anything else, lists included.
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

/// How a lane's vLLM is to be started; what is `None` or empty is left to vLLM.
#[derive(Debug, Clone, PartialEq)]
pub struct VllmSettings {
    /// Program, and the words before `serve`: `["vllm"]`, `["/opt/venv/bin/vllm"]` or `["docker", "run", …]`.
    pub program: Vec<String>,
    /// Folder of the model, or its name on the hub.
    pub model: String,
    /// Names that it answers to (`--served-model-name`); answers carry the first.
    pub served_names: Vec<String>,
    /// Type of the weights in memory, such as `bfloat16` (`--dtype`).
    pub dtype: Option<String>,
    /// Kind of quantization (`--quantization`); vLLM finds it in the model's own settings.
    pub quantization: Option<String>,
    /// Longest sequence, prompt and answer, in tokens (`--max-model-len`).
    pub max_model_len: Option<u32>,
    /// Requests that it works on at once (`--max-num-seqs`).
    pub max_num_seqs: Option<u32>,
    /// Part of the GPU's memory that it may take, all told (`--gpu-memory-utilization`; vLLM 0.32 takes 0.92).
    pub gpu_memory_utilization: Option<Permille>,
    /// Memory for the KV cache, in bytes, instead of what the part above leaves (`--kv-cache-memory-bytes`).
    pub kv_cache_bytes: Option<u64>,
    /// GPUs that share each layer (`--tensor-parallel-size`).
    pub tensor_parallel: Option<u32>,
    /// GPUs that have some of the layers each (`--pipeline-parallel-size`).
    pub pipeline_parallel: Option<u32>,
    /// Neither compile nor record graphs: a faster start, slower answers (`--enforce-eager`).
    pub enforce_eager: bool,
    /// Tokens in a block of the KV cache (`--block-size`).
    pub block_size: Option<u32>,
    /// Run Python code that comes with the model (`--trust-remote-code`).
    pub trust_remote_code: bool,
    /// Reader of the model's tool calls (`--tool-call-parser`, and with it `--enable-auto-tool-choice`).
    pub tool_call_parser: Option<String>,
    /// Reader of the model's reasoning (`--reasoning-parser`).
    pub reasoning_parser: Option<String>,
    /// Where downloads go (`--download-dir`).
    pub download_dir: Option<String>,
    /// How weights are read, such as `auto` or `dummy` (`--load-format`).
    pub load_format: Option<String>,
    /// Let requests with a lower `priority` go first (`--scheduling-policy priority`).
    pub priority_scheduling: bool,
    /// Seconds that running requests get after SIGTERM (`--shutdown-timeout`); 0 ends them at once, as vLLM does unasked.
    pub shutdown_timeout_s: u32,
    /// Let it be put to sleep (`--enable-sleep-mode` and `VLLM_SERVER_DEV_MODE=1`).
    pub sleep_mode: bool,
    /// Never ask the hub (`HF_HUB_OFFLINE=1`).
    pub offline: bool,
    /// The GPU (`ROCR_VISIBLE_DEVICES`); `HIP_VISIBLE_DEVICES` and `CUDA_VISIBLE_DEVICES` are then taken away.
    pub device: Option<GpuSelector>,
    /// Pretend that the GPU is another one (`HSA_OVERRIDE_GFX_VERSION`); never set unless asked for here.
    pub hsa_override: Option<String>,
    /// Folder of compiled code (`VLLM_CACHE_ROOT`); keep it, or each start compiles anew.
    pub cache_root: Option<String>,
    /// More arguments, put last.
    pub arguments: Vec<String>,
    /// More environment variables; what is said above counts for more.
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

/// Flags that may not be among the operator's arguments, and why. The first ones are ours; vLLM 0.32 has no more of the rest
/// and exits with code 2.
const REFUSED_FLAGS: [(&str, &str); 7] = [
    ("--port", "the host chooses the port; leave it out"),
    ("--host", "the host has it listen on 127.0.0.1, for itself alone; leave it out"),
    ("--uds", "the host chooses where vLLM listens; leave it out"),
    ("--served-model-name", "the names come from the lane; leave it out"),
    ("--model", "write it as `model`"),
    (
        "--swap-space",
        "vLLM has this flag no more and would exit with code 2; --kv-offloading-size came in its place",
    ),
    (
        "--disable-log-requests",
        "vLLM has this flag no more and would exit with code 2; requests are not logged unasked",
    ),
];

impl VllmSettings {
    /// What is wrong, as sentences; empty if vLLM can be started like this.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.program.first().is_none_or(String::is_empty) {
            wrong.push("program is empty; write for example [\"vllm\"]".to_owned());
        }
        self.check_model(&mut wrong);
        self.check_numbers(&mut wrong);
        self.check_words(&mut wrong);
        self.check_arguments(&mut wrong);
        self.check_environment(&mut wrong);
        wrong
    }

    fn check_model(&self, wrong: &mut Vec<String>) {
        let lower = self.model.to_lowercase();
        if self.model.trim().is_empty() {
            wrong.push("model is missing; name a folder or a model of the hub".to_owned());
        } else if lower.ends_with(".safetensors") {
            wrong.push(format!(
                "model \"{}\" is a single file; vLLM wants the folder that holds it and config.json",
                self.model
            ));
        } else if lower.ends_with(".gguf") {
            wrong.push(format!(
                "model \"{}\" is a file of llama.cpp; give the lane that driver",
                self.model
            ));
        }
    }

    fn check_numbers(&self, wrong: &mut Vec<String>) {
        if let Some(Permille(part)) = self.gpu_memory_utilization
            && !(1..=1000).contains(&part)
        {
            wrong.push(format!(
                "gpu-memory-utilization is {}; it has to be above 0 and at most 1",
                Permille(part)
            ));
        }
        let counts = [
            ("max-model-len", self.max_model_len),
            ("max-num-seqs", self.max_num_seqs),
            ("tensor-parallel", self.tensor_parallel),
            ("pipeline-parallel", self.pipeline_parallel),
            ("block-size", self.block_size),
        ];
        let zeros = counts.iter().filter(|(_, count)| *count == Some(0)).map(|(key, _)| *key);
        for key in zeros.chain((self.kv_cache_bytes == Some(0)).then_some("kv-cache-bytes")) {
            wrong.push(format!("{key} is 0; it has to be at least 1"));
        }
    }

    /// Texts that become words of the command line as they are.
    fn values(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let some = [
            ("dtype", &self.dtype),
            ("quantization", &self.quantization),
            ("tool-call-parser", &self.tool_call_parser),
            ("reasoning-parser", &self.reasoning_parser),
            ("download-dir", &self.download_dir),
            ("load-format", &self.load_format),
        ];
        let some = some.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        let names = self.served_names.iter().map(|name| ("served-names", name.as_str()));
        [("model", self.model.as_str())].into_iter().chain(names).chain(some)
    }

    fn check_words(&self, wrong: &mut Vec<String>) {
        for (key, value) in self.values() {
            // Such a value would be read as a flag of its own.
            if value.starts_with('-') {
                wrong.push(format!("{key} \"{}\" begins with a dash", value.escape_debug()));
            }
            if value.is_empty() && key != "model" {
                wrong.push(format!("{key} is an empty text"));
            }
        }
        let program = self.program.iter().map(|word| ("program", word.as_str()));
        let arguments = self.arguments.iter().map(|word| ("arguments", word.as_str()));
        for (key, word) in self.values().chain(program).chain(arguments) {
            if is_broken(word) {
                wrong
                    .push(format!("{key} \"{}\" holds a line break or a NUL", word.escape_debug()));
            }
        }
    }

    fn check_arguments(&self, wrong: &mut Vec<String>) {
        for word in self.arguments.iter().filter(|word| word.starts_with("--")) {
            // vLLM reads underscores of a flag as dashes.
            let flag = word.split('=').next().unwrap_or(word).replace('_', "-");
            let refused = REFUSED_FLAGS.iter().find(|(name, _)| *name == flag);
            if let Some((name, why)) = refused {
                wrong.push(format!("{name} may not be among the arguments: {why}"));
            }
        }
    }

    fn check_environment(&self, wrong: &mut Vec<String>) {
        for (name, value) in &self.env {
            if name.is_empty() || name.contains('=') || is_broken(name) {
                wrong.push(format!("env \"{}\" is no name of a variable", name.escape_debug()));
            }
            // The value stays out of the sentence: it may be a secret.
            if is_broken(value) {
                wrong.push(format!(
                    "the value of env {} holds a line break or a NUL",
                    name.escape_debug()
                ));
            }
        }
        for (key, value) in [("hsa-override", &self.hsa_override), ("cache-root", &self.cache_root)]
        {
            if value.as_deref().is_some_and(|value| value.is_empty() || is_broken(value)) {
                wrong.push(format!("{key} is empty, or holds a line break or a NUL"));
            }
        }
        if let Some(GpuSelector::Uuid(uuid)) = &self.device
            && !is_uuid(uuid)
        {
            wrong.push(format!(
                "device \"{}\" is neither a number nor \"GPU-\" and a UUID",
                uuid.escape_debug()
            ));
        }
    }
}

/// Whether no log line and no argument can hold this text whole.
fn is_broken(text: &str) -> bool {
    text.contains(['\n', '\r', '\0'])
}
