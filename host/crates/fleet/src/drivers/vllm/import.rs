//! The import of settings written as environment variables, many of which vLLM never had.

use super::settings::{GpuSelector, Permille, VllmSettings};

/// Prefixes of variables that vLLM or its dependencies may read, and that are passed on.
const PASSED_PREFIXES: [&str; 15] = [
    "VLLM_", "HF_", "HIP_", "HSA_", "ROCM_", "ROCR_", "AMD_", "MIOPEN_", "TORCH", "PYTORCH_",
    "TRITON_", "NCCL_", "RCCL_", "OMP_", "FLASH_",
];

/// Settings imported from environment variables.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The imported settings; `model` is empty if no variable set it.
    pub settings: VllmSettings,
    /// What became of each variable, in the order of the variables. Contains no secrets.
    pub notes: Vec<String>,
    /// The notes, each with its entry of the `[lanes.engine]` table.
    lines: Vec<Line>,
    /// Names of variables without a counterpart, and why.
    without: Vec<(String, String)>,
}

/// A note, with the key and value (as TOML) that it is about. A suggestion is written as a comment.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    note: String,
    entry: Option<(&'static str, String)>,
    is_suggestion: bool,
}

/// The result of importing one variable.
enum Import {
    /// A key and its value as TOML.
    Key(&'static str, String),
    /// A key and its value, suggested to the operator for the given reason.
    Suggestion(&'static str, String, String),
    /// Additional arguments.
    Arguments(Vec<String>),
    /// Another variable in the engine's environment.
    Env(&'static str, String),
    /// The same variable in the engine's environment.
    Same,
    /// The variable is ignored, for the given reason.
    Ignored(String),
}

fn ignored(why: &str) -> Import {
    Import::Ignored(why.to_owned())
}

/// Imports variables. If a name occurs twice, the last one counts.
#[must_use]
pub fn import(env: &[(String, String)]) -> Imported {
    let mut imported = Imported {
        settings: VllmSettings::default(),
        notes: Vec::new(),
        lines: Vec::new(),
        without: Vec::new(),
    };
    for (index, (name, value)) in env.iter().enumerate() {
        let is_overridden = env.iter().skip(index + 1).any(|(later, _)| later == name);
        let import = if is_overridden {
            ignored("overridden by a later line")
        } else {
            let has =
                |other: &str| env.iter().any(|(name, value)| name == other && !is_none(value));
            let mut import = import_one(&mut imported.settings, name, value, &has);
            if let Import::Key(key, _) = &import
                && imported
                    .lines
                    .iter()
                    .any(|line| line.entry.as_ref().is_some_and(|(known, _)| known == key))
            {
                import = ignored("already set by another variable");
            }
            import
        };
        imported.add(name, value, import);
    }
    imported
}

/// Returns true if a value means that there is none; `None` is often written in such files, and is
/// a text there.
fn is_none(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "" | "none" | "null")
}

fn parse_bool(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" | "" | "none" => Some(false),
        _ => None,
    }
}

/// Imports one variable; `has` returns true for other variables that are set.
fn import_one(
    settings: &mut VllmSettings,
    name: &str,
    value: &str,
    has: &dyn Fn(&str) -> bool,
) -> Import {
    let value = value.trim();
    let is_secret =
        ["TOKEN", "_KEY", "SECRET", "PASSWORD"].iter().any(|suffix| name.ends_with(suffix));
    match name {
        "VLLM_API_KEY" if is_none(value) => ignored(
            "vLLM would use the text \"None\" as the key; without the variable no key is required",
        ),
        "VLLM_API_KEY" => ignored(
            "vLLM serves the router only and needs no key; clients' keys are checked by the router",
        ),
        _ if is_secret => {
            ignored("secret; set it in the router's environment, which engines inherit")
        }
        _ if value.contains("${") => ignored("the value needs a shell"),
        "VLLM_PORT" => ignored(
            "the first of vLLM's internal ports, not the port of the server, which the router \
             chooses",
        ),
        "VLLM_HOST" => ignored(
            "not a variable of vLLM, which listens on 127.0.0.1; the router listens for clients",
        ),
        "VLLM_SWAP_SPACE" => ignored(
            "not a variable of vLLM, and the flag --swap-space was removed (vLLM would exit with \
             code 2); use --kv-offloading-size GiB --kv-offloading-backend native",
        ),
        "VLLM_CPU_ONLY" => {
            ignored("not a variable of vLLM; decided when vLLM is built (VLLM_TARGET_DEVICE=cpu)")
        }
        "LOG_DIRECTORY" => ignored("not a variable of vLLM; the router logs the engine's output"),
        "VLLM_ROCM_GEMM_TUNING" | "HF_ALLOW_CODE_EVAL" => ignored("not read by vLLM"),
        "VLLM_ROCM_USE_AITER" if parse_bool(value) == Some(true) => {
            ignored("breaks gfx1151; vLLM's default is 0")
        }
        "VLLM_ROCM_USE_AITER" => ignored("0 is vLLM's default"),
        "HSA_OVERRIDE_GFX_VERSION" => Import::Suggestion(
            "hsa-override",
            toml_string(value),
            "pretends that the GPU is another one; gfx1151 is supported natively since ROCm 7.0.2"
                .to_owned(),
        ),
        "VLLM_LOG_LEVEL" if has("VLLM_LOGGING_LEVEL") => {
            ignored("VLLM_LOGGING_LEVEL is set, which is vLLM's name")
        }
        "VLLM_LOG_LEVEL" if !is_none(value) => {
            Import::Env("VLLM_LOGGING_LEVEL", value.to_uppercase())
        }
        "TRANSFORMERS_OFFLINE" | "HF_DATASETS_OFFLINE" if has("HF_HUB_OFFLINE") => {
            ignored("HF_HUB_OFFLINE is set and takes precedence")
        }
        "ROCR_VISIBLE_DEVICES" | "HIP_VISIBLE_DEVICES" | "CUDA_VISIBLE_DEVICES" => {
            import_device(settings, name, value, has)
        }
        "HF_HUB_OFFLINE"
        | "TRANSFORMERS_OFFLINE"
        | "HF_DATASETS_OFFLINE"
        | "VLLM_ENFORCE_EAGER"
        | "TRANSFORMERS_TRUST_REMOTE_CODE"
        | "VLLM_LOG_REQUESTS" => import_flag(settings, name, value),
        _ if is_none(value) => ignored("no value; using vLLM's default"),
        _ => import_value(settings, name, value),
    }
}

fn import_device(
    settings: &mut VllmSettings,
    name: &str,
    value: &str,
    has: &dyn Fn(&str) -> bool,
) -> Import {
    let order = ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"];
    if let Some(preferred) =
        order.iter().take_while(|known| **known != name).find(|known| has(known))
    {
        return Import::Ignored(format!("{preferred} is set and selects the GPU"));
    }
    if is_none(value) {
        return ignored("no GPU selected");
    }
    match GpuSelector::parse(value) {
        Some(selector) => {
            let device = selector.to_string();
            settings.device = Some(selector);
            Import::Key("device", toml_string(&device))
        }
        None => Import::Env("ROCR_VISIBLE_DEVICES", value.to_owned()),
    }
}

fn import_flag(settings: &mut VllmSettings, name: &str, value: &str) -> Import {
    let Some(on) = parse_bool(value) else { return ignored("not a boolean") };
    let (field, key) = match name {
        "VLLM_ENFORCE_EAGER" => (&mut settings.enforce_eager, "enforce-eager"),
        "TRANSFORMERS_TRUST_REMOTE_CODE" => (&mut settings.trust_remote_code, "trust-remote-code"),
        "VLLM_LOG_REQUESTS" if on => {
            return Import::Arguments(vec!["--enable-log-requests".to_owned()]);
        }
        "VLLM_LOG_REQUESTS" => return ignored("vLLM does not log requests by default"),
        // Three variables mean the same; a false one needs no key, because it is the default.
        _ if !on => return ignored("accessing the hub is the default"),
        _ => (&mut settings.offline, "offline"),
    };
    *field = on;
    Import::Key(key, on.to_string())
}

/// Imports a variable with a text or a number.
fn import_value(settings: &mut VllmSettings, name: &str, value: &str) -> Import {
    let count =
        |field: &mut Option<u32>, key: &'static str, read: fn(&str) -> Option<u32>| match read(
            value,
        ) {
            Some(count) => {
                *field = Some(count);
                Import::Key(key, count.to_string())
            }
            None => ignored("not a positive integer; using vLLM's default"),
        };
    match name {
        "VLLM_MODEL" => {
            let model = model_folder(value);
            model.clone_into(&mut settings.model);
            Import::Key("model", toml_string(model))
        }
        "VLLM_DTYPE" => {
            settings.dtype = Some(value.to_owned());
            Import::Key("dtype", toml_string(value))
        }
        "VLLM_CACHE_ROOT" => {
            settings.cache_root = Some(value.to_owned());
            Import::Key("cache-root", toml_string(value))
        }
        "VLLM_GPU_MEMORY_UTILIZATION" => match Permille::parse(value) {
            Some(part) => {
                settings.gpu_memory_utilization = Some(part);
                Import::Key("gpu-memory-utilization", part.to_string())
            }
            None => ignored("not above 0 and at most 1; using vLLM's default"),
        },
        "VLLM_MAX_MODEL_LEN" if matches!(value, "auto" | "-1") => {
            Import::Arguments(vec!["--max-model-len=auto".to_owned()])
        }
        "VLLM_MAX_MODEL_LEN" => count(&mut settings.max_model_len, "max-model-len", parse_tokens),
        "VLLM_BLOCK_SIZE" => count(&mut settings.block_size, "block-size", parse_count),
        "VLLM_TENSOR_PARALLEL_SIZE" => {
            count(&mut settings.tensor_parallel, "tensor-parallel", parse_count)
        }
        "VLLM_PIPELINE_PARALLEL_SIZE" => {
            count(&mut settings.pipeline_parallel, "pipeline-parallel", parse_count)
        }
        "VLLM_NUM_GPU_BLOCKS_OVERRIDE" => match parse_count(value) {
            Some(blocks) => {
                Import::Arguments(vec!["--num-gpu-blocks-override".to_owned(), blocks.to_string()])
            }
            None => ignored("not a positive integer; using vLLM's default"),
        },
        _ if PASSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) => Import::Same,
        _ => ignored(
            "not a known variable of vLLM; set it in the router's environment if an engine needs \
             it",
        ),
    }
}

