//! Metrics of a running host: their names, the table in `host/docs/metrics.md`, and the dashboard
//! and alerts in `host/dashboards`.

mod exposition;
mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use pointsman_tests::client::{Response, chat, send};
use pointsman_tests::deployment::chain;
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{Host, fake_lane, program, root, send_signal};
use pointsman_tests::issuer::{AUDIENCE, Issuer};
use pointsman_tests::wait_until;
use pointsman_xtask::sha256;
use rustix::process::Signal;
use serde_json::json;

use self::exposition::{Metric, parse};
use self::promql::{Expression, of_alerts, of_dashboard};
use crate::FAKE_ENGINE;
use crate::clients::prepared_dir;
use crate::groups::FakeMachine;
use crate::requirements::rust_files;

const CHAT: &str = "/v1/chat/completions";
const PEER_KEY: &str = "peer-key-0123456789";
const GIB: u64 = 1 << 30;
const DASHBOARDS: &str = "host/dashboards";

/// A host that has measured its machine, and has served, rejected and failed requests.
struct Observed {
    host: Host,
    _other: Host,
    machine: FakeMachine,
    _issuer: Issuer,
}

/// Returns a lane with a fake vLLM that needs 12 GiB of the GPU.
fn gpu_lane(machine: &FakeMachine, name: &str) -> String {
    let flags = format!("--load-ms 50 {}", machine.flags(12 * GIB));
    format!(
        "[[lanes]]\nname = {name:?}\ngroup = \"gpu\"\nmemory = \"12GiB\"\n[lanes.engine]\n\
         driver = \"vllm\"\nprogram = [{FAKE_ENGINE:?}]\nmodel = \"/m/{name}\"\n\
         env = {{ FAKE_ENGINE = {flags:?} }}\n"
    )
}

/// Returns a key in the keys file.
fn key(name: &str, limits: &str) -> String {
    let hash = sha256(secret(name).as_bytes());
    format!(
        "[[keys]]\nid = \"{name}\"\nhash = \"sha256:{hash}\"\ntenant = \"{name}\"\n\
         limits = {{ {limits} }}\n"
    )
}

fn secret(name: &str) -> String {
    format!("pm_secret-of-{name}")
}

/// Returns a lane of another host.
fn peer_lane(name: &str, port: u16) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\n[lanes.engine]\ndriver = \"pointsman\"\nlane = \"there\"\n\
         url = \"http://127.0.0.1:{port}\"\nkey-file = \"peer.key\"\n"
    )
}

/// Starts another host, whose lane is one of the host that is observed.
fn start_other() -> Host {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("peer.key"), PEER_KEY).unwrap();
    let lane = fake_lane(FAKE_ENGINE, "there", &["there"], "", &[]);
    let config = format!("[[peers]]\nname = \"observed\"\nkey-file = \"peer.key\"\n{lane}");
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready()
}

fn config(machine: &FakeMachine, issuer: &Issuer, other: &Host) -> String {
    let first = fake_lane(FAKE_ENGINE, "first", &["auto"], "", &[]);
    let second = fake_lane(FAKE_ENGINE, "second", &["auto"], "", &[]);
    // One is away.
    let peers = [peer_lane("far", other.port), peer_lane("away", 1)].concat();
    let lanes = [gpu_lane(machine, "a"), gpu_lane(machine, "b"), first, second, peers].concat();
    format!(
        "switching = {{ min-residency = 0.0, linger = \"0s\" }}\n\
         [access]\nkeys = \"keys.toml\"\n[access.tokens]\nissuer = {:?}\n\
         audience = [{AUDIENCE:?}]\n[records]\ndir = \"records\"\n\
         [policies]\ncache = \"cache\"\n{}\
         [[guards]]\nname = \"short\"\nmax-output-tokens = 100\n\
         [[groups]]\nname = \"gpu\"\npool = \"gpu\"\nmemory = \"16GiB\"\n{lanes}",
        issuer.url(),
        chain(&["good", "unreachable"], ""),
    )
}

fn ask(host: &Host, name: &str, model: &str) -> Response {
    let bearer = format!("Bearer {}", secret(name));
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let body = chat(model, json!({ "max_tokens": 5 })).to_string();
    send(host.port, "POST", CHAT, &headers, body.as_bytes())
}

