//! Env files with settings of vLLM, most of which vLLM never read, and the variables of services.

use std::collections::HashMap;

use pointsman_domain::is_local_path;
use pointsman_fleet::vllm::{import, parse_env_file};
use toml_edit::{DocumentMut, Item};

use super::command::CLIENT_KEY;
use super::document::Lane;
use super::error::{ErrorCode, ImportError};
use super::output::Output;
use super::words::is_plain;

/// The keys of `[lanes.engine]` that variables are imported as.
const KEYS: [&str; 17] = [
    "model",
    "dtype",
    "cache-root",
    "gpu-memory-utilization",
    "max-model-len",
    "block-size",
    "tensor-parallel",
    "pipeline-parallel",
    "enforce-eager",
    "trust-remote-code",
    "offline",
    "device",
    "hsa-override",
    "quantization",
    "kv-cache-memory",
    "load-format",
    "arguments",
];

/// A variable with its line.
pub(crate) struct Variable {
    pub(crate) line: usize,
    pub(crate) name: String,
    pub(crate) value: String,
}

/// Reads an env file as one lane.
pub(crate) fn read(text: &str, output: &mut Output) -> Result<(), ImportError> {
    let pairs = parse_env_file(text).map_err(|(line, message)| {
        ErrorCode::InvalidSyntax.at(&output.file(), line, None, message)
    })?;
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let variables: Vec<_> = lines
        .zip(pairs)
        .map(|((index, _), (name, value))| Variable { line: index + 1, name, value })
        .collect();
    let mut lane = Lane::new("vllm");
    let port = variables.iter().rev().find(|variable| variable.name == "VLLM_PORT");
    output.document.port =
        port.and_then(|port| port.value.trim().parse().ok()).filter(|port| *port > 0);
    vllm(&variables, "", &mut lane, output);
    if lane.engine.get("model").is_some() {
        output.document.add(lane);
    }
    Ok(())
}

/// Imports variables of a vLLM. `path` is their place, for the report.
pub(crate) fn vllm(variables: &[Variable], path: &str, lane: &mut Lane, output: &mut Output) {
    let lines: HashMap<&str, usize> =
        variables.iter().map(|variable| (variable.name.as_str(), variable.line)).collect();
    let pairs: Vec<_> = variables
        .iter()
        .filter(|variable| is_plain(&variable.name) && is_plain(&variable.value))
        .map(|variable| (variable.name.clone(), variable.value.clone()))
        .collect();
    for variable in variables.iter().filter(|variable| !is_plain(&variable.value)) {
        let key = format!("{path}{}", variable.name);
        output.note(variable.line, key, "a value with line breaks", "left out");
    }
    let imported = import(&pairs);
    let key = pairs.iter().rev().find(|(name, _)| name == "VLLM_API_KEY");
    if key.is_some_and(|(_, key)| !matches!(key.trim(), "" | "None" | "none" | "null")) {
        output.document.require_key(CLIENT_KEY);
        let here = format!("set {CLIENT_KEY} to it: the host checks the keys of clients");
        let line = lines.get("VLLM_API_KEY").copied();
        output.note(line, format!("{path}VLLM_API_KEY"), "the key that clients send", here);
    }
    lane.engine.set("driver", "vllm");
    for (name, why) in imported.without_counterpart() {
        let there = "a setting of the environment";
        output.note(lines.get(name).copied(), format!("{path}{name}"), there, why);
    }
    for (name, value) in &imported.settings.env {
        lane.set_env(name, value);
    }
    let document: DocumentMut = imported.to_toml().parse().unwrap_or_default();
    let engine = document.get("lanes").and_then(|lanes| lanes.get("engine"));
    for key in KEYS {
        if let Some(Item::Value(value)) = engine.and_then(|engine| engine.get(key)) {
            let text = value.as_str().unwrap_or("none");
            if text.is_empty() || text.starts_with('-') || text.to_lowercase().ends_with(".gguf") {
                let there = "a value that vLLM does not accept";
                output.note(None::<usize>, format!("{path}{key}"), there, "left out");
                continue;
            }
            lane.engine.set(key, value.clone());
        }
    }
    // vLLM answers to the text of its setting; people also write a name without its organisation.
    let model = imported.settings.model.as_str();
    let bare = model.rsplit('/').next().filter(|_| !is_local_path(model));
    [Some(model), bare].into_iter().flatten().for_each(|name| lane.add_model(name));
}
