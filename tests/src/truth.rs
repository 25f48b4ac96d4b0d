//! One workload twice: served by a host in real time, and simulated from the records of that.
//!
//! What is compared are decisions, not the moods of the machine. So the simulated engines can take as long as the real ones
//! did: each request as long as its record says, each load and each stop as long as the host noted. Everything else, such as
//! who gets which slot when, which lane is exchanged for which one and when, and how long everybody waits, is the simulator's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pointsman_record::{Record, files, records};
use serde_json::{Value, json};

use crate::client::send;
use crate::host::{Host, fake_lane, root};
use crate::wait_until;

/// Two slots that were given away so soon after one another may come in any order: a thread that slept for a moment, on a
/// machine that does something else as well, is no decision.
const AT_ONCE: f64 = 0.020;
/// What a request may wait longer than simulated, by threads that have to be woken up and sockets that have to be read.
const OVERHEAD: f64 = 0.010;
/// A request that is to come.
#[derive(Debug, Clone)]
pub struct Asked {
    pub round: usize,
    pub at: Duration,
    pub model: &'static str,
    pub text: String,
    pub max_tokens: u32,
}

/// A slot that was given to a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Grant {
    pub lane: String,
    /// Seconds since the first request came.
    pub at: f64,
    pub wait: f64,
    /// How long the engine worked on it, as far as that was recorded.
    pub worked: f64,
}

/// A lane that was loaded, and the one that had to go.
#[derive(Debug, Clone, PartialEq)]
pub struct Switch {
    pub lane: String,
    pub instead_of: String,
    pub stop: f64,
    pub load: f64,
}

/// What became of a workload.
#[derive(Debug, Default)]
pub struct Course {
    pub grants: BTreeMap<String, Grant>,
    pub switches: Vec<Switch>,
}

impl Course {
    /// Lanes that were loaded, and those that had to go, in order.
    pub fn switches(&self) -> Vec<(&str, &str)> {
        self.switches
            .iter()
            .map(|switch| (switch.lane.as_str(), switch.instead_of.as_str()))
            .collect()
    }

    pub fn mean_wait(&self) -> f64 {
        mean(self.grants.values().map(|grant| grant.wait))
    }

    /// The wait that so many of a hundred do not exceed.
    pub fn wait(&self, percent: usize) -> f64 {
        let mut waits: Vec<f64> = self.grants.values().map(|grant| grant.wait).collect();
        waits.sort_by(f64::total_cmp);
        waits[(waits.len() * percent / 100).min(waits.len() - 1)]
    }

