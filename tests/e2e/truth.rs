//! The simulator tells the truth: a host serves a workload in real time, and the simulator gets the records of it.
//!
//! What is compared are decisions, not the moods of the machine. So the simulated engines take as long as the real ones did:
//! each request as long as its record says, each load and each stop as long as the host noted. Everything else, such as who
//! gets which slot when, which lane is exchanged for which one and when, and how long everybody waits, is the simulator's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pointsman_record::{Record, files, records};
use pointsman_tests::client::send;
use pointsman_tests::host::{Host, fake_lane, program, root};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;

/// Two slots that were given away so soon after one another may come in any order: a thread that slept for a moment, on a
/// machine that does something else as well, is no decision.
const AT_ONCE: f64 = 0.010;
/// What a request may wait longer than simulated, by threads that have to be woken up and sockets that have to be read.
const OVERHEAD: f64 = 0.005;
/// A workload has moments at which a millisecond decides which lane comes next. If the machine loses one there, all is
/// different from then on, and the day is lived again. A simulator that decides otherwise does so each time.
const ATTEMPTS: usize = 3;
const REQUESTS: usize = 150;

/// A slot that was given to a request.
#[derive(Debug, Clone, PartialEq)]
struct Grant {
    lane: String,
    /// Seconds since the first request came.
    at: f64,
    wait: f64,
}

/// A lane that was loaded, and the one that had to go.
#[derive(Debug, Clone, PartialEq)]
struct Switch {
    lane: String,
    instead_of: String,
    stop: f64,
    load: f64,
}

/// What became of a workload.
#[derive(Debug, Default)]
struct Course {
    grants: BTreeMap<String, Grant>,
    switches: Vec<Switch>,
}

impl Course {
    fn mean_wait(&self) -> f64 {
        self.grants.values().map(|grant| grant.wait).sum::<f64>() / self.grants.len() as f64
    }

    /// How it differs from what was simulated, in sentences.
    fn differs_from(&self, simulated: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let switches = |course: &Self| -> Vec<(String, String)> {
            course.switches.iter().map(|switch| (switch.lane.clone(), switch.instead_of.clone())).collect()
        };
        if switches(self) != switches(simulated) {
            let (real, simulated) = (switches(self), switches(simulated));
            differences.push(format!("the switches were {real:?}, simulated {simulated:?}"));
        }
        let mut pairs = Vec::new();
        for (id, real) in &self.grants {
            match simulated.grants.get(id) {
                Some(simulated) if simulated.lane == real.lane => pairs.push((id, real.at, simulated.at)),
                other => differences.push(format!("{id} got a slot of {}, simulated {other:?}", real.lane)),
            }
        }
        for (earlier, real, simulated) in &pairs {
            let after = |(_, at, _): &&(&String, f64, f64)| *at > *real + AT_ONCE;
            for (later, _, other) in pairs.iter().filter(after).filter(|(_, _, other)| other < simulated) {
                differences.push(format!(
                    "{earlier} had its slot at {real:.3} s before {later}, simulated at {simulated:.3} s after it at {other:.3} s"
                ));
            }
        }
        let (real, simulated) = (self.mean_wait(), simulated.mean_wait());
        if (real - simulated).abs() > 0.05 * real + OVERHEAD {
            differences.push(format!("the mean wait was {real:.4} s, simulated {simulated:.4} s"));
        }
        differences
    }
}

/// Numbers that look random and are the same each time (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// When a request comes, and what it asks for.
fn workload() -> Vec<(Duration, &'static str, &'static str)> {
    let lanes = ["orchestrator", "coder", "fast_rag", "super_reader"];
    let texts = ["plan my day", "why does fn main() not compile?", "Context: the sky is blue."];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut at = 0;
    let mut agent = 0;
    (0..REQUESTS)
        .map(|number| {
            // Agents that work for a while with one lane, one after the other, and others among them.
            if number % 9 == 0 {
                agent = random.below(3) as usize;
            }
            at += 60 + random.below(280);
            let text = texts[random.below(3) as usize];
            let model = match random.below(10) {
                0 => "auto",
                1 | 2 => lanes[random.below(4) as usize],
                _ => lanes[agent],
            };
            (Duration::from_millis(at), model, text)
        })
        .collect()
}

