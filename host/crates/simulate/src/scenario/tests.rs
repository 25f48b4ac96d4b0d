mod arbitrary;
mod errors;
mod schema;

use pointsman_domain::dispatch::Residency;
use pointsman_policy::OnError;

use super::*;
use crate::arrivals::{ArrivalProcess, HeaderValue, Headers, Media, TrafficSource};
use crate::fault::{FaultKind, Schedule};
use crate::fleet::{DecodeRates, EngineModel, ServiceModel};
use crate::random::Distribution;

fn parse(source: &str) -> Result<Scenario, Vec<Diagnostic>> {
    let parsed = Scenario::parse(source, Path::new("/conf/day.toml"))
        .map_err(|error| error.diagnostics().to_vec());
    schema::assert_agrees(source, &parsed);
    parsed
}

/// Returns the line, key and code of the only error.
fn only_error(error: &ScenarioError) -> (usize, &str, Code) {
    let [error] = error.diagnostics() else { panic!("more than one error: {error}") };
    (error.line, &error.key, error.code)
}

/// A reader of host configurations that finds none.
fn no_config(_: &Path, _: &toml::Table) -> Result<HostConfig, Problem> {
    Err(Code::Unavailable.with("no such file"))
}

/// A scenario with every key that has one form.
const COMPLETE: &str = r#"
title = "A day of Cortex"
start-time = "2026-01-05T00:00:00Z"
duration = "24h"
seeds = 3
objectives = ["interactive.wait.p99 < 20s", "lost == 0"]

[fleet]
deadline = "10m"
[[fleet.groups]]
name = "gpu0"
memory = "48GiB"
[[fleet.lanes]]
name = "orchestrator"
group = "gpu0"
memory = "33GiB"
[[fleet.lanes]]
name = "coder"
models = ["coder", "auto"]
slots = 8
group = "gpu0"
memory = "33GiB"
load = "at-start"
unload-after = "30m"
expected-load-time = "70s"
max-context = 32768
labels = { tier = "a" }
cost = 2
engine = "vllm"
[[fleet.lanes]]
name = "cloud"
engine = "external"
[fleet.queue]
max-wait = "5m"
per-lane = 7
[fleet.switching]
min-residency = 2.0
starvation-timeout = "90s"

[[tenants]]
name = "acme"
weight = 3
[[tenants]]
name = "b"

[engines.default]
load = { median = "45s", p99 = "80s" }
stop = "5s"
prefill = 2500
decode = [[1, 28], [8, 140]]
overhead = "20ms"
kv-tokens = 49152
prefix-cache = true
hang-detection-time = "30s"
first-byte-timeout = "5m"
[engines.coder]
prefill = 3000
[engines.cloud]
service-time = { first-token = "200ms", rest = "4s" }

[[policies]]
name = "cortex"
dir = "../policies/cortex"
weight = 500
on-error = "refuse"
config = { patience-ms = 20000 }

[[variants]]
name = "first-come"
policies = [{ name = "first-come", dir = "../policies/first-come" }]
[variants.set]
fleet.switching.min-residency = 0.0
traffic.agents.tenants = ["a"]
engines.coder.kv-tokens = 7
[[variants]]
name = "no-policies"
policies = []

[[traffic]]
class = "interactive"
models = { orchestrator = 3, coder = 1 }
tenants = 40
skew = 1.1
daily = { peak = "120/h", trough = "5/h", peak-at = "14:00" }
prompt = { median = 900, p99 = 8000 }
shared-prefix = 600
output = [100, 200]
max-tokens = 2048
stream = true
client-timeout = "2m"
text = "Here is code: ..."
headers = { X-Task = "code" }
media = "2.5%"
from = "1h"
until = "20h"
[[traffic]]
class = "agents"
turn-models = ["orchestrator", "coder"]
headers = { X-Session = "s-{session}", X-Tier = { free = 3, gold = 1 } }
media = [0, 2]
prompt = { min = 10, shape = 1.2, max = 1e5 }
output = 250
[traffic.sessions]
rate = "6/h"
turns = { median = 8, p99 = 40 }
think-time = { min = "20s", max = "5m" }
max-prompt = 30_000
[[traffic]]
model = "auto"
bursts = { every = { mean = "2h" }, size = { median = 40, p99 = 200 }, gap = "100ms" }
prompt = 10
output = 10
[[traffic]]
format = "burstgpt"
file = "trace.csv"
speed = 2.0
limit = 10000

