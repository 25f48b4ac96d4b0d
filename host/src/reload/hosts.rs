//! Lanes of other hosts, which are found in what the hosts tell at `GET /fleet`.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use pointsman_config::{Discovery, HostLane, LaneText, Pick, PickHost};
use pointsman_fleet::{Peer, PeerEndpoint, Peers};
use pointsman_peers::LaneDescription;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// The hosts of `[[pick.hosts]]`, and their lanes.
#[derive(Debug)]
pub(super) struct HostLanes {
    peers: Peers,
    runtime: Handle,
    found: Arc<Found>,
    /// The hosts that are followed, by name.
    followed: Mutex<HashMap<String, Followed>>,
}

#[derive(Debug)]
struct Followed {
    endpoint: PeerEndpoint,
    _task: JoinSet<()>,
}

/// What the hosts have told.
struct Found {
    lanes: Mutex<LastLanes>,
    wake: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug, Default)]
struct LastLanes {
    /// Changes whenever the lanes of a host do.
    version: u64,
    /// The last lanes of each host that has been connected, by the name of the host.
    of_hosts: HashMap<String, Vec<HostLane>>,
}

impl HostLanes {
    /// Creates a source that follows no hosts yet. `wake` is called whenever lanes have changed.
    pub(super) fn new(
        peers: &Peers,
        runtime: &Handle,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            peers: peers.clone(),
            runtime: runtime.clone(),
            found: Arc::new(Found { lanes: Mutex::default(), wake: Box::new(wake) }),
            followed: Mutex::default(),
        }
    }

    fn follow_host(&self, host: &PickHost) -> Followed {
        let _entered = self.runtime.enter();
        let peer = self.peers.watch(&host.endpoint);
        let task = follow(host.name.clone(), peer, Arc::clone(&self.found));
        Followed { endpoint: host.endpoint.clone(), _task: JoinSet::from_iter([task]) }
    }
}

impl Discovery for HostLanes {
    fn key(&self) -> &'static str {
        "hosts"
    }

    fn lanes(&self, pick: &Pick) -> Result<Vec<LaneText>, String> {
        let found = self.found.lanes.lock();
        let text = |host: &PickHost| {
            Some(LaneText {
                origin: PathBuf::from(format!("lanes of host \"{}\"", host.name)),
                text: host.lanes_text(found.of_hosts.get(&host.name)?),
                has_references: false,
            })
        };
        Ok(pick.hosts.iter().filter_map(text).collect())
    }

    fn version(&self, _pick: &Pick) -> u64 {
        self.found.lanes.lock().version
    }

    /// A host whose address or key has changed keeps its lanes until it tells others.
    fn follow(&self, pick: Option<&Pick>) {
        let hosts = pick.map(|pick| pick.hosts.as_slice()).unwrap_or_default();
        let mut followed = self.followed.lock();
        followed.retain(|name, known| {
            hosts.iter().any(|host| host.name == *name && host.endpoint == known.endpoint)
        });
        for host in hosts {
            followed.entry(host.name.clone()).or_insert_with(|| self.follow_host(host));
        }
        let mut found = self.found.lanes.lock();
        found.of_hosts.retain(|name, _| followed.contains_key(name));
    }
}

