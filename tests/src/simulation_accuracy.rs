//! Comparison of the simulator with a host: one workload is served in real time, and simulated from
//! the decision records of that run.
//!
//! The comparison is about decisions, not about the speed of the machine. The simulated engines can
//! therefore take the recorded times: each request as long as its record says, each load and each
//! stop as long as the host logged. The order of the grants, the switches and the waits are the
//! simulator's own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use pointsman_record::{Record, files, records};
use serde_json::{Value, json};

use crate::client::send;
use crate::host::{Host, fake_lane, root};
use crate::log::LogEvent;
use crate::wait_until;

/// Grants within this time of each other may come in any order, in seconds: the delay of a thread
/// on a busy machine is not a decision.
const TIE: f64 = 0.020;
/// The additional wait of a real request for thread wake-ups and socket reads, in seconds.
const OVERHEAD: f64 = 0.010;

/// A request of a workload.
#[derive(Debug, Clone)]
pub struct WorkloadRequest {
    pub round: usize,
    /// The time since the start of the workload.
    pub at: Duration,
    pub model: &'static str,
    pub text: String,
    pub max_tokens: u32,
}

/// A slot that a request was granted. All times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    pub lane: String,
    /// The time since the arrival of the first request.
    pub at: f64,
    pub wait: f64,
    /// The service time of the engine, if it was recorded.
    pub service_time: f64,
}

/// A lane that was loaded, and the lane that was evicted for it. All times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct LaneSwitch {
    pub lane: String,
    pub evicted: String,
    pub stop: f64,
    pub load: f64,
}

/// The grants, by request id, and the switches of a run.
#[derive(Debug, Default)]
pub struct RunTrace {
    pub grants: BTreeMap<String, Grant>,
    pub switches: Vec<LaneSwitch>,
    /// By how much the machine delayed threads during a run in real time, in seconds: 99 of 100
    /// wake-ups were this late, or less.
    pub noise: f64,
}

impl RunTrace {
    /// Returns the loaded and the evicted lane of each switch, in order.
    pub fn switches(&self) -> Vec<(&str, &str)> {
        self.switches.iter().map(|switch| (switch.lane.as_str(), switch.evicted.as_str())).collect()
    }

    pub fn mean_wait(&self) -> f64 {
        mean(self.grants.values().map(|grant| grant.wait))
    }

    /// Returns the given percentile of the waits.
    pub fn wait(&self, percent: usize) -> f64 {
        let mut waits: Vec<f64> = self.grants.values().map(|grant| grant.wait).collect();
        waits.sort_by(f64::total_cmp);
        waits[(waits.len() * percent / 100).min(waits.len() - 1)]
    }

    /// Returns the differences between this run and a simulated one, by round, as text.
    pub fn compare_with(&self, simulated: &Self) -> BTreeMap<usize, Vec<String>> {
        let mut rounds: BTreeMap<usize, Vec<(&String, &Grant)>> = BTreeMap::new();
        for grant in &self.grants {
            rounds.entry(round(grant.0)).or_default().push(grant);
        }
        rounds.into_iter().map(|(round, grants)| (round, differences(&grants, simulated))).collect()
    }
}

fn round(id: &str) -> usize {
    id.split('-').next().unwrap().parse().unwrap()
}

fn differences(grants: &[(&String, &Grant)], simulated: &RunTrace) -> Vec<String> {
    let mut differences = Vec::new();
    let mut pairs = Vec::new();
    for (id, real) in grants {
        match simulated.grants.get(*id) {
            Some(simulated) if simulated.lane == real.lane => pairs.push((*id, *real, simulated)),
            other => differences
                .push(format!("{id} was granted a slot of {}, simulated: {other:?}", real.lane)),
        }
    }
    for (earlier, real, simulated) in &pairs {
        let after = pairs.iter().filter(|(_, later, _)| later.at > real.at + TIE);
        for (later, _, other) in after.filter(|(_, _, other)| other.at < simulated.at) {
            differences.push(format!(
                "{earlier} was granted at {:.3} s, before {later}; simulated: at {:.3} s, after it \
                 at {:.3} s",
                real.at, simulated.at, other.at
            ));
        }
    }
    let wait = mean(pairs.iter().map(|(_, real, _)| real.wait));
    let simulated = mean(pairs.iter().map(|(_, _, simulated)| simulated.wait));
    if (wait - simulated).abs() > 0.05 * wait + OVERHEAD {
        differences.push(format!("mean wait {wait:.4} s; simulated: {simulated:.4} s"));
    }
    differences
}

