use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use http_body_util::BodyExt as _;
use pointsman_domain::dispatch::{AcquireError, FlowId, Generation, QueueLimits};
use pointsman_domain::{FleetView, LaneId, LaneState, SlotRequest};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;

const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    first_byte: Duration::from_secs(5),
    idle: Duration::from_millis(200),
};

/// Starts a fleet with one external lane, whose engine listens on `port`.
fn fleet(port: u16, slots: u32, limits: QueueLimits) -> (Fleet, FleetTasks) {
    let url = format!("http://127.0.0.1:{port}");
    start_fleet(
        ExternalSpec::try_new(&url, None, Duration::from_millis(100)).unwrap(),
        slots,
        limits,
    )
}

fn start_fleet(external: ExternalSpec, slots: u32, limits: QueueLimits) -> (Fleet, FleetTasks) {
    start_lane(external.into(), Residency::External, slots, limits)
}

/// Starts a fleet with one lane named `a`.
pub(super) fn start_lane(
    engine: EngineSpec,
    residency: Residency,
    slots: u32,
    limits: QueueLimits,
) -> (Fleet, FleetTasks) {
    let spec = fleet_spec(vec![LaneSpec { slots, ..lane("a", engine, residency) }], limits);
    let metrics = FleetMetrics::register(&mut Registry::default(), &[("a".into(), slots)]);
    Fleet::start(&spec, &metrics).unwrap()
}

/// A lane with two slots and no group.
pub(super) fn lane(name: &str, engine: EngineSpec, residency: Residency) -> LaneSpec {
    LaneSpec {
        name: name.to_owned(),
        models: vec![name.to_owned()],
        names: Default::default(),
        labels: Vec::new(),
        max_context: 0,
        endpoints: None,
        slots: 2,
        group: None,
        need: 0,
        asleep: 0,
        residency,
        expected_load: Duration::from_secs(1),
        cost_milli: 0,
        engine_model: None,
        stream_usage: false,
        engine,
        fallback_statuses: std::collections::BTreeMap::new(),
        timeouts: TIMEOUTS,
        liveness: Liveness {
            stall: Duration::ZERO,
            probe_interval: Duration::ZERO,
            probe_timeout: Duration::ZERO,
        },
    }
}

pub(super) fn fleet_spec(lanes: Vec<LaneSpec>, queue: QueueLimits) -> FleetSpec {
    FleetSpec {
        lanes,
        groups: Vec::new(),
        rules: Rules { queue, ..Rules::default() },
        state_dir: None,
        conversations: None,
        keeper: crate::KeeperSpec::default(),
        secret_variables: Vec::new(),
        machine: "/".into(),
        peering: crate::Peering::default(),
    }
}

fn serving(view: &Arc<FleetView>) -> bool {
    view.stats().all(|stat| stat.state.serving())
}

pub(super) const REQUEST: SlotRequest = SlotRequest {
    lane: LaneId(0),
    priority: 0,
    flow: FlowId(0),
    weight: 1,
    max_wait: Duration::from_secs(60),
    switching: pointsman_domain::Switching::Allow,
    has_fallback: false,
    has_begun: false,
};
pub(super) const LIMITS: QueueLimits = QueueLimits { per_lane: 1000, total: 1000 };

/// The models of [`engine`]: its own, and an adapter.
const MODELS: &str =
    r#"{"data":[{"id":"a","parent":null,"max_model_len":4096},{"id":"sql","parent":"a"}]}"#;

