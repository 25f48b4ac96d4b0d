//! Compose files: services of vLLM and llama.cpp.

use super::command::{self, Place};
use super::document::{Lane, reference};
use super::env::{self, Variable};
use super::fields::Fields;
use super::llama_server::flag_of_variable;
use super::output::Output;
use super::words::{self, is_secret_variable};
use super::yaml::{Entry, Node};

const CONTAINER: &str = "give it to the container or the unit of the host, which starts the engine";
/// Keys of a service that concern its container.
const SERVICE_KEYS: [(&str, &str); 26] = [
    ("devices", "devices of the container"),
    ("group_add", "groups of the container"),
    ("shm_size", "shared memory of the container"),
    ("volumes", "folders of the container, with other paths than outside"),
    ("ipc", "shared memory of the container"),
    ("security_opt", "rights of the container"),
    ("cap_add", "rights of the container"),
    ("cap_drop", "rights of the container"),
    ("privileged", "rights of the container"),
    ("ulimits", "limits of the container"),
    ("deploy", "GPUs and limits of the container"),
    ("runtime", "the container runtime"),
    ("gpus", "GPUs of the container"),
    ("user", "the user of the container"),
    ("working_dir", "the folder of the process"),
    ("network_mode", "the network of the container"),
    ("networks", "networks of the container"),
    ("tmpfs", "folders in memory"),
    ("build", "how the image is built"),
    ("mem_limit", "maximum memory of the container"),
    ("labels", "labels of the container"),
    ("extra_hosts", "names of hosts"),
    ("expose", "ports for other containers"),
    ("init", "a process that reaps others"),
    ("tty", "a terminal"),
    ("hostname", "the name of the container"),
];
/// Keys of a service that the host has a counterpart for.
const OTHER_KEYS: [(&str, &str, &str); 9] = [
    ("restart", "restarts the engine", "the host restarts engines: see `lanes.engine.backoff`"),
    ("healthcheck", "whether the engine is ready", "the host probes engines; see /livez, /readyz"),
    ("stop_grace_period", "time to stop", "set `stop-grace`"),
    ("stop_signal", "the signal that stops the engine", "engines get SIGTERM"),
    ("depends_on", "the order of starts", "no counterpart"),
    ("container_name", "the name of the container", "the lane has the name of the service"),
    ("env_file", "a file with variables", "import it with --from env, too"),
    ("logging", "where the log goes", "see `log`"),
    ("profiles", "when the service is started", "see `load`"),
];
/// Keys beside `services`.
const ROOT_KEYS: [&str; 6] = ["version", "name", "volumes", "networks", "secrets", "configs"];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Engine {
    Vllm,
    LlamaCpp,
}

pub(crate) fn read(root: &Node, output: &mut Output) {
    let mut fields = Fields::new("", root);
    let services = fields.take("services");
    for key in ROOT_KEYS {
        fields.report(output, key, "a part of the compose file", "stays in the compose file");
    }
    let mut ports = Vec::new();
    for service in services.iter().flat_map(|services| services.value.entries()) {
        if let Some((port, lane)) = read_service(service, output) {
            ports.extend(port.map(|port| (port, lane)));
        }
    }
    let mut ports = ports.into_iter();
    output.document.port = ports.next().map(|(port, _)| port);
    for (port, lane) in ports {
        let is_new = output.document.port != Some(port)
            && !output.document.listeners.iter().any(|(known, _)| *known == port);
        if is_new {
            output.document.listeners.push((port, lane));
        }
    }
    for entry in root.entries().iter().filter(|entry| entry.key.starts_with("x-")) {
        fields.take(&entry.key);
    }
    fields.report_rest(output);
}

/// Reads a service, and returns the name of its lane with its port for clients.
fn read_service(service: &Entry, output: &mut Output) -> Option<(Option<u16>, String)> {
    let name = service.key.as_str();
    let mut fields = Fields::new(format!("services.{name}"), &service.value);
    let image = fields.text("image").map_or("", |(_, image)| image).to_lowercase();
    let environment = variables(fields.take("environment"));
    let command = command_words(&mut fields, output);
    let Some(engine) = engine(&image, &command, &environment) else {
        let there = "a service that is not vLLM or llama.cpp";
        output.note(service.line, format!("services.{name}"), there, "stays in the compose file");
        return None;
    };
    let mut lane = Lane::new(name);
    let port = fields.take("ports").and_then(|entry| published(&entry.value));
    let mut words = command;
    let variables = match engine {
        Engine::Vllm => environment,
        Engine::LlamaCpp => {
            llama_variables(environment, &mut lane, &mut words, name, output);
            Vec::new()
        }
    };
    let is_program = words.first().is_some_and(|word| {
        ["vllm", "python3", "python", "llama-server"]
            .contains(&word.rsplit('/').next().unwrap_or(word))
    });
    if !is_program {
        let entrypoint: &[&str] = match engine {
            Engine::Vllm => &["vllm", "serve"],
            Engine::LlamaCpp => &["llama-server"],
        };
        words.splice(0..0, entrypoint.iter().map(|word| (*word).to_owned()));
    }
    if engine == Engine::Vllm {
        let path = format!("services.{name}.environment.");
        env::vllm(&variables, &path, &mut lane, output);
    }
    let key = fields.path("command");
    let place = Place { line: service.line, key: &key };
    let is_lane = command::read(words, &mut lane, place, output)
        && (lane.engine.get("model").is_some() || lane.engine.get("command").is_some());
    for (key, there) in SERVICE_KEYS {
        fields.report(output, key, there, CONTAINER);
    }
    for (key, there, here) in OTHER_KEYS {
        fields.report(output, key, there, here);
    }
    fields.report_rest(output);
    if !is_lane {
        let there = "a service without a model";
        output.note(service.line, format!("services.{name}"), there, "write its lane by hand");
        return None;
    }
    lane.comments.push(format!(
        "The service {name}. The engine runs beside the host: its program must be installed there."
    ));
    let there = format!("the image {image}");
    let here = "the program of the engine must be installed beside the host; or set `program` to \
                a command of docker or podman";
    output.note(service.line, format!("services.{name}.image"), there, here);
    Some((port, output.document.add(lane)))
}

