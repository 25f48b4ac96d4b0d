//! Take over settings that were written as environment variables, most of which vLLM never had.

use super::settings::{GpuSelector, Permille, VllmSettings};

/// Beginnings of names that vLLM or what it is built on may read; these are passed on.
const PASSED_ON: [&str; 15] = [
    "VLLM_", "HF_", "HIP_", "HSA_", "ROCM_", "ROCR_", "AMD_", "MIOPEN_", "TORCH", "PYTORCH_",
    "TRITON_", "NCCL_", "RCCL_", "OMP_", "FLASH_",
];

/// Settings that were environment variables.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// What could be taken over; `model` is empty if there was none.
    pub settings: VllmSettings,
    /// One sentence for each name, in the order of the variables: what became of it. No secrets.
    pub notes: Vec<String>,
    /// The notes, with what each puts into a `[lanes.engine]` table.
    lines: Vec<Line>,
}

/// One note, and the key and value (as TOML) that it is about. A key that is commented out is a proposal.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    note: String,
    entry: Option<(&'static str, String)>,
    proposal: bool,
}

/// What became of one variable.
enum Became {
    /// This key with this value, as TOML.
    Key(&'static str, String),
    /// As `Key`, but left to the operator to say.
    Proposal(&'static str, String, String),
    /// One more argument or two.
    Arguments(Vec<String>),
    /// A variable of the engine's environment.
    Env(&'static str, String),
    /// The same variable in the engine's environment.
    Same,
    /// Nothing, for this reason.
    Nothing(String),
}

fn nothing(why: &str) -> Became {
    Became::Nothing(why.to_owned())
}

/// Take over these variables. Of a name that is there twice the last one counts.
#[must_use]
pub fn import(env: &[(String, String)]) -> Imported {
    let mut imported =
        Imported { settings: VllmSettings::default(), notes: Vec::new(), lines: Vec::new() };
    for (place, (name, value)) in env.iter().enumerate() {
        let again = env.iter().skip(place + 1).any(|(later, _)| later == name);
        let became = if again {
            nothing("it is set again further down, and that counts")
        } else {
            let has =
                |other: &str| env.iter().any(|(name, value)| name == other && !is_none(value));
            let mut became = one(&mut imported.settings, name, value, &has);
            if let Became::Key(key, _) = &became
                && imported
                    .lines
                    .iter()
                    .any(|line| line.entry.as_ref().is_some_and(|(known, _)| known == key))
            {
                became = nothing("another variable says it already");
            }
            became
        };
        imported.add(name, value, became);
    }
    imported
}

/// Whether a value says that there is none. People write `None` and get a text.
fn is_none(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "" | "none" | "null")
}

fn switch(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" | "" | "none" => Some(false),
        _ => None,
    }
}

/// What one variable becomes, told by `has` which others there are.
fn one(settings: &mut VllmSettings, name: &str, value: &str, has: &dyn Fn(&str) -> bool) -> Became {
    let value = value.trim();
    let secret = ["TOKEN", "_KEY", "SECRET", "PASSWORD"].iter().any(|end| name.ends_with(end));
    match name {
        "VLLM_API_KEY" if is_none(value) => nothing(
            "vLLM would take the text \"None\" for the key; without the variable it asks for none",
        ),
        "VLLM_API_KEY" => nothing(
            "vLLM listens for the host alone and needs no key; clients' keys are the host's matter",
        ),
        _ if secret => {
            nothing("it is a secret; set it in the host's environment, which engines inherit")
        }
        _ if value.contains("${") => nothing("its value comes from a shell, which is not here"),
        "VLLM_PORT" => nothing(
            "to vLLM it is where its internal ports begin, not its port; the host chooses that",
        ),
        "VLLM_HOST" => nothing(
            "it is not vLLM's; the host has vLLM listen on 127.0.0.1 and listens itself for clients",
        ),
        "VLLM_SWAP_SPACE" => nothing(
            "it is not vLLM's, and the flag --swap-space was removed (vLLM would exit with code 2); in its place came \
             --kv-offloading-size GiB --kv-offloading-backend native",
        ),
        "VLLM_CPU_ONLY" => {
            nothing("it is not vLLM's; the build decides (VLLM_TARGET_DEVICE=cpu when it is built)")
        }
        "LOG_DIRECTORY" => {
            nothing("it is not vLLM's; the host reads what the engine writes and logs it")
        }
        "VLLM_ROCM_GEMM_TUNING" | "HF_ALLOW_CODE_EVAL" => nothing("nothing in vLLM reads it"),
        "VLLM_ROCM_USE_AITER" if switch(value) == Some(true) => {
            nothing("it breaks gfx1151; vLLM's default is 0")
        }
        "VLLM_ROCM_USE_AITER" => nothing("0 is vLLM's default"),
        "HSA_OVERRIDE_GFX_VERSION" => Became::Proposal(
            "hsa-override",
            text(value),
            "it makes the GPU pass for another one; gfx1151 is supported natively since ROCm 7.0.2"
                .to_owned(),
        ),
        "VLLM_LOG_LEVEL" if has("VLLM_LOGGING_LEVEL") => {
            nothing("VLLM_LOGGING_LEVEL is there, which is vLLM's name")
        }
        "VLLM_LOG_LEVEL" if !is_none(value) => {
            Became::Env("VLLM_LOGGING_LEVEL", value.to_uppercase())
        }
        "TRANSFORMERS_OFFLINE" | "HF_DATASETS_OFFLINE" if has("HF_HUB_OFFLINE") => {
            nothing("HF_HUB_OFFLINE is there, and that counts")
        }
        "ROCR_VISIBLE_DEVICES" | "HIP_VISIBLE_DEVICES" | "CUDA_VISIBLE_DEVICES" => {
            device(settings, name, value, has)
        }
        "HF_HUB_OFFLINE"
        | "TRANSFORMERS_OFFLINE"
        | "HF_DATASETS_OFFLINE"
        | "VLLM_ENFORCE_EAGER"
        | "TRANSFORMERS_TRUST_REMOTE_CODE"
        | "VLLM_LOG_REQUESTS" => switched(settings, name, value),
        _ if is_none(value) => nothing("it says nothing, and so it is left to vLLM"),
        _ => valued(settings, name, value),
    }
}

fn device(
    settings: &mut VllmSettings,
    name: &str,
    value: &str,
    has: &dyn Fn(&str) -> bool,
) -> Became {
    let order = ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"];
    if let Some(better) = order.iter().take_while(|known| **known != name).find(|known| has(known))
    {
        return Became::Nothing(format!("{better} is there, which chooses the GPU already"));
    }
    if is_none(value) {
        return nothing("it names no GPU");
    }
    match GpuSelector::parse(value) {
        Some(selector) => {
            let shown = selector.to_string();
            settings.device = Some(selector);
            Became::Key("device", text(&shown))
        }
        None => Became::Env("ROCR_VISIBLE_DEVICES", value.to_owned()),
    }
}

fn switched(settings: &mut VllmSettings, name: &str, value: &str) -> Became {
    let Some(on) = switch(value) else { return nothing("its value is neither yes nor no") };
    let (field, key) = match name {
        "VLLM_ENFORCE_EAGER" => (&mut settings.enforce_eager, "enforce-eager"),
        "TRANSFORMERS_TRUST_REMOTE_CODE" => (&mut settings.trust_remote_code, "trust-remote-code"),
        "VLLM_LOG_REQUESTS" if on => {
            return Became::Arguments(vec!["--enable-log-requests".to_owned()]);
        }
        "VLLM_LOG_REQUESTS" => return nothing("vLLM logs no requests unless it is asked to"),
        // These three say the same; one that says no is no reason to write it down.
        _ if !on => return nothing("asking the hub is the default"),
        _ => (&mut settings.offline, "offline"),
    };
    *field = on;
    Became::Key(key, on.to_string())
}

/// Variables that hold a text or a number.
fn valued(settings: &mut VllmSettings, name: &str, value: &str) -> Became {
    let count =
        |field: &mut Option<u32>, key: &'static str, read: fn(&str) -> Option<u32>| match read(
            value,
        ) {
            Some(count) => {
                *field = Some(count);
                Became::Key(key, count.to_string())
            }
            None => nothing("its value is no whole number above 0, and so it is left to vLLM"),
        };
    match name {
        "VLLM_MODEL" => {
            let model = model_folder(value);
            model.clone_into(&mut settings.model);
            Became::Key("model", text(model))
        }
        "VLLM_DTYPE" => {
            settings.dtype = Some(value.to_owned());
            Became::Key("dtype", text(value))
        }
        "VLLM_CACHE_ROOT" => {
            settings.cache_root = Some(value.to_owned());
            Became::Key("cache-root", text(value))
        }
        "VLLM_GPU_MEMORY_UTILIZATION" => match Permille::parse(value) {
            Some(part) => {
                settings.gpu_memory_utilization = Some(part);
                Became::Key("gpu-memory-utilization", part.to_string())
            }
            None => nothing("its value is not above 0 and at most 1, and so it is left to vLLM"),
        },
        "VLLM_MAX_MODEL_LEN" if matches!(value, "auto" | "-1") => {
            Became::Arguments(vec!["--max-model-len=auto".to_owned()])
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
                Became::Arguments(vec!["--num-gpu-blocks-override".to_owned(), blocks.to_string()])
            }
            None => nothing("its value is no whole number above 0, and so it is left to vLLM"),
        },
        _ if PASSED_ON.iter().any(|start| name.starts_with(start)) => Became::Same,
        _ => nothing(
            "it is none of vLLM's that is known here; set it in the host's environment if an engine needs it",
        ),
    }
}