[[failures]]
lane = "coder"
kind = "crash"
at = "3h"
[[failures]]
lanes = ["coder", "orchestrator"]
kind = "slow-load"
at = ["5h", "4h"]
load-time-factor = 4.0
duration = "10m"
[[failures]]
lane = "cloud"
kind = "slowdown"
every = { mean = "1h" }
speed-factor = 0.5
duration = { min = "1m", max = "2m" }
"#;

#[test]
fn all_keys_are_read() {
    let scenario = parse(COMPLETE).unwrap();
    assert_eq!((scenario.title.as_str(), scenario.start_ms), ("A day of Cortex", DEFAULT_START_MS));
    assert_eq!(
        (scenario.duration, scenario.seeds.as_slice()),
        (Duration::from_secs(86_400), &[1, 2, 3][..])
    );
    assert_eq!(scenario.objectives, ["interactive.wait.p99 < 20s", "lost == 0"]);
    let policies = scenario.policies.as_ref().unwrap();
    assert_eq!(policies[0].dir, Path::new("/conf/../policies/cortex"));
    assert_eq!((policies[0].weight, policies[0].on_error), (500, OnError::Refuse));
    assert_eq!(policies[0].settings.config, serde_json::json!({ "patience-ms": 20000 }));

    let [interactive, agents, bursts, trace] = scenario.streams.as_slice() else {
        panic!("four streams")
    };
    let daily = ArrivalProcess::Daily {
        peak: 120.0 / 3600.0,
        trough: 5.0 / 3600.0,
        peak_at: Duration::from_secs(14 * 3600),
    };
    assert_eq!(interactive.source, TrafficSource::Open(daily));
    assert_eq!((interactive.shared_prefix, interactive.max_tokens), (600, Some(2048)));
    assert_eq!(interactive.output, Distribution::OneOf(vec![100.0, 200.0]));
    assert_eq!(interactive.tenants.as_ref().unwrap().0.len(), 40);
    assert_eq!(scenario.weights, [("acme".to_owned(), 3), ("b".to_owned(), 1)].into());
    let task = [("x-task".to_owned(), "code".to_owned())];
    assert_eq!(interactive.headers, Headers::Same(task.into()));
    assert_eq!(interactive.media, Some(Media { share: 0.025, count: Distribution::Fixed(1.0) }));
    let weighted = HeaderValue::Weighted(vec![("free".into(), 3.0), ("gold".into(), 4.0)]);
    let session = HeaderValue::Text("s-{session}".into());
    let per_session = vec![("x-session".to_owned(), session), ("x-tier".to_owned(), weighted)];
    assert_eq!(agents.headers, Headers::PerSession(per_session));
    assert_eq!(
        agents.media,
        Some(Media { share: 1.0, count: Distribution::OneOf(vec![0.0, 2.0]) })
    );
    assert_eq!((&bursts.headers, &bursts.media), (&Headers::Same([].into()), &None));
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    assert_eq!(
        (interactive.from, interactive.until, agents.until),
        (hours(1), hours(20), hours(24))
    );
    let TrafficSource::Sessions(sessions) = &agents.source else { panic!("sessions") };
    assert_eq!(sessions.think_time, Distribution::Uniform(20.0, 300.0));
    assert_eq!(
        (&sessions.arrivals, sessions.max_prompt),
        (&ArrivalProcess::Poisson(6.0 / 3600.0), Some(30_000))
    );
    assert_eq!(agents.prompt, Distribution::Pareto { min: 10.0, shape: 1.2, max: 1e5 });
    let TrafficSource::Open(ArrivalProcess::Bursts { gap, .. }) = &bursts.source else {
        panic!("bursts")
    };
    assert_eq!(*gap, Distribution::Fixed(0.1));
    let TrafficSource::Trace(trace) = &trace.source else { panic!("a file") };
    assert_eq!((trace.file.as_path(), trace.limit), (Path::new("/conf/trace.csv"), Some(10_000)));
}