fn engine(image: &str, command: &[String], environment: &[Variable]) -> Option<Engine> {
    let has = |start: &str| environment.iter().any(|variable| variable.name.starts_with(start));
    let runs = |program: &str| command.iter().any(|word| word.rsplit('/').next() == Some(program));
    if image.contains("llama.cpp") || image.contains("llama-cpp") || runs("llama-server") {
        return Some(Engine::LlamaCpp);
    }
    if image.contains("vllm") || runs("vllm") || has("VLLM_MODEL") {
        return Some(Engine::Vllm);
    }
    has("LLAMA_ARG_").then_some(Engine::LlamaCpp)
}

/// Returns the words of `entrypoint` and `command`. References become those of a configuration.
fn command_words(fields: &mut Fields<'_>, output: &mut Output) -> Vec<String> {
    let mut words = Vec::new();
    for key in ["entrypoint", "command"] {
        let Some(entry) = fields.take(key) else { continue };
        match &entry.value {
            Node::Text(text) => match words::split(text) {
                Some(split) => words.extend(split),
                None => output.note(entry.line, fields.path(key), "an open quote", "left out"),
            },
            other => words.extend(other.texts().into_iter().map(str::to_owned)),
        }
    }
    words.iter().map(|word| references(word)).collect()
}

/// Returns the variables of an `environment`, which is a list of `KEY=VALUE` or a mapping. A
/// variable without a value is taken from the environment of the caller, as engines do here.
fn variables(entry: Option<&Entry>) -> Vec<Variable> {
    let Some(entry) = entry else { return Vec::new() };
    match &entry.value {
        Node::List(items) => items
            .iter()
            .filter_map(|(line, item)| {
                let (name, value) = item.text()?.split_once('=')?;
                Some(Variable { line: *line, name: name.to_owned(), value: references(value) })
            })
            .collect(),
        other => other
            .entries()
            .iter()
            .filter_map(|entry| {
                let value = references(entry.value.text()?);
                Some(Variable { line: entry.line, name: entry.key.clone(), value })
            })
            .collect(),
    }
}

/// Adds the variables of a llama-server: those that the host has to know become flags.
fn llama_variables(
    variables: Vec<Variable>,
    lane: &mut Lane,
    words: &mut Vec<String>,
    service: &str,
    output: &mut Output,
) {
    for Variable { line, name, value } in variables {
        let key = format!("services.{service}.environment.{name}");
        if name == "LLAMA_API_KEY" {
            output.document.require_key(command::CLIENT_KEY);
            let here = format!("not copied; set {} to it", command::CLIENT_KEY);
            output.note(line, key, "the key that clients send", here);
        } else if is_secret_variable(&name) {
            let here = "not copied; set it in the host's environment, which engines inherit";
            output.note(line, key, "a secret", here);
        } else if let Some(flag) = flag_of_variable(&name) {
            // Flags take precedence over variables.
            let has_flag = words.iter().any(|word| word == flag);
            if !has_flag {
                words.extend([flag.to_owned(), value]);
            }
        } else if !lane.set_env(&name, &value) {
            output.note(line, key, "an invalid variable", "left out");
        }
    }
}

/// Returns the first port that a service publishes.
fn published(ports: &Node) -> Option<u16> {
    let Node::List(items) = ports else { return None };
    items.iter().find_map(|(_, item)| {
        let text = match item {
            Node::Text(text) => {
                let text = text.split('/').next()?;
                text.rsplit_once(':')?.0.rsplit(':').next()?
            }
            other => other.get("published")?.text()?,
        };
        text.parse().ok().filter(|port| *port > 0)
    })
}

/// Returns a text with its references to variables as those of a configuration: `$NAME`, `${NAME}`
/// and `${NAME:-DEFAULT}`; `$$` is a dollar sign.
fn references(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let end = after.find(|letter| !is_part(letter)).unwrap_or(after.len());
        let (inner, after) = braced.unwrap_or_else(|| after.split_at(end));
        match reference(inner) {
            Some(reference) => out.push_str(&reference),
            None => out.extend(["$", inner]),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
