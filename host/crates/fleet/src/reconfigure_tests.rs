//! Changes of the configuration of a running fleet, with engine processes.
//!
//! The engines are this test program, which serves HTTP in [`engine_process`].

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use pointsman_domain::dispatch::AcquireError;
use pointsman_domain::{LaneId, LaneState, SlotRequest};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;

use super::drivers::command::Program;
use super::tests::{LIMITS, REQUEST, fleet_spec, lane};
use super::*;

const PORT: &str = "POINTSMAN_TEST_ENGINE_PORT";
const ANSWER: &str = "POINTSMAN_TEST_ENGINE_ANSWER";
const LIMIT: Duration = Duration::from_secs(60);

/// Serves HTTP until it is killed, if a fleet has started it: otherwise this is not a test. A
/// request takes as many milliseconds as its body says.
#[test]
fn engine_process() {
    let Ok(port) = std::env::var(PORT) else { return };
    let answer = std::env::var(ANSWER).unwrap();
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    std::thread::scope(|threads| {
        for connection in listener.incoming().flatten() {
            let answer = &answer;
            // Fails if the host has closed the connection.
            threads.spawn(move || serve_connection(connection, answer).ok());
        }
    });
}

fn serve_connection(mut connection: TcpStream, answer: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        reader.read_line(&mut line)?;
        let request = line.clone();
        while line.trim() != "" {
            line.clear();
            reader.read_line(&mut line)?;
            if let Some((_, value)) = line.to_ascii_lowercase().split_once("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        if request.is_empty() {
            return Ok(());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if request.starts_with("GET /health") {
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        } else if request.starts_with("GET") {
            connection.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        }
        connection.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
        let end = Instant::now()
            + Duration::from_millis(String::from_utf8_lossy(&body).parse().unwrap_or(0));
        while Instant::now() < end {
            connection.write_all(b"1\r\n.\r\n")?;
            #[expect(clippy::disallowed_methods, reason = "a response that takes time")]
            std::thread::sleep(Duration::from_millis(10));
        }
        write!(connection, "{:x}\r\n{answer}\r\n0\r\n\r\n", answer.len())?;
    }
}

/// An engine that ends its responses with `answer`.
fn engine(answer: &str) -> EngineSpec {
    let program = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    let test = "reconfigure_tests::engine_process";
    let words = [program.as_str(), test, "--exact", "--nocapture"];
    let second = Duration::from_secs(1);
    let backoff = Backoff {
        first: second / 10,
        most: second,
        reset_after: second,
        max_failures: 0,
        retry_failed_after: second,
    };
    let variables = [(PORT, "{port}"), (ANSWER, answer)];
    let program = Program {
        command_line: CommandLine {
            command: words.map(str::to_owned).to_vec(),
            env: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        },
        ready_path: "/health".to_owned(),
        reuse_connections: false,
        run: ProcessSpec {
            directory: None,
            port: None,
            check_listener: true,
            start_timeout: LIMIT,
            stop_grace: second,
            backoff,
        },
    };
    driver::EngineConfig::new(program).into_spec()
}

fn always(name: &str) -> LaneSpec {
    managed(name, Residency::Always)
}

/// A lane that waits for its engine as long as the tests do: they share the machine.
fn managed(name: &str, residency: Residency) -> LaneSpec {
    let timeouts = Timeouts { connect: LIMIT, first_byte: LIMIT, idle: LIMIT };
    LaneSpec { timeouts, ..lane(name, engine(name), residency) }
}

fn on_demand(name: &str, need: u64) -> LaneSpec {
    let residency = Residency::OnDemand { preload: false, unload_after: None };
    LaneSpec { group: Some(0), need, ..managed(name, residency) }
}

fn spec(lanes: Vec<LaneSpec>, budget: u64) -> FleetSpec {
    let group = GroupSpec {
        name: "gpu".to_owned(),
        budget,
        pool: None,
        free_timeout: Duration::from_secs(1),
    };
    FleetSpec { groups: vec![group], ..fleet_spec(lanes, LIMITS) }
}

struct Running {
    fleet: Fleet,
    tasks: FleetTasks,
    registry: Registry,
}

impl Running {
    fn start(spec: &FleetSpec) -> Self {
        let mut registry = Registry::default();
        let lanes: Vec<(String, u32)> =
            spec.lanes.iter().map(|lane| (lane.name.clone(), lane.slots)).collect();
        let metrics = FleetMetrics::register(&mut registry, &lanes);
        let (fleet, tasks) = Fleet::start(spec, &metrics).unwrap();
        Self { fleet, tasks, registry }
    }

    fn request(&self, name: &str) -> SlotRequest {
        let lane = self.fleet.view().topology.find(name).unwrap();
        SlotRequest { lane, ..REQUEST }
    }

    /// Waits until a lane is in a state, and returns the process id of its engine.
    async fn pid_in(&self, name: &str, state: LaneState) -> Option<u32> {
        let is_there = |view: &Arc<pointsman_domain::FleetView>| {
            let stat = view.topology.find(name).and_then(|lane| view.stat(lane));
            stat.is_some_and(|stat| stat.state == state)
        };
        tokio::time::timeout(LIMIT, self.fleet.wait_for(is_there)).await.unwrap();
        self.pid(name)
    }

    fn pid(&self, name: &str) -> Option<u32> {
        let statuses = self.fleet.status();
        statuses.iter().find(|status| status.name == name)?.pid
    }

    async fn ready(&self, name: &str) -> u32 {
        self.pid_in(name, LaneState::Ready).await.unwrap()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

/// Sends a request that takes some time, and returns the end of the response.
async fn ask(lease: &Lease, millis: u64) -> Result<String, EngineError> {
    let body = Bytes::from(millis.to_string());
    let response = lease.send("/v1/completions", http::HeaderMap::new(), body).await?;
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).trim_start_matches('.').to_owned())
}

/// Waits until a condition holds.
async fn until(mut condition: impl FnMut() -> bool) {
    let waited = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, waited).await.unwrap();
}