#[test]
fn host_has_lanes_with_engine_models() {
    let host = parse(COMPLETE).unwrap().host(&no_config).unwrap();
    let [orchestrator, coder, cloud] = host.fleet.lanes.as_slice() else { panic!("three lanes") };
    assert_eq!((host.fleet.rules.min_residency, host.fleet.rules.queue.per_lane), (2000, 7));
    assert_eq!(
        host.fleet.limits,
        pointsman_domain::PlanLimits { max_wait: Duration::from_secs(300), max_steps: 5 }
    );
    assert_eq!((host.fleet.groups.len(), coder.setup.group, cloud.setup.group), (1, 0, usize::MAX));
    let on_demand = |preload, minutes: Option<u64>| Residency::OnDemand {
        preload,
        unload_after: minutes.map(|m| Duration::from_secs(m * 60)),
    };
    assert_eq!(orchestrator.setup.residency, on_demand(false, None));
    assert_eq!(coder.setup.residency, on_demand(true, Some(30)));
    assert_eq!(cloud.setup.residency, Residency::External);
    assert_eq!((coder.info.group, cloud.info.group, coder.info.cost_milli), (1, 0, 2));
    assert_eq!((coder.setup.need, coder.setup.expected_load.as_secs()), (33 << 30, 70));
    let rates = |engine: &EngineModel| match &engine.service {
        ServiceModel::Rates { prefill, decode, .. } => (*prefill, decode.clone()),
        ServiceModel::Fixed { .. } => panic!("rates"),
    };
    let decode = DecodeRates(vec![(1, 28.0), (8, 140.0)]);
    assert_eq!(rates(&coder.engine), (3000.0, decode.clone()));
    assert_eq!(rates(&orchestrator.engine), (2500.0, decode));
    let fixed = ServiceModel::Fixed {
        first_token: Distribution::Fixed(0.2),
        rest: Distribution::Fixed(4.0),
        use_recorded: false,
    };
    assert_eq!((&cloud.engine.service, cloud.engine.kv_tokens), (&fixed, Some(49_152)));
    assert_eq!(
        (cloud.first_byte_timeout.as_secs(), cloud.engine.hang_detection_time.as_secs()),
        (300, 30)
    );
    assert_eq!(host.chain.policies.len(), 1);
}

#[test]
fn variants_override_keys() {
    let scenario = parse(COMPLETE).unwrap();
    let [first, no_policies] = scenario.variants.as_slice() else { panic!("two variants") };
    let host = first.scenario.host(&no_config).unwrap();
    assert_eq!((first.name.as_str(), host.fleet.rules.min_residency), ("first-come", 0));
    assert_eq!(host.fleet.lanes[1].engine.kv_tokens, Some(7));
    assert_eq!(host.chain.policies[0].name, "first-come");
    let tenants =
        |scenario: &Scenario| scenario.streams[1].tenants.as_ref().map(|tenants| tenants.0.len());
    assert_eq!((tenants(&first.scenario), tenants(&scenario)), (Some(1), None));
    assert_eq!(no_policies.scenario.host(&no_config).unwrap().chain.policies.len(), 0);
    assert_eq!(no_policies.scenario.streams.len(), 4);
}

#[test]
fn faults_are_resolved_to_lanes() {
    let scenario = parse(COMPLETE).unwrap();
    let mut fleet = scenario.host(&no_config).unwrap().fleet;
    let faults = scenario.faults(&fleet).unwrap();
    assert_eq!((&faults[0].kind, faults[0].lanes[0].index()), (&FaultKind::Crash, 1));
    let lanes: Vec<usize> = faults[1].lanes.iter().map(|lane| lane.index()).collect();
    assert_eq!(lanes, [1, 0]);
    let duration = Distribution::Fixed(600.0);
    assert_eq!(faults[1].kind, FaultKind::SlowLoad { load_time_factor: 4.0, duration });
    let at = [4, 5].map(|hours| Duration::from_secs(hours * 3600)).to_vec();
    assert_eq!(faults[1].schedule, Schedule::At(at));
    let hourly = Distribution::Exponential { mean: 3600.0 };
    assert_eq!(faults[2].schedule, Schedule::Every(hourly));
    fleet.lanes.truncate(2);
    fleet.lanes[1].info.name = "codex".to_owned();
    let error = scenario.faults(&fleet).unwrap_err();
    let line = |text: &str| COMPLETE.lines().position(|line| line == text).unwrap() + 1;
    let [first, second, third] = error.diagnostics() else { panic!("three errors: {error}") };
    assert_eq!(
        (first.line, first.key.as_str(), first.code),
        (line("lane = \"coder\""), "failures[0].lane", Code::UnknownName)
    );
    assert!(first.message.contains("\"coder\"; did you mean \"codex\"?"), "{first}");
    assert_eq!((second.key.as_str(), second.code), ("failures[1].lanes", Code::UnknownName));
    assert_eq!((third.key.as_str(), third.code), ("failures[2].lane", Code::UnknownName));
}

