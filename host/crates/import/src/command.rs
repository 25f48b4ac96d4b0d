//! Command lines of engines as lanes.

use super::document::Lane;
use super::flags::Flags;
use super::output::Output;
use super::words::{is_plain, is_secret_variable};

/// The environment variable with the key that clients send, if engines required one. Engines
/// inherit the host's environment, so that it cannot be that of an engine.
pub(crate) const CLIENT_KEY: &str = "POINTSMAN_API_KEY";
const ADDRESS_FLAGS: [&str; 3] = ["--host", "--port", "--uds"];
const MODEL_FLAGS: [&str; 2] = ["--model", "-m"];
const CONTEXT_FLAGS: [&str; 2] = ["--ctx-size", "-c"];
const PARALLEL_FLAGS: [&str; 2] = ["--parallel", "-np"];
const LAYERS_FLAGS: [&str; 3] = ["--gpu-layers", "--n-gpu-layers", "-ngl"];

/// Where a command line is in a source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) line: usize,
    pub(crate) key: &'a str,
}

/// Which engine a command line starts.
enum Engine {
    LlamaServer,
    Vllm,
    Other,
}

/// Fills the engine of a lane from its command line. Returns false, and reports why, if no lane can
/// have it.
pub(crate) fn read(
    mut words: Vec<String>,
    lane: &mut Lane,
    place: Place<'_>,
    output: &mut Output,
) -> bool {
    if words.first().is_none_or(|word| word.trim().is_empty())
        || !words.iter().all(|word| is_plain(word))
    {
        let here = "write the lane by hand";
        output.note(place.line, place.key, "a command that is empty or has line breaks", here);
        return false;
    }
    let (engine, program) = split_program(&mut words);
    match engine {
        Engine::LlamaServer => {
            llama_server(program, words, lane, place, output);
            true
        }
        Engine::Vllm => vllm(program, words, lane, place, output),
        Engine::Other => other(program, words, lane, place, output),
    }
}

/// Removes the program from a command line, and returns it with what it is.
fn split_program(words: &mut Vec<String>) -> (Engine, Vec<String>) {
    let word = |place: usize| words.get(place).map_or("", String::as_str);
    let name = word(0).rsplit('/').next().unwrap_or_default();
    let (engine, length, program) = match name {
        "llama-server" | "llama-server.exe" => (Engine::LlamaServer, 1, None),
        "vllm" if word(1) == "serve" => (Engine::Vllm, 2, Some(vec![word(0).to_owned()])),
        _ if name.starts_with("python")
            && word(1) == "-m"
            && word(2) == "vllm.entrypoints.openai.api_server" =>
        {
            (Engine::Vllm, 3, Some(vec!["vllm".to_owned()]))
        }
        _ => (Engine::Other, 1, None),
    };
    let rest = words.split_off(length.min(words.len()));
    let program = program.unwrap_or_else(|| words.clone());
    *words = rest;
    (engine, program)
}

/// Removes the flags that the host sets, and those with secrets.
fn remove_foreign(flags: &mut Flags, place: Place<'_>, output: &mut Output) {
    for flag in ADDRESS_FLAGS {
        let there = "the address of the engine";
        match flags.value(&[flag]) {
            // A placeholder or the usual address: the host's choice changes nothing.
            Some(value) if value != "{port}" && !is_local(&value) => {
                let here = "the host chooses 127.0.0.1 and a free port; clients use the host";
                output.note(place.line, format!("{} {flag}", place.key), there, here);
            }
            Some(_) | None => {}
        }
    }
    for flag in flags.secrets() {
        let key = format!("{} {flag}", place.key);
        if flag == "--api-key" || flag == "--api-key-file" {
            output.document.require_key(CLIENT_KEY);
            let here = format!("set {CLIENT_KEY} to it: the host checks the keys of clients");
            output.note(place.line, key, "a key that clients of the engine send", here);
        } else {
            let here = "not copied; set its variable (such as HF_TOKEN) in the host's \
                        environment, which engines inherit";
            output.note(place.line, key, "a secret", here);
        }
    }
}

fn is_local(address: &str) -> bool {
    matches!(address, "0.0.0.0" | "127.0.0.1" | "localhost" | "::")
}

fn integer(text: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    text.trim().parse().ok().filter(|number| range.contains(number))
}

/// Sets the slots of a lane by a flag; returns false if the value does not fit.
fn set_slots(lane: &mut Lane, value: &str) -> bool {
    let slots = integer(value, 1..=10_000);
    slots.into_iter().for_each(|slots| lane.settings.set("slots", slots));
    slots.is_some()
}