/// Three lanes that take turns, and one that is always there.
fn config(policy: &str) -> String {
    let lane = |name: &str, more: &str, load: &str, token: &str| {
        let models = [name, "auto"];
        let script = format!(r#"{{"tokens": 5, "token-ms": {token}}}"#);
        let arguments = ["--load-ms", load, "--slots", "2", "--script", &script];
        fake_lane(
            FAKE_ENGINE,
            name,
            &models,
            &format!("slots = 2\nexpected-load = \"1s\"\n{more}"),
            &arguments,
        )
    };
    let turns = "group = \"gpu\"\nmemory = \"8GiB\"";
    let policies = root().join("policies");
    [
        format!("[policies]\ndir = {policies:?}\ncache = \"cache\"\n{policy}\n"),
        "[records]\ndir = \"records\"\nmode = \"full\"\nredact = { text = \"keep\" }\n".to_owned(),
        "[[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n".to_owned(),
        lane("orchestrator", turns, "1000", "40"),
        lane("coder", turns, "1200", "60"),
        lane("fast_rag", turns, "700", "30"),
        lane("super_reader", "", "100", "50"),
    ]
    .concat()
}

/// The workload, served in real time.
fn served(policy: &str) -> (Host, Course) {
    let host = Host::start(&program(FAKE_ENGINE), &config(policy)).ready();
    host.wait_for("super_reader", "ready");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (number, (at, model, text)) in workload().into_iter().enumerate() {
            let port = host.port;
            scope.spawn(move || {
                std::thread::sleep(at.saturating_sub(begun.elapsed()));
                let body = json!({ "model": model, "messages": [{ "role": "user", "content": text }] });
                let id = number.to_string();
                let headers = [("content-type", "application/json"), ("x-request-id", id.as_str())];
                let reply = send(port, "POST", "/v1/chat/completions", &headers, body.to_string().as_bytes());
                assert_eq!(reply.status, 200, "{}", reply.text());
            });
        }
    });
    host.assert_nothing_lost();
    let written = || host.metric("pointsman_records_written_total", "");
    wait_until("all are written", || written() == REQUESTS as f64);
    let course = Course { grants: recorded(&host.dir.path().join("records")), switches: logged(&host.log()) };
    (host, course)
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
                    grants.push((decision.request_id.to_string(), came, wait, lane));
                }
            }
        }
    }
    let first = grants.iter().map(|grant| grant.1).fold(f64::INFINITY, f64::min);
    let grants = grants.into_iter();
    grants.map(|(id, came, wait, lane)| (id, Grant { lane, at: came - first + wait, wait })).collect()
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
    lines
        .map(|line| Switch {
            lane: field(line, " lane=\""),
            instead_of: field(line, " instead_of=\""),
            stop: millis(line, " ms of stopping"),
            load: millis(line, " ms of loading"),
        })
        .collect()
}

/// The scenario: the host's configuration, its records, and the times that its engines took. `set` is what is other.
fn scenario(course: &Course, set: &str) -> String {
    let mut text = format!(
        "lasts = \"1h\"\n[fleet]\nconfig = \"pointsman.toml\"\nset = {{ {set} }}\n\
         [engines.default]\nservice = {{ first = \"250ms\", recorded = true }}\nload = \"0s\"\n\
         [[traffic]]\nclass = \"all\"\nfile = \"records\"\nformat = \"records\"\n"
    );
    for lane in ["orchestrator", "coder", "fast_rag"] {
        let times = |of: fn(&Switch, &str) -> Option<f64>| -> String {
            let times = course.switches.iter().filter_map(|switch| of(switch, lane));
            let times: Vec<String> = times.map(|time| format!("{time:.4}")).collect();
            if times.is_empty() { "[0]".to_owned() } else { format!("[{}]", times.join(", ")) }
        };
        let load = times(|switch, lane| (switch.lane == lane).then_some(switch.load));
        let stop = times(|switch, lane| (switch.instead_of == lane).then_some(switch.stop));
        writeln!(text, "[engines.{lane}]\nload.in-turn = {load}\nstop.in-turn = {stop}").unwrap();
    }
    text
}

/// What the simulator makes of a scenario in a folder.
fn simulated(dir: &Path, scenario: &str) -> Course {
    fs::write(dir.join("scenario.toml"), scenario).unwrap();
    let output = Command::new(program(FAKE_ENGINE))
        .args(["simulate", "--quiet", "--trace", "trace.jsonl", "scenario.toml"])
        .current_dir(dir)
        .env("XDG_CACHE_HOME", dir.join("cache"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut course = Course::default();
    let text = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    for line in fs::read_to_string(dir.join("trace.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let number = |key: &str| line[key].as_f64().unwrap();
        match line["what"].as_str().unwrap() {
            "granted" => {
                let grant = Grant { lane: text(&line, "lane"), at: number("at"), wait: f64::NAN };
                course.grants.insert(text(&line, "request"), grant);
            }
            "ended" => course.grants.get_mut(&text(&line, "request")).unwrap().wait = number("wait"),
            "switched" if line["lane"] != "super_reader" => {
                let instead_of = line["instead-of"][0].as_str().unwrap_or_default().to_owned();
                let (stop, load) = (number("stop"), number("load"));
                course.switches.push(Switch { lane: text(&line, "lane"), instead_of, stop, load });
            }
            _ => {}
        }
    }
    course
}

fn agree(policy: &str) {
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        let (mut host, mut real) = served(policy);
        real.switches.retain(|switch| switch.lane != "super_reader");
        assert!(real.switches.len() >= 5, "lanes took turns: {:?}", real.switches);
        host.signal(Signal::TERM);
        assert!(host.ended().success());
        let simulated_course = simulated(host.dir.path(), &scenario(&real, ""));
        let differences = real.differs_from(&simulated_course);
        println!(
            "{} requests, {} switches; mean wait {:.1} ms, simulated {:.1} ms",
            real.grants.len(),
            real.switches.len(),
            real.mean_wait() * 1e3,
            simulated_course.mean_wait() * 1e3
        );
        // What is looked for would be found: with other rules, it is another day.
        let other =
            simulated(host.dir.path(), &scenario(&real, "switching = { residence = 0.0, linger = \"0s\" }"));
        assert!(real.differs_from(&other).len() > 1, "rules make a difference");
        if differences.is_empty() {
            return;
        }
        let _written = writeln!(said, "--- {} differences:\n{}", differences.len(), differences.join("\n"));
    }
    panic!("{said}");
}

#[test]
fn without_a_policy_the_simulator_decides_as_the_host_did() {
    agree("");
}

#[test]
fn with_a_policy_the_simulator_decides_as_the_host_did() {
    agree("[[policies.chain]]\nname = \"cortex\"\nconfig = { patience-ms = 1500 }");
}
