use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use pointsman_peers::{
    Event, Heartbeat, HostInfo, LaneDescription, LaneReport, LaneReports, Liveness, PeerView,
    StaleLimits, TopologyEvent, VERSION,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{PeerCallError, PeerEndpoint, PeerMetrics, Peers};
use crate::engine_spec::Secret;
use crate::post::ServiceUrl;

const STALE: StaleLimits =
    StaleLimits { degraded: Duration::from_millis(300), down: Duration::from_millis(900) };

fn topology(generation: u64, names: &[&str]) -> String {
    let lane = |(id, name): (u32, &&str)| LaneDescription {
        id,
        name: (*name).to_owned(),
        ..LaneDescription::default()
    };
    let host = HostInfo { id: "h".into(), ..HostInfo::default() };
    let lanes = (0..).zip(names).map(lane).collect();
    Event::Topology(TopologyEvent { version: VERSION, generation, host, lanes }).to_sse()
}

fn queued(generation: u64, queued: u32) -> String {
    let lanes = vec![LaneReport { queued, ..LaneReport::default() }];
    Event::Lanes(LaneReports { generation, lanes }).to_sse()
}

/// A host that sends what a test tells it to.
struct Sender(TcpStream);

impl Sender {
    /// Accepts a reader, and returns the head of its request.
    async fn accept(listener: &TcpListener, status: &str) -> (Self, String) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let response = format!("HTTP/1.1 {status}\r\ncontent-type: text/event-stream\r\n\r\n");
        stream.write_all(response.as_bytes()).await.unwrap();
        (Self(stream), String::from_utf8(head).unwrap())
    }

    async fn send(&mut self, event: &str) {
        self.0.write_all(event.as_bytes()).await.unwrap();
    }
}

async fn listener() -> (TcpListener, PeerEndpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let url = ServiceUrl::parse(&format!("http://{address}")).unwrap();
    (listener, PeerEndpoint { url, key: Some(Secret::new("s3cret".into())), ca: None })
}

/// Waits until a condition holds.
async fn until(
    view: &mut watch::Receiver<PeerView>,
    condition: impl FnMut(&PeerView) -> bool,
) -> PeerView {
    let found = timeout(Duration::from_secs(20), view.wait_for(condition)).await;
    found.expect("the condition holds in time").unwrap().clone()
}

#[tokio::test]
async fn view_follows_the_host_and_becomes_stale_with_its_silence() {
    let (listener, endpoint) = listener().await;
    let peers = Peers::new(STALE, PeerMetrics::default());
    let peer = peers.watch(&endpoint);
    let mut view = peer.view();
    assert_eq!(view.borrow().liveness, Liveness::Down);
    let (mut host, head) = Sender::accept(&listener, "200 OK").await;
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("get /fleet http/1.1") && head.contains("authorization: bearer s3"));
    host.send(&(topology(1, &["a"]) + &queued(1, 3))).await;
    let found = until(&mut view, |view| view.lanes().first().is_some_and(|a| a.report.queued > 0));
    assert_eq!(found.await.liveness, Liveness::Live);
    host.send(&queued(1, 4)).await;
    until(&mut view, |view| view.lanes()[0].report.queued == 4).await;
    let begun = Instant::now();
    until(&mut view, |view| view.liveness == Liveness::Degraded).await;
    let down = until(&mut view, |view| view.liveness == Liveness::Down).await;
    assert!(begun.elapsed() >= STALE.down - Duration::from_millis(100));
    assert_eq!(down.lanes()[0].report.queued, 4, "what was known is kept");
    // The reader does not wait for a connection on which nothing comes.
    let (mut host, _) = Sender::accept(&listener, "200 OK").await;
    assert_eq!(view.borrow().error, Some("peer_silent"));
    host.send(&topology(2, &["b"])).await;
    let found = until(&mut view, |view| view.liveness == Liveness::Live).await;
    assert!(found.lane("b").is_some() && found.error.is_none() && found.generation() == 2);
    host.send(&Event::Heartbeat(Heartbeat { generation: 2 }).to_sse()).await;
    drop(host);
    let found = until(&mut view, |view| view.error.is_some()).await;
    assert!(["peer_ended", "peer_unreachable"].contains(&found.error.unwrap()));
    assert_eq!(found.liveness, Liveness::Live, "another connection may follow at once");
}

#[tokio::test]
async fn failures_have_codes_and_are_attempted_again() {
    let (listener, endpoint) = listener().await;
    let peer = Peers::new(STALE, PeerMetrics::default()).watch(&endpoint);
    let mut view = peer.view();
    let large = "x".repeat(2 << 20);
    for (status, event, code) in [
        ("401 Unauthorized", "", "peer_key_refused"),
        ("302 Found", "", "peer_unexpected_status"),
        ("200 OK", "event: topology\ndata: {\"version\":9}\n\n", "peer_version"),
        ("200 OK", "event: topology\ndata: nonsense\n\n", "peer_invalid_event"),
        ("200 OK", large.as_str(), "peer_event_too_large"),
    ] {
        let (mut host, _) = Sender::accept(&listener, status).await;
        // The reader may have ended the connection before it has everything.
        host.0.write_all(event.as_bytes()).await.ok();
        let found = until(&mut view, |view| view.error == Some(code)).await;
        assert_eq!((found.liveness, found.host().is_none()), (Liveness::Down, true), "{code}");
    }
}

