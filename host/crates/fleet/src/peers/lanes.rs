//! Which lanes of this host are those of other hosts, and what operators see of them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use pointsman_peers::{LaneReport, Liveness, PeerView};
use tokio::sync::watch;

use super::{Peer, PeerEndpoint, Peers, Running};

/// The lanes of this host that are those of others, by their names here.
#[derive(Debug, Default)]
pub(super) struct PeerLanes(Mutex<HashMap<String, Arc<Watched>>>);

/// A lane of another host that is watched.
#[derive(Debug)]
struct Watched {
    /// The URL of the host, without its key.
    url: String,
    /// The name of the lane there.
    lane: String,
    host: Weak<Running>,
}

/// A lane that is watched for operators until this is dropped.
#[derive(Debug)]
pub(crate) struct LaneWatch {
    peers: Peers,
    name: String,
    watched: Arc<Watched>,
    host: Peer,
}

impl LaneWatch {
    /// Returns what is known of the host.
    pub(crate) fn view(&self) -> watch::Receiver<PeerView> {
        self.host.view()
    }
}

impl Drop for LaneWatch {
    fn drop(&mut self) {
        let mut lanes = self.peers.lanes().0.lock();
        // A lane that was configured anew has another watch already.
        if lanes.get(&self.name).is_some_and(|watched| Arc::ptr_eq(watched, &self.watched)) {
            lanes.remove(&self.name);
        }
    }
}

/// What is known of a lane of this host that is one of another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLaneStatus {
    /// The URL of the other host, without its key.
    pub url: String,
    /// The name that the operator gave the other host; empty if it has none or is not known yet.
    pub host: String,
    /// The name of the lane there.
    pub lane: String,
    /// How much can be relied on what is known.
    pub liveness: Liveness,
    /// When the last event of the host was received; `None` if there was none.
    pub last_event: Option<SystemTime>,
    /// Time since the last event.
    pub silent: Option<Duration>,
    /// The code of the error with which the last connection ended, until there is another one.
    pub error: Option<&'static str>,
    /// What the host has said last of the lane, and the number of its slots there; `None` if the
    /// host does not have the lane, or has not told yet.
    pub report: Option<(LaneReport, u32)>,
}

impl PeerLaneStatus {
    fn new(url: &str, lane: &str, view: &PeerView) -> Self {
        let silent = view.age(Instant::now());
        let there = view.lane(lane);
        Self {
            url: url.to_owned(),
            host: view.host().map(|host| host.name.clone()).unwrap_or_default(),
            lane: lane.to_owned(),
            liveness: view.liveness,
            last_event: silent.and_then(|silent| SystemTime::now().checked_sub(silent)),
            silent,
            error: view.error,
            report: there.map(|lane| (lane.report.clone(), lane.description.slots)),
        }
    }
}

impl Peers {
    /// Watches the host of a lane. `name` is that of the lane here, `lane` that of the lane there.
    pub(crate) fn watch_lane(&self, name: &str, lane: &str, endpoint: &PeerEndpoint) -> LaneWatch {
        let host = self.watch(endpoint);
        let watched = Arc::new(Watched {
            url: endpoint.url.to_string(),
            lane: lane.to_owned(),
            host: Arc::downgrade(&host.0),
        });
        self.lanes().0.lock().insert(name.to_owned(), Arc::clone(&watched));
        LaneWatch { peers: self.clone(), name: name.to_owned(), watched, host }
    }

    /// Returns what is known of a lane; `None` unless it is one of another host.
    pub fn lane_status(&self, name: &str) -> Option<PeerLaneStatus> {
        let watched = self.lanes().0.lock().get(name).map(Arc::clone)?;
        let host = watched.host.upgrade()?;
        // Borrowed for some microseconds: the reader of the host waits meanwhile.
        let view = host.view.borrow();
        Some(PeerLaneStatus::new(&watched.url, &watched.lane, &view))
    }
}
