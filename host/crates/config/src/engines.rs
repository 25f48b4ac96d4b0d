//! Reads `[lanes.engine]`: the engine that serves a lane.

use std::path::Path;
use std::time::Duration;

use pointsman_fleet::{Backoff, CommandLine, EngineSpec, ExternalSpec, ProcessSpec, Secret};

use super::need::Model;
use super::vllm;
use pointsman_settings::{Code, Section, missing, secret};

const SECOND: Duration = Duration::from_secs(1);
/// Flags of llama-server that must not be in `arguments`, because the host sets them, and what to
/// do instead.
const RESERVED_FLAGS: [(&str, &str); 10] = [
    ("--host", "the engine listens on 127.0.0.1, where only the host connects"),
    ("--port", "set `port`, or remove it to get a free port"),
    ("--model", "set `model`"),
    ("-m", "set `model`"),
    ("--ctx-size", "set `context`"),
    ("-c", "set `context`"),
    ("--parallel", "set the lane's `slots`"),
    ("-np", "set the lane's `slots`"),
    ("--alias", "the host uses the lane's name"),
    ("-a", "the host uses the lane's name"),
];

/// An entry in an engine's names that stands for further, unknown names.
pub(super) const ANY: &str = "*";

/// The properties of a lane that its engine depends on.
pub(super) struct Basics {
    pub(super) name: String,
    pub(super) models: Vec<String>,
    /// Maximum sequence length in tokens; 0 if unknown.
    pub(super) max_context: u32,
    pub(super) slots: u32,
}