/// The lanes that share memory: name, load time of the engine and time per token, in milliseconds.
pub const SWITCHING_LANES: [(&str, u32, u32); 3] =
    [("orchestrator", 1000, 40), ("coder", 1200, 60), ("fast_rag", 700, 30)];
/// The lane that is always loaded, in the same form.
pub const PERMANENT_LANE: (&str, u32, u32) = ("super_reader", 100, 50);
const TOKENS: u32 = 5;

/// Records of whole requests, which the simulator needs.
pub const RECORDS: &str =
    "[records]\ndir = \"records\"\nmode = \"full\"\nredact = { text = \"keep\" }\n";

/// A pseudo-random generator (Marsaglia's xorshift) with a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// The number of requests in a round.
pub const REQUESTS_PER_ROUND: usize = 18;
/// The time between the starts of two rounds. A round is finished by then, unless the machine is
/// very busy.
const ROUND_INTERVAL_MS: u64 = 5_000;
/// The additional time for the last request of an independent round.
const LAST_REQUEST_MS: u64 = 2_000;

/// Returns a workload of this many rounds, in each of which one or two agents use their lanes, with
/// other requests in between.
///
/// A difference in one round that a millisecond has caused does not affect the next round, unless
/// another lane is loaded then.
pub fn workload(rounds: usize) -> Vec<WorkloadRequest> {
    let texts = ["plan my day", "why does fn main() not compile?", "Context: the sky is blue."];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut all = Vec::with_capacity(rounds * REQUESTS_PER_ROUND);
    for round in 0..rounds {
        let (mut at, agents) =
            (round as u64 * ROUND_INTERVAL_MS, [random.below(3), random.below(3)]);
        for number in 0..REQUESTS_PER_ROUND {
            at += 60 + random.below(80) as u64;
            let model = match random.below(10) {
                0 => "auto",
                1 | 2 => [
                    SWITCHING_LANES[0].0,
                    SWITCHING_LANES[1].0,
                    SWITCHING_LANES[2].0,
                    PERMANENT_LANE.0,
                ][random.below(4)],
                _ => SWITCHING_LANES[agents[number * 2 / REQUESTS_PER_ROUND]].0,
            };
            let text = texts[random.below(3)].to_owned();
            all.push(WorkloadRequest {
                round,
                at: Duration::from_millis(at),
                model,
                text,
                max_tokens: TOKENS,
            });
        }
    }
    all
}

/// Returns the same workload with one more request at the end of each round, for the same lane. As
/// this lane is loaded at the start of every round, a difference in one round does not affect the
/// next one.
pub fn independent_rounds(rounds: usize) -> Vec<WorkloadRequest> {
    let more = |round: usize| Duration::from_millis(round as u64 * LAST_REQUEST_MS);
    let mut all = workload(rounds);
    all.iter_mut().for_each(|request| request.at += more(request.round));
    let last = |round: usize| WorkloadRequest {
        round,
        at: Duration::from_millis((round as u64 + 1) * ROUND_INTERVAL_MS) + more(round),
        model: SWITCHING_LANES[0].0,
        text: "plan my day".to_owned(),
        max_tokens: TOKENS,
    };
    all.extend((0..rounds).map(last));
    all
}

/// Returns the configuration of a host with three lanes that share memory, one that is always
/// loaded, and these policies. All engines are fake engines.
pub fn config(fake_engine: &str, policies: &str) -> String {
    let lane = |(name, load, token): (&str, u32, u32), more: &str| {
        let script = json!({ "tokens": TOKENS, "token-ms": token }).to_string();
        let load = load.to_string();
        let arguments = ["--load-ms", load.as_str(), "--slots", "2", "--script", script.as_str()];
        let more = format!("slots = 2\nexpected-load-time = \"1s\"\n{more}");
        fake_lane(fake_engine, name, &[name, "auto"], &more, &arguments)
    };
    let group = "group = \"gpu\"\nmemory = \"8GiB\"";
    let folder = root().join("policies");
    [
        format!("{RECORDS}[policies]\ndir = {folder:?}\ncache = \"cache\"\n{policies}\n"),
        "[[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n".to_owned(),
        SWITCHING_LANES.map(|engine| lane(engine, group)).concat(),
        lane(PERMANENT_LANE, ""),
    ]
    .concat()
}