#[tokio::test]
async fn all_who_watch_a_host_share_one_connection_that_ends_with_the_last_one() {
    let (listener, endpoint) = listener().await;
    let peers = Peers::new(STALE, PeerMetrics::default());
    let (first, second) = (peers.watch(&endpoint), peers.watch(&endpoint));
    let (mut host, _) = Sender::accept(&listener, "200 OK").await;
    host.send(&topology(1, &["a"])).await;
    for peer in [&first, &second] {
        until(&mut peer.view(), |view| view.lane("a").is_some()).await;
    }
    let accepted = timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(accepted.is_err(), "one connection");
    drop(first);
    host.send(&topology(2, &["b"])).await;
    let mut view = second.view();
    until(&mut view, |view| view.lane("b").is_some()).await;
    drop(second);
    let ended = timeout(Duration::from_secs(20), view.wait_for(|_| false)).await;
    assert!(ended.expect("the reader ends").is_err());
    let mut rest = Vec::new();
    let closed = timeout(Duration::from_secs(20), host.0.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the connection is closed");
    let again = peers.watch(&endpoint);
    Sender::accept(&listener, "200 OK").await;
    drop(again);
}

/// Accepts a request, and responds to it with this text. Returns the head of the request.
async fn respond(listener: &TcpListener, response: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(response.as_bytes()).await.unwrap();
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn a_host_is_found_by_its_name_and_called_with_its_key() {
    let (listener, endpoint) = listener().await;
    let peers = Peers::new(STALE, PeerMetrics::default());
    let peer = peers.watch(&endpoint);
    assert!(peers.find("").is_none(), "a host of which nothing is known");
    let (mut host, _) = Sender::accept(&listener, "200 OK").await;
    let info = HostInfo { id: "h".into(), name: "gpu-2".into(), ..HostInfo::default() };
    let topology = TopologyEvent { version: VERSION, generation: 1, host: info, lanes: vec![] };
    host.send(&Event::Topology(topology).to_sse()).await;
    until(&mut peer.view(), |view| view.host().is_some()).await;
    assert!(peers.find("gpu-3").is_none());
    let found = peers.find("gpu-2").unwrap();
    let call = async |response: &str| -> (String, Result<Response<Bytes>, PeerCallError>) {
        let name = HeaderName::from_static("x-pointsman-key");
        let headers = HeaderMap::from_iter([(name, HeaderValue::from_static("1"))]);
        let called = found.call(Method::DELETE, "/v1/responses/r", headers, 4);
        tokio::join!(respond(&listener, response), called)
    };
    let (head, response) = call("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nbody").await;
    let response = response.unwrap();
    assert_eq!((response.status().as_u16(), &response.body()[..]), (404, &b"body"[..]));
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("delete /v1/responses/r http/1.1"), "{head}");
    assert!(head.contains("authorization: bearer s3cret") && head.contains("x-pointsman-key: 1"));
    let long = call("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nbody!").await.1;
    assert!(matches!(long, Err(PeerCallError::Connection(_))), "{long:?}");
    let short = call("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbod").await.1;
    assert!(matches!(short, Err(PeerCallError::Connection(_))), "{short:?}");
}

#[tokio::test]
async fn lane_of_a_host_is_shown_as_the_host_describes_it() {
    let (listener, endpoint) = listener().await;
    let peers = Peers::new(STALE, PeerMetrics::default());
    assert_eq!(peers.lane_status("far"), None);
    let watched = peers.watch_lane("far", "a", &endpoint);
    let before = peers.lane_status("far").unwrap();
    assert_eq!((before.liveness, before.silent, before.report), (Liveness::Down, None, None));
    let (mut host, _) = Sender::accept(&listener, "200 OK").await;
    host.send(&(topology(1, &["a"]) + &queued(1, 3))).await;
    let mut view = watched.view();
    until(&mut view, |view| view.lanes().first().is_some_and(|a| a.report.queued > 0)).await;
    let status = peers.lane_status("far").unwrap();
    assert_eq!((status.url, status.lane.as_str()), (endpoint.url.to_string(), "a"));
    assert_eq!(status.report.map(|(report, _)| report.queued), Some(3));
    assert!(status.last_event.is_some() && status.silent.is_some());
    // The lane is configured anew before its last watch ends.
    let next = peers.watch_lane("far", "b", &endpoint);
    drop(watched);
    let status = peers.lane_status("far").unwrap();
    assert_eq!((status.lane.as_str(), status.report), ("b", None));
    drop(next);
    assert_eq!(peers.lane_status("far"), None);
}
