//! The servers that get the same requests.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use pointsman_xtask::command::cache_dir;

use super::super::keys::{LIMITS, access_section};
use super::super::server::{Server, configuration, free_port, haproxy, host, pointsman, start};
use super::super::telemetry::collector;
use super::Context;

const CORTEX: &str = "[[policies.chain]]\nname = \"cortex\"\n";

/// The engine, which is named `direct`, and all that forward requests to it.
pub(super) struct Servers(Vec<Server>);

impl Servers {
    pub(super) fn start(context: &Context<'_>) -> Result<Self> {
        let Context { root, release, folder, .. } = context;
        let mut command = Command::new(release.join("fake-engine"));
        let engine = start("direct", command.args(["--bench", "--port"]), free_port()?, true)?;
        let mut servers = vec![bare_proxy(context, engine.port)?, haproxy(folder, engine.port)?];
        let records = format!("[records]\ndir = {:?}\n", folder.join("records"));
        let limited = records + &access_section(folder, "request keys", LIMITS)?;
        for (name, sections) in
            [("no policy", ""), ("cortex", CORTEX), ("keys, limits, records", &limited)]
        {
            servers.push(pointsman(root, release, folder, name, sections, engine.port)?);
        }
        let traces = format!("[telemetry]\nendpoint = \"http://127.0.0.1:{}\"\n", collector()?);
        for (name, traces) in [("cortex.toml", ""), ("cortex.toml, traces", &traces)] {
            let file = cortex_defaults(context, name, traces, engine.port)?;
            servers.push(host(release, name, &file)?);
        }
        servers.extend(vllm_router(engine.port)?);
        servers.insert(0, engine);
        Ok(Self(servers))
    }

    pub(super) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|server| server.name).collect()
    }

    pub(super) fn get(&self, name: &str) -> Result<&Server> {
        let server = self.0.iter().find(|server| server.name == name);
        server.with_context(|| format!("no server {name}"))
    }

    pub(super) fn named(&self, names: &[&str]) -> Result<Vec<&Server>> {
        names.iter().map(|name| self.get(name)).collect()
    }
}

/// Starts the floor: hyper on both sides and nothing else.
pub(super) fn bare_proxy(context: &Context<'_>, engine: u16) -> Result<Server> {
    let mut command = Command::new(context.release.join("bare-proxy"));
    command.args(["--engine", &engine.to_string(), "--port"]);
    start("bare proxy", &mut command, free_port()?, true)
}

/// Writes the configuration of a host as `examples/cortex.toml` sets it up, with an external
/// engine: its policy with aliases, limits of queues, mapped model names, and the access log.
fn cortex_defaults(
    context: &Context<'_>,
    name: &str,
    traces: &str,
    engine: u16,
) -> Result<PathBuf> {
    let example = fs::read_to_string(context.root.join("examples/cortex.toml"))?;
    let part = |from: &str, to: &str| {
        let at = example.find(from).with_context(|| format!("examples/cortex.toml: no {from}"))?;
        let text = &example[at..];
        let end = text.find(to).with_context(|| format!("examples/cortex.toml: no {to}"))?;
        anyhow::Ok(text[..end].to_owned())
    };
    let queue = part("[queue]", "[policies]")?;
    let chain = part("[[policies.chain]]", "[[groups]]")?;
    let sections = format!("{chain}\"a\" = \"coder\"\n{queue}{traces}");
    let file = configuration(context.root, &context.folder, name, &sections, engine)?;
    let (text, logs) = (fs::read_to_string(&file)?, file.with_extension("logs"));
    // A folder for the log turns on the access log.
    let text = text.replacen("level = \"warn\"\n", &format!("dir = {logs:?}\n"), 1).replacen(
        "models = [\"a\"]\n",
        "models = [\"coder\", \"auto\", \"a\"]\nengine-model = \"coder-awq\"\n\
         labels = { tools = \"true\" }\nmax-context = 32768\n",
        1,
    );
    fs::write(&file, text)?;
    Ok(file)
}

/// Starts vLLM Router, if the virtual environment has it.
fn vllm_router(engine: u16) -> Result<Option<Server>> {
    let program = cache_dir()?.join("venv/bin/vllm-router");
    if !program.exists() {
        return Ok(None);
    }
    let port = free_port()?;
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--worker-urls", &format!("http://127.0.0.1:{engine}")]);
    command.args(["--log-level", "error"]);
    start("vllm-router", &mut command, port, false).map(Some)
}
