//! Two hundred hosts, whose `GET /fleet` one process reads: what that costs, and how old what it
//! knows is.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_domain::{LaneState, MAX_DIGEST};
use pointsman_fleet::{Peer, PeerEndpoint, PeerMetrics, Peers, ServiceUrl, StaleLimits};
use pointsman_peers::{
    DigestChange, Event, HostInfo, LaneDescription, LaneReport, LaneReports, Liveness,
    TopologyEvent, VERSION,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const HOSTS: u32 = 200;
const LANES: u32 = 4;
/// How often a host sends what has changed, as often as a real one does.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long the reader is measured.
const MEASURED: Duration = Duration::from_secs(10);
/// The ports of the hosts, for the process that reads them.
const PORTS: &str = "POINTSMAN_FLEET_STREAMS_PORTS";

/// Milliseconds since some time that two processes share.
fn now_ms() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u32::try_from(now.as_millis() % (1 << 31)).unwrap()
}

fn report(id: u32, hashes: Vec<u32>) -> LaneReport {
    LaneReport {
        id,
        state: LaneState::Ready,
        running: 5 + id,
        queued: id,
        slots_free: 3,
        kv_used: 420,
        ttft_p50_ms: 85,
        ttft_p99_ms: 410,
        decode_tps: 44,
        est_wait_ms: 20,
        // When the report was made, by which the reader knows its age.
        ready_in_ms: now_ms(),
        digest: Some(DigestChange { whole: hashes.len() > 100, milli_tokens: 120_000, hashes }),
        ..LaneReport::default()
    }
}

/// Sends what a busy host would send to one reader: two of its lanes change in each interval, with
/// the hashes of a prompt or two.
async fn host(number: u32, mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let host = HostInfo { id: number.to_string(), ..HostInfo::default() };
    let lane = |id| LaneDescription {
        id,
        name: format!("lane-{number}-{id}"),
        models: vec!["Qwen/Qwen3-8B".to_owned()],
        slots: 8,
        ..LaneDescription::default()
    };
    let lanes = (0..LANES).map(lane).collect();
    let topology = TopologyEvent { version: VERSION, generation: 1, host, lanes };
    let lanes = (0..LANES).map(|id| report(id, (0..MAX_DIGEST as u32).collect())).collect();
    let first = Event::Lanes(LaneReports { generation: 1, lanes }).to_sse();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let first = format!("{head}{}{first}", Event::Topology(topology).to_sse());
    stream.write_all(first.as_bytes()).await?;
    let mut interval = tokio::time::interval(INTERVAL);
    for round in number.. {
        interval.tick().await;
        let hashes: Vec<u32> = (0..20).map(|hash| hash * 7919 + round).collect();
        let lanes = [round % LANES, (round + 1) % LANES].map(|id| report(id, hashes.clone()));
        let event = Event::Lanes(LaneReports { generation: 1, lanes: lanes.into() });
        stream.write_all(event.to_sse().as_bytes()).await?;
    }
    Ok(())
}

/// Returns how old the newest report of a host is, in milliseconds.
fn age_ms(peer: &Peer) -> u32 {
    let view = peer.view();
    let view = view.borrow();
    let newest = view.lanes().iter().map(|lane| lane.report.ready_in_ms).max();
    now_ms().saturating_sub(newest.unwrap_or(0))
}

/// Returns the time that all threads of this process have computed, in steps of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name of the program is in parentheses, and may have spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<u64>().unwrap();
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// The process that reads all hosts. Started by the test below; does nothing by itself.
#[tokio::test]
async fn reader_of_all_hosts() {
    let Ok(ports) = std::env::var(PORTS) else { return };
    let peers = Peers::new(StaleLimits::default(), PeerMetrics::default());
    let watch = |port: &str| {
        let url = ServiceUrl::parse(&format!("http://127.0.0.1:{port}")).unwrap();
        peers.watch(&PeerEndpoint { url, key: None, ca: None })
    };
    let all: Vec<Peer> = ports.split(',').map(watch).collect();
    for peer in &all {
        let mut view = peer.view();
        view.wait_for(|view| view.lanes().len() == LANES as usize).await.unwrap();
    }
    let (begun, cpu, mut ages) = (Instant::now(), cpu_time(), Vec::new());
    let mut samples = tokio::time::interval(Duration::from_millis(5));
    let mut next = all.iter().cycle();
    while begun.elapsed() < MEASURED {
        samples.tick().await;
        ages.push(age_ms(next.next().unwrap()));
    }
    let share = (cpu_time() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    ages.sort_unstable();
    let live = all.iter().filter(|peer| peer.view().borrow().liveness == Liveness::Live).count();
    let at = |permille: usize| ages[(ages.len() - 1) * permille / 1000];
    let result = json!({ "core": share, "live": live, "p50_ms": at(500), "p99_ms": at(990) });
    println!("\nRESULT {result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_hosts_are_read_with_a_fraction_of_a_core() {
    let (mut hosts, mut ports) = (JoinSet::new(), Vec::new());
    for number in 0..HOSTS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ports.push(listener.local_addr().unwrap().port().to_string());
        hosts.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Ends with the reader.
                host(number, stream).await.ok();
            }
        });
    }
    let result = tokio::task::spawn_blocking(move || read_all(&ports.join(","))).await.unwrap();
    println!("{HOSTS} hosts with {LANES} lanes: {result}");
    assert_eq!(result["live"], HOSTS, "{result}");
    // Aims, with an optimised build on an idle machine: 0.05 of a core, and 300 ms.
    assert!(result["core"].as_f64().unwrap() < 0.5, "{result}");
    assert!(result["p99_ms"].as_u64().unwrap() < 3000, "{result}");
}

/// Runs the process that reads the hosts, and returns what it has measured.
fn read_all(ports: &str) -> Value {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "fleet_streams::reader_of_all_hosts", "--nocapture"]);
    let mut reader = command.env(PORTS, ports).stdout(Stdio::piped()).spawn().unwrap();
    // To the end: the reader prints more, and fails if that has no reader.
    let lines = BufReader::new(reader.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(reader.wait().unwrap().success());
    let result = lines.iter().find_map(|line| line.strip_prefix("RESULT "));
    serde_json::from_str(result.expect("the reader has measured")).unwrap()
}
