//! The presets of llama-server's router mode (`--models-preset models.ini`).

use super::command::{self, CLIENT_KEY, Place};
use super::document::Lane;
use super::error::{ErrorCode, ImportError};
use super::output::Output;
use super::words::is_secret_variable;

/// The section whose keys hold for all models.
const GLOBAL: &str = "*";
/// How many models the router keeps loaded by default.
const MODELS_MAX: usize = 4;
const GROUP: &str = "router";
/// Short forms of flags, which begin with one dash.
const SHORT: &str = " m c np ngl t tb b ub fa ctk ctv hf hff hfr hft md a ncmoe cmoe ot kvu cb sm \
                     ts mg dev n s ngld mm l ";
/// Keys that configure the router and not a model: what they do there, and what to do here.
const ROUTER_KEYS: [(&str, &str, &str); 6] = [
    ("version", "", ""),
    ("models-dir", "a folder of models", "write a lane for each file"),
    ("models-preset", "the file of presets", "not needed"),
    ("models-autoload", "loads models on demand", "lanes load on demand"),
    ("no-models-autoload", "loads models by hand only", "see `pointsman lane`"),
    ("host", "the address for clients", "set `server.listen`"),
];

/// A line `key = value`.
#[derive(Debug, Clone)]
struct Setting {
    line: usize,
    key: String,
    value: String,
}

/// A section with its line.
type Section = (usize, String, Vec<Setting>);

pub(crate) fn read(text: &str, output: &mut Output) -> Result<(), ImportError> {
    let sections = parse(text, output)?;
    let (globals, models): (Vec<_>, Vec<_>) =
        sections.into_iter().partition(|(_, name, _)| name == GLOBAL || name.is_empty());
    let mut shared: Vec<Setting> =
        globals.into_iter().flat_map(|(_, _, settings)| settings).collect();
    let max = read_router(&mut shared, output);
    let count = models.len();
    for (line, name, settings) in models {
        let mut all = shared.clone();
        all.retain(|known| !settings.iter().any(|setting| setting.key == known.key));
        all.extend(settings);
        read_model(line, &name, all, (max, count), output);
    }
    Ok(())
}

fn parse(text: &str, output: &Output) -> Result<Vec<Section>, ImportError> {
    let mut sections = vec![(1, String::new(), Vec::new())];
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let Some(name) = name.strip_suffix(']') else {
                let message = "expected `]` at the end of the line";
                return Err(ErrorCode::InvalidSyntax.at(&output.file(), number, None, message));
            };
            sections.push((number, name.trim().to_owned(), Vec::new()));
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|(key, _)| !key.trim().is_empty())
        else {
            let message = "expected `[section]` or `key = value`";
            return Err(ErrorCode::InvalidSyntax.at(&output.file(), number, None, message));
        };
        let key = key.trim().trim_start_matches('-').to_owned();
        if let Some((_, _, settings)) = sections.last_mut() {
            settings.push(Setting { line: number, key, value: value.trim().to_owned() });
        }
    }
    Ok(sections)
}

/// Takes what configures the router, and returns how many models it keeps loaded; 0 is any number.
fn read_router(shared: &mut Vec<Setting>, output: &mut Output) -> usize {
    let mut max = MODELS_MAX;
    shared.retain(|Setting { line, key, value }| {
        if let Some((_, there, here)) = ROUTER_KEYS.iter().find(|(name, _, _)| name == key) {
            if !there.is_empty() {
                output.note(*line, key.as_str(), *there, *here);
            }
            return false;
        }
        match key.as_str() {
            "models-max" => max = value.parse().unwrap_or(MODELS_MAX),
            "port" => output.document.port = value.parse().ok().filter(|port| *port > 0),
            "api-key" | "api-key-file" => {
                output.document.require_key(CLIENT_KEY);
                let here = format!("not copied; set {CLIENT_KEY} to it");
                output.note(*line, key.as_str(), "the key that clients send", here);
            }
            _ => return true,
        }
        false
    });
    max
}

fn read_model(
    line: usize,
    name: &str,
    settings: Vec<Setting>,
    (max, count): (usize, usize),
    output: &mut Output,
) {
    let mut lane = Lane::new(name);
    let mut words = vec!["llama-server".to_owned()];
    let mut has_model = false;
    let mut preload = false;
    for Setting { line, key, value } in settings {
        let path = format!("[{name}] {key}");
        match key.as_str() {
            "load-on-startup" => preload = matches!(value.as_str(), "true" | "1" | "on" | "yes"),
            "stop-timeout" => match value.parse::<u32>() {
                Ok(seconds) => lane.engine.set("stop-grace", format!("{seconds}s")),
                Err(_) => output.note(line, path, "not a number of seconds", "set `stop-grace`"),
            },
            "models-max" => output.note(line, path, "a key of the router", "move it to [*]"),
            _ if key.starts_with("LLAMA_") || is_secret_variable(&key) => {
                if is_secret_variable(&key) {
                    let here = "not copied; set it in the host's environment";
                    output.note(line, path, "a secret", here);
                } else if let Some(flag) = flag_of_variable(&key) {
                    has_model |= flag == "--model";
                    words.extend([flag.to_owned(), value]);
                } else if !lane.set_env(&key, &value) {
                    output.note(line, path, "an invalid variable", "left out");
                }
            }
            _ => {
                has_model |=
                    ["model", "m", "hf", "hfr", "hf-repo", "model-url"].contains(&key.as_str());
                words.extend(flag(&key, value));
            }
        }
    }
    if !has_model {
        if !name.contains('/') {
            let here = "write a lane with the path of its file as `model`";
            output.note(line, format!("[{name}]"), "a model of --models-dir or the cache", here);
            return;
        }
        words.extend(["--hf-repo".to_owned(), name.to_owned()]);
    }
    lane.settings.set("load", if preload { "at-start" } else { "on-demand" });
    if max > 0 && count > max {
        let comment = format!("At most {max} lanes at a time, as with --models-max.");
        output.document.group(&mut lane, GROUP, max, &comment);
    }
    let key = format!("[{name}]");
    if command::read(words, &mut lane, Place { line, key: &key }, output) {
        output.document.add(lane);
    }
}

/// Returns the flag of a variable that the host has to know; others are passed on.
pub(crate) fn flag_of_variable(name: &str) -> Option<&'static str> {
    Some(match name {
        "LLAMA_ARG_MODEL" => "--model",
        "LLAMA_ARG_CTX_SIZE" => "--ctx-size",
        "LLAMA_ARG_N_PARALLEL" => "--parallel",
        "LLAMA_ARG_N_GPU_LAYERS" => "--gpu-layers",
        "LLAMA_ARG_HF_REPO" => "--hf-repo",
        "LLAMA_ARG_ALIAS" => "--alias",
        "LLAMA_ARG_HOST" => "--host",
        "LLAMA_ARG_PORT" => "--port",
        _ => return None,
    })
}

/// Returns the words of a key: booleans are flags without a value.
fn flag(key: &str, value: String) -> Vec<String> {
    let dashes = if SHORT.contains(&format!(" {key} ")) { "-" } else { "--" };
    match value.as_str() {
        "" | "true" => vec![format!("{dashes}{key}")],
        "false" if key.starts_with("no-") => Vec::new(),
        "false" => vec![format!("--no-{key}")],
        _ => vec![format!("{dashes}{key}"), value],
    }
}