impl Found {
    /// Notes the lanes of a host.
    fn told(&self, host: &str, lanes: Vec<HostLane>) {
        let mut found = self.lanes.lock();
        if found.of_hosts.get(host) == Some(&lanes) {
            return;
        }
        found.version += 1;
        tracing::info!(
            event = "host_lanes_found",
            host,
            lanes = lanes.len(),
            "a host has told other lanes"
        );
        found.of_hosts.insert(host.to_owned(), lanes);
        drop(found);
        (self.wake)();
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

/// Notes each topology of a host. What a host that goes away has told remains.
async fn follow(name: String, peer: Peer, found: Arc<Found>) {
    let mut views = peer.view();
    let mut known = None;
    loop {
        let told = {
            // Borrowed for some microseconds: the reader of the host waits meanwhile.
            let view = views.borrow_and_update();
            let topology = view.host().map(|host| (host.id.as_str(), view.generation()));
            let before = known.as_ref().map(|(id, generation): &(String, _)| (&**id, *generation));
            let new = topology.filter(|topology| Some(*topology) != before);
            new.map(|(id, generation)| (id.to_owned(), generation)).map(|new| {
                known = Some(new);
                view.lanes().iter().map(|lane| host_lane(&lane.description)).collect()
            })
        };
        told.into_iter().for_each(|lanes| found.told(&name, lanes));
        if views.changed().await.is_err() {
            return;
        }
    }
}

fn host_lane(there: &LaneDescription) -> HostLane {
    HostLane { name: there.name.clone(), labels: there.labels.clone() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use pointsman_config::Config;
    use pointsman_fleet::{PeerMetrics, StaleLimits};
    use pointsman_peers::{Event, HostInfo, TopologyEvent, VERSION};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
    use tokio::time::timeout;

    use super::*;

    /// A host that sends topologies.
    struct Sender(TcpStream);

    impl Sender {
        async fn accept(listener: &TcpListener) -> Self {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            Self(stream)
        }

        async fn send(&mut self, generation: u64, names: &[&str]) {
            let lane = |(id, name): (u32, &&str)| LaneDescription {
                id,
                name: (*name).to_owned(),
                labels: vec![("of".to_owned(), (*name).to_owned())],
                ..LaneDescription::default()
            };
            let host = HostInfo { id: "h".into(), ..HostInfo::default() };
            let lanes = (0..).zip(names).map(lane).collect();
            let event = TopologyEvent { version: VERSION, generation, host, lanes };
            self.0.write_all(Event::Topology(event).to_sse().as_bytes()).await.unwrap();
        }
    }

    async fn woken(wakes: &mut UnboundedReceiver<()>) {
        timeout(Duration::from_secs(20), wakes.recv()).await.expect("the reload is woken");
    }

    /// Returns the lanes of a configuration with this text.
    fn lanes(text: &str, source: &HostLanes) -> Vec<(String, Vec<(String, String)>)> {
        let config = Config::discover(text, Path::new("/conf/p.toml"), &[source]).unwrap();
        config.fleet.lanes.into_iter().map(|lane| (lane.name, lane.labels)).collect()
    }

    fn lane(name: &str, label: &str) -> (String, Vec<(String, String)>) {
        (name.to_owned(), vec![("of".to_owned(), label.to_owned())])
    }

    #[tokio::test]
    async fn lanes_of_a_host_are_those_of_its_last_topology_even_if_it_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let text = format!("[pick]\n[[pick.hosts]]\nname = \"h\"\nurl = \"http://{address}\"\n");
        let (wake, mut wakes) = unbounded_channel();
        let peers = Peers::new(StaleLimits::default(), PeerMetrics::default());
        let source = HostLanes::new(&peers, &Handle::current(), move || {
            wake.send(()).ok(); // Fails only if the test has failed.
        });
        assert_eq!(lanes(&text, &source), []);
        let config = Config::discover(&text, Path::new("/conf/p.toml"), &[&source]).unwrap();
        let pick = config.pick.unwrap();
        source.follow(Some(&pick));
        let mut host = Sender::accept(&listener).await;
        let first = source.version(&pick);
        host.send(1, &["a"]).await;
        woken(&mut wakes).await;
        assert_ne!(source.version(&pick), first);
        assert_eq!(lanes(&text, &source), [lane("h.a", "a")]);
        // The same lanes are no reason to read them again.
        host.send(2, &["a"]).await;
        host.send(3, &["a", "b"]).await;
        woken(&mut wakes).await;
        let second = source.version(&pick);
        assert_eq!(second, first + 2);
        drop(host);
        drop(Sender::accept(&listener).await);
        source.follow(Some(&pick));
        assert_eq!(lanes(&text, &source), [lane("h.a", "a"), lane("h.b", "b")]);
        assert_eq!(source.version(&pick), second);
        source.follow(None);
        assert_eq!(lanes(&text, &source), []);
    }
}
