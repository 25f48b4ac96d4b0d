//! Checks of a configuration on this system: what `check` reports, ports, folders and models.

use std::path::Path;

use pointsman_config::{Address, Config};
use pointsman_files::{check_private, check_writable};
use pointsman_fleet::{LaneSpec, hub_snapshot, vllm::Vllm};
use serde_json::Value;

use super::finding::Finding;
use super::system::System;
use crate::check;

/// Free space below which downloads and states soon fail.
const LITTLE_SPACE: u64 = 2 << 30;
/// Architectures that current versions of vLLM do not support any more.
const DROPPED: [&str; 1] = ["MllamaForConditionalGeneration"];

/// Reports what `check` finds in a configuration that was read.
pub(super) fn validity(system: &System, file: &Path, config: &Config) -> Vec<Finding> {
    const CHECK: &str = "config";
    let mut findings: Vec<Finding> = match check::errors(file, config) {
        Ok(errors) => errors.into_iter().map(invalid).collect(),
        Err(error) => vec![invalid(format!("{error:#}"))],
    };
    let warnings = check::warnings(config, &system.machine);
    let fix = "change the configuration, unless it is intended";
    findings.extend(warnings.into_iter().map(|warning| Finding::warning(CHECK, warning, fix)));
    if findings.is_empty() {
        let (lanes, policies) = (config.fleet.lanes.len(), config.policies.chain.policies.len());
        let fact = format!("{}: {lanes} lanes, {policies} policies", file.display());
        findings.push(Finding::ok(CHECK, fact));
    }
    findings
}

/// Reports an error of the configuration, of its files or of its policies.
pub(super) fn invalid(error: String) -> Finding {
    Finding::problem("config", error, "correct it, and run `pointsman check`")
}

/// Checks that the ports of a configuration are free, unless its host runs.
pub(super) fn ports(system: &System, config: &Config, is_running: bool) -> Finding {
    const CHECK: &str = "ports";
    let listeners = config.server.listeners.iter().filter_map(|listener| match &listener.address {
        Address::Tcp(address) => Some(("server".to_owned(), address.port())),
        Address::Unix { .. } => None,
    });
    let admin = config.admin.port.iter().map(|(address, _)| ("admin".to_owned(), address.port()));
    let lanes = config
        .fleet
        .lanes
        .iter()
        .filter_map(|lane| Some((format!("lane `{}`", lane.name), lane.engine.run()?.port?)));
    let wanted: Vec<(String, u16)> =
        listeners.chain(admin).chain(lanes).filter(|(_, port)| *port != 0).collect();
    let taken = taken_ports(system);
    let conflicts: Vec<String> = wanted
        .iter()
        .filter(|(_, port)| !is_running && taken.contains(port))
        .map(|(user, port)| format!("{port} ({user})"))
        .collect();
    if !conflicts.is_empty() {
        return Finding::problem(
            CHECK,
            format!("other processes listen on {}", conflicts.join(", ")),
            "end them (`ss -ltnp` shows them), or choose other ports",
        );
    }
    let ports: Vec<String> = wanted.iter().map(|(_, port)| port.to_string()).collect();
    let state = if is_running { "used by the running host" } else { "free" };
    Finding::ok(
        CHECK,
        format!("{} {state}", if ports.is_empty() { "all".into() } else { ports.join(", ") }),
    )
}