fn is_alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn added_lane_serves_and_others_are_not_touched() {
    let running = Running::start(&spec(vec![always("a")], 100));
    let pid = running.ready("a").await;
    let changes = running.fleet.reconfigure(spec(vec![always("b"), always("a")], 100)).await;
    assert_eq!(changes, BTreeMap::from([("b".to_owned(), LaneChange::Added)]));
    let topology = Arc::clone(&running.fleet.view().topology);
    assert_eq!((topology.find("a"), topology.find("b")), (Some(LaneId(0)), Some(LaneId(1))));
    let lease = running.fleet.acquire(running.request("b")).await.unwrap();
    assert_eq!((ask(&lease, 0).await.unwrap(), lease.lane_name()), ("b".to_owned(), "b"));
    assert_eq!(running.pid("a"), Some(pid));
    assert!(running.metrics().contains("pointsman_lane_slots{lane=\"b\"} 2"));
    // Nothing changes without a difference, not even the generation.
    let view = running.fleet.view();
    assert!(running.fleet.reconfigure(spec(vec![always("b"), always("a")], 100)).await.is_empty());
    assert_eq!(running.fleet.view().topology.generation(), view.topology.generation());
    drop(lease);
    running.tasks.shutdown().await;
}

#[tokio::test]
async fn slots_change_under_load() {
    let with_slots = |slots| spec(vec![LaneSpec { slots, ..always("a") }], 100);
    let running = Running::start(&with_slots(1));
    let pid = running.ready("a").await;
    let first = running.fleet.acquire(running.request("a")).await.unwrap();
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let (fleet, request) = (running.fleet.clone(), running.request("a"));
        waiting.spawn(async move { fleet.acquire(request).await.unwrap() });
    }
    let queued = |view: &Arc<pointsman_domain::FleetView>| view.stats().all(|s| s.queued == 2);
    running.fleet.wait_for(queued).await;
    let change = LaneChange::InPlace(vec!["slots"]);
    let changes = running.fleet.reconfigure(with_slots(3)).await;
    assert_eq!(changes, BTreeMap::from([("a".to_owned(), change)]));
    let leases = tokio::time::timeout(LIMIT, waiting.join_all()).await.unwrap();
    assert!(running.metrics().contains("pointsman_lane_slots{lane=\"a\"} 3"));
    running.fleet.reconfigure(with_slots(1)).await;
    for lease in leases.iter().chain([&first]) {
        assert_eq!(ask(lease, 10).await.unwrap(), "a");
    }
    let stat = running.fleet.view().stat(LaneId(0)).unwrap();
    assert_eq!((stat.running, stat.slots_free, running.pid("a")), (3, 0, Some(pid)));
    drop((leases, first));
    running.tasks.shutdown().await;
}