#[test]
fn engine_times_can_be_measured_sequences() {
    let text = with(
        "[engines.a]\nload.sequence = [\"41s\", 44.5]\nstop = { sequence = [3] }\n\
         service-time = { first-token = 1, use-recorded = true }",
    );
    let engine = parse(&text).unwrap().host(&no_config).unwrap().fleet.lanes[0].engine.clone();
    assert_eq!(engine.load_time, Distribution::Sequence(vec![41.0, 44.5]));
    assert_eq!(engine.stop_time, Distribution::Sequence(vec![3.0]));
    assert!(matches!(engine.service, ServiceModel::Fixed { use_recorded: true, .. }));
    let errors = parse(&with("[engines.a]\nload.sequence = \"41s\"")).unwrap_err();
    let found: Vec<(&str, Code)> =
        errors.iter().map(|error| (error.key.as_str(), error.code)).collect();
    assert_eq!(found, [("engines.a.load.sequence", Code::WrongType)]);
}

/// Returns the smallest valid scenario with additional keys and tables after its lane.
fn with(more: &str) -> String {
    let tables = [
        "[[fleet.lanes]]\nname = \"a\"",
        "[[traffic]]\nmodel = \"a\"\nrate = \"1/s\"\nprompt = 1\noutput = 1",
    ];
    format!("duration = \"1h\"\n{}\n{more}\n{}\n", tables[0], tables[1])
}

#[test]
fn host_configuration_is_read_by_the_resolver() {
    let source = "duration = \"1h\"\n[fleet]\nconfig = \"../host.toml\"\n\
                  set = { switching.min-residency = 2.0, x = \"y\" }\n\
                  [[traffic]]\nmodel = \"a\"\nrate = \"1/s\"\nprompt = 1\noutput = 1\n\
                  [engines.b]\nprefill = 1\n";
    let scenario = parse(source).unwrap();
    let config = |file: &Path, set: &toml::Table| {
        assert_eq!(file, Path::new("/conf/../host.toml"));
        assert_eq!(set.to_string().trim(), "x = \"y\"\n\n[switching]\nmin-residency = 2.0");
        let FleetSource::Inline(config) = parse(&with("")).unwrap().fleet else { panic!("inline") };
        Ok(*config)
    };
    let error = scenario.host(&config).unwrap_err();
    assert_eq!(only_error(&error), (10, "engines.b", Code::UnknownName));
    let message = error.diagnostics()[0].to_string();
    assert!(message.contains("\"b\"") && message.contains("\"a\""), "{message}");
    let error = scenario.host(&no_config).unwrap_err();
    assert_eq!(only_error(&error), (3, "fleet.config", Code::Unavailable));
    let shown = error.to_string();
    assert!(shown.starts_with("/conf/day.toml:3: ") && shown.contains("no such file"), "{shown}");
}

#[test]
fn keys_of_policies_are_those_of_the_chain_in_use() {
    let host = "duration = \"1h\"\n[fleet]\nconfig = \"host.toml\"\n[[traffic]]\nmodel = \"a\"\n\
                rate = \"1/s\"\nprompt = 1\noutput = 1\n";
    let own = "[[policies]]\nname = \"quota\"\ndir = \"quota\"\n";
    for (source, is_of_host) in [(host.to_owned(), true), (format!("{host}{own}"), false)] {
        let mut document = Document::new(source, Path::new("/conf/day.toml"));
        document.set("policies.quota.config.limit", "5").unwrap();
        let FleetSource::Config { set, .. } = document.scenario().unwrap().fleet else {
            panic!("no host configuration")
        };
        let limit = set.get("policies").map(|policies| &policies["chain"]["quota"]["config"]);
        assert_eq!(limit.is_some(), is_of_host, "{set}");
    }
}