    /// The rounds, and how each of them differs from what was simulated, in sentences.
    pub fn differs_from(&self, simulated: &Self) -> BTreeMap<usize, Vec<String>> {
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

fn differences(grants: &[(&String, &Grant)], simulated: &Course) -> Vec<String> {
    let mut differences = Vec::new();
    let mut pairs = Vec::new();
    for (id, real) in grants {
        match simulated.grants.get(*id) {
            Some(simulated) if simulated.lane == real.lane => pairs.push((*id, *real, simulated)),
            other => {
                differences.push(format!("{id} got a slot of {}, simulated {other:?}", real.lane))
            }
        }
    }
    for (earlier, real, simulated) in &pairs {
        let after = pairs.iter().filter(|(_, later, _)| later.at > real.at + AT_ONCE);
        for (later, _, other) in after.filter(|(_, _, other)| other.at < simulated.at) {
            differences.push(format!(
                "{earlier} had its slot at {:.3} s before {later}, simulated at {:.3} s after it at {:.3} s",
                real.at, simulated.at, other.at
            ));
        }
    }
    let wait = mean(pairs.iter().map(|(_, real, _)| real.wait));
    let simulated = mean(pairs.iter().map(|(_, _, simulated)| simulated.wait));
    if (wait - simulated).abs() > 0.05 * wait + OVERHEAD {
        differences.push(format!("the mean wait was {wait:.4} s, simulated {simulated:.4} s"));
    }
    differences
}

/// Names of the lanes that take turns, milliseconds that their engines load, and milliseconds of one of their five tokens.
pub const TURNS: [(&str, u32, u32); 3] =
    [("orchestrator", 1000, 40), ("coder", 1200, 60), ("fast_rag", 700, 30)];
/// The one that is always there.
pub const ALWAYS: (&str, u32, u32) = ("super_reader", 100, 50);
const TOKENS: u32 = 5;

/// The host writes down all that the simulator is to be given.
pub const RECORDS: &str =
    "[records]\ndir = \"records\"\nmode = \"full\"\nredact = { text = \"keep\" }\n";

/// Numbers that look random and are the same each time (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// Requests of a round.
pub const ROUND: usize = 18;
/// From the begin of a round to that of the next one: all is done by then, unless the machine is very busy.
const ROUND_LASTS: u64 = 5_000;

/// So many rounds. In each of them one agent or two ask their lanes, and others among them. What goes another way in one round,
/// because a millisecond decided it, is over when the next one begins.
pub fn workload(rounds: usize) -> Vec<Asked> {
    let texts = ["plan my day", "why does fn main() not compile?", "Context: the sky is blue."];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut all = Vec::with_capacity(rounds * ROUND);
    for round in 0..rounds {
        let (mut at, agents) = (round as u64 * ROUND_LASTS, [random.below(3), random.below(3)]);
        for number in 0..ROUND {
            at += 60 + random.below(80) as u64;
            let model = match random.below(10) {
                0 => "auto",
                1 | 2 => [TURNS[0].0, TURNS[1].0, TURNS[2].0, ALWAYS.0][random.below(4)],
                _ => TURNS[agents[number * 2 / ROUND]].0,
            };
            let text = texts[random.below(3)].to_owned();
            all.push(Asked {
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

/// A host with three lanes that take turns, and one that is always there, all with fake engines; and what its policies are.
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
        TURNS.map(|engine| lane(engine, group)).concat(),
        lane(ALWAYS, ""),
    ]
    .concat()
}

/// A workload, served in real time by a host that writes whole records.
///
/// # Panics
/// If a request is not answered.
pub fn served(host: &Host, workload: &[Asked]) -> Course {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (number, asked) in workload.iter().enumerate() {
            let port = host.port;
            scope.spawn(move || {
                while let Some(early) = asked.at.checked_sub(begun.elapsed()) {
                    std::thread::park_timeout(early);
                }
                let body = json!({
                    "model": asked.model, "messages": [{ "role": "user", "content": asked.text }],
                    "max_tokens": asked.max_tokens,
                });
                let id = format!("{}-{number}", asked.round);
                let headers = [("content-type", "application/json"), ("x-request-id", id.as_str())];
                let body = body.to_string();
                let reply = send(port, "POST", "/v1/chat/completions", &headers, body.as_bytes());
                assert_eq!(reply.status, 200, "{}", reply.text());
            });
        }
    });
    host.assert_nothing_lost();
    let written = || host.metric("pointsman_records_written_total", "");
    wait_until("all are written", || written() >= workload.len() as f64);
    Course { grants: recorded(&host.dir.path().join("records")), switches: logged(&host.log()) }
}

/// The slots that decision records tell of.
fn recorded(dir: &Path) -> BTreeMap<String, Grant> {
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
                    let answered = decision.tries.last().unwrap();
                    let wait = (answered.begun + answered.queue).as_secs_f64();
                    let came = decision.now_ms as f64 / 1e3 - decision.age.as_secs_f64();
                    let lane = lanes[answered.lane.index()].clone();
                    let worked = (answered.took - answered.queue).as_secs_f64();
                    let grant = Grant { lane, at: came + wait, wait, worked };
                    grants.push((decision.request_id.to_string(), came, grant));
                }
            }
        }
    }
    let first = grants.iter().map(|grant| grant.1).fold(f64::INFINITY, f64::min);
    let since = |grant: Grant| Grant { at: grant.at - first, ..grant };
    grants.into_iter().map(|(id, _, grant)| (id, since(grant))).collect()
}