#[tokio::test]
async fn restart_waits_for_streams_and_requests_wait_for_it() {
    let with_answer = |answer| spec(vec![LaneSpec { engine: engine(answer), ..always("a") }], 100);
    let running = Running::start(&with_answer("old"));
    let pid = running.ready("a").await;
    let lease = running.fleet.acquire(running.request("a")).await.unwrap();
    let stream = async {
        let answer = ask(&lease, 400).await;
        assert!(is_alive(pid));
        drop(lease);
        answer
    };
    let change = async {
        running.fleet.reconfigure(with_answer("new")).await;
        let lease = running.fleet.acquire(running.request("a")).await.unwrap();
        ask(&lease, 0).await
    };
    let (old, new) = tokio::join!(stream, change);
    assert_eq!((old.unwrap(), new.unwrap()), ("old".to_owned(), "new".to_owned()));
    assert!(running.pid("a") != Some(pid) && !is_alive(pid));
    running.tasks.shutdown().await;
}

/// The start of an engine with an outdated command is not waited for.
#[tokio::test]
async fn load_is_abandoned_for_other_settings() {
    let hangs = super::span_tests::sleeping_engine(None, true);
    let with = |engine| spec(vec![LaneSpec { engine, ..always("a") }], 100);
    let running = Running::start(&with(hangs));
    until(|| running.pid("a").is_some()).await;
    let pid = running.pid("a").unwrap();
    running.fleet.reconfigure(with(engine("new"))).await;
    let lease = running.fleet.acquire(running.request("a")).await.unwrap();
    assert_eq!(ask(&lease, 0).await.unwrap(), "new");
    assert!(!is_alive(pid));
    drop(lease);
    running.tasks.shutdown().await;
}

#[tokio::test]
async fn removed_lane_finishes_its_streams_and_leaves_nothing() {
    let running = Running::start(&spec(vec![always("a"), always("b")], 100));
    let (pid, other) = (running.ready("a").await, running.ready("b").await);
    let request = running.request("a");
    let first_view = running.fleet.view();
    let lease = running.fleet.acquire(request).await.unwrap();
    let stream = async {
        let answer = ask(&lease, 300).await;
        drop(lease);
        answer
    };
    let change = async {
        running.fleet.reconfigure(spec(vec![always("b")], 100)).await;
        assert!(is_alive(pid), "its stream runs");
        let refused = running.fleet.acquire(request).await.unwrap_err();
        assert_eq!(refused, AcquireError::LaneRemoved);
        let view = running.fleet.view();
        assert_eq!((view.stats().count(), view.topology.lanes().len()), (1, 1));
        assert_eq!(running.fleet.status().len(), 1);
        assert!(!running.metrics().contains("lane=\"a\""), "{}", running.metrics());
    };
    let (answer, ()) = tokio::join!(stream, change);
    assert_eq!(answer.unwrap(), "a");
    until(|| !is_alive(pid)).await;
    assert_eq!(running.pid("b"), Some(other));
    // A request may still have been routed by the first view.
    running.fleet.reconfigure(spec(vec![always("b"), always("c")], 100)).await;
    assert_eq!(running.fleet.view().topology.find("c"), Some(LaneId(2)));
    drop(first_view);
    running.ready("c").await;
    running.fleet.reconfigure(spec(vec![always("b"), always("c"), always("d")], 100)).await;
    assert_eq!(running.fleet.view().topology.find("d"), Some(LaneId(0)));
    let lease = running.fleet.acquire(running.request("d")).await.unwrap();
    assert_eq!(ask(&lease, 0).await.unwrap(), "d");
    drop(lease);
    // The supervisors of three lanes, the reaper, and what measures memory.
    until(|| running.tasks.supervisors.running() == 5).await;
    running.tasks.shutdown().await;
}