fn llama_server(
    program: Vec<String>,
    words: Vec<String>,
    lane: &mut Lane,
    place: Place<'_>,
    output: &mut Output,
) {
    let mut flags = Flags::new(words);
    remove_foreign(&mut flags, place, output);
    for alias in flags.value(&["--alias", "-a"]).iter().flat_map(|value| value.split(',')) {
        lane.add_model(alias);
    }
    lane.engine.set("driver", "llama-cpp");
    let model = flags.value(&MODEL_FLAGS).filter(|model| !model.trim().is_empty());
    let parallel = flags.value(&PARALLEL_FLAGS).filter(|value| set_slots(lane, value));
    let Some(model) = model else {
        // The model is on a hub, which only a whole command can say.
        let mut command = program;
        command.extend(flags.into_words());
        command.extend(["--host", "{host}", "--port", "{port}"].map(str::to_owned));
        let slots = parallel.map(|slots| ["--parallel".to_owned(), slots]);
        command.extend(slots.into_iter().flatten());
        lane.engine.extend("command", command);
        return;
    };
    if program != ["llama-server"] {
        lane.engine.extend("program", program);
    }
    lane.engine.set_text("model", &model);
    if let Some(context) = flags.value(&CONTEXT_FLAGS) {
        match integer(&context, 0..=1_000_000_000) {
            Some(tokens) => lane.engine.set("context", tokens),
            None => output.note(
                place.line,
                format!("{} --ctx-size", place.key),
                "not a number of tokens",
                "set `context`",
            ),
        }
    }
    if let Some(layers) = flags.value(&LAYERS_FLAGS) {
        match integer(&layers, 0..=100_000) {
            Some(layers) => lane.engine.set("gpu-layers", layers),
            None if matches!(layers.as_str(), "auto" | "all") => {
                lane.engine.set("gpu-layers", layers);
            }
            None => lane.engine.extend("arguments", ["--gpu-layers".to_owned(), layers]),
        }
    }
    // Without a number of slots, those of llama-server share its whole context.
    let unified = ["--kv-unified", "-kvu", "--no-kv-unified", "-no-kvu"];
    if parallel.is_none() && !flags.has(&unified) {
        lane.engine.extend("arguments", ["--kv-unified".to_owned()]);
    }
    lane.engine.extend("arguments", flags.into_words());
}

/// The flags of vLLM with a text that have a key.
const VLLM_TEXTS: [(&[&str], &str); 6] = [
    (&["--dtype"], "dtype"),
    (&["--quantization", "-q"], "quantization"),
    (&["--tool-call-parser"], "tool-call-parser"),
    (&["--reasoning-parser"], "reasoning-parser"),
    (&["--download-dir"], "download-dir"),
    (&["--load-format"], "load-format"),
];
/// The flags of vLLM with a number that have a key, and its maximum.
const VLLM_NUMBERS: [(&[&str], &str, i64); 4] = [
    (&["--max-model-len"], "max-model-len", 100_000_000),
    (&["--tensor-parallel-size", "-tp"], "tensor-parallel", 1024),
    (&["--pipeline-parallel-size", "-pp"], "pipeline-parallel", 1024),
    (&["--block-size"], "block-size", 65_536),
];
/// The flags of vLLM that it does not have any more; it would exit.
const VLLM_REMOVED: [&str; 2] = ["--swap-space", "--disable-log-requests"];

fn vllm(
    program: Vec<String>,
    words: Vec<String>,
    lane: &mut Lane,
    place: Place<'_>,
    output: &mut Output,
) -> bool {
    let mut flags = Flags::new(words);
    remove_foreign(&mut flags, place, output);
    lane.engine.set("driver", "vllm");
    if program != ["vllm"] {
        lane.engine.extend("program", program);
    }
    let positional = flags.positional();
    if let Some(model) = flags.value(&["--model"]).or(positional) {
        if !set_vllm_model(lane, &model) {
            let here = "write the lane by hand, GGUF files with driver \"llama-cpp\"";
            output.note(place.line, place.key, "a model that vLLM does not have", here);
            return false;
        }
        lane.add_model(&model);
    }
    // The variables of a service may have set it.
    if lane.engine.get("model").is_none() {
        output.note(place.line, place.key, "a vLLM without a model", "write the lane by hand");
        return false;
    }
    for name in flags.list(&["--served-model-name"]) {
        lane.add_model(&name);
    }
    for flag in VLLM_REMOVED {
        let is_there = match flag {
            "--swap-space" => flags.value(&[flag]).is_some(),
            _ => flags.switch(&[flag]),
        };
        if is_there {
            let here = "left out, because current versions of vLLM exit with it";
            output.note(place.line, format!("{} {flag}", place.key), "a flag of old vLLMs", here);
        }
    }
    for (names, key) in VLLM_TEXTS {
        match flags.value(names) {
            Some(text) if !text.is_empty() && !text.starts_with('-') => {
                lane.engine.set_text(key, &text);
            }
            Some(_) => {
                let there = "a flag without a value";
                output.note(place.line, format!("{} --{key}", place.key), there, "left out");
            }
            None => {}
        }
    }
    for (names, key, max) in VLLM_NUMBERS {
        if let Some(text) = flags.value(names) {
            match (integer(&text, 1..=max), names.first()) {
                (Some(number), _) => lane.engine.set(key, number),
                // vLLM reads `auto` and `32k` as well.
                (None, Some(name)) => lane.engine.extend("arguments", [format!("{name}={text}")]),
                (None, None) => {}
            }
        }
    }
    set_vllm_rest(&mut flags, lane, place, output);
    lane.engine.extend("arguments", flags.into_words());
    true
}