/// Returns the folder of a file with weights, because vLLM needs the folder.
fn model_folder(value: &str) -> &str {
    match value.rsplit_once('/') {
        Some((folder, file))
            if !folder.is_empty() && file.to_lowercase().ends_with(".safetensors") =>
        {
            folder
        }
        _ => value,
    }
}

fn parse_count(value: &str) -> Option<u32> {
    value.parse().ok().filter(|count| *count > 0)
}

/// Parses a number of tokens as vLLM does: `32k` is 32 000, `25.6k` is 25 600, and `32K` is 32 768.
/// Only lower-case units allow decimals.
fn parse_tokens(value: &str) -> Option<u32> {
    let (digits, unit) = match value.char_indices().next_back()? {
        (end, 'k') => (value.get(..end)?, 1000),
        (end, 'm') => (value.get(..end)?, 1_000_000),
        (end, 'K') => (value.get(..end)?, 1 << 10),
        (end, 'M') => (value.get(..end)?, 1 << 20),
        _ => return parse_count(value),
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let is_decimal = !whole.is_empty()
        && whole.bytes().chain(decimals.bytes()).all(|byte| byte.is_ascii_digit());
    // A seventh decimal would be less than one token.
    if !is_decimal || decimals.len() > 6 || (!decimals.is_empty() && unit % 1000 != 0) {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(decimals.len()).ok()?);
    let count: u64 = format!("{whole}{decimals}").parse().ok()?;
    u32::try_from(count.checked_mul(unit)? / scale).ok().filter(|tokens| *tokens > 0)
}

/// Formats a TOML string.
fn toml_string(value: &str) -> String {
    let mut out = String::from("\"");
    for letter in value.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            _ if letter.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(letter))),
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// Replaces control characters, so that the text fits into a comment of one line.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