/// An engine, and the properties that its lane takes over.
pub(super) struct Engine {
    pub(super) spec: EngineSpec,
    /// Maximum sequence length in tokens; 0 if unknown.
    pub(super) max_context: u32,
    /// The model names that the engine serves, its own first; empty if the engine ignores the name.
    pub(super) names: Vec<String>,
    /// The model files that the memory need is computed from.
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

/// Reads `driver`, which determines how the rest of the section is read.
pub(super) fn read_kind(section: &Section<'_>, lane: &Section<'_>) -> Option<Kind> {
    if !lane.has("engine") {
        lane.error_at("engine", missing("`[lanes.engine]` with a `driver`"));
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
            Code::MissingKey.with(
                "missing; set it to \"vllm\", \"llama-cpp\", \"command\" (any other program) or \
                 \"external\" (an existing server)",
            ),
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

/// Reads how a process is run. `start_timeout` and `stop_grace` are the defaults.
pub(super) fn read_run(
    section: &Section<'_>,
    folder: &Path,
    start_timeout: Duration,
    stop_grace: Duration,
) -> ProcessSpec {
    let port = section.integer("port", 1..=65_535, 0u16);
    let backoff = section.section("backoff");
    let initial = backoff.duration("initial", SECOND);
    let max = backoff.duration("max", 60 * SECOND);
    if initial.is_zero() || max < initial {
        let message = "`initial` must be greater than zero, and `max` not less than `initial`";
        backoff.error_at("max", Code::OutOfRange.with(message));
    }
    let spec = ProcessSpec {
        directory: Some(folder.join(section.string("directory").unwrap_or("."))),
        port: (port != 0).then_some(port),
        start_timeout: section.positive_duration("start-timeout", start_timeout),
        stop_grace: section.duration("stop-grace", stop_grace),
        backoff: Backoff {
            first: initial,
            most: max,
            reset_after: backoff.duration("reset-after", 60 * SECOND),
            max_failures: backoff.integer("max-failures", 0..=1000, 5),
            retry_failed_after: backoff.positive_duration("retry-failed-after", 600 * SECOND),
        },
    };
    backoff.report_unknown();
    spec
}

/// Reads a command from the file. `{port}` must be in the command or its environment unless the
/// port is fixed.
fn read_command_line(section: &Section<'_>, example: &str) -> Option<CommandLine> {
    let command = section.strings("command");
    let env = read_env(section);
    let has_port = |word: &String| word.contains("{port}");
    let mut values = env.iter().map(|(_, value)| value);
    match &command {
        None if !section.has("command") => {
            section.error_at("command", missing(format!("`{example}`")));
        }
        Some(command) if command.first().is_none_or(|word| word.trim().is_empty()) => {
            section.error_at(
                "command",
                format!("must begin with a program; set for example `{example}`"),
            );
        }
        Some(command)
            if !section.has("port") && !command.iter().any(has_port) && !values.any(has_port) =>
        {
            section.error_at(
                "command",
                "does not pass the port to the engine; put `{port}` into the command or `env`, or \
                 set `port`",
            );
        }
        _ => {}
    }
    Some(CommandLine { command: command?, env })
}

fn read_env(section: &Section<'_>) -> Vec<(String, String)> {
    let env = section.string_pairs("env");
    for (name, value) in &env {
        // The message leaves the value out: it may be a secret.
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            section.error_at(
                "env",
                format!("invalid environment variable \"{}\"", name.escape_debug()),
            );
        }
    }
    env
}

fn read_command(section: &Section<'_>, folder: &Path) -> Option<Engine> {
    let example = "command = [\"python3\", \"server.py\", \"--port\", \"{port}\"]";
    let words = read_command_line(section, example);
    let run = read_run(section, folder, 120 * SECOND, 10 * SECOND);
    let ready = section.string("ready").unwrap_or("/health");
    let is_path = ready.starts_with('/') && ready.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path {
        section.error_at(
            "ready",
            format!(
                "invalid path \"{}\": expected for example \"/health\", or \"/api/version\" for \
                 Ollama",
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
            let message = "conflicts with `command`; move it into `command` or remove `command`";
            section.error_at(key, Code::Conflict.with(message));
        }
    }
    let words = read_command_line(section, "model = \"model.gguf\"");
    Some(Engine::new(EngineSpec::LlamaCpp { words: words?, run }))
}

/// Reads a llama-server whose command line the host builds.
fn read_llama_server(section: &Section<'_>, basics: &Basics, run: ProcessSpec) -> Option<Engine> {
    let mut command = section.strings("program").unwrap_or_else(|| vec!["llama-server".to_owned()]);
    if command.first().is_none_or(|word| word.trim().is_empty()) {
        section.error_at("program", "must not be empty; set for example [\"llama-server\"]");
    }
    if !section.has("model") {
        section.error_at(
            "model",
            missing(
                "`model = \"model.gguf\"`, or `command = [\"llama-server\", \"--model\", \
                 \"model.gguf\", \
                 \"--port\", \"{port}\"]`",
            ),
        );
    }
    let model = section.string("model").filter(|model| !model.is_empty());
    let arguments = section.strings("arguments").unwrap_or_default();
    for word in &arguments {
        let flag = word.split('=').next().unwrap_or(word);
        if let Some((name, why)) = RESERVED_FLAGS.iter().find(|(name, _)| *name == flag) {
            let message = format!("flag {name} is not allowed here: {why}");
            section.error_at("arguments", Code::Conflict.with(message));
        }
    }
    let unified = arguments.iter().any(|word| matches!(word.as_str(), "--kv-unified" | "-kvu"));
    let context = read_context(section, basics, unified);
    let slots = basics.slots.to_string();
    let flags = [
        ("--model", model.map(str::to_owned)),
        ("--host", Some("{host}".to_owned())),
        ("--port", Some("{port}".to_owned())),
        ("--parallel", Some(slots)),
        ("--ctx-size", context.map(|tokens| tokens.to_string())),
        ("--alias", Some("{lane}".to_owned())),
        ("--gpu-layers", read_gpu_layers(section)),
        ("--load-mode", section.string("load-mode").map(str::to_owned)),
    ];
    for (flag, value) in flags {
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

/// Reads the context size in tokens, over all slots.
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
                "{context} tokens in {} slots are {each} per slot, less than the lane's \
                 `max-context` of {}; \
                 set it to {} or reduce `slots`",
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
                "unknown value \"{}\": expected \"auto\", \"all\" or an integer",
                layers.escape_debug()
            ),
        );
    }
    Some(layers)
}

fn read_external(section: &Section<'_>, folder: &Path) -> Option<ExternalSpec> {
    let url = section.required_string("url", "\"http://127.0.0.1:8080\"");
    let key = secret(section, "key-env", "key-file", folder).map(Secret::new);
    let probe_interval = section.duration("probe-interval", 5 * SECOND);
    let authorities = section.string("ca-file").and_then(|file| {
        let path = folder.join(file);
        let read = std::fs::read(&path);
        read.inspect_err(|error| {
            let message = format!("cannot read {}: {error}", path.display());
            section.error_at("ca-file", Code::Unavailable.with(message))
        })
        .ok()
    });
    match ExternalSpec::try_new(url?, key, probe_interval) {
        Ok(spec) => Some(match authorities {
            Some(pem) => spec.with_root_certificates(pem),
            None => spec,
        }),
        Err(error) => {
            section.error_at("url", error.to_string());
            None
        }
    }
}
