use std::sync::atomic::AtomicU32;

use http_body_util::BodyExt as _;
use pointsman_domain::dispatch::{Generation, QueueLimits};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(5),
    first_byte: Duration::from_secs(5),
    idle: Duration::from_millis(200),
};

/// A fleet of one external lane, whose engine is whatever listens at `port`.
fn fleet(port: u16, slots: u32, limits: QueueLimits) -> (Fleet, FleetTasks) {
    let url = format!("http://127.0.0.1:{port}");
    fleet_of(ExternalSpec::try_new(&url, None, Duration::from_millis(100)).unwrap(), slots, limits)
}

fn fleet_of(external: ExternalSpec, slots: u32, limits: QueueLimits) -> (Fleet, FleetTasks) {
    let lane = LaneSpec {
        name: "a".into(),
        models: vec!["a".into()],
        labels: Vec::new(),
        max_context: 0,
        slots,
        group: None,
        need: 0,
        asleep: 0,
        residency: Residency::External,
        expected_load: Duration::from_secs(1),
        cost_milli: 0,
        engine_model: None,
        engine: EngineSpec::External(external),
        timeouts: TIMEOUTS,
        liveness: Liveness {
            stall: Duration::ZERO,
            probe_every: Duration::ZERO,
            probe_limit: Duration::ZERO,
        },
    };
    let metrics = FleetMetrics::register(&mut Registry::default(), &[("a".into(), slots)]);
    let spec = FleetSpec {
        lanes: vec![lane],
        groups: Vec::new(),
        rules: Rules { queue: limits, ..Rules::default() },
        state_dir: None,
        keeper: None,
        machine: "/".into(),
    };
    Fleet::start(&spec, &metrics).unwrap()
}

fn serving(view: &Arc<FleetView>) -> bool {
    view.stats.iter().all(|stat| stat.state.serving())
}

const WANTED: SlotRequest<'_> = SlotRequest {
    lane: LaneId(0),
    priority: 0,
    flow: "",
    max_wait: Duration::from_secs(60),
    switching: pointsman_domain::Switching::Allow,
    has_fallback: false,
};
const LIMITS: QueueLimits = QueueLimits { per_lane: 1000, total: 1000 };

/// An engine that answers probes, and every other request with `answer`; then it waits for the client to leave, and counts it.
async fn engine(listener: TcpListener, answer: &'static str, left: Arc<AtomicU32>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let left = Arc::clone(&left);
        connections.spawn(async move {
            let mut seen = vec![0; 4096];
            while let Ok(count) = stream.read(&mut seen).await {
                if count == 0 {
                    left.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                let health = seen.starts_with(b"GET /health");
                let reply =
                    if health { "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" } else { answer };
                if stream.write_all(reply.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn with_engine(answer: &'static str) -> (Fleet, FleetTasks, Arc<AtomicU32>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let left = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    tasks.spawn(engine(listener, answer, Arc::clone(&left)));
    let (fleet, fleet_tasks) = fleet(port, 2, LIMITS);
    fleet.wait_for(serving).await;
    (fleet, fleet_tasks, left, tasks)
}

async fn send(lease: &Lease) -> Result<http::Response<EngineBody>, EngineError> {
    lease.send("/v1/chat/completions", http::HeaderMap::new(), "{}".into()).await
}

async fn until(condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap();
}

#[tokio::test]
async fn dropping_an_answer_or_the_wait_for_one_closes_the_connection() {
    let streaming = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let (fleet, _tasks, left, _engine) = with_engine(streaming).await;
    let lease = fleet.acquire(WANTED).await.unwrap();
    let mut body = send(&lease).await.unwrap().into_body();
    let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!((&data[..], left.load(Ordering::SeqCst)), (&b"hello"[..], 0));
    drop(body);
    until(|| left.load(Ordering::SeqCst) == 1).await;

    let (fleet, _tasks, left, _engine) = with_engine("").await;
    let lease = fleet.acquire(WANTED).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), send(&lease)).await.is_err());
    until(|| left.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn an_engine_that_falls_silent_is_an_idle_timeout() {
    let (fleet, _tasks, _left, _engine) =
        with_engine("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    let lease = fleet.acquire(WANTED).await.unwrap();
    let error = send(&lease).await.unwrap().into_body().collect().await.unwrap_err();
    assert!(matches!(error, EngineError::IdleTimeout(idle) if idle == TIMEOUTS.idle), "{error}");
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_no_connection_and_its_lane_is_down() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (fleet, tasks) = fleet(port, 1, LIMITS);
    let view = fleet.wait_for(|view| view.stats[0].state == LaneState::Down).await;
    assert_eq!(view.stats[0].slots_free, 0);
    let refusal = fleet.acquire(WANTED).await.unwrap_err();
    assert!(
        matches!(&refusal, AcquireError::NotServing { reason: Some(reason), .. } if reason.contains("refused")),
        "{refusal}"
    );
    assert!(
        fleet.status()[0].problem.as_ref().unwrap().contains("refused"),
        "{:?}",
        fleet.status()
    );
    tasks.shutdown().await;
}

#[tokio::test]
async fn stopping_refuses_whoever_waits() {
    let (fleet, tasks, _left, _engine) = with_engine("").await;
    let held = [fleet.acquire(WANTED).await.unwrap(), fleet.acquire(WANTED).await.unwrap()];
    let mut waiting = JoinSet::new();
    waiting.spawn({
        let fleet = fleet.clone();
        async move { fleet.acquire(WANTED).await.map(|lease| lease.generation) }
    });
    fleet.wait_for(|view| view.stats[0].queued == 1).await;
    tasks.shutdown().await;
    assert_eq!(waiting.join_next().await.unwrap().unwrap(), Err(AcquireError::Closing));
    assert_eq!(held[0].generation, Generation(1));
}

/// Many tasks that take leases, hold them, give up waiting: at the end nothing is held and nobody waits, and at no time were
/// there more leases than slots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_is_lost_however_waits_end() {
    const SLOTS: u32 = 3;
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    println!("seed {seed}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(engine(listener, "", Arc::default()));
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
                let patience = Duration::from_micros(u64::from(random) * 3);
                let Ok(Ok(lease)) = tokio::time::timeout(patience, fleet.acquire(WANTED)).await
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
    let view = fleet.wait_for(|view| view.stats[0].running == 0 && view.stats[0].queued == 0).await;
    assert_eq!(view.stats[0].slots_free, SLOTS);
    drop(TcpStream::connect(("127.0.0.1", port)).await);
}

#[tokio::test]
async fn a_remote_engine_is_reached_with_tls_if_its_certificate_is_trusted() {
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
                let mut seen = vec![0; 4096];
                while stream.read(&mut seen).await.is_ok_and(|count| count > 0) {
                    let reply = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            });
        }
    });
    let external = ExternalSpec::try_new(&url, None, Duration::from_millis(100)).unwrap();
    let pem = issued.cert.pem().into_bytes();
    let (fleet, _tasks) = fleet_of(external.clone().trusting(pem), 1, LIMITS);
    fleet.wait_for(serving).await;
    let lease = fleet.acquire(WANTED).await.unwrap();
    assert_eq!(
        send(&lease).await.unwrap().into_body().collect().await.unwrap().to_bytes(),
        "hello"
    );

    let (fleet, _tasks) = fleet_of(external, 1, LIMITS);
    fleet.wait_for(|view| view.stats[0].state == LaneState::Down).await;
    let refusal = fleet.acquire(WANTED).await.unwrap_err();
    assert!(refusal.to_string().contains("certificate"), "{refusal}");
}
