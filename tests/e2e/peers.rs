//! Hosts that see each other: what `GET /fleet` of a real host tells, and whom.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pointsman_domain::{FleetKey, LaneState, PromptHasher};
use pointsman_peers::{EventDecoder, Liveness, PeerView, StaleLimits};
use pointsman_tests::client::{ResponseStream, chat, open, send};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";
const PEER: &str = "peer-key-0123456789";
const SALT: &str = "salt-0123456789abcdef";
const PEERS: &str = "[[peers]]\nname = \"other\"\nkey-file = \"peer.key\"\n";
const FLEET: &str = "[fleet]\nname = \"gpu-1\"\n";

/// Starts a host beside whose configuration there are the key of another host and the salt.
fn host(config: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("peer.key"), PEER).unwrap();
    fs::write(dir.path().join("fleet.salt"), SALT).unwrap();
    let host = Host::start_in(&program(FAKE_ENGINE), dir, config, &[("CLIENT_KEY", "client-key")]);
    host.wait_until_ready()
}

/// Replaces the configuration, and has it reloaded.
fn reload(host: &Host, config: &str) {
    let before = host.events("config_reloaded", &[]).len();
    let config = pointsman_tests::host::with_json_log(config);
    fs::write(host.dir.path().join("pointsman.toml"), config).unwrap();
    host.signal(Signal::HUP);
    wait_until("the configuration is reloaded", || {
        host.events("config_reloaded", &[]).len() > before
    });
}

fn bearer(secret: &str) -> String {
    format!("Bearer {secret}")
}

/// A reader of a host.
struct Reader {
    stream: ResponseStream,
    decoder: EventDecoder,
    view: PeerView,
}

impl Reader {
    fn new(host: &Host) -> Self {
        let stream = open(host.port, "GET", "/fleet", &[("authorization", &bearer(PEER))], b"");
        assert_eq!(stream.status, 200);
        Self { stream, decoder: EventDecoder::default(), view: PeerView::default() }
    }

    /// Reads the next chunk; returns false at the end of the stream.
    fn read(&mut self) -> bool {
        self.stream.body.clear();
        if !self.stream.read_chunk() {
            return false;
        }
        let Self { stream, decoder, view } = self;
        decoder
            .push(&stream.body, |event| {
                view.apply(event, Instant::now());
            })
            .unwrap();
        true
    }

    /// Returns true if the last chunk says that nothing has changed.
    fn has_heartbeat(&self) -> bool {
        String::from_utf8_lossy(&self.stream.body).contains("event: heartbeat")
    }

    /// Reads until a condition holds, and returns how long that took.
    fn until(&mut self, what: &str, condition: impl Fn(&PeerView) -> bool) -> Duration {
        let begun = Instant::now();
        while !condition(&self.view) {
            assert!(self.read(), "the stream ended before {what}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{what} does not come");
        }
        begun.elapsed()
    }
}

fn state(view: &PeerView, lane: &str) -> Option<LaneState> {
    view.lane(lane).map(|lane| lane.report.state)
}

#[test]
fn only_other_hosts_read_the_fleet_and_do_nothing_else() {
    let keys = "[[keys]]\ntenant = \"team\"\nenv = \"CLIENT_KEY\"\n";
    for is_open in [true, false] {
        let keys = if is_open { "" } else { keys };
        let host = host(&[FLEET, PEERS, keys, &lane("a", &["m"], &[])].concat());
        let get = |path: &str, secret: Option<&str>| {
            let value = secret.map(bearer);
            let headers: Vec<_> =
                value.iter().map(|value| ("authorization", value.as_str())).collect();
            let response = send(host.port, "GET", path, &headers, b"");
            (response.status, response.error_code())
        };
        assert_eq!(get("/fleet", None), (401, json!("invalid_api_key")));
        assert_eq!(get("/fleet", Some("wrong")), (401, json!("invalid_api_key")));
        if !is_open {
            let refused = (403, json!("peer_key_required"));
            assert_eq!(get("/fleet", Some("client-key")), refused);
        }
        for path in ["/metrics", "/status", "/v1/models", "/upstream/a/props", "/fleet/x"] {
            assert_eq!(get(path, Some(PEER)), (403, json!("peer_not_allowed")), "{path}");
        }
        let (authorization, body) = (bearer(PEER), chat("m", json!({})).to_string());
        let headers =
            [("authorization", authorization.as_str()), ("content-type", "application/json")];
        assert_eq!(send(host.port, "POST", CHAT, &headers, body.as_bytes()).status, 200);
        let mut reader = Reader::new(&host);
        reader.until("the lane", |view| state(view, "a") == Some(LaneState::Ready));
        assert_eq!(host.metric("pointsman_fleet_readers", ""), 1.0);
        assert!(!host.log_text().contains(PEER));
        host.stop();
        while reader.read() {}
        assert!(reader.stream.complete, "the stream ends when the host stops");
    }
}