#[test]
fn document_keys_can_be_overridden() {
    let mut document = Document::new(COMPLETE.to_owned(), Path::new("/conf/day.toml"));
    for (path, value) in [
        ("fleet.switching.min-residency", "1.5"),
        ("traffic.interactive.daily.peak", "600/h"),
        ("traffic.2.prompt", "{ mean = 5 }"),
        ("fleet.lanes.coder.slots", "3"),
        ("duration", "2h"),
        ("failures.0.at", "1h"),
    ] {
        document.set(path, value).unwrap();
    }
    let scenario = document.scenario().unwrap();
    let fleet = scenario.host(&no_config).unwrap().fleet;
    assert_eq!((fleet.rules.min_residency, fleet.lanes[1].setup.slots), (1500, 3));
    let TrafficSource::Open(ArrivalProcess::Daily { peak, .. }) = scenario.streams[0].source else {
        panic!("daily")
    };
    assert!((peak - 1.0 / 6.0).abs() < f64::EPSILON);
    assert_eq!(scenario.streams[2].prompt, Distribution::Exponential { mean: 5.0 });
    assert_eq!(scenario.duration, Duration::from_secs(7200));
    // The keys of a variant take precedence.
    assert_eq!(
        scenario.variants[0].scenario.host(&no_config).unwrap().fleet.rules.min_residency,
        0
    );
    // Line 0: the key is not from the file.
    for (path, value, key, code, hint) in [
        (
            "traffic.interactiv.rate",
            "1/s",
            "traffic.interactiv",
            Code::UnknownName,
            "did you mean `interactive`?",
        ),
        (
            "fleet.switching.min-residence",
            "1",
            "fleet.switching.min-residence",
            Code::UnknownKey,
            "did you mean `min-residency`?",
        ),
        ("seeds", "none", "seeds", Code::WrongType, "a string"),
    ] {
        let mut document = document.clone();
        document.set(path, value).unwrap();
        let error = document.scenario().unwrap_err();
        assert_eq!(only_error(&error), (0, key, code));
        assert!(error.diagnostics()[0].message.contains(hint), "{error}");
    }
}

#[test]
fn all_forms_of_a_key_are_accepted() {
    let traffic =
        |keys: &str| with(&format!("[[traffic]]\nmodel = \"a\"\nprompt = 1\noutput = 1\n{keys}"));
    let files = ["azure", "burstgpt", "records"]
        .map(|format| traffic(&format!("file = \"x\"\nformat = \"{format}\"")));
    let distributions = [
        "5",
        "0.5",
        "\"5s\"",
        "{ median = \"20s\", p99 = \"5m\" }",
        "{ mean = 2 }",
        "{ min = 1, max = 2 }",
        "{ min = 1, shape = 1.1, max = \"2h\" }",
        "[1, \"2s\", 3.0]",
    ]
    .map(|distribution| traffic(&format!("every = {distribution}")));
    let rates = ["2/s", "2/min", "2.5/h", "2/d"].map(|rate| traffic(&format!("rate = \"{rate}\"")));
    let sessions =
        "sessions = { daily = { peak = \"6/h\" }, turns = 3, think-time = { mean = 5 } }";
    let faults = [
        "kind = \"crash\"\nat = [\"1h\", \"2h\"]",
        "kind = \"hang\"\nevery = \"1h\"\nduration = \"10m\"",
        "kind = \"load-failure\"\nat = \"1h\"\nduration = { mean = \"10m\" }",
        "kind = \"slow-load\"\nat = \"1h\"\nduration = \"10m\"\nload-time-factor = 4",
        "kind = \"slowdown\"\nat = \"1h\"\nduration = \"10m\"\nspeed-factor = 0.5",
    ]
    .map(|fault| with(&format!("[[failures]]\nlane = \"a\"\n{fault}")));
    let others = [
        traffic(sessions),
        traffic("file = \"x\"\nformat = \"sharegpt\"\nrate = \"30/h\"\nthink-time = \"5s\""),
        with("[engines.default]\ndecode = 30"),
        with("[engines.default]\nservice-time = { first-token = \"200ms\" }"),
        format!(
            "start-time = 2026-01-05T06:00:00+01:00\nseeds = [7, 9]\npolicies = []\n{}",
            with("")
        ),
    ];
    for source in files.iter().chain(&distributions).chain(&rates).chain(&faults).chain(&others) {
        let scenario = parse(source).unwrap_or_else(|errors| panic!("{source}\n{errors:#?}"));
        let fleet = scenario.host(&no_config).unwrap().fleet;
        assert!(scenario.faults(&fleet).is_ok(), "{source}");
    }
}