/// Sets the model of a lane for vLLM, which needs the folder of a file with weights.
fn set_vllm_model(lane: &mut Lane, model: &str) -> bool {
    let model = model.trim();
    let is_file = model.to_lowercase().ends_with(".safetensors");
    let model = match model.rsplit_once('/') {
        Some((folder, _)) if is_file => folder,
        _ => model,
    };
    let lower = model.to_lowercase();
    let is_valid = !model.is_empty()
        && !model.starts_with('-')
        && ![".gguf", ".safetensors"].iter().any(|end| lower.ends_with(end));
    if is_valid {
        lane.engine.set_text("model", model);
    }
    is_valid
}

fn set_vllm_rest(flags: &mut Flags, lane: &mut Lane, place: Place<'_>, output: &mut Output) {
    for (flag, key) in
        [("--enforce-eager", "enforce-eager"), ("--trust-remote-code", "trust-remote-code")]
    {
        if flags.switch(&[flag]) {
            lane.engine.set(key, true);
        }
    }
    let names = ["--gpu-memory-utilization", "--device-memory-utilization"];
    if let Some(text) = flags.value(&names) {
        match text.parse().ok().filter(|part| (0.001..=1.0).contains(part)) {
            Some(part) => {
                let part: f64 = part;
                lane.engine.set("gpu-memory-utilization", (part * 1000.0).round() / 1000.0);
            }
            None => {
                let key = format!("{} --gpu-memory-utilization", place.key);
                output.note(place.line, key, "not a fraction of 1", "left out");
            }
        }
    }
    // The driver adds it beside a parser.
    if lane.engine.get("tool-call-parser").is_some() {
        flags.switch(&["--enable-auto-tool-choice"]);
    }
    let seqs = flags.value(&["--max-num-seqs"]);
    if !seqs.is_some_and(|seqs| set_slots(lane, &seqs)) {
        let there = "vLLM serves up to 256 requests of a model at a time by default";
        let here = "the lane serves 4, and the host queues others; set `slots`";
        output.note(place.line, format!("{} --max-num-seqs", place.key), there, here);
    }
}

/// Any other program, such as a container tool. It must be told its port.
fn other(
    program: Vec<String>,
    words: Vec<String>,
    lane: &mut Lane,
    place: Place<'_>,
    output: &mut Output,
) -> bool {
    let mut flags = Flags::new(words);
    for flag in flags.secrets() {
        let here = "not copied; read it from a file or the host's environment";
        output.note(place.line, format!("{} {flag}", place.key), "a secret", here);
    }
    let mut command = program;
    let is_container = command.first().is_some_and(|program| {
        ["docker", "podman", "nerdctl"].contains(&program.rsplit('/').next().unwrap_or(program))
    });
    for word in flags.into_words() {
        let assigned = word.split_once('=').map(|(name, _)| name);
        match assigned.filter(|name| is_secret_variable(name)) {
            // Container tools take a variable without a value from their own environment.
            Some(name) => {
                let here = format!("not copied; set {name} in the host's environment");
                output.note(place.line, format!("{} {name}", place.key), "a secret", here);
                if is_container {
                    command.push(name.to_owned());
                }
            }
            None => command.push(word),
        }
    }
    let has_port = command.iter().any(|word| word.contains("{port}"));
    if !has_port && lane.engine.get("port").is_none() {
        let here = "pass `{port}` to the engine, or set `port`, in a lane written by hand";
        output.note(place.line, place.key, "a command whose port is not known", here);
        return false;
    }
    lane.engine.set("driver", "command");
    lane.engine.extend("command", command);
    true
}