#[tokio::test]
async fn smaller_budget_unloads_what_it_does_not_hold() {
    let lanes = || vec![on_demand("a", 40), on_demand("b", 40)];
    let running = Running::start(&spec(lanes(), 100));
    for name in ["a", "b"] {
        let lease = running.fleet.acquire(running.request(name)).await.unwrap();
        assert_eq!(ask(&lease, 0).await.unwrap(), name);
    }
    let busy = running.fleet.acquire(running.request("a")).await.unwrap();
    let pid = running.pid("a");
    let changes = running.fleet.reconfigure(spec(lanes(), 50)).await;
    let change = LaneChange::InPlace(vec!["memory"]);
    assert_eq!(changes, BTreeMap::from([("group gpu".to_owned(), change)]));
    assert_eq!(running.pid_in("b", LaneState::Unloaded).await, None);
    assert_eq!((ask(&busy, 0).await.unwrap(), running.pid("a")), ("a".to_owned(), pid));
    drop(busy);
    running.tasks.shutdown().await;
}

#[tokio::test]
async fn external_lane_becomes_a_managed_one_and_back() {
    let engines = Running::start(&spec(vec![always("x")], 100));
    engines.ready("x").await;
    let port = engines.fleet.status()[0].port.unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let external = ExternalSpec::try_new(&url, None, Duration::from_millis(100)).unwrap();
    let external = || spec(vec![lane("a", external.clone().into(), Residency::External)], 100);
    let managed = || spec(vec![always("a")], 100);
    let running = Running::start(&external());
    for (spec, answer) in [(managed(), "a"), (external(), "x"), (managed(), "a")] {
        let lease = running.fleet.acquire(running.request("a")).await.unwrap();
        let before = ask(&lease, 0).await.unwrap();
        assert_ne!(before, answer);
        let changes = running.fleet.reconfigure(spec).await;
        assert!(matches!(changes["a"], LaneChange::Restarted(_)), "{changes:?}");
        assert_eq!(ask(&lease, 10).await.unwrap(), before, "granted before");
        drop(lease);
        let lease = running.fleet.acquire(running.request("a")).await.unwrap();
        assert_eq!(ask(&lease, 0).await.unwrap(), answer);
    }
    running.tasks.shutdown().await;
    engines.tasks.shutdown().await;
}

/// A small generator of pseudo-random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// Changes a configuration at random, so that it stays valid. The first lane is never restarted.
fn change(spec: &mut FleetSpec, random: &mut Random, step: u64) {
    let which = random.below(spec.lanes.len() as u64) as usize;
    match random.below(40) {
        0 if which > 0 => spec.lanes[which].engine = engine(&format!("e{step}")),
        1 if which > 1 => drop(spec.lanes.remove(which)),
        2 | 3 if spec.lanes.len() < 6 => {
            let name = format!("l{}", random.below(20));
            if spec.lanes.iter().all(|lane| lane.name != name) {
                spec.lanes.push(on_demand(&name, 30));
            }
        }
        4 | 5 => spec.groups[0].budget = 40 + random.below(60),
        6 if which > 0 => spec.lanes[which].need = 20 + random.below(20),
        7..=15 => spec.lanes[which].labels = vec![("step".to_owned(), step.to_string())],
        16..=20 => spec.lanes[which].timeouts.first_byte = LIMIT + Duration::from_secs(step % 7),
        21..=25 => spec.lanes.sort_by_key(|lane| (lane.name != "first", lane.cost_milli)),
        26..=30 => spec.lanes[which].cost_milli = random.below(9) as u32,
        _ => spec.lanes[which].slots = 1 + random.below(4) as u32,
    }
}

