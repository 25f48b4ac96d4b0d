//! The `config.yaml` of llama-swap.

mod turns;

use self::turns::Turns;
use super::command::{self, Place};
use super::document::{Lane, reference};
use super::fields::Fields;
use super::litellm::set_url;
use super::output::Output;
use super::words::{self, is_secret_variable};
use super::yaml::{Entry, Node};

/// Maximum length of a text with its macros replaced, in bytes: macros of macros would grow without
/// a limit.
const MAX_EXPANDED: usize = 64 << 10;
/// Maximum depth of macros in macros.
const MAX_ROUNDS: usize = 8;
/// Maximum duration that is imported, in seconds.
const MAX_SECONDS: u64 = 365 * 24 * 3600;

/// Keys of the file without a counterpart.
const ROOT_KEYS: [(&str, &str, &str); 9] = [
    (
        "startPort",
        "the first port of engines",
        "each engine gets a free port; set `port` to fix it",
    ),
    ("metricsMaxInMemory", "how many requests are kept for the UI", "set `admin.decisions`"),
    ("captureBuffer", "memory for captured requests", "see `records`"),
    ("sendLoadingState", "shows the progress of a load as reasoning", "streams get comments"),
    ("includeAliasesInList", "lists aliases as models", "all names of a lane are listed"),
    ("logToStdout", "which logs go to standard output", "see `log`"),
    ("logTimeFormat", "the form of times in the log", "times are UTC (RFC 3339)"),
    ("logRequests", "logs requests", "set `log.access`"),
    ("matrix", "which models may run together", "put the lanes into groups with real `memory`"),
];
/// Keys of a model without a counterpart.
const MODEL_KEYS: [(&str, &str, &str); 9] = [
    ("cmdStop", "the command that stops the engine", "engines get SIGTERM, then SIGKILL"),
    ("filters", "removes or sets parameters of requests", "write a policy that edits requests"),
    ("unlisted", "hides the model from /v1/models", "list it in `[[models]]` with `hidden`"),
    ("concurrencyLimit", "how many requests may be there", "set `slots` and `queue.per-lane`"),
    ("metadata", "data in /v1/models", "write it into `labels`, which policies see"),
    ("name", "a name for people", "no counterpart"),
    ("description", "a text for people", "no counterpart"),
    ("sendLoadingState", "shows the progress of a load as reasoning", "streams get comments"),
    ("timeouts", "limits of connections to the engine", "set `lanes.timeouts`"),
];

/// What holds for all models of the file.
struct Shared {
    macros: Vec<(String, String)>,
    start_timeout: Option<u64>,
    ttl: Option<u64>,
    preload: Vec<String>,
    turns: Turns,
}

pub(crate) fn read(root: &Node, output: &mut Output) {
    let mut fields = Fields::new("", root);
    let models = fields.take("models");
    let ids: Vec<&str> = models
        .iter()
        .flat_map(|models| models.value.entries())
        .map(|model| model.key.as_str())
        .collect();
    let mut preload = Vec::new();
    if let Some(hooks) = fields.take("hooks") {
        let mut hooks = Fields::new("hooks", &hooks.value);
        if let Some(start) = hooks.take("on_startup") {
            let mut start = Fields::new("hooks.on_startup", &start.value);
            let list = start.take("preload").map(|entry| entry.value.texts()).unwrap_or_default();
            preload.extend(list.into_iter().map(str::to_owned));
            start.report_rest(output);
        }
        hooks.report_rest(output);
    }
    let groups = fields.take("groups");
    let shared = Shared {
        macros: macros(fields.take("macros")),
        start_timeout: fields.number("healthCheckTimeout", 1).map(|(_, seconds)| seconds),
        ttl: fields.number("globalTTL", 0).map(|(_, seconds)| seconds),
        preload,
        turns: Turns::read(groups, &ids, output),
    };
    if let Some((line, level)) = fields.text("logLevel") {
        match level {
            "debug" | "info" | "warn" | "error" => output.document.log.set("level", level),
            _ => output.note(line, "logLevel", "a level of the log", "set `log.level`"),
        }
    }
    if let Some(keys) = fields.take("apiKeys") {
        for index in 0..keys.value.texts().len() {
            let variable = match index {
                0 => command::CLIENT_KEY.to_owned(),
                _ => format!("{}_{}", command::CLIENT_KEY, index + 1),
            };
            output.document.require_key(&variable);
            let here = format!("not copied; set {variable} to it");
            output.note(keys.line, "apiKeys", "a key that clients send", here);
        }
    }
    for (key, there, here) in ROOT_KEYS {
        fields.report(output, key, there, here);
    }
    for model in models.iter().flat_map(|models| models.value.entries()) {
        read_model(model, &shared, output);
    }
    for peer in fields.take("peers").iter().flat_map(|peers| peers.value.entries()) {
        read_peer(peer, output);
    }
    fields.report_rest(output);
}