/// Serves a workload in real time with a host that records whole requests.
///
/// # Panics
/// If a request fails.
pub fn run_on_host<'a>(host: &Host, workload: &'a [WorkloadRequest]) -> RunTrace {
    let start = Instant::now();
    let done = AtomicBool::new(false);
    let noise = std::thread::scope(|scope| {
        let noise = scope.spawn(|| measure_noise(&done));
        let send_request = |(number, request): (usize, &'a WorkloadRequest)| {
            let port = host.port;
            scope.spawn(move || {
                while let Some(early) = request.at.checked_sub(start.elapsed()) {
                    crate::pause(early);
                }
                let body = json!({
                    "model": request.model, "messages": [{ "role": "user",
                        "content": request.text }],
                    "max_tokens": request.max_tokens,
                });
                let id = format!("{}-{number}", request.round);
                let headers = [("content-type", "application/json"), ("x-request-id", id.as_str())];
                let body = body.to_string();
                let response =
                    send(port, "POST", "/v1/chat/completions", &headers, body.as_bytes());
                assert_eq!(response.status, 200, "{}", response.text());
            })
        };
        let clients: Vec<_> = workload.iter().enumerate().map(send_request).collect();
        let clients: Vec<_> = clients.into_iter().map(ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(clients.iter().all(Result::is_ok), "a request failed");
        noise.join().unwrap()
    });
    host.assert_no_request_lost();
    let written = || host.metric("pointsman_records_written_total", "");
    wait_until("all records are written", || written() >= workload.len() as f64);
    RunTrace {
        grants: recorded_grants(&host.dir.path().join("records")),
        switches: logged_switches(host),
        noise,
    }
}

/// Measures how late threads are woken up, until `done`.
fn measure_noise(done: &AtomicBool) -> f64 {
    const PAUSE: Duration = Duration::from_millis(2);
    let mut delays = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let before = Instant::now();
        crate::pause(PAUSE);
        delays.push(before.elapsed().saturating_sub(PAUSE).as_secs_f64());
    }
    delays.sort_by(f64::total_cmp);
    delays[delays.len() * 99 / 100]
}

/// Reads the grants from decision records.
fn recorded_grants(dir: &Path) -> BTreeMap<String, Grant> {
    let mut lanes = Vec::new();
    let mut grants = Vec::new();
    for file in files(dir).unwrap() {
        for record in records(BufReader::new(File::open(&file).unwrap())) {
            match record.unwrap() {
                Record::Topology(topology) => {
                    lanes = topology.lanes.into_iter().map(|lane| lane.name).collect()
                }
                Record::Policies(_) => {}
                Record::Decision(decision) => {
                    let attempt = decision.tries.last().unwrap();
                    let wait = (attempt.begun + attempt.queue).as_secs_f64();
                    let arrived = decision.now_ms as f64 / 1e3 - decision.age.as_secs_f64();
                    let lane = lanes[attempt.lane.index()].clone();
                    let service_time = (attempt.took - attempt.queue).as_secs_f64();
                    let grant = Grant { lane, at: arrived + wait, wait, service_time };
                    grants.push((decision.request_id.to_string(), arrived, grant));
                }
            }
        }
    }
    let first = grants.iter().map(|grant| grant.1).fold(f64::INFINITY, f64::min);
    let relative = |grant: Grant| Grant { at: grant.at - first, ..grant };
    grants.into_iter().map(|(id, _, grant)| (id, relative(grant))).collect()
}

/// Reads the switches from the log of a host, which has whole milliseconds.
fn logged_switches(host: &Host) -> Vec<LaneSwitch> {
    // The middle of the millisecond is the best estimate of the time.
    let seconds = |event: &LogEvent, field: &str| (event.number(field) + 0.5) / 1e3;
    let events = host.events("lane_loaded", &[]);
    let switches = events.iter().filter(|event| event.text("lane") != PERMANENT_LANE.0);
    switches
        .map(|event| LaneSwitch {
            lane: event.text("lane"),
            evicted: event.text("evicted"),
            stop: seconds(event, "stop_ms"),
            load: seconds(event, "load_ms"),
        })
        .collect()
}

/// Returns a scenario with the configuration and the records of a host. `engines` describes the
/// engines, `set` overrides settings of the configuration.
pub fn scenario(engines: &str, set: &str) -> String {
    format!(
        "duration = \"1h\"\n[fleet]\nconfig = \"pointsman.toml\"\nset = {{ {set} }}\n{engines}\
         [[traffic]]\nclass = \"all\"\nfile = \"records\"\nformat = \"records\"\n"
    )
}

