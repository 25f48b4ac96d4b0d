//! Two hundred hosts, whose `GET /fleet` one process reads: what that costs, and how old what it
//! knows is. The hosts are this process, which is not measured.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_domain::{LaneState, MAX_DIGEST};
use pointsman_fleet::{Peer, PeerEndpoint, PeerMetrics, Peers, ServiceUrl, StaleLimits};
use pointsman_peers::{
    DigestChange, Event, Heartbeat, HostInfo, LaneDescription, LaneReport, LaneReports, Liveness,
    PeerView, TopologyEvent, VERSION,
};
use pointsman_tests::host::{Host, program};
use pointsman_tests::{pause, wait_until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::FAKE_ENGINE;

const HOSTS: u32 = 200;
const LANES: u32 = 4;
/// How often a host sends what has changed, as often as a real one does.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often a host says that nothing has changed.
const HEARTBEAT: Duration = Duration::from_millis(400);
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

/// What hosts send.
#[derive(Debug, Clone, Copy)]
enum Load {
    /// Two lanes change in each interval, with the hashes of a prompt or two.
    Busy,
    /// Nothing changes.
    Idle,
}

/// Sends what a host would send to one reader.
async fn host(number: u32, mut stream: TcpStream, load: Load) -> std::io::Result<()> {
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
    let mut interval = tokio::time::interval(match load {
        Load::Busy => INTERVAL,
        Load::Idle => HEARTBEAT,
    });
    for round in number.. {
        interval.tick().await;
        if let Load::Idle = load {
            let heartbeat = Event::Heartbeat(Heartbeat { generation: 1 });
            stream.write_all(heartbeat.to_sse().as_bytes()).await?;
            continue;
        }
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

/// Starts all hosts, and returns their ports. They end with the tasks.
async fn start_hosts(load: Load) -> (JoinSet<()>, Vec<u16>) {
    let (mut hosts, mut ports) = (JoinSet::new(), Vec::new());
    for number in 0..HOSTS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ports.push(listener.local_addr().unwrap().port());
        hosts.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Ends with the reader.
                host(number, stream, load).await.ok();
            }
        });
    }
    (hosts, ports)
}

/// Returns the time that all threads of a process have computed, in steps of 10 ms.
fn cpu_time(process: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
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
        // The first report follows the topology.
        let has_reports = |view: &PeerView| {
            view.lanes().len() == LANES as usize
                && view.lanes().iter().all(|lane| lane.report.ready_in_ms > 0)
        };
        view.wait_for(has_reports).await.unwrap();
    }
    let (begun, cpu, mut ages) = (Instant::now(), cpu_time("self"), Vec::new());
    let mut samples = tokio::time::interval(Duration::from_millis(5));
    let mut next = all.iter().cycle();
    while begun.elapsed() < MEASURED {
        samples.tick().await;
        ages.push(age_ms(next.next().unwrap()));
    }
    let share = (cpu_time("self") - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    ages.sort_unstable();
    let live = all.iter().filter(|peer| peer.view().borrow().liveness == Liveness::Live).count();
    let at = |permille: usize| ages[(ages.len() - 1) * permille / 1000];
    let result = json!({ "core": share, "live": live, "p50_ms": at(500), "p99_ms": at(990) });
    println!("\nRESULT {result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_hosts_are_read_with_a_fraction_of_a_core() {
    let (_hosts, ports) = start_hosts(Load::Busy).await;
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let result = tokio::task::spawn_blocking(move || read_all(&ports.join(","))).await.unwrap();
    println!("{HOSTS} hosts with {LANES} lanes: {result}");
    assert_eq!(result["live"], HOSTS, "{result}");
    // Aims, with an optimised build on an idle machine: 0.05 of a core, and 300 ms.
    assert!(result["core"].as_f64().unwrap() < 0.5, "{result}");
    assert!(result["p99_ms"].as_u64().unwrap() < 3000, "{result}");
}

/// As above, and all else that a picker does with what it reads: it has each lane as one of its
/// own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn picker_with_the_lanes_of_two_hundred_hosts_has_time_for_requests() {
    for load in [Load::Idle, Load::Busy] {
        let (_hosts, ports) = start_hosts(load).await;
        let share = tokio::task::spawn_blocking(move || picker_load(&ports)).await.unwrap();
        println!("{HOSTS} hosts with {LANES} lanes, {load:?}: a picker uses {share:.3} of a core");
        assert!(share < 1.0, "{load:?}: {share}");
    }
}

/// Runs a picker with the lanes of all hosts, and returns which share of a core it uses.
fn picker_load(ports: &[u16]) -> f64 {
    let of_host = |(number, port): (usize, &u16)| {
        format!("[[pick.hosts]]\nname = \"h{number}\"\nurl = \"http://127.0.0.1:{port}\"\n")
    };
    let hosts: Vec<String> = ports.iter().enumerate().map(of_host).collect();
    let config = format!("[pick]\n{}", hosts.concat());
    let dir = tempfile::tempdir().unwrap();
    let picker = Host::start_picker(&program(FAKE_ENGINE), dir, &config);
    wait_until("all lanes are ready", || {
        let status = picker.status();
        let lanes = status["lanes"].as_array().unwrap();
        lanes.len() == (HOSTS * LANES) as usize && lanes.iter().all(|lane| lane["state"] == "ready")
    });
    let process = picker.pid().to_string();
    let (begun, cpu) = (Instant::now(), cpu_time(&process));
    pause(MEASURED);
    (cpu_time(&process) - cpu).as_secs_f64() / begun.elapsed().as_secs_f64()
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
