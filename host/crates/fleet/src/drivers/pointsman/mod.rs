//! `driver = "pointsman"`: a lane of another host. What is known of it comes from the other host's
//! `GET /fleet`: see `peer_lane.rs`.

use std::path::Path;
use std::time::Duration;

use pointsman_domain::EngineKind;
use pointsman_settings::{Code, Section};

use super::server::Server;
use crate::driver::{
    Description, Driver, DriverInfo, EngineConfig, LaneBasics, LaneContext, LaneDefaults, Prepared,
    Target, is_equal,
};
use crate::engine_spec::{PeerLaneSpec, ProcessSpec};
use crate::launch::Launch;
use crate::peers::PeerEndpoint;
use crate::post::ServiceUrl;
use crate::proof::Reuse;
use crate::tls::TrustedRoots;

/// Maximum number of requests that may be allowed to wait at another host.
const MAX_QUEUE_THERE: i64 = 10_000;

/// The driver.
pub static DRIVER: DriverInfo = DriverInfo {
    key: "pointsman",
    purpose: Some("a lane of another host"),
    // That of the engine there is in the topology of that host, and not known here at first.
    kind: EngineKind::Other,
    defaults: LaneDefaults {
        is_managed: false,
        is_peer: true,
        stall: Duration::ZERO,
        ..LaneDefaults::MANAGED
    },
    read,
};

fn read(section: &Section<'_>, lane: &LaneBasics<'_>) -> Option<EngineConfig> {
    let server = Server::read(section, lane.folder);
    let name = section.string("lane").unwrap_or(&lane.name).to_owned();
    if name.is_empty() {
        let message = "must not be empty; remove it if the lane has the same name there";
        section.error_at("lane", Code::InvalidValue.with(message));
    }
    let queue_there = read_queue_there(section);
    let server = server?;
    let url = read_fleet_url(section, &server)?;
    let peer = peer_lane(&server, url, name.clone(), queue_there);
    let mut engine = EngineConfig::new(PeerSpec { server, peer });
    // Other hosts know a lane by its name, like a model.
    engine.names = vec![name];
    Some(engine)
}

/// Reads how another host is reached, by the keys of a lane with this driver. Relative paths are
/// those of `folder`. Returns `None` only if an error was reported.
pub fn read_host(section: &Section<'_>, folder: &Path) -> Option<PeerEndpoint> {
    let server = Server::read(section, folder)?;
    let url = read_fleet_url(section, &server)?;
    Some(PeerEndpoint { url, key: server.key, ca: server.ca })
}

/// Reads how many requests may wait at the other host; `None` for the default.
pub fn read_queue_there(section: &Section<'_>) -> Option<u32> {
    section.has("queue-there").then(|| section.integer("queue-there", 0..=MAX_QUEUE_THERE, 0))
}

fn read_fleet_url(section: &Section<'_>, server: &Server) -> Option<ServiceUrl> {
    let url = ServiceUrl::parse(&server.base_url()).ok();
    if url.is_none() {
        let message = "invalid URL: expected for example \"http://10.0.0.2:8080\"";
        section.error_at("url", Code::InvalidValue.with(message));
    }
    url
}

fn peer_lane(
    server: &Server,
    url: ServiceUrl,
    lane: String,
    queue_there: Option<u32>,
) -> PeerLaneSpec {
    let Server { key, ca, .. } = server.clone();
    PeerLaneSpec { url: url.to_string(), key, ca, lane, queue_there }
}

/// A lane of another host.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerSpec {
    /// How the host is reached.
    server: Server,
    peer: PeerLaneSpec,
}

impl Driver for PeerSpec {
    fn info(&self) -> &'static DriverInfo {
        &DRIVER
    }

    fn equals(&self, other: &dyn Driver) -> bool {
        is_equal(self, other)
    }

    fn run(&self) -> Option<&ProcessSpec> {
        None
    }

    fn peer(&self) -> Option<&PeerLaneSpec> {
        Some(&self.peer)
    }

    fn prepare(&self, _lane: &str, _port: u16) -> Prepared {
        Prepared { launch: Launch::default(), warnings: Vec::new() }
    }

    fn target(&self, _port: u16) -> Target {
        Target { peer: true, ..self.server.target() }
    }

    /// Connections are pooled: the other host does not confuse responses.
    fn reuse(&self) -> Reuse {
        Reuse::Always
    }

    fn trusted_roots(&self) -> Option<TrustedRoots<'_>> {
        self.server.trusted_roots()
    }

    fn ready_paths(&self) -> Vec<&str> {
        Vec::new()
    }

    fn model<'a>(&'a self, _lane: &'a str) -> &'a str {
        &self.peer.lane
    }

    fn describe(&self, _lane: &LaneContext<'_>) -> Description {
        Description::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(queue_there: Option<u32>) -> PeerSpec {
        let server = Server::try_new("http://h:1", None).unwrap();
        let url = ServiceUrl::parse(&server.base_url()).unwrap();
        let peer = peer_lane(&server, url, "a".to_owned(), queue_there);
        PeerSpec { server, peer }
    }

    #[test]
    fn as_many_requests_wait_there_as_are_served_by_default() {
        let slots = |queue_there, slots| spec(queue_there).peer.slots(slots);
        assert_eq!(slots(None, 4), 8);
        assert_eq!(slots(Some(1), 4), 5);
        assert_eq!(slots(Some(0), 0), 1);
    }

    #[test]
    fn host_is_told_more_than_an_engine() {
        let spec = spec(None);
        assert_eq!(spec.peer.url, "http://h:1");
        assert!(spec.target(0).peer && spec.target(0).external);
        assert!(!spec.server.target().peer);
    }
}