impl Imported {
    fn add(&mut self, name: &str, value: &str, import: Import) {
        let (result, entry, is_suggestion) = match import {
            Import::Key(key, toml) => {
                let note = if key == "model" && toml != toml_string(value.trim()) {
                    format!("{key} = {toml}, the folder of that file")
                } else {
                    format!("{key} = {toml}")
                };
                (format!("becomes {note}"), Some((key, toml)), false)
            }
            Import::Suggestion(key, toml, why) => {
                let suggestion = format!("{key} = {toml} if it is needed: {why}");
                self.without.push((name.to_owned(), one_line(&suggestion)));
                (format!("is only suggested: {why}"), Some((key, toml)), true)
            }
            Import::Arguments(words) => {
                let result = format!("becomes the argument {}", words.join(" "));
                self.settings.arguments.extend(words);
                (result, None, false)
            }
            Import::Env(new, value) => {
                self.settings.env.push((new.to_owned(), value));
                let result = if name == new {
                    "is passed on in env".to_owned()
                } else {
                    format!("becomes {new} in env")
                };
                (result, None, false)
            }
            Import::Same => {
                self.settings.env.push((name.to_owned(), value.to_owned()));
                ("is passed on in env".to_owned(), None, false)
            }
            Import::Ignored(why) => {
                self.without.push((name.to_owned(), one_line(&why)));
                (format!("is ignored: {why}"), None, false)
            }
        };
        let note = one_line(&format!("{name} {result}"));
        self.notes.push(note.clone());
        self.lines.push(Line { note, entry, is_suggestion });
    }

    /// Returns the names of the variables that have no counterpart, and why, in their order.
    /// Contains no secrets.
    pub fn without_counterpart(&self) -> impl Iterator<Item = (&str, &str)> {
        self.without.iter().map(|(name, why)| (name.as_str(), why.as_str()))
    }

    /// Returns the lines of a `[lanes.engine]` table, each below its note.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut toml = String::from("[lanes.engine]\ndriver = \"vllm\"\n");
        for Line { note, entry, is_suggestion } in &self.lines {
            let mark = if *is_suggestion { "# " } else { "" };
            let entry = entry.as_ref().map(|(key, value)| format!("{mark}{key} = {value}\n"));
            toml.extend(["# ", note, "\n", entry.as_deref().unwrap_or_default()]);
        }
        let arguments: Vec<String> =
            self.settings.arguments.iter().map(|word| toml_string(word)).collect();
        if !arguments.is_empty() {
            toml.extend(["arguments = [", &arguments.join(", "), "]\n"]);
        }
        let env: Vec<String> = self
            .settings
            .env
            .iter()
            .map(|(name, value)| format!("{} = {}", toml_string(name), toml_string(value)))
            .collect();
        if !env.is_empty() {
            toml.extend(["env = { ", &env.join(", "), " }\n"]);
        }
        toml
    }
}
