//! Reads the addresses on which clients are served: `server.listen`, and `[[listeners]]`.

use std::net::SocketAddr;

use pointsman_settings::{Code, Section};

/// An address on which clients are served, with its options.
#[derive(Debug, Clone)]
pub struct Listener {
    /// The address.
    pub address: SocketAddr,
    /// Path below which all routes are, with a leading slash and without a trailing one; empty for
    /// none.
    pub path_prefix: String,
    /// Model of requests that name none.
    pub default_model: Option<String>,
    /// Model names that only this listener has, each with the model name that it stands for.
    pub models: Vec<(String, String)>,
    /// When `/health` is 200.
    pub health: HealthRule,
}

/// When `/health` is 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthRule {
    /// If a request for some model can be served now.
    AnyLane,
    /// If no lane is loading, being switched or down.
    AllLanes,
}

/// Reads `server.listen` with the options beside it, and the further listeners. Returns `None` only
/// if an error was reported.
pub(super) fn read(root: &Section<'_>) -> Option<Vec<Listener>> {
    let server = root.section("server");
    let default = || Some(SocketAddr::from(([127, 0, 0, 1], 8000)));
    let first = match server.has("listen") {
        true => address(&server, "listen"),
        false => default(),
    };
    let first = options(&server, first);
    let further = root.sections("listeners").into_iter().map(|section| {
        let address = match section.has("address") {
            true => address(&section, "address"),
            false => {
                let message = "missing; set it to IP:PORT, for example \"127.0.0.1:11434\"";
                section.error_at("address", Code::MissingKey.with(message));
                None
            }
        };
        let listener = options(&section, address);
        section.report_unknown();
        listener
    });
    let listeners: Vec<_> = std::iter::once(first).chain(further).collect();
    listeners.into_iter().collect()
}

fn address(section: &Section<'_>, key: &str) -> Option<SocketAddr> {
    section.parsed(key, |text| {
        text.parse().map_err(|_| {
            format!("invalid address \"{text}\": expected IP:PORT, for example 127.0.0.1:8000")
        })
    })
}

fn options(section: &Section<'_>, address: Option<SocketAddr>) -> Option<Listener> {
    let path_prefix = section.string("path-prefix").unwrap_or_default();
    let path_prefix = path_prefix.trim_end_matches('/').to_owned();
    if !path_prefix.is_empty() && !path_prefix.starts_with('/') {
        let message = format!("invalid path \"{path_prefix}\": expected for example \"/llm\"");
        section.error_at("path-prefix", Code::InvalidValue.with(message));
    }
    let default_model = section.string("default-model").map(str::to_owned);
    let models = section.string_pairs("models");
    let rules = [("any-lane", HealthRule::AnyLane), ("all-lanes", HealthRule::AllLanes)];
    let health = section.choice("health", &rules, HealthRule::AnyLane);
    Some(Listener { address: address?, path_prefix, default_model, models, health })
}