/// The switches that a host's log tells of. It leaves parts of milliseconds out.
fn logged(log: &str) -> Vec<Switch> {
    let millis = |line: &str, what: &str| -> f64 {
        let before = line.split(what).next().unwrap();
        (before.rsplit(' ').next().unwrap().parse::<f64>().unwrap() + 0.5) / 1e3
    };
    let field = |line: &str, name: &str| -> String {
        let (_, rest) = line.split_once(name).unwrap();
        rest.split('"').next().unwrap().to_owned()
    };
    let lines = log.lines().filter(|line| line.contains(" ms of draining, "));
    let always = format!(" lane=\"{}\"", ALWAYS.0);
    lines
        .filter(|line| !line.contains(&always))
        .map(|line| Switch {
            lane: field(line, " lane=\""),
            instead_of: field(line, " instead_of=\""),
            stop: millis(line, " ms of stopping"),
            load: millis(line, " ms of loading"),
        })
        .collect()
}

/// The scenario: a host's configuration and its records. `engines` is how these behave, and `set` which rules are other.
pub fn scenario(engines: &str, set: &str) -> String {
    format!(
        "lasts = \"1h\"\n[fleet]\nconfig = \"pointsman.toml\"\nset = {{ {set} }}\n{engines}\
         [[traffic]]\nclass = \"all\"\nfile = \"records\"\nformat = \"records\"\n"
    )
}

/// Engines that take as long as the real ones did, each time.
pub fn as_they_were(course: &Course) -> String {
    let mut text =
        "[engines.default]\nload = \"0s\"\nservice = { first = \"250ms\", recorded = true }\n"
            .to_owned();
    for (lane, ..) in TURNS {
        let _written = writeln!(text, "[engines.{lane}]\n{}", loads_and_stops(course, lane));
    }
    text
}

/// The loads and stops of a lane, in turn.
pub fn loads_and_stops(course: &Course, lane: &str) -> String {
    let list = |of: fn(&Switch, &str) -> Option<f64>| {
        let times = course.switches.iter().filter_map(|switch| of(switch, lane));
        let times: Vec<String> = times.map(|time| format!("{time:.4}")).collect();
        if times.is_empty() { "0".to_owned() } else { times.join(", ") }
    };
    let load = list(|switch, lane| (switch.lane == lane).then_some(switch.load));
    let stop = list(|switch, lane| (switch.instead_of == lane).then_some(switch.stop));
    format!("load.in-turn = [{load}]\nstop.in-turn = [{stop}]")
}

/// Engines that always take as long as they did on average, which is what somebody knows who writes a scenario.
pub fn as_on_average(course: &Course) -> String {
    let engine = |(lane, ..): (&str, u32, u32)| {
        let load = mean(
            course.switches.iter().filter(|switch| switch.lane == lane).map(|switch| switch.load),
        );
        let stop = mean(
            course
                .switches
                .iter()
                .filter(|switch| switch.instead_of == lane)
                .map(|switch| switch.stop),
        );
        let works = mean(
            course.grants.values().filter(|grant| grant.lane == lane).map(|grant| grant.worked),
        );
        format!(
            "[engines.{lane}]\nload = {load:.4}\nstop = {stop:.4}\nservice = {{ first = {works:.4} }}\n"
        )
    };
    TURNS.map(engine).concat() + &engine(ALWAYS)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

/// What the simulator makes of a scenario in the folder of a host that has ended.
///
/// # Panics
/// If it makes nothing of it.
pub fn simulated(program: &Path, dir: &Path, scenario: &str) -> Course {
    fs::write(dir.join("scenario.toml"), scenario).unwrap();
    let output = Command::new(program)
        .args(["simulate", "--quiet", "--trace", "trace.jsonl", "scenario.toml"])
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut course = Course::default();
    for line in fs::read_to_string(dir.join("trace.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        let number = |key: &str| line[key].as_f64().unwrap();
        match line["what"].as_str().unwrap() {
            "granted" => {
                let grant = Grant { lane: text("lane"), at: number("at"), wait: 0.0, worked: 0.0 };
                course.grants.insert(text("request"), grant);
            }
            "ended" => course.grants.get_mut(&text("request")).unwrap().wait = number("wait"),
            "switched" if line["lane"] != ALWAYS.0 => {
                let instead_of = line["instead-of"][0].as_str().unwrap_or_default().to_owned();
                let (stop, load) = (number("stop"), number("load"));
                course.switches.push(Switch { lane: text("lane"), instead_of, stop, load });
            }
            _ => {}
        }
    }
    course
}
