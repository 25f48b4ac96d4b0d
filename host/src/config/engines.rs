//! The `[lanes.engine]` of a lane: what serves it.

use std::path::Path;
use std::time::Duration;

use pointsman_fleet::{BackOff, CommandLine, EngineSpec, ExternalSpec, ProcessSpec, Secret};

use super::need::Model;
use super::{secret, vllm};
use pointsman_settings::Section;

const SECOND: Duration = Duration::from_secs(1);
/// Flags of llama-server that come from elsewhere when the command is ours to make, and from where.
const OURS: [(&str, &str); 10] = [
    ("--host", "the host has it listen on 127.0.0.1, for itself alone"),
    ("--port", "write it as `port`, or leave it out for a free one"),
    ("--model", "write it as `model`"),
    ("-m", "write it as `model`"),
    ("--ctx-size", "write it as `context`"),
    ("-c", "write it as `context`"),
    ("--parallel", "write it as `slots` of the lane"),
    ("-np", "write it as `slots` of the lane"),
    ("--alias", "it is the lane's name"),
    ("-a", "it is the lane's name"),
];

/// Among the names of an engine: it has more that we do not know of.
pub(super) const ANY: &str = "*";

/// What an engine has to know of its lane.
pub(super) struct Basics {
    pub(super) name: String,
    pub(super) models: Vec<String>,
    /// 0 if not known.
    pub(super) max_context: u32,
    pub(super) slots: u32,
}

/// An engine, and what its lane has to know of it.
pub(super) struct Engine {
    pub(super) spec: EngineSpec,
    /// Longest sequence that it takes; 0 if not known.
    pub(super) max_context: u32,
    /// The names that it answers to, the first one being its own; none: it does not look at them.
    pub(super) names: Vec<String>,
    /// What its need of memory can be worked out from.
    pub(super) model: Option<Model>,
}