#[test]
fn operators_read_the_fleet_without_a_key() {
    let host = host(&lane("a", &["m"], &[]));
    let mut stream = UnixStream::connect(host.admin_socket().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /fleet HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    while !text.contains("event: heartbeat") {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    assert!(text.contains("event: topology") && text.contains("event: lanes"), "{text}");
    host.stop();
}

#[test]
fn topology_follows_the_configuration_and_a_revoked_key_ends_the_stream() {
    let group = "[[groups]]\nname = \"gpu\"\nmemory = \"8GiB\"\n";
    let first = lane("a", &["m"], &[]);
    let host = host(&[FLEET, PEERS, &first].concat());
    let mut reader = Reader::new(&host);
    reader.until("the lane", |view| state(view, "a") == Some(LaneState::Ready));
    let description = reader.view.host().unwrap().clone();
    assert_eq!((description.name.as_str(), description.id.len()), ("gpu-1", 16));
    assert_eq!(description.software, env!("CARGO_PKG_VERSION"));
    let more = "labels = { zone = \"x\" }";
    let second = fake_lane(FAKE_ENGINE, "b", &["m", "n"], more, &[]);
    reload(&host, &[FLEET, PEERS, group, &first, &second].concat());
    reader.until("the second lane", |view| state(view, "b") == Some(LaneState::Ready));
    let lane = reader.view.lane("b").unwrap();
    assert_eq!(lane.description.models, ["m", "n"]);
    assert_eq!(lane.description.labels, [("zone".to_owned(), "x".to_owned())]);
    assert_eq!(reader.view.host(), Some(&description));
    assert_eq!(state(&reader.view, "a"), Some(LaneState::Ready));
    reload(&host, &[FLEET, PEERS, &second].concat());
    reader.until("the first lane is removed", |view| view.lane("a").is_none());
    reload(&host, &[FLEET, &second].concat());
    let begun = Instant::now();
    while reader.read() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the stream of a revoked key goes on");
    }
    let refused = send(host.port, "GET", "/fleet", &[("authorization", &bearer(PEER))], b"");
    assert_eq!(refused.status, 401);
    host.stop();
}

#[test]
fn queue_and_slots_are_seen_soon_and_silence_never_lasts() {
    let host =
        host(&[FLEET, PEERS, &fake_lane(FAKE_ENGINE, "a", &["m"], "slots = 1", &[])].concat());
    let mut reader = Reader::new(&host);
    let idle = |view: &PeerView| view.lane("a").is_some_and(|a| a.report.slots_free > 0);
    reader.until("a free slot", idle);
    host.set_script("a", json!({ "hang": true }));
    let body = chat("m", json!({})).to_string();
    let requests: Vec<_> = (0..3)
        .map(|_| {
            let (port, body) = (host.port, body.clone());
            std::thread::spawn(move || {
                let headers = [("content-type", "application/json")];
                send(port, "POST", CHAT, &headers, body.as_bytes()).status
            })
        })
        .collect();
    let busy = |view: &PeerView| {
        let report = &view.lanes()[0].report;
        (report.queued, report.running, report.slots_free) == (2, 1, 0)
    };
    reader.until("the queue", busy);
    let begun = Instant::now();
    let limits = StaleLimits { degraded: Duration::from_secs(3), ..StaleLimits::default() };
    while begun.elapsed() < Duration::from_secs(3) {
        assert!(reader.read());
        let liveness = reader.view.liveness_at(Instant::now(), &limits);
        assert_eq!(liveness, Liveness::Live);
    }
    host.set_script("a", json!({}));
    host.signal(Signal::TERM);
    drop(reader);
    for request in requests {
        // Those that hang end with the host.
        request.join().ok();
    }
}

#[test]
fn readers_get_everything_anew_whenever_they_come() {
    let host = host(&[FLEET, PEERS, &lane("a", &["m"], &[]), &lane("b", &["m"], &[])].concat());
    let ready =
        |view: &PeerView| ["a", "b"].iter().all(|lane| state(view, lane) == Some(LaneState::Ready));
    let mut readers: Vec<Reader> = (0..20).map(|_| Reader::new(&host)).collect();
    for reader in &mut readers {
        reader.until("both lanes", ready);
    }
    let generation = readers[0].view.generation();
    assert!(readers.iter().all(|reader| reader.view.generation() == generation));
    // Those that leave do not disturb the others.
    readers.truncate(3);
    let mut late = Reader::new(&host);
    late.until("both lanes", ready);
    let stats = |reader: &Reader| format!("{:?}", reader.view.lanes());
    assert_eq!(stats(&late), stats(&readers[0]));
    wait_until("the readers that have left are gone", || {
        host.metric("pointsman_fleet_readers", "") == 4.0
    });
    host.stop();
}

/// A reader whose flow control lets the host send a hundred bytes, of which it takes none.
async fn reader_that_takes_nothing(port: u16, tasks: &mut JoinSet<()>) -> Incoming {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let builder = builder.initial_stream_window_size(100);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tasks.spawn(async move { connection.await.unwrap_or_default() });
    let request = http::Request::get(format!("http://localhost:{port}/fleet"));
    let request = request.header("authorization", bearer(PEER));
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await;
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body()
}

#[test]
fn reader_that_takes_nothing_is_disconnected_and_others_go_on() {
    let server = "[server]\nwrite-timeout = \"1s\"\n";
    let host = host(&[server, FLEET, PEERS, &lane("a", &["m"], &[])].concat());
    let mut reader = Reader::new(&host);
    reader.until("the lane", |view| state(view, "a") == Some(LaneState::Ready));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
    let mut connection = JoinSet::new();
    let mut body = runtime.block_on(reader_that_takes_nothing(host.port, &mut connection));
    host.wait_for_event("slow_client", &[]);
    wait_until("the reader is gone", || host.metric("pointsman_fleet_readers", "") == 1.0);
    let failed = runtime.block_on(async {
        let read = async {
            while let Some(frame) = body.frame().await {
                if frame.is_err() {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(Duration::from_secs(20), read).await
    });
    assert_eq!(failed, Ok(true), "its stream is reset");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert!(reader.read(), "the stream of another reader");
    }
    host.stop();
}

#[test]
fn other_hosts_with_the_salt_know_what_is_cached_and_see_no_prompt() {
    let salted = "[fleet]\nsalt-file = \"fleet.salt\"\n";
    for has_salt in [true, false] {
        let fleet = if has_salt { salted } else { FLEET };
        let host = host(&[fleet, PEERS, &lane("a", &["m"], &[])].concat());
        let mut reader = Reader::new(&host);
        reader.until("the lane", |view| state(view, "a") == Some(LaneState::Ready));
        let text = "the same long beginning of all prompts, ".repeat(200);
        let messages = json!([{"role": "user", "content": text}]);
        let body = json!({"model": "m", "messages": messages}).to_string();
        let headers = [("content-type", "application/json")];
        assert_eq!(send(host.port, "POST", CHAT, &headers, body.as_bytes()).status, 200);
        if !has_salt {
            // A second without a change: everything about the request was sent.
            for _ in 0..2 {
                while reader.read() && !reader.has_heartbeat() {}
            }
            assert!(reader.view.lanes()[0].digest.is_empty());
            host.stop();
            continue;
        }
        reader.until("the digest", |view| !view.lanes()[0].digest.is_empty());
        let digest = &reader.view.lanes()[0].digest;
        let cached = |salt: &str| {
            let key = Sha256::new().chain_update("pointsman fleet\n").chain_update(salt).finalize();
            let hasher = PromptHasher::for_fleet(&FleetKey(key[..16].try_into().unwrap()));
            // Prompts are hashed as their JSON literals.
            let literal = serde_json::to_string(&text).unwrap();
            digest.cached_tokens(&hasher.hash("m", [b"\nuser:", literal.as_bytes()]))
        };
        assert_eq!(cached("another salt of another fleet"), 0);
        let tokens = cached(SALT);
        assert!(tokens > 500, "{tokens} tokens");
        assert!(!String::from_utf8_lossy(&reader.stream.body).contains("beginning"));
        host.stop();
    }
}
