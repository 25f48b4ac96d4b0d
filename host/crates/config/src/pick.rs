//! Reads `[pick]`: how `pointsman pick` serves a proxy, and where its further lanes are.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_fleet::{PeerEndpoint, read_host, read_queue_there};
use pointsman_settings::{Code, Section};

/// Address of the picker, if the configuration has none: the one of most Envoy examples.
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9002);

/// Maximum number of other hosts.
const MAX_HOSTS: usize = 256;
/// Maximum length of the name of a host in bytes.
const MAX_NAME: usize = 64;

/// How `pointsman pick` serves a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    /// The address of the gRPC service.
    pub listen: SocketAddr,
    /// Maximum time for which a request waits for a slot, at most `queue.max-wait`.
    pub max_wait: Duration,
    /// Maximum number of requests that the proxy has open at a time.
    pub max_streams: u32,
    /// The file of further lanes.
    pub endpoints: Option<PathBuf>,
    /// The hosts whose lanes are further lanes.
    pub hosts: Vec<PickHost>,
}

/// Another host, all of whose lanes can be picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickHost {
    /// The name with which the names of its lanes begin here.
    pub name: String,
    /// How it is reached.
    pub endpoint: PeerEndpoint,
    /// The keys of the engines of its lanes, as they are in the file.
    engine: Vec<(&'static str, String)>,
    /// How many requests may wait there for each lane; `None` for the default.
    queue_there: Option<u32>,
}

/// A lane of another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLane {
    /// The name that it has there.
    pub name: String,
    /// Its labels, each with its value.
    pub labels: Vec<(String, String)>,
}

impl Pick {
    /// Returns true if there are lanes that are not in the configuration file.
    pub(super) fn has_further_lanes(&self) -> bool {
        self.endpoints.is_some() || !self.hosts.is_empty()
    }
}

impl PickHost {
    /// Returns these lanes of the host as text of a configuration, without references to
    /// variables. Models, context and slots are not in it: a lane of another host has those that
    /// the host tells.
    pub fn lanes_text(&self, lanes: &[HostLane]) -> String {
        let lanes: Vec<_> = lanes.iter().map(|lane| self.lane_table(lane).into()).collect();
        toml::Table::from_iter([("lanes".to_owned(), toml::Value::Array(lanes))]).to_string()
    }

    fn lane_table(&self, lane: &HostLane) -> toml::Table {
        let text = |(key, value): &(&str, String)| ((*key).to_owned(), value.clone().into());
        let mut engine: toml::Table = self.engine.iter().map(text).collect();
        engine.insert("driver".to_owned(), "pointsman".into());
        engine.insert("lane".to_owned(), lane.name.clone().into());
        if let Some(queue_there) = self.queue_there {
            engine.insert("queue-there".to_owned(), i64::from(queue_there).into());
        }
        let label = |(key, value): &(String, String)| (key.clone(), value.clone().into());
        let labels: toml::Table = lane.labels.iter().map(label).collect();
        let name = format!("{}.{}", self.name, lane.name);
        [("name", name.into()), ("labels", labels.into()), ("engine", engine.into())]
            .map(|(key, value): (&str, toml::Value)| (key.to_owned(), value))
            .into_iter()
            .collect()
    }
}

/// Reads the section; `None` without one.
pub(super) fn read(root: &Section<'_>, folder: &Path, max_wait: Duration) -> Option<Pick> {
    let is_set = root.has("pick");
    let section = root.section("pick");
    let pick = Pick {
        listen: section.parsed("listen", address).unwrap_or(DEFAULT_LISTEN),
        max_wait: section.duration("max-wait", max_wait).min(max_wait),
        max_streams: section.integer("max-streams", 1..=100_000, 4096),
        endpoints: section.string("endpoints").map(|path| folder.join(path)),
        hosts: read_hosts(&section, folder),
    };
    section.report_unknown();
    is_set.then_some(pick)
}

/// Reads the address. The service has no authentication, and requests pass through it.
fn address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err(format!(
            "address \"{text}\" is reachable from other machines, and the service is not \
             encrypted; use a loopback address, for example 127.0.0.1:9002, next to Envoy"
        )),
        Err(_) => {
            Err(format!("invalid address \"{text}\": expected IP:PORT, for example 127.0.0.1:9002"))
        }
    }
}

/// Reads `[[pick.hosts]]`.
fn read_hosts(section: &Section<'_>, folder: &Path) -> Vec<PickHost> {
    let sections = section.sections("hosts");
    if sections.len() > MAX_HOSTS {
        section.error_at("hosts", Code::OutOfRange.with(format!("more than {MAX_HOSTS} hosts")));
    }
    let mut names = HashSet::new();
    let read = sections.into_iter().filter_map(|section| {
        let name = section.required_string("name", "\"gpu-1\"");
        let endpoint = read_host(&section, folder);
        let queue_there = read_queue_there(&section);
        let keys = ["url", "key-env", "key-file", "ca-file"];
        let engine = keys.map(|key| section.string(key).map(|text| (key, text.to_owned())));
        section.report_unknown();
        let name = name?.to_owned();
        // Without dots, names of lanes of different hosts are different.
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_of_name) {
            let message =
                format!("invalid name: expected at most {MAX_NAME} letters, digits, `-` and `_`");
            section.error_at("name", Code::InvalidValue.with(message));
        }
        if !names.insert(name.clone()) {
            section.error_at("name", Code::Duplicate.with(format!("`{name}` is used twice")));
        }
        let endpoint = endpoint?;
        let address = endpoint.url.authority();
        if address.parse::<SocketAddr>().is_err() {
            section.error_at("url", Code::NotPickable.with(no_address(address)));
        }
        let engine = engine.into_iter().flatten().collect();
        Some(PickHost { name, endpoint, engine, queue_there })
    });
    read.collect()
}

fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '_')
}

/// Returns why a proxy cannot reach this address.
pub(super) fn no_address(address: &str) -> String {
    format!("has the address \"{address}\": expected IP:PORT, because a proxy looks no names up")
}
