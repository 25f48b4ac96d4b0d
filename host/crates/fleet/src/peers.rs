//! Reads what other hosts tell of their lanes: one connection for each host, which all who watch
//! the host share.
//!
//! ```text
//!   Peers::watch ──> Peer ──view──> watch::Receiver<PeerView>
//!                     │ the last one that is dropped ends the reader
//!                   reader (one task per host): connect, read events, back off
//! ```

mod call;
mod lanes;
mod metrics;
mod probe;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use pointsman_peers::{Liveness, PeerView, StaleLimits};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use self::call::PeerCallError;
use self::call::PeerClient;
pub use self::lanes::PeerLaneStatus;
use self::lanes::PeerLanes;
pub use self::metrics::PeerMetrics;
pub use self::probe::{PeerProbe, PeerProbeError, probe_peer};
use self::reader::Reader;
use crate::engine_spec::Secret;
use crate::post::ServiceUrl;

/// Returns a new random text by which other hosts know this process.
pub(crate) fn new_host_id() -> Arc<str> {
    // From the keys that the standard library draws for each process.
    format!("{:016x}", RandomState::new().hash_one(())).into()
}

/// Another host, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerEndpoint {
    /// The URL below which the paths of the host are.
    pub url: ServiceUrl,
    /// The key that the host has for this one; `None` to send none.
    pub key: Option<Secret>,
    /// PEM of certificates to trust in addition to the system's.
    pub ca: Option<Vec<u8>>,
}

/// The URL, the key and the certificates of a host.
type PeerId = (String, Option<String>, Option<Vec<u8>>);

impl PeerEndpoint {
    fn id(&self) -> PeerId {
        let key = self.key.as_ref().map(|key| key.reveal().to_owned());
        (self.url.to_string(), key, self.ca.clone())
    }
}

/// The other hosts that are watched. Clones share the connections.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

struct Shared {
    stale: StaleLimits,
    metrics: PeerMetrics,
    /// Those that may have ended are removed when another one is added.
    readers: Mutex<HashMap<PeerId, Weak<Running>>>,
    lanes: PeerLanes,
}

/// A reader that runs.
#[derive(Debug)]
struct Running {
    endpoint: PeerEndpoint,
    client: PeerClient,
    view: watch::Receiver<PeerView>,
    _task: JoinSet<()>,
}

/// A host that is watched. Clones share the connection, which ends with the last one.
#[derive(Debug, Clone)]
pub struct Peer(Arc<Running>);

impl Peers {
    /// Creates a set without hosts, whose views count as stale after these times.
    pub fn new(stale: StaleLimits, metrics: PeerMetrics) -> Self {
        let (readers, lanes) = Default::default();
        Self(Arc::new(Shared { stale, metrics, readers, lanes }))
    }

    /// Watches a host. Must be called within a runtime, which the reader uses.
    pub fn watch(&self, endpoint: &PeerEndpoint) -> Peer {
        let Shared { stale, metrics, readers, .. } = &*self.0;
        let mut readers = readers.lock();
        let id = endpoint.id();
        if let Some(running) = readers.get(&id).and_then(Weak::upgrade) {
            return Peer(running);
        }
        readers.retain(|_, reader| reader.strong_count() > 0);
        let (sender, view) = watch::channel(PeerView::default());
        let client = call::client(endpoint);
        let reader = Reader::new(endpoint, client.clone(), (*stale, metrics), sender);
        let running = Arc::new(Running {
            endpoint: endpoint.clone(),
            client,
            view,
            _task: JoinSet::from_iter([reader.run()]),
        });
        readers.insert(id, Arc::downgrade(&running));
        Peer(running)
    }

    /// Returns the watched host that calls itself so. If there are several, one that is not down.
    pub fn find(&self, name: &str) -> Option<Peer> {
        let running: Vec<_> = self.0.readers.lock().values().filter_map(Weak::upgrade).collect();
        let named = running
            .into_iter()
            .filter(|running| running.view.borrow().host().is_some_and(|host| host.name == name));
        named.min_by_key(|running| running.view.borrow().liveness == Liveness::Down).map(Peer)
    }

    fn lanes(&self) -> &PeerLanes {
        &self.0.lanes
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("readers", &self.0.readers.lock().len()).finish()
    }
}

impl Peer {
    /// Returns what is known of the host, and is told of every change: of each event, and of the
    /// liveness. The reader must not be blocked by borrowing the view for long.
    pub fn view(&self) -> watch::Receiver<PeerView> {
        self.0.view.clone()
    }
}