/// Returns engines that take exactly the recorded times.
pub fn recorded_engines(trace: &RunTrace) -> String {
    shifted_engines(trace, || 0.0)
}

/// Returns engines whose loads and stops take up to `noise` seconds more or less than the recorded
/// times. Each number `variant` gives other times; with 0 all are longer, with 1 all are shorter.
pub fn perturbed_engines(trace: &RunTrace, noise: f64, variant: u64) -> String {
    let mut random = Random(variant.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    shifted_engines(trace, || match variant {
        0 => noise,
        1 => -noise,
        _ => noise * (random.below(2001) as f64 / 1e3 - 1.0),
    })
}

fn shifted_engines(trace: &RunTrace, mut shift: impl FnMut() -> f64) -> String {
    let switches = trace.switches.iter().map(|switch| LaneSwitch {
        load: (switch.load + shift()).max(0.0),
        stop: (switch.stop + shift()).max(0.0),
        ..switch.clone()
    });
    let trace = &RunTrace { switches: switches.collect(), ..RunTrace::default() };
    let mut text =
        "[engines.default]\nload = \"0s\"\nservice-time = { first-token = \"250ms\", use-recorded \
         = true }\n"
            .to_owned();
    for (lane, ..) in SWITCHING_LANES {
        text += &format!("[engines.{lane}]\n{}\n", recorded_loads_and_stops(trace, lane));
    }
    text
}

/// Returns the sequences of load and stop times of a lane.
pub fn recorded_loads_and_stops(trace: &RunTrace, lane: &str) -> String {
    let list = |time: fn(&LaneSwitch, &str) -> Option<f64>| {
        let times = trace.switches.iter().filter_map(|switch| time(switch, lane));
        let times: Vec<String> = times.map(|time| format!("{time:.4}")).collect();
        if times.is_empty() { "0".to_owned() } else { times.join(", ") }
    };
    let load = list(|switch, lane| (switch.lane == lane).then_some(switch.load));
    let stop = list(|switch, lane| (switch.evicted == lane).then_some(switch.stop));
    format!("load.sequence = [{load}]\nstop.sequence = [{stop}]")
}

/// Returns engines that always take the average times, which is what the author of a scenario
/// knows.
pub fn average_engines(trace: &RunTrace) -> String {
    let engine = |(lane, ..): (&str, u32, u32)| {
        let load = mean(
            trace.switches.iter().filter(|switch| switch.lane == lane).map(|switch| switch.load),
        );
        let stop = mean(
            trace.switches.iter().filter(|switch| switch.evicted == lane).map(|switch| switch.stop),
        );
        let service_time = mean(
            trace
                .grants
                .values()
                .filter(|grant| grant.lane == lane)
                .map(|grant| grant.service_time),
        );
        format!(
            "[engines.{lane}]\nload = {load:.4}\nstop = {stop:.4}\n\
             service-time = {{ first-token = {service_time:.4} }}\n"
        )
    };
    SWITCHING_LANES.map(engine).concat() + &engine(PERMANENT_LANE)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

/// Simulates a scenario in the directory of a host that has exited.
///
/// # Panics
/// If the simulation fails.
pub fn run_simulation(program: &Path, dir: &Path, scenario: &str) -> RunTrace {
    fs::write(dir.join("scenario.toml"), scenario).unwrap();
    let output = Command::new(program)
        .args(["simulate", "--quiet", "--trace", "trace.jsonl", "scenario.toml"])
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut trace = RunTrace::default();
    for line in fs::read_to_string(dir.join("trace.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        let number = |key: &str| line[key].as_f64().unwrap();
        match line["event"].as_str().unwrap() {
            "granted" => {
                let grant =
                    Grant { lane: text("lane"), at: number("at"), wait: 0.0, service_time: 0.0 };
                trace.grants.insert(text("request"), grant);
            }
            "ended" => trace.grants.get_mut(&text("request")).unwrap().wait = number("wait"),
            "switched" if line["lane"] != PERMANENT_LANE.0 => {
                let evicted = line["evicted"][0].as_str().unwrap_or_default().to_owned();
                let (stop, load) = (number("stop"), number("load"));
                trace.switches.push(LaneSwitch { lane: text("lane"), evicted, stop, load });
            }
            _ => {}
        }
    }
    trace
}