/// Returns the TCP ports that processes listen on.
fn taken_ports(system: &System) -> Vec<u16> {
    /// The state of a socket that listens.
    const LISTEN: &str = "0A";
    let port = |line: &str| {
        let mut fields = line.split_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let (_, port) = local.rsplit_once(':')?;
        (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    let tables =
        ["proc/net/tcp", "proc/net/tcp6"].map(|file| system.text(file).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().filter_map(port)).collect()
}

/// Checks the folders that the host and the hub's clients write to.
pub(super) fn folders(system: &System, config: &Config) -> Vec<Finding> {
    const STATE: &str = "state_folder";
    let mut findings = Vec::new();
    findings.push(match &config.fleet.state_dir {
        None => Finding::ok(STATE, "no state directory"),
        Some(dir) => match check_private(dir).and_then(|()| check_writable(dir)) {
            Ok(()) => space(STATE, dir),
            Err(error) if error.is_not_found() => {
                Finding::ok(STATE, format!("{} will be created", dir.display()))
            }
            Err(error) => Finding::problem(
                STATE,
                error.to_string(),
                "correct its owner and its mode (0700), or set `state.dir`",
            ),
        },
    });
    if config.fleet.lanes.iter().any(|lane| lane.engine.downcast_ref::<Vllm>().is_some()) {
        findings.extend(hub_cache(system));
    }
    findings
}

/// Checks where vLLM downloads models to.
fn hub_cache(system: &System) -> Option<Finding> {
    const CHECK: &str = "hub_cache";
    let caches = || {
        let home = || Some(format!("{}/.cache", system.variable("HOME")?));
        system.variable("XDG_CACHE_HOME").map(str::to_owned).or_else(home)
    };
    let home = || Some(format!("{}/huggingface", caches()?));
    let home = || system.variable("HF_HOME").map(str::to_owned).or_else(home);
    let hub = || Some(format!("{}/hub", home()?));
    let path = system.variable("HF_HUB_CACHE").map(str::to_owned).or_else(hub)?;
    let place = system.place(&path);
    Some(match check_writable(&place) {
        Ok(()) => space(CHECK, &place),
        Err(error) if error.is_not_found() => Finding::ok(CHECK, format!("{path} will be created")),
        Err(error) => Finding::warning(
            CHECK,
            format!("{error}: vLLM cannot download models"),
            "correct its owner (containers often leave files of root), or set HF_HOME",
        ),
    })
}

/// Checks the free space of the file system that a folder is on.
fn space(check: &'static str, folder: &Path) -> Finding {
    let free = rustix::fs::statvfs(folder)
        .map(|found| found.f_bavail.saturating_mul(found.f_frsize))
        .unwrap_or(u64::MAX);
    let fact = format!("{} can be written", folder.display());
    match free < LITTLE_SPACE {
        true => Finding::warning(
            check,
            format!("{fact}, with {} of free space", pointsman_fleet::format_size(free)),
            "free space on its disk",
        ),
        false => Finding::ok(check, fact),
    }
}

/// Checks the models of lanes.
pub(super) fn models(system: &System, config: &Config) -> Vec<Finding> {
    config.fleet.lanes.iter().filter_map(|lane| model(system, lane)).collect()
}

fn model(system: &System, lane: &LaneSpec) -> Option<Finding> {
    const CHECK: &str = "model";
    const MAX_JSON: u64 = 1 << 20;
    let vllm = lane.engine.downcast_ref::<Vllm>().map(|vllm| &vllm.settings)?;
    let (name, model) = (&lane.name, vllm.model.as_str());
    let folder = vllm.download_dir.as_deref().map(|folder| system.place(folder));
    let variable = |name: &str| system.variable(name).map(|value| system.place(value));
    let is_path = model.starts_with(['/', '.']);
    let place = match is_path {
        true => Some(system.place(model)),
        false => hub_snapshot(model, folder.as_deref(), variable),
    };
    let Some(place) = place else {
        return Some(match vllm.offline {
            true => Finding::problem(
                CHECK,
                format!("lane `{name}`: {model} is not on this machine, and `offline = true`"),
                format!("download it: `huggingface-cli download {model}`"),
            ),
            false => Finding::note(
                CHECK,
                format!("lane `{name}`: {model} will be downloaded for the first load"),
                format!("`huggingface-cli download {model}` does it before"),
            ),
        });
    };
    if !place.exists() {
        let fact = format!("lane `{name}`: {model} does not exist");
        return Some(Finding::problem(CHECK, fact, "correct `model`, or download it"));
    }
    if place.is_dir() && std::fs::read_dir(&place).is_err() {
        let fact = format!("lane `{name}`: {model} cannot be read by this user");
        return Some(Finding::problem(CHECK, fact, "correct its owner and its mode"));
    }
    let text = pointsman_files::read_regular_text(&place.join("config.json"), MAX_JSON).ok();
    let Some(text) = text else {
        let fact = format!("lane `{name}`: {model} has no config.json that can be read");
        let fix = "download the model again; GGUF files are for `driver = \"llama-cpp\"`";
        return Some(if place.is_dir() {
            Finding::problem(CHECK, fact, fix)
        } else {
            Finding::note(CHECK, fact, fix)
        });
    };
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    let architecture = json["architectures"][0].as_str().unwrap_or("unknown");
    let fact = format!("lane `{name}`: {model} is a {architecture}");
    Some(match DROPPED.contains(&architecture) {
        true => Finding::warning(
            CHECK,
            format!("{fact}, which vLLM does not support since 0.10.3"),
            "use another model, or serve it with llama.cpp",
        ),
        false => Finding::ok(CHECK, fact),
    })
}