/// Runs an engine that responds to probes and lists its models, and responds to every other request
/// with `response`. Counts the connections with such a request that the client closes.
async fn engine(listener: TcpListener, response: &'static str, closed: watch::Sender<u32>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let closed = closed.clone();
        connections.spawn(async move {
            let mut received = vec![0; 4096];
            while let Ok(count) = stream.read(&mut received).await {
                if count == 0 {
                    let had_request = received.starts_with(b"POST");
                    closed.send_modify(|closed| *closed += u32::from(had_request));
                    return;
                }
                let list = |body: &str| {
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                };
                let message = match &received {
                    request if request.starts_with(b"GET /health") => list(""),
                    request if request.starts_with(b"GET /v1/models") => list(MODELS),
                    _ => response.to_owned(),
                };
                if stream.write_all(message.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn start_fleet_with_engine(
    response: &'static str,
) -> (Fleet, FleetTasks, watch::Receiver<u32>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, closed) = watch::channel(0);
    let mut tasks = JoinSet::new();
    tasks.spawn(engine(listener, response, sender));
    let (fleet, fleet_tasks) = fleet(port, 2, LIMITS);
    fleet.wait_for(serving).await;
    (fleet, fleet_tasks, closed, tasks)
}

async fn send(lease: &Lease) -> Result<http::Response<EngineBody>, EngineError> {
    lease.send("/v1/chat/completions", http::HeaderMap::new(), bytes::Bytes::from("{}")).await
}

/// Waits until the client has closed the connection of a request.
async fn until_closed(mut closed: watch::Receiver<u32>) {
    let waited = closed.wait_for(|closed| *closed == 1);
    tokio::time::timeout(Duration::from_secs(30), waited).await.unwrap().unwrap();
}

#[tokio::test]
async fn dropping_a_response_or_its_future_closes_the_connection() {
    let streaming = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let (fleet, _tasks, closed, _engine) = start_fleet_with_engine(streaming).await;
    let lease = fleet.acquire(REQUEST).await.unwrap();
    let mut body = send(&lease).await.unwrap().into_body();
    let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((&data[..], *closed.borrow()), (&b"hello"[..], 0));
    drop(body);
    until_closed(closed).await;

    let (fleet, _tasks, closed, _engine) = start_fleet_with_engine("").await;
    let lease = fleet.acquire(REQUEST).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), send(&lease)).await.is_err());
    until_closed(closed).await;
}

#[tokio::test]
async fn slots_are_granted_and_seen_without_waiting_for_a_task() {
    let (fleet, _tasks, _closed, _engine) = start_fleet_with_engine("").await;
    // The runtime has one thread: no other task runs while this one is not pending.
    let busy = || fleet.view().stat(LaneId(0)).unwrap().running;
    let mut requests: Vec<_> = (0..3).map(|_| Box::pin(fleet.acquire(REQUEST))).collect();
    let mut context = Context::from_waker(Waker::noop());
    let mut poll = |number: usize| requests[number].as_mut().poll(&mut context);
    let (first, second) = (poll(0), poll(1));
    assert!(first.is_ready() && second.is_ready(), "both slots are free");
    assert_eq!(busy(), 2);
    assert!(poll(2).is_pending(), "no slot is free");
    drop(first);
    assert!(poll(2).is_ready(), "the slot of the first one");
    drop(second);
    assert_eq!(busy(), 0, "the third one is dropped where it was granted");
}

#[tokio::test]
async fn context_and_adapters_are_learned_from_a_ready_engine() {
    let (fleet, _tasks, _closed, _engine) = start_fleet_with_engine("").await;
    let topology = Arc::clone(&fleet.view().topology);
    let lane = topology.lane(LaneId(0)).unwrap();
    assert_eq!((topology.generation(), lane.max_context), (2, 4096));
    for name in ["a", "sql", "a:sql"] {
        assert_eq!(topology.candidates(name), [LaneId(0)], "{name}");
    }
    let lease = fleet.acquire(REQUEST).await.unwrap();
    let asked = ["a", "sql", "a:sql", "any/sql"].map(|model| lease.engine_model(model));
    assert_eq!(asked, [None, Some("sql"), Some("sql"), Some("sql")]);
    let status = &fleet.status()[0];
    assert_eq!(
        (status.card.context, status.card.adapter_names()),
        (Some(4096), vec!["sql".to_owned()])
    );
}

#[tokio::test]
async fn silent_engine_causes_an_idle_timeout() {
    let (fleet, _tasks, _closed, _engine) = start_fleet_with_engine(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    )
    .await;
    let lease = fleet.acquire(REQUEST).await.unwrap();
    let error = send(&lease).await.unwrap().into_body().collect().await.unwrap_err();
    assert!(matches!(error, EngineError::IdleTimeout(idle) if idle == TIMEOUTS.idle), "{error}");
}

#[tokio::test]
async fn silence_before_the_first_data_is_no_idle_timeout() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                transfer-encoding: chunked\r\n\r\n3\r\n:\n\n\r\n";
    let (fleet, _tasks, _closed, _engine) = start_fleet_with_engine(head).await;
    let lease = fleet.acquire(REQUEST).await.unwrap();
    let mut body = send(&lease).await.unwrap().into_body();
    assert_eq!(&body.frame().await.unwrap().unwrap().into_data().unwrap()[..], b":\n\n");
    let in_flight = lease.activity().in_flight();
    assert_eq!((in_flight.first_data, lease.activity().received()), (1, 0));
    assert!(tokio::time::timeout(3 * TIMEOUTS.idle, body.frame()).await.is_err());
}

#[tokio::test]
async fn requests_learn_that_their_engine_hangs() {
    let streaming = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    for response in [streaming, ""] {
        let (fleet, _tasks, _closed, _engine) = start_fleet_with_engine(response).await;
        let lease = fleet.acquire(REQUEST).await.unwrap();
        let hung = lease.activity().hung().clone();
        let request = async { send(&lease).await?.into_body().collect().await };
        let (result, ()) = tokio::join!(request, async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            hung.cancel();
        });
        let error = result.unwrap_err();
        assert!(matches!(error, EngineError::Hung), "{error}");
        assert_eq!(lease.activity().in_flight().total(), 0);
    }
}

/// A local process that is quicker at the engine's port gets no requests.
#[tokio::test]
async fn engine_is_ready_only_if_it_listens_itself() {
    for check_listener in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(engine(listener, "", watch::channel(0).0));
        let spec = super::span_tests::sleeping_engine(Some(port), check_listener);
        let (fleet, fleet_tasks) = start_lane(spec, Residency::Always, 1, LIMITS);
        let ready = tokio::time::timeout(Duration::from_secs(2), fleet.wait_for(serving)).await;
        assert_eq!(ready.is_ok(), !check_listener);
        fleet_tasks.shutdown().await;
    }
}