/// Requests are served while the configuration changes a thousand times: none is lost, a lane that
/// was not restarted keeps its process, and nothing piles up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_in_a_thousand_changes() {
    const CHANGES: u64 = 1000;
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = u64::from(seed.subsec_nanos());
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut spec = spec(vec![always("first"), on_demand("l0", 30), on_demand("l1", 30)], 90);
    let second = Duration::from_secs(1);
    spec.rules = Rules { min_residency: 0, starvation_timeout: second, ..spec.rules };
    let running = Running::start(&spec);
    let pid = running.ready("first").await;
    let (ends, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut clients = JoinSet::new();
    for client in 0..6 {
        let (fleet, ends, served) = (running.fleet.clone(), Arc::clone(&ends), Arc::clone(&served));
        let mut random = Random(seed + client);
        clients.spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                let view = fleet.view();
                let lanes = view.topology.lanes();
                let lane = &lanes[random.below(lanes.len() as u64) as usize];
                match fleet.acquire(SlotRequest { lane: lane.id, ..REQUEST }).await {
                    Ok(lease) => {
                        assert_eq!(lease.lane_name(), lane.name);
                        ask(&lease, random.below(20)).await.unwrap();
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(AcquireError::LaneRemoved) => {}
                    Err(error) => panic!("{}: {error}", lane.name),
                }
            }
        });
    }
    for step in 0..CHANGES {
        change(&mut spec, &mut random, step);
        running.fleet.reconfigure(spec.clone()).await;
        if step % 4 == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(30))).await;
        }
    }
    ends.store(true, Ordering::Relaxed);
    tokio::time::timeout(LIMIT, clients.join_all()).await.unwrap();
    println!("{} requests served", served.load(Ordering::Relaxed));
    assert_eq!(running.pid("first"), Some(pid));
    let view = running.fleet.view();
    let names: Vec<&str> = view.topology.lanes().iter().map(|lane| lane.name.as_str()).collect();
    let mut expected: Vec<&str> = spec.lanes.iter().map(|lane| lane.name.as_str()).collect();
    expected.sort_unstable();
    let mut found = names.clone();
    found.sort_unstable();
    assert_eq!(found, expected);
    let highest = view.topology.lanes().iter().map(|lane| lane.id.0).max().unwrap();
    assert!(highest < 40, "ids are used again: {highest}");
    // One supervisor for each lane, the reaper, and what measures memory.
    until(|| running.tasks.supervisors.running() == spec.lanes.len() + 2).await;
    let text = running.metrics();
    for lane in (0..20).map(|n| format!("l{n}")).filter(|name| !expected.contains(&name.as_str())) {
        assert!(!text.contains(&format!("lane=\"{lane}\"")), "{lane}");
    }
    running.tasks.shutdown().await;
}

/// The time that a change of a large configuration takes. Run with `--nocapture` to see it.
#[tokio::test]
async fn a_hundred_lanes_are_changed_quickly() {
    let lanes = |names: std::ops::Range<u32>, slots: u32| -> Vec<LaneSpec> {
        let lane = |n: u32| LaneSpec { slots, ..on_demand(&format!("l{n}"), 10) };
        names.map(lane).collect()
    };
    let running = Running::start(&spec(lanes(0..100, 1), 100));
    let mut longest = Duration::ZERO;
    for round in 1..=20 {
        // Ten lanes are removed, ten added, and all others changed.
        let new = spec(lanes(round * 10..round * 10 + 100, 1 + round % 2), 100);
        let begun = Instant::now();
        let changes = running.fleet.reconfigure(new).await;
        let took = begun.elapsed();
        longest = longest.max(took);
        assert_eq!(changes.len(), 110);
    }
    println!("longest of 20 changes of 100 lanes: {longest:?}");
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    running.tasks.shutdown().await;
}
