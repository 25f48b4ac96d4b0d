//! Reads `[lanes.engine]` with `driver = "llama-cpp"`.

use pointsman_settings::{Code, Section, missing};

use super::flags::Flags;
use super::{LlamaCpp, model};
use crate::conversations::FOLDER_PLACEHOLDER;
use crate::driver::{EngineConfig, LaneBasics};
use crate::drivers::process_section::{
    SECOND, allow_foreign_listener, is_container, names_of_model, read_command_line, read_env,
    read_run,
};
use crate::engine_spec::{CommandLine, ProcessSpec};
use crate::footprint::Footprint;
use crate::model_need::Model;

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

pub(super) fn read(section: &Section<'_>, lane: &LaneBasics<'_>) -> Option<EngineConfig> {
    let mut run = read_run(section, lane.folder, 120 * SECOND, 10 * SECOND);
    if !section.has("command") {
        return read_llama_server(section, lane, run);
    }
    for key in ["program", "model", "context", "gpu-layers", "load-mode", "arguments"] {
        if section.has(key) {
            let message = "conflicts with `command`; move it into `command` or remove `command`";
            section.error_at(key, Code::Conflict.with(message));
        }
    }
    let command_line = read_command_line(section, "model = \"model.gguf\"")?;
    allow_foreign_listener(section, &command_line.command, &mut run);
    let has_folder = command_line.command.iter().any(|word| word.contains(FOLDER_PLACEHOLDER));
    if has_folder && is_container(&command_line.command) {
        let message = "`{conversations}` is a folder of this machine, which an engine in a \
                       container does not see";
        section.error_at("command", Code::Conflict.with(message));
    }
    let derived_names = model(&command_line.command).map_or_else(Vec::new, |model| {
        names_of_model(model, &run.directory.clone().unwrap_or_default().join(model))
    });
    let folder = run.directory.clone().unwrap_or_default();
    let model = Flags::new(&command_line).model(&folder, lane.slots, remedies);
    let engine = LlamaCpp { command_line, run, estimate: None };
    Some(EngineConfig { derived_names, model, ..EngineConfig::new(engine) })
}

/// Reads a llama-server whose command line the host builds.
fn read_llama_server(
    section: &Section<'_>,
    lane: &LaneBasics<'_>,
    mut run: ProcessSpec,
) -> Option<EngineConfig> {
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
    allow_foreign_listener(section, &command, &mut run);
    let model = section.string("model").filter(|model| !model.is_empty());
    let arguments = section.strings("arguments").unwrap_or_default();
    check_arguments(section, &arguments);
    let unified = arguments.iter().any(|word| matches!(word.as_str(), "--kv-unified" | "-kvu"));
    let context = read_context(section, lane, unified);
    let slots = lane.slots.to_string();
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
    // An engine in a container does not see the folder.
    if lane.conversations && run.check_listener && keeps_slots(&arguments) {
        command.extend(["--slot-save-path", FOLDER_PLACEHOLDER].map(str::to_owned));
    }
    command.extend(arguments);
    let derived_names = names_of_model(model?, &run.directory.as_deref()?.join(model?));
    let each = context.map(|tokens| tokens / lane.slots);
    let command_line = CommandLine { command, env: read_env(section) };
    let found = Flags::new(&command_line).model(run.directory.as_deref()?, lane.slots, remedies);
    // Without a context in the file, the need is not computed: llama-server then fits the context
    // into the memory that it finds.
    let model = found.map(|model| Model { context: context.and(model.context), ..model });
    Some(EngineConfig {
        max_context: each.unwrap_or(0),
        derived_names,
        model,
        ..EngineConfig::new(LlamaCpp { command_line, run, estimate: None })
    })
}

/// Returns true if the slots of an engine with these arguments can be saved: it generates text, and
/// its operator has no other plans for them. llama-server refuses to save those of multimodal
/// models, and does not save those of a draft model.
fn keeps_slots(arguments: &[String]) -> bool {
    const OTHERS: [&str; 12] = [
        "--slot-save-path",
        "--model-draft",
        "-md",
        "-hfd",
        "--mmproj",
        "-mm",
        "--mmproj-url",
        "-mmu",
        "--embedding",
        "--embeddings",
        "--reranking",
        "--rerank",
    ];
    let flag = |word: &String| word.split('=').next().unwrap_or_default().to_owned();
    !arguments.iter().map(flag).any(|flag| OTHERS.contains(&flag.as_str()))
}

/// Reads the context size in tokens, over all slots.
fn read_context(section: &Section<'_>, lane: &LaneBasics<'_>, unified: bool) -> Option<u32> {
    let wanted = Some(lane.max_context.saturating_mul(lane.slots)).filter(|tokens| *tokens > 0);
    let Some(context) = section.optional_integer("context", 0..=1_000_000_000) else {
        return wanted;
    };
    // 0 stands for the context that the model was trained for.
    let each = context / lane.slots;
    if context > 0 && !unified && each < lane.max_context {
        section.error_at(
            "context",
            format!(
                "{context} tokens in {} slots are {each} per slot, less than the lane's \
                 `max-context` of {}; \
                 set it to {} or reduce `slots`",
                lane.slots,
                lane.max_context,
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

/// Reports flags that the host sets.
fn check_arguments(section: &Section<'_>, arguments: &[String]) {
    for word in arguments {
        let flag = word.split('=').next().unwrap_or(word);
        if let Some((name, why)) = RESERVED_FLAGS.iter().find(|(name, _)| *name == flag) {
            let message = format!("flag {name} is not allowed here: {why}");
            section.error_at("arguments", Code::Conflict.with(message));
        }
    }
}

/// Returns what reduces the memory need, besides fewer tokens and slots.
fn remedies(_footprint: &Footprint, room: Option<u64>) -> Vec<String> {
    match room {
        Some(_) => Vec::new(),
        None => vec!["use a file with fewer bits per weight, for example Q4_K_M".to_owned()],
    }
}
