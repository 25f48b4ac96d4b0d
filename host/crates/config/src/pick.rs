//! Reads `[pick]`: how `pointsman pick` serves a proxy, and the file of endpoints.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_settings::{Code, Diagnostic, FileError, Secrets, Section, read_expanded};

use super::lanes::{self, Lanes};

/// Address of the picker, if the configuration has none: the one of most Envoy examples.
const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9002);

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

/// Adds the lanes of the file of endpoints, and checks that a proxy can reach all lanes. Returns
/// `None` if the lanes cannot be used.
pub(super) fn complete(
    root: &Section<'_>,
    pick: Option<&Pick>,
    lanes: Option<Lanes>,
    place: lanes::Place<'_>,
) -> Option<Lanes> {
    let Some(pick) = pick else { return lanes };
    let section = root.section("pick");
    let mut lanes = lanes?;
    if let Some(file) = &pick.endpoints {
        let names: HashSet<&str> = lanes.specs.iter().map(|lane| lane.name.as_str()).collect();
        let found = match read_endpoints(file, place) {
            Ok(found) => found,
            Err(error) => {
                section.error_at("endpoints", Code::InvalidValue.with(error));
                return None;
            }
        };
        for lane in found.specs.iter().filter(|lane| names.contains(lane.name.as_str())) {
            let message = format!("{}: lane \"{}\" already exists", file.display(), lane.name);
            section.error_at("endpoints", Code::Duplicate.with(message));
        }
        lanes.specs.extend(found.specs);
        lanes.needs.extend(found.needs);
    }
    for (index, lane) in lanes.specs.iter().enumerate() {
        let message = match lane.engine.external_address() {
            None => "is started by the host, and a proxy cannot reach it; only lanes with the \
                     drivers `external` and `pointsman` can be picked"
                .to_owned(),
            Some(address) if address.authority.parse::<SocketAddr>().is_err() => format!(
                "has the address \"{}\": expected IP:PORT, because a proxy looks no names up",
                address.authority
            ),
            Some(_) => continue,
        };
        let problem = Code::NotPickable.with(format!("lane \"{}\" {message}", lane.name));
        match root.sections("lanes").get(index) {
            Some(lane) => lane.section("engine").error(problem),
            None => section.error_at("endpoints", problem),
        }
    }
    Some(lanes)
}

/// Reads the lanes of a file of endpoints.
///
/// # Errors
/// All errors, each with the file and the line.
fn read_endpoints(file: &Path, place: lanes::Place<'_>) -> Result<Lanes, String> {
    let source = FileError::source(file).map_err(|error| error.to_string())?;
    let in_file = |errors: Vec<Diagnostic>| FileError::new(file, errors).to_string();
    read_expanded(&source, &[], Secrets::Read, |root| {
        let lanes = lanes::read(root, &[], place);
        root.report_unknown();
        lanes
    })
    .map_err(in_file)
}