impl Observed {
    fn start() -> Self {
        let (machine, issuer) = (FakeMachine::new(16 * GIB, 10), Issuer::start());
        let card = machine.path().join("sys/class/drm/renderD128/device");
        fs::write(card.join("gpu_busy_percent"), "37\n").unwrap();
        // The processes of the engines are real, and so is the memory of the system.
        symlink("/proc", machine.path().join("proc")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let keys = [key("many", ""), key("few", "requests-per-minute = 1")].concat();
        fs::write(dir.path().join("keys.toml"), keys).unwrap();
        for guest in [Guest::new("good").reason("good"), Guest::from_file("unreachable")] {
            guest.write_to(&dir.path().join("policies"));
        }
        fs::write(dir.path().join("peer.key"), PEER_KEY).unwrap();
        let other = start_other();
        let config = config(&machine, &issuer, &other);
        let host = Host::start_in(&machine.program(), dir, &config, &[]);
        for lane in ["first", "second", "far"] {
            host.wait_for_lane(lane, "ready");
        }
        wait_until("the host that is away is noticed", || {
            host.metric("pointsman_peer_errors_total", "peer_unreachable") > 0.0
        });
        let observed = Self { host, _other: other, machine, _issuer: issuer };
        observed.send_requests();
        observed
    }

    /// Sends requests that are served after a switch, fall back, are refused and fail.
    fn send_requests(&self) {
        let host = &self.host;
        for model in ["a", "b", "a", "auto"] {
            let response = ask(host, "many", model);
            assert_eq!(response.status, 200, "{}", response.text());
        }
        host.set_script("first", json!({ "status": 500 }));
        host.set_script("second", json!({ "status": 500 }));
        assert!(ask(host, "many", "auto").status >= 500);
        assert_eq!(ask(host, "few", "a").status, 200);
        assert_eq!(ask(host, "few", "a").status, 429);
        send_signal(host.engine_pid("second"), Signal::KILL);
        wait_until("the end of the engine is counted", || {
            host.metric("pointsman_engine_exits_total", "lane=\"second\"") > 0.0
        });
    }

    fn metrics(&self) -> String {
        let response = self.host.get("/metrics");
        let kind = response.header("content-type").unwrap();
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        response.text()
    }
}

/// Measured memory is shown beside the budgets, in the status and as metrics.
#[test]
fn memory_of_engines_is_measured() {
    let Observed { host, machine, .. } = &Observed::start();
    wait_until("the loaded engine is measured", || {
        host.lane("a")["memory"]["gpu_bytes"] == 12 * GIB
    });
    let memory = host.lane("a")["memory"].clone();
    assert_eq!(memory["need_bytes"], 12 * GIB);
    assert!(memory["processes"].as_u64().is_some_and(|processes| processes >= 1), "{memory}");
    assert!(memory["system_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{memory}");
    wait_until("the unloaded engine is not", || host.lane("b")["memory"]["gpu_bytes"].is_null());
    let status = host.status();
    let group = &status["groups"][0];
    assert_eq!(
        (&group["name"], &group["budget_bytes"], &group["measured_bytes"]),
        (&json!("gpu"), &json!(16 * GIB), &json!(12 * GIB))
    );
    assert_eq!((&group["reserved_bytes"], &group["lanes"]), (&json!(12 * GIB), &json!(["a", "b"])));
    let gpu = &status["machine"]["gpus"][0];
    assert_eq!((&gpu["name"], &gpu["busy_percent"]), (&json!("renderD128"), &json!(37)));
    assert_eq!(gpu["vram_used_bytes"], 12 * GIB);
    for (name, labels, value) in [
        ("pointsman_gpu_memory_used_bytes", "kind=\"vram\"", 12 * GIB),
        ("pointsman_gpu_memory_total_bytes", "gpu=\"renderD128\",kind=\"vram\"", 16 * GIB),
        ("pointsman_lane_memory_bytes", "lane=\"a\",kind=\"compute\"", 12 * GIB),
        ("pointsman_lane_memory_bytes", "lane=\"b\"", 0),
        ("pointsman_lane_memory_need_bytes", "lane=\"b\"", 12 * GIB),
        ("pointsman_group_memory_budget_bytes", "group=\"gpu\"", 16 * GIB),
        ("pointsman_group_memory_reserved_bytes", "group=\"gpu\"", 12 * GIB),
        ("pointsman_group_memory_measured_bytes", "group=\"gpu\"", 12 * GIB),
    ] {
        assert_eq!(host.metric(name, labels), value as f64, "{name}");
    }
    assert_eq!(host.metric("pointsman_gpu_busy_ratio", ""), 0.37);
    assert_eq!(host.metric("pointsman_first_byte_seconds_count", "lane=\"a\""), 3.0);
    assert!(machine.path().exists());
    host.assert_no_request_lost();
}

/// The rules of Prometheus for names and units, and those of this project. The page has the metrics
/// that the host does not show before their first event, too.
#[test]
fn names_have_units_and_suffixes() {
    let documented = documented();
    assert!(documented.len() > 75, "{}", documented.len());
    let mut wrong = Vec::new();
    for (name, Row { kind, meaning, .. }) in &documented {
        let words: Vec<&str> = name.split('_').collect();
        let has_word_of = |list: &[&str]| words.iter().any(|word| list.contains(word));
        let base = name.strip_suffix("_total").unwrap_or(name);
        let ends_with_unit = UNITS.iter().any(|unit| base.ends_with(unit));
        for (rule, holds) in [
            ("begins with pointsman", words[0] == "pointsman"),
            (
                "counters, and nothing else, end with total",
                (kind == "counter") == name.ends_with("_total"),
            ),
            ("units are base units", !has_word_of(&OTHER_UNITS)),
            ("the unit is the last word", has_word_of(&UNITS) == ends_with_unit),
            ("names do not repeat the type", !has_word_of(&TYPES)),
            ("parts of histograms", !has_word_of(&["count", "sum", "bucket"])),
            ("a ratio is a gauge", !name.ends_with("_ratio") || kind == "gauge"),
            ("there is help", !meaning.is_empty()),
            ("the type is known", TYPES.contains(&kind.as_str())),
        ] {
            if !holds {
                wrong.push(format!("{name}: {rule}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const UNITS: [&str; 3] = ["seconds", "bytes", "ratio"];
const TYPES: [&str; 3] = ["counter", "gauge", "histogram"];
const OTHER_UNITS: [&str; 14] = [
    "ms",
    "milliseconds",
    "microseconds",
    "us",
    "minutes",
    "hours",
    "kb",
    "kilobytes",
    "megabytes",
    "mib",
    "gib",
    "percent",
    "permille",
    "milli",
];

/// Returns the output of `promtool` with this input; fails unless it succeeds.
fn promtool(arguments: &[&str], input: &str) -> String {
    let program = prepared_dir("POINTSMAN_PROMTOOL", "promtool").join("promtool");
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root().join(DASHBOARDS));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    text.into_owned()
}

#[test]
fn promtool_accepts_metrics_and_alerts() {
    let observed = Observed::start();
    let findings = promtool(&["check", "metrics"], &observed.metrics());
    assert_eq!(findings, "");
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts_test.yml"], "");
    let rule = |expression: &Expression| {
        let text = json!(expression.without_variables()).to_string();
        format!(
            "  - record: a:b\n    expr: {text}\n    labels: {{ place: {:?} }}\n",
            expression.place
        )
    };
    let rules: String = dashboard().iter().map(rule).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("groups:\n- name: a\n  rules:\n{rules}")).unwrap();
    promtool(&["check", "rules", file.path().to_str().unwrap()], "");
}

fn dashboard() -> Vec<Expression> {
    let path = root().join(DASHBOARDS).join("pointsman.json");
    of_dashboard(&serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
}

/// A row of a table of `metrics.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    kind: String,
    labels: BTreeSet<String>,
    meaning: String,
}

/// Returns the rows of the tables of `metrics.md`, by name.
fn documented() -> BTreeMap<String, Row> {
    let page = fs::read_to_string(root().join("host/docs/metrics.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `pointsman_"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("{line}") };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let row = Row { kind: kind.to_owned(), labels, meaning: meaning.to_owned() };
        (name.trim_matches('`').to_owned(), row)
    };
    rows.map(row).collect()
}

/// Returns the names in the sources of the host that metrics are registered with.
fn registered() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in ["host/src", "host/crates"].iter().flat_map(|path| rust_files(&root().join(path))) {
        let text = fs::read_to_string(&path).unwrap();
        for word in text.split('"').filter(|word| word.starts_with("pointsman_")) {
            let is_name = |next: char| next.is_ascii_lowercase() || next == '_';
            // A prefix, or the key of the code in errors.
            let is_other = word.ends_with('_') || word == "pointsman_code";
            let is_test = path.to_string_lossy().contains("tests") || word.ends_with("_total");
            if word.chars().all(is_name) && !is_other && !is_test {
                names.insert(word.to_owned());
            }
        }
    }
    names
}

/// The page has all metrics of the sources, with the types and the help that the host shows, and
/// the labels that their samples have.
#[test]
fn page_of_metrics_is_that_of_the_host() {
    let observed = Observed::start();
    let (metrics, documented) = (parse(&observed.metrics()), documented());
    assert!(metrics.len() > 60, "{}", metrics.len());
    let mut wrong = Vec::new();
    for (name, Metric { kind, help, labels }) in metrics {
        let known = documented.get(&name);
        let labels = labels.or_else(|| known.map(|row| row.labels.clone())).unwrap_or_default();
        let shown = Row { kind, labels, meaning: help.trim_end_matches('.').to_owned() };
        if known != Some(&shown) {
            wrong.push(format!("{name}: {shown:?}"));
        }
    }
    assert!(wrong.is_empty(), "host/docs/metrics.md differs from the host:\n{}", wrong.join("\n"));
    let names = documented.keys().map(|name| name.trim_end_matches("_total").to_owned());
    assert_eq!(names.collect::<BTreeSet<_>>(), registered());
}

/// Metrics of events that [`Observed`] does not cause. The host shows them from the first event on;
/// they are in the sources, and their labels are those of the page.
const NOT_CAUSED: [&str; 7] = [
    "pointsman_conversation_restored_tokens_total",
    "pointsman_policy_breaker_open",
    "pointsman_policy_effects_total",
    "pointsman_policy_load_failures_total",
    "pointsman_policy_shadow_total",
    "pointsman_queue_rejected_total",
    "pointsman_refused_connections_total",
];

/// What the names of metrics begin with that only a host with further features has. That it has
/// those of the page is tested with real services, in `tests/scale/operators.rs`.
const OF_FEATURES: [&str; 2] = ["pointsman_pick_", "pointsman_shared_state_"];

/// Each metric and label that the dashboard and the alerts name exists.
#[test]
fn dashboard_and_alerts_name_what_the_host_has() {
    let observed = Observed::start();
    let (metrics, documented) = (parse(&observed.metrics()), documented());
    let (alerts, panels) = (of_alerts(&root().join(DASHBOARDS).join("alerts.yml")), dashboard());
    assert!(alerts.len() > 15 && panels.len() > 60, "{} and {}", alerts.len(), panels.len());
    let mut wrong = BTreeSet::new();
    for expression in alerts.iter().chain(&panels) {
        let names = expression.names();
        assert!(!names.metrics.is_empty(), "{expression:?}");
        for (name, compared) in &names.metrics {
            let (family, is_histogram) = family(&documented, name);
            let is_of_feature = OF_FEATURES.iter().any(|prefix| family.starts_with(prefix));
            let is_shown = metrics.contains_key(family) || NOT_CAUSED.contains(&family);
            let is_shown = is_shown || is_of_feature;
            let Some(row) = documented.get(family).filter(|_| is_shown) else {
                wrong.insert(format!("{}: no metric {name}", expression.place));
                continue;
            };
            let mut known = row.labels.clone();
            known.extend(is_histogram.then(|| "le".to_owned()));
            let used = compared | &names.grouped;
            wrong.extend(
                used.difference(&known)
                    .map(|label| format!("{}: {name} has no label {label}", expression.place)),
            );
            let result = if names.is_aggregated { &names.grouped } else { &known };
            wrong.extend(
                expression
                    .shown
                    .difference(result)
                    .map(|label| format!("{}: the result has no label {label}", expression.place)),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Returns the metric of a series, and whether it is a histogram.
fn family<'a>(documented: &BTreeMap<String, Row>, series: &'a str) -> (&'a str, bool) {
    let is_histogram =
        |name: &&str| documented.get(*name).is_some_and(|row| row.kind == "histogram");
    let parts = ["_bucket", "_sum", "_count"];
    let mut bases = parts.iter().filter_map(|part| series.strip_suffix(part));
    bases.find(is_histogram).map_or((series, false), |base| (base, true))
}