/// Returns macros with their texts.
fn macros(entry: Option<&Entry>) -> Vec<(String, String)> {
    let entries = entry.iter().flat_map(|entry| entry.value.entries());
    entries.filter_map(|entry| Some((entry.key.clone(), entry.value.text()?.to_owned()))).collect()
}

/// Replaces the macros of a text. `${PORT}` becomes the placeholder of a configuration, and a
/// variable of the environment a reference. Macros that are not known are left as they are.
fn expand(text: &str, macros: &[(String, String)], id: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..MAX_ROUNDS {
        let before = text.clone();
        for (name, value) in macros.iter().rev() {
            let pattern = format!("${{{name}}}");
            let count = text.matches(&pattern).count();
            if text.len() + count.saturating_mul(value.len()) > MAX_EXPANDED {
                return text;
            }
            text = text.replace(&pattern, value);
        }
        if text == before {
            break;
        }
    }
    text = text.replace("${PORT}", "{port}").replace("${MODEL_ID}", id);
    while let Some((before, rest)) = text.split_once("${env.") {
        let Some((name, after)) = rest.split_once('}') else { break };
        text = match reference(name) {
            Some(reference) => format!("{before}{reference}{after}"),
            None => format!("{before}{after}"),
        };
    }
    text
}

fn read_model(model: &Entry, shared: &Shared, output: &mut Output) {
    let id = model.key.as_str();
    let path = format!("models.{id}");
    let mut fields = Fields::new(path.clone(), &model.value);
    let own = macros(fields.take("macros"));
    let macros: Vec<_> = shared.macros.iter().chain(&own).cloned().collect();
    let mut lane = Lane::new(id);
    let proxy = fields.text("proxy").map(|(line, text)| (line, expand(text, &macros, id)));
    let port = proxy.as_ref().and_then(|(_, url)| fixed_port(url));
    let check = fields.text("checkEndpoint").map(|(line, text)| (line, expand(text, &macros, id)));
    let is_lane = match fields.text("cmd") {
        Some((line, text)) => {
            let key = fields.path("cmd");
            let place = Place { line, key: &key };
            if let Some(port) = port {
                lane.engine.set("port", i64::from(port));
            }
            let is_lane = match words::split(&expand(text, &macros, id)) {
                Some(words) => command::read(words, &mut lane, place, output),
                None => {
                    let here = "write the lane by hand";
                    output.note(line, key.as_str(), "a quote that is not closed", here);
                    false
                }
            };
            is_lane
                && has_own_port(&mut lane, port, place, output)
                && set_managed(&mut lane, id, check, shared, &mut fields, output)
        }
        None => proxy.is_some_and(|(line, url)| {
            set_url(&mut lane, &url, line, &fields.path("proxy"), output)
        }),
    };
    for alias in fields.take("aliases").iter().flat_map(|entry| entry.value.texts()) {
        lane.add_model(alias);
    }
    if let Some((line, name)) = fields.text("useModelName") {
        let is_vllm = lane.engine.get("driver").and_then(|driver| driver.as_str()) == Some("vllm");
        if is_vllm {
            // The names of the lane are those that vLLM serves.
            output.note(
                line,
                fields.path("useModelName"),
                "the name sent to the engine",
                "the lane's",
            );
            lane.add_model(name);
        } else if !name.trim().is_empty() && words::is_plain(name) {
            lane.settings.set_text("engine-model", name);
        }
    }
    read_env(&mut lane, &mut fields, output);
    for (key, there, here) in MODEL_KEYS {
        fields.report(output, key, there, here);
    }
    fields.report_rest(output);
    if is_lane {
        output.document.add(lane);
    } else {
        output.note(model.line, path, "a model", "not imported, as the other items say");
    }
}