#[tokio::test]
async fn frames_are_data_only_if_the_reader_says_so() {
    let (fleet, _tasks, _closed, _engine) = start_fleet_with_engine(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    )
    .await;
    let lease = fleet.acquire(REQUEST).await.unwrap();
    let mut body = send(&lease).await.unwrap().into_body();
    body.require_reports();
    assert!(body.frame().await.unwrap().is_ok());
    // Before the first report, the caller limits the wait.
    assert!(tokio::time::timeout(2 * TIMEOUTS.idle, body.frame()).await.is_err());
    body.report_data();
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(matches!(error, EngineError::IdleTimeout(idle) if idle == TIMEOUTS.idle), "{error}");
}

#[tokio::test]
async fn unreachable_engine_takes_its_lane_down() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (fleet, tasks) = fleet(port, 1, LIMITS);
    let view = fleet.wait_for(|view| view.stat(LaneId(0)).unwrap().state == LaneState::Down).await;
    assert_eq!(view.stat(LaneId(0)).unwrap().slots_free, 0);
    let error = fleet.acquire(REQUEST).await.unwrap_err();
    assert!(
        matches!(&error, AcquireError::NotServing { reason: Some(reason), .. }
            if reason.in_short().contains("refused")),
        "{error}"
    );
    assert!(
        fleet.status()[0].problem.as_ref().unwrap().to_string().contains("refused"),
        "{:?}",
        fleet.status()
    );
    tasks.shutdown().await;
}

#[tokio::test]
async fn shutdown_rejects_queued_requests() {
    let (fleet, tasks, _closed, _engine) = start_fleet_with_engine("").await;
    let held = [fleet.acquire(REQUEST).await.unwrap(), fleet.acquire(REQUEST).await.unwrap()];
    let mut waiting = JoinSet::new();
    waiting.spawn({
        let fleet = fleet.clone();
        async move { fleet.acquire(REQUEST).await.map(|lease| lease.generation()) }
    });
    fleet.wait_for(|view| view.stat(LaneId(0)).unwrap().queued == 1).await;
    tasks.shutdown().await;
    assert_eq!(waiting.join_next().await.unwrap().unwrap(), Err(AcquireError::Closing));
    assert_eq!(held[0].generation(), Generation(1));
}

/// Many tasks acquire leases, hold them, and cancel their requests: there are never more leases
/// than slots, and none is held or queued at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_is_lost_when_requests_are_cancelled() {
    const SLOTS: u32 = 3;
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    println!("seed {seed}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(engine(listener, "", watch::channel(0).0));
    let (fleet, _tasks) = fleet(port, SLOTS, LIMITS);
    fleet.wait_for(serving).await;
    let held = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for client in 0..60u32 {
        let (fleet, held) = (fleet.clone(), Arc::clone(&held));
        clients.spawn(async move {
            for round in 0..40u32 {
                let random =
                    seed.wrapping_mul(2_654_435_761).wrapping_add(client * 977 + round * 7919)
                        % 1000;
                let timeout = Duration::from_micros(u64::from(random) * 3);
                let Ok(Ok(lease)) = tokio::time::timeout(timeout, fleet.acquire(REQUEST)).await
                else {
                    continue;
                };
                assert!(held.fetch_add(1, Ordering::SeqCst) < SLOTS, "more leases than slots");
                tokio::time::sleep(Duration::from_micros(u64::from(random % 50))).await;
                held.fetch_sub(1, Ordering::SeqCst);
                if random.is_multiple_of(2) { lease.finish(false, false) } else { drop(lease) }
            }
        });
    }
    while let Some(result) = clients.join_next().await {
        result.unwrap();
    }
    let view = fleet
        .wait_for(|view| {
            view.stat(LaneId(0)).unwrap().running == 0 && view.stat(LaneId(0)).unwrap().queued == 0
        })
        .await;
    assert_eq!(view.stat(LaneId(0)).unwrap().slots_free, SLOTS);
}

#[tokio::test]
async fn remote_engine_is_reached_by_tls_if_its_certificate_is_trusted() {
    let issued = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(
        vec![issued.cert.der().clone()],
        rustls::pki_types::PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()).into(),
    )
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/v1", listener.local_addr().unwrap().port());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut received = vec![0; 4096];
                while stream.read(&mut received).await.is_ok_and(|count| count > 0) {
                    let reply = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            });
        }
    });
    let external = ExternalSpec::try_new(&url, None, Duration::from_millis(100)).unwrap();
    let pem = issued.cert.pem().into_bytes();
    let (fleet, _tasks) = start_fleet(external.clone().with_root_certificates(pem), 1, LIMITS);
    fleet.wait_for(serving).await;
    let lease = fleet.acquire(REQUEST).await.unwrap();
    assert_eq!(
        send(&lease).await.unwrap().into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );

    let (fleet, _tasks) = start_fleet(external, 1, LIMITS);
    fleet.wait_for(|view| view.stat(LaneId(0)).unwrap().state == LaneState::Down).await;
    let error = fleet.acquire(REQUEST).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}