/// vLLM takes the folder, not a file of weights in it.
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

/// A number of tokens as vLLM reads it: `32k` is 32 000, `25.6k` is 25 600, and `32K` is 32 768. Only the small letters
/// take decimals.
fn parse_tokens(value: &str) -> Option<u32> {
    let (digits, unit) = match value.char_indices().next_back()? {
        (end, 'k') => (value.get(..end)?, 1000),
        (end, 'm') => (value.get(..end)?, 1_000_000),
        (end, 'K') => (value.get(..end)?, 1 << 10),
        (end, 'M') => (value.get(..end)?, 1 << 20),
        _ => return parse_count(value),
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = !whole.is_empty()
        && whole.bytes().chain(decimals.bytes()).all(|byte| byte.is_ascii_digit());
    // Seven decimals would be less than a token.
    if !plain || decimals.len() > 6 || (!decimals.is_empty() && unit % 1000 != 0) {
        return None;
    }
    let scale = 10_u64.pow(u32::try_from(decimals.len()).ok()?);
    let count: u64 = format!("{whole}{decimals}").parse().ok()?;
    u32::try_from(count.checked_mul(unit)? / scale).ok().filter(|tokens| *tokens > 0)
}

/// A TOML text.
fn text(value: &str) -> String {
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

/// As a comment of one line can hold it.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

impl Imported {
    fn add(&mut self, name: &str, value: &str, became: Became) {
        let (said, entry, proposal) = match became {
            Became::Key(key, toml) => {
                let note = if key == "model" && toml != text(value.trim()) {
                    format!("{key} = {toml}, the folder of that file")
                } else {
                    format!("{key} = {toml}")
                };
                (format!("is now {note}"), Some((key, toml)), false)
            }
            Became::Proposal(key, toml, why) => {
                (format!("is left out: {why}"), Some((key, toml)), true)
            }
            Became::Arguments(words) => {
                let said = format!("is now the argument {}", words.join(" "));
                self.settings.arguments.extend(words);
                (said, None, false)
            }
            Became::Env(new, value) => {
                self.settings.env.push((new.to_owned(), value));
                let said = if name == new {
                    "is passed on in env".to_owned()
                } else {
                    format!("is now {new} in env")
                };
                (said, None, false)
            }
            Became::Same => {
                self.settings.env.push((name.to_owned(), value.to_owned()));
                ("is passed on in env".to_owned(), None, false)
            }
            Became::Nothing(why) => (format!("is left out: {why}"), None, false),
        };
        let note = one_line(&format!("{name} {said}"));
        self.notes.push(note.clone());
        self.lines.push(Line { note, entry, proposal });
    }

    /// Lines of a `[lanes.engine]` table, each below its note.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut toml = String::from("[lanes.engine]\ndriver = \"vllm\"\n");
        for Line { note, entry, proposal } in &self.lines {
            let mark = if *proposal { "# " } else { "" };
            let entry = entry.as_ref().map(|(key, value)| format!("{mark}{key} = {value}\n"));
            toml.extend(["# ", note, "\n", entry.as_deref().unwrap_or_default()]);
        }
        let arguments: Vec<String> =
            self.settings.arguments.iter().map(|word| text(word)).collect();
        if !arguments.is_empty() {
            toml.extend(["arguments = [", &arguments.join(", "), "]\n"]);
        }
        let env: Vec<String> = self
            .settings
            .env
            .iter()
            .map(|(name, value)| format!("{} = {}", text(name), text(value)))
            .collect();
        if !env.is_empty() {
            toml.extend(["env = { ", &env.join(", "), " }\n"]);
        }
        toml
    }
}