impl Engine {
    fn new(spec: EngineSpec) -> Self {
        Self { spec, max_context: 0, names: Vec::new(), model: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vllm,
    LlamaCpp,
    Command,
    External,
}

/// The `driver`, which says how all the rest is understood.
pub(super) fn read_kind(section: &Section<'_>, lane: &Section<'_>) -> Option<Kind> {
    if !lane.has("engine") {
        lane.error_at("engine", "is missing; write `[lanes.engine]` with a `driver`");
        return None;
    }
    let kinds = [
        ("vllm", Some(Kind::Vllm)),
        ("llama-cpp", Some(Kind::LlamaCpp)),
        ("command", Some(Kind::Command)),
        ("external", Some(Kind::External)),
    ];
    if !section.has("driver") {
        section.error_at(
            "driver",
            "is missing; write \"vllm\", \"llama-cpp\", \"command\" (any other program) or \"external\" (one that \
             is there already)",
        );
        return None;
    }
    section.choice("driver", &kinds, None)
}

pub(super) fn read(
    section: &Section<'_>,
    kind: Kind,
    folder: &Path,
    basics: &Basics,
) -> Option<Engine> {
    let engine = match kind {
        Kind::Vllm => vllm::read(section, folder, basics),
        Kind::LlamaCpp => read_llama_cpp(section, folder, basics),
        Kind::Command => read_command(section, folder),
        Kind::External => read_external(section, folder)
            .map(|external| Engine::new(EngineSpec::External(external))),
    };
    section.report_unknown();
    engine
}

/// How a process is run. `start_timeout` and `stop_grace` are defaults.
pub(super) fn read_run(
    section: &Section<'_>,
    folder: &Path,
    start_timeout: Duration,
    stop_grace: Duration,
) -> ProcessSpec {
    let port = section.integer("port", 1..=65_535, 0u16);
    let back_off = section.section("backoff");
    let first = back_off.duration("initial", SECOND);
    let most = back_off.duration("max", 60 * SECOND);
    if first.is_zero() || most < first {
        back_off
            .error_at("max", "`first` must be more than nothing, and `most` not less than `first`");
    }
    let spec = ProcessSpec {
        directory: Some(folder.join(section.string("directory").unwrap_or("."))),
        port: (port != 0).then_some(port),
        start_timeout: section.positive_duration("start-timeout", start_timeout),
        stop_grace: section.duration("stop-grace", stop_grace),
        back_off: BackOff {
            first,
            most,
            reset_after: back_off.duration("reset-after", 60 * SECOND),
            give_up: back_off.integer("max-failures", 0..=1000, 5),
            failed_retry: back_off.positive_duration("retry-failed-after", 600 * SECOND),
        },
    };
    back_off.report_unknown();
    spec
}

/// A command that stands in the file, with `{port}` in it or in its environment unless the port is fixed.
fn read_words(section: &Section<'_>, example: &str) -> Option<CommandLine> {
    let command = section.strings("command");
    let env = read_env(section);
    let says_port = |word: &String| word.contains("{port}");
    let mut values = env.iter().map(|(_, value)| value);
    match &command {
        None if !section.has("command") => {
            section.error_at("command", format!("is missing; write for example `{example}`"));
        }
        Some(command) if command.first().is_none_or(|word| word.trim().is_empty()) => {
            section.error_at("command", format!("names no program; write for example `{example}`"));
        }
        Some(command)
            if !section.has("port") && !command.iter().any(says_port) && !values.any(says_port) =>
        {
            section.error_at(
                "command",
                "does not say where the engine is to listen; put `{port}` where its port belongs, or set `port`",
            );
        }
        _ => {}
    }
    Some(CommandLine { command: command?, env })
}

fn read_env(section: &Section<'_>) -> Vec<(String, String)> {
    let env = section.string_pairs("env");
    for (name, value) in &env {
        // The value stays out of the sentence: it may be a secret.
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            section.error_at(
                "env",
                format!("\"{}\" is no variable with a value", name.escape_debug()),
            );
        }
    }
    env
}

fn read_command(section: &Section<'_>, folder: &Path) -> Option<Engine> {
    let example = "command = [\"python3\", \"server.py\", \"--port\", \"{port}\"]";
    let words = read_words(section, example);
    let run = read_run(section, folder, 120 * SECOND, 10 * SECOND);
    let ready = section.string("ready").unwrap_or("/health");
    let is_path = ready.starts_with('/') && ready.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path {
        section.error_at(
            "ready",
            format!(
                "\"{}\" is no path; write for example \"/health\", or \"/api/version\" for Ollama",
                ready.escape_debug()
            ),
        );
    }
    Some(Engine::new(EngineSpec::Command { words: words?, ready: ready.to_owned(), run }))
}

fn read_llama_cpp(section: &Section<'_>, folder: &Path, basics: &Basics) -> Option<Engine> {
    let run = read_run(section, folder, 120 * SECOND, 10 * SECOND);
    if !section.has("command") {
        return read_llama_server(section, basics, run);
    }
    for key in ["program", "model", "context", "gpu-layers", "load-mode", "arguments"] {
        if section.has(key) {
            section.error_at(
                key,
                "stands beside `command`, which says all; write it there, or leave `command` out",
            );
        }
    }
    let words = read_words(section, "model = \"model.gguf\"");
    Some(Engine::new(EngineSpec::LlamaCpp { words: words?, run }))
}

/// llama-server with a command that is made here.
fn read_llama_server(section: &Section<'_>, basics: &Basics, run: ProcessSpec) -> Option<Engine> {
    let mut command = section.strings("program").unwrap_or_else(|| vec!["llama-server".to_owned()]);
    if command.first().is_none_or(|word| word.trim().is_empty()) {
        section.error_at("program", "is empty; write for example [\"llama-server\"]");
    }
    if !section.has("model") {
        section.error_at(
            "model",
            "is missing; write `model = \"model.gguf\"`, or the whole `command = [\"llama-server\", \"--model\", \
             \"model.gguf\", \"--port\", \"{port}\"]`",
        );
    }
    let model = section.string("model").filter(|model| !model.is_empty());
    let arguments = section.strings("arguments").unwrap_or_default();
    for word in &arguments {
        let flag = word.split('=').next().unwrap_or(word);
        if let Some((name, why)) = OURS.iter().find(|(name, _)| *name == flag) {
            section.error_at("arguments", format!("{name} may not be among them: {why}"));
        }
    }
    let unified = arguments.iter().any(|word| matches!(word.as_str(), "--kv-unified" | "-kvu"));
    let context = read_context(section, basics, unified);
    let slots = basics.slots.to_string();
    let texts = [
        ("--model", model.map(str::to_owned)),
        ("--host", Some("{host}".to_owned())),
        ("--port", Some("{port}".to_owned())),
        ("--parallel", Some(slots)),
        ("--ctx-size", context.map(|tokens| tokens.to_string())),
        ("--alias", Some("{lane}".to_owned())),
        ("--gpu-layers", read_gpu_layers(section)),
        ("--load-mode", section.string("load-mode").map(str::to_owned)),
    ];
    for (flag, value) in texts {
        command.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
    }
    command.push("--metrics".to_owned());
    command.extend(arguments);
    let model = run.directory.as_deref()?.join(model?);
    let each = context.map(|tokens| tokens / basics.slots);
    Some(Engine {
        spec: EngineSpec::LlamaCpp { words: CommandLine { command, env: read_env(section) }, run },
        max_context: each.unwrap_or(0),
        names: Vec::new(),
        model: Some(Model::llama_cpp(model, each, basics.slots)),
    })
}

/// Tokens of all slots together.
fn read_context(section: &Section<'_>, basics: &Basics, unified: bool) -> Option<u32> {
    let wanted = Some(basics.max_context.saturating_mul(basics.slots)).filter(|tokens| *tokens > 0);
    let Some(context) = section.optional_integer("context", 1..=1_000_000_000) else {
        return wanted;
    };
    let each = context / basics.slots;
    if !unified && each < basics.max_context {
        section.error_at(
            "context",
            format!(
                "{context} tokens over {} slots are {each} for each, and `max-context` of the lane promises {}; write \
                 {}, or fewer slots",
                basics.slots,
                basics.max_context,
                wanted.unwrap_or(context),
            ),
        );
    }
    Some(context)
}

fn read_gpu_layers(section: &Section<'_>) -> Option<String> {
    let layers = section.string_or_integer("gpu-layers")?;
    let known = matches!(layers.as_str(), "auto" | "all")
        || layers.bytes().all(|byte| byte.is_ascii_digit());
    if !known || layers.is_empty() {
        section.error_at(
            "gpu-layers",
            format!(
                "there is no \"{}\"; write \"auto\", \"all\" or a number",
                layers.escape_debug()
            ),
        );
    }
    Some(layers)
}

fn read_external(section: &Section<'_>, folder: &Path) -> Option<ExternalSpec> {
    let url = section.required_string("url", "\"http://127.0.0.1:8080\"");
    let key = secret(section, "key-env", "key-file", folder).map(Secret::new);
    let probe_every = section.duration("probe-interval", 5 * SECOND);
    let authorities = section.string("ca-file").and_then(|file| {
        let path = folder.join(file);
        let read = std::fs::read(&path);
        read.inspect_err(|error| {
            section.error_at("ca-file", format!("{} cannot be read: {error}", path.display()))
        })
        .ok()
    });
    match ExternalSpec::try_new(url?, key, probe_every) {
        Ok(spec) => Some(match authorities {
            Some(pem) => spec.trusting(pem),
            None => spec,
        }),
        Err(error) => {
            section.error_at("url", error.to_string());
            None
        }
    }
}