/// Returns false, and reports why, if the fixed port of an engine is in use. Engines that get a
/// port from the host need none.
fn has_own_port(lane: &mut Lane, port: Option<u16>, place: Place<'_>, output: &mut Output) -> bool {
    let driver = lane.engine.get("driver").and_then(|driver| driver.as_str());
    let command = lane.engine.get("command").map(ToString::to_string).unwrap_or_default();
    if driver != Some("command") || command.contains("{port}") {
        lane.engine.remove("port");
        return true;
    }
    let port = port.map(i64::from);
    let port_of = |lane: &Lane| lane.engine.get("port").and_then(|port| port.as_integer());
    let is_taken =
        port == Some(8000) || output.document.lanes.iter().any(|lane| port_of(lane) == port);
    if is_taken {
        let here = "pass `{port}` to the engine in a lane written by hand";
        output.note(place.line, place.key, "a port of another engine or of the host", here);
    }
    !is_taken
}

/// Sets what concerns an engine that the host starts.
fn set_managed(
    lane: &mut Lane,
    id: &str,
    check: Option<(usize, String)>,
    shared: &Shared,
    fields: &mut Fields<'_>,
    output: &mut Output,
) -> bool {
    let driver = lane.engine.get("driver").and_then(|driver| driver.as_str()).unwrap_or_default();
    if let Some((line, path)) = check {
        let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
        match driver {
            "command" if is_path => lane.engine.set("ready", path),
            "llama-cpp" | "vllm" if path == "/health" => {}
            _ => {
                let here = "the engine is ready when its /health returns 200";
                output.note(line, fields.path("checkEndpoint"), "the path of readiness", here);
            }
        }
    }
    if let Some(seconds) = shared.start_timeout {
        lane.engine.set("start-timeout", format!("{}s", seconds.min(MAX_SECONDS)));
    }
    let (group, own) = (&shared.turns, fields.number("ttl", 0).map(|(_, seconds)| seconds));
    let preload = shared.preload.iter().any(|name| name == id);
    lane.settings.set("load", if preload { "at-start" } else { "on-demand" });
    if let Some(seconds) = own.or(shared.ttl).filter(|seconds| *seconds > 0) {
        lane.settings.set("unload-after", format!("{}s", seconds.min(MAX_SECONDS)));
    }
    group.place(lane, id, output);
    true
}

fn read_env(lane: &mut Lane, fields: &mut Fields<'_>, output: &mut Output) {
    let Some(entry) = fields.take("env") else { return };
    for text in entry.value.texts() {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let key = fields.path(&format!("env.{name}"));
        if is_secret_variable(name) {
            let here = "not copied; set it in the host's environment, which engines inherit";
            output.note(entry.line, key, "a secret", here);
        } else if !lane.set_env(name, &expand(value, &[], "")) {
            output.note(entry.line, key, "an invalid variable", "left out");
        }
    }
}

/// Returns the port of a URL such as `http://127.0.0.1:8999`.
fn fixed_port(url: &str) -> Option<u16> {
    let (_, rest) = url.split_once("://")?;
    let (_, port) = rest.split('/').next()?.rsplit_once(':')?;
    port.parse().ok().filter(|port| *port > 0)
}

/// Another server, whose models become one lane.
fn read_peer(peer: &Entry, output: &mut Output) {
    let mut fields = Fields::new(format!("peers.{}", peer.key), &peer.value);
    let mut lane = Lane::new(&peer.key);
    for model in fields.take("models").iter().flat_map(|entry| entry.value.texts()) {
        lane.add_model(model);
    }
    if let Some(entry) = fields.take("apiKey") {
        let variable = super::litellm::key_variable(&output.document.unique(&lane.name));
        let here = format!("not copied; set {variable} to it");
        output.note(entry.line, fields.path("apiKey"), "the key of the server", here);
        lane.engine.set("key-env", variable);
    }
    let proxy = fields.text("proxy");
    if let Some((line, url)) = proxy
        && set_url(&mut lane, url, line, &fields.path("proxy"), output)
    {
        output.document.add(lane);
    }
    fields.report_rest(output);
}
