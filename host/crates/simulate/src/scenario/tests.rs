mod errors;

use pointsman_domain::dispatch::Residency;
use pointsman_policy::OnError;
use proptest::prelude::*;

use super::*;
use crate::fault::{Trouble, When};
use crate::fleet::{Decode, Service};
use crate::random::Spread;

fn parse(source: &str) -> Result<Scenario, Vec<String>> {
    Scenario::parse(source, Path::new("/conf/day.toml")).map_err(|error| {
        error.diagnostics().iter().map(|error| format!("{}: {error}", error.line)).collect()
    })
}

/// Nobody's configuration is read.
fn inline(_: &Path, _: &toml::Table) -> Result<HostConfig, String> {
    Err("there is no file".to_owned())
}

/// Something for every key that has one form.
const EVERYTHING: &str = r#"
title = "A day of Cortex"
begins = "2026-01-05T00:00:00Z"
lasts = "24h"
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
min_residency = 2.0
starvation-timeout = "90s"

[engines.default]
load = { median = "45s", p99 = "80s" }
stop = "5s"
prefill = 2500
decode = [[1, 28], [8, 140]]
overhead = "20ms"
kv-tokens = 49152
prefix-cache = true
notices-hang = "30s"
first-byte = "5m"
[engines.coder]
prefill = 3000
[engines.cloud]
service = { first = "200ms", rest = "4s" }

[[policies]]
name = "cortex"
dir = "../policies/cortex"
weight = 500
on-error = "refuse"
config = { patience-ms = 20000 }

[[variants]]
name = "first-come"
policies = [{ name = "first-come", dir = "../policies/first-come" }]
set = { fleet.switching.min_residency = 0.0, traffic.agents.tenants = ["a"], engines.coder.kv-tokens = 7 }
[[variants]]
name = "nobody"
policies = []

[[traffic]]
class = "interactive"
models = { orchestrator = 3, coder = 1 }
tenants = 40
skew = 1.1
daily = { most = "120/h", least = "5/h", at = "14:00" }
prompt = { median = 900, p99 = 8000 }
shared = 600
output = [100, 200]
max-tokens = 2048
stream = true
patience = "2m"
text = "Here is code: ..."
headers = { X-Task = "code" }
from = "1h"
until = "20h"
[[traffic]]
class = "agents"
turns = ["orchestrator", "coder"]
sessions = { rate = "6/h", turns = { median = 8, p99 = 40 }, think = { least = "20s", most = "5m" }, longest = 30_000 }
prompt = { least = 10, shape = 1.2, most = 1e5 }
output = 250
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
what = "crash"
at = "3h"
[[failures]]
lanes = ["coder", "orchestrator"]
what = "slow-loads"
at = ["5h", "4h"]
times = 4.0
lasts = "10m"
[[failures]]
lane = "cloud"
what = "slow-down"
every = { mean = "1h" }
part = 0.5
lasts = { least = "1m", most = "2m" }
"#;

#[test]
fn everything_that_is_said_is_taken_over() {
    let scenario = parse(EVERYTHING).unwrap();
    assert_eq!((scenario.title.as_str(), scenario.begins_ms), ("A day of Cortex", BEGINS));
    assert_eq!(
        (scenario.lasts, scenario.seeds.as_slice()),
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
    let daily = Pace::Daily {
        most: 120.0 / 3600.0,
        least: 5.0 / 3600.0,
        at: Duration::from_secs(14 * 3600),
    };
    assert_eq!(interactive.source, Source::Open(daily));
    assert_eq!((interactive.shared, interactive.max_tokens), (600, Some(2048)));
    assert_eq!(interactive.output, Spread::OneOf(vec![100.0, 200.0]));
    assert_eq!(interactive.tenants.as_ref().unwrap().0.len(), 40);
    assert_eq!(&*interactive.headers, [("x-task".to_owned(), "code".to_owned())]);
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    assert_eq!(
        (interactive.from, interactive.until, agents.until),
        (hours(1), hours(20), hours(24))
    );
    let Source::Sessions(sessions) = &agents.source else { panic!("sessions") };
    assert_eq!(sessions.think, Spread::Uniform(20.0, 300.0));
    assert_eq!((&sessions.pace, sessions.longest), (&Pace::Poisson(6.0 / 3600.0), Some(30_000)));
    assert_eq!(agents.prompt, Spread::Pareto { least: 10.0, shape: 1.2, most: 1e5 });
    assert!(
        matches!(&bursts.source, Source::Open(Pace::Bursts { gap: Spread::Fixed(gap), .. }) if *gap == 0.1)
    );
    let Source::Trace(trace) = &trace.source else { panic!("a file") };
    assert_eq!((trace.file.as_path(), trace.limit), (Path::new("/conf/trace.csv"), Some(10_000)));
}

#[test]
fn lanes_have_their_engines() {
    let host = parse(EVERYTHING).unwrap().host(&inline).unwrap();
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
    let rates = |engine: &crate::EngineModel| match &engine.service {
        Service::Rates { prefill, decode, .. } => (*prefill, decode.clone()),
        Service::Fixed { .. } => panic!("rates"),
    };
    let decode = Decode(vec![(1, 28.0), (8, 140.0)]);
    assert_eq!(rates(&coder.engine), (3000.0, decode.clone()));
    assert_eq!(rates(&orchestrator.engine), (2500.0, decode));
    let fixed =
        Service::Fixed { first: Spread::Fixed(0.2), rest: Spread::Fixed(4.0), recorded: false };
    assert_eq!((&cloud.engine.service, cloud.engine.kv_tokens), (&fixed, Some(49_152)));
    assert_eq!((cloud.first_byte.as_secs(), cloud.engine.notices_hang.as_secs()), (300, 30));
    assert_eq!(host.chain.policies.len(), 1);
}

#[test]
fn variants_are_scenarios_with_keys_that_are_other() {
    let scenario = parse(EVERYTHING).unwrap();
    let [first, nobody] = scenario.variants.as_slice() else { panic!("two variants") };
    let host = first.scenario.host(&inline).unwrap();
    assert_eq!((first.name.as_str(), host.fleet.rules.min_residency), ("first-come", 0));
    assert_eq!(host.fleet.lanes[1].engine.kv_tokens, Some(7));
    assert_eq!(host.chain.policies[0].name, "first-come");
    let tenants =
        |scenario: &Scenario| scenario.streams[1].tenants.as_ref().map(|tenants| tenants.0.len());
    assert_eq!((tenants(&first.scenario), tenants(&scenario)), (Some(1), None));
    assert_eq!(nobody.scenario.host(&inline).unwrap().chain.policies.len(), 0);
    assert_eq!(nobody.scenario.streams.len(), 4);
}

#[test]
fn failures_have_lanes() {
    let scenario = parse(EVERYTHING).unwrap();
    let mut fleet = scenario.host(&inline).unwrap().fleet;
    let failures = scenario.failures(&fleet).unwrap();
    assert_eq!((&failures[0].what, failures[0].lanes[0].index()), (&Trouble::Crash, 1));
    let lanes: Vec<usize> = failures[1].lanes.iter().map(|lane| lane.index()).collect();
    assert_eq!(lanes, [1, 0]);
    assert_eq!(failures[1].what, Trouble::SlowLoads { times: 4.0, lasts: Spread::Fixed(600.0) });
    let at = [4, 5].map(|hours| Duration::from_secs(hours * 3600)).to_vec();
    assert_eq!(failures[1].when, When::At(at));
    assert_eq!(failures[2].when, When::Every(Spread::Exponential { mean: 3600.0 }));
    fleet.lanes.truncate(2);
    fleet.lanes[1].info.name = "codex".to_owned();
    let error = scenario.failures(&fleet).unwrap_err().to_string();
    let line = |part: &str| EVERYTHING.lines().position(|line| line == part).unwrap() + 1;
    let place = format!("/conf/day.toml:{}: failures[0].lane:", line("lane = \"coder\""));
    assert!(
        error.starts_with(&format!("{place} there is no lane \"coder\"; did you mean \"codex\"?")),
        "{error}"
    );
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn engines_can_take_as_long_as_was_measured() {
    let text = with(
        "[engines.a]\nload.in-turn = [\"41s\", 44.5]\nstop = { in-turn = [3] }\nservice = { first = 1, recorded = true }",
    );
    let engine = parse(&text).unwrap().host(&inline).unwrap().fleet.lanes[0].engine.clone();
    assert_eq!(engine.load, Spread::InTurn(vec![41.0, 44.5]));
    assert_eq!(engine.stop, Spread::InTurn(vec![3.0]));
    assert!(matches!(engine.service, Service::Fixed { recorded: true, .. }));
    let error = parse(&with("[engines.a]\nload.in-turn = \"41s\"")).unwrap_err().join("\n");
    assert!(error.contains("engines.a.load.in-turn: must be a list of times, such as"), "{error}");
}

/// The least there can be, with more of it.
fn with(more: &str) -> String {
    let tables = [
        "[[fleet.lanes]]\nname = \"a\"",
        "[[traffic]]\nmodel = \"a\"\nrate = \"1/s\"\nprompt = 1\noutput = 1",
    ];
    format!("lasts = \"1h\"\n{}\n{more}\n{}\n", tables[0], tables[1])
}

#[test]
fn a_configuration_is_read_by_somebody_else() {
    let source = "lasts = \"1h\"\n[fleet]\nconfig = \"../host.toml\"\nset = { switching.min_residency = 2.0, x = \"y\" }\n\
                  [[traffic]]\nmodel = \"a\"\nrate = \"1/s\"\nprompt = 1\noutput = 1\n[engines.b]\nprefill = 1\n";
    let scenario = parse(source).unwrap();
    let config = |file: &Path, set: &toml::Table| {
        assert_eq!(file, Path::new("/conf/../host.toml"));
        assert_eq!(set.to_string().trim(), "x = \"y\"\n\n[switching]\nmin-residency = 2.0");
        let FleetSource::Inline(config) = parse(&with("")).unwrap().fleet else { panic!("inline") };
        Ok(*config)
    };
    let error = scenario.host(&config).unwrap_err().to_string();
    assert_eq!(error, "/conf/day.toml:10: engines.b: there is no lane \"b\"; there is \"a\"");
    let error = scenario.host(&inline).unwrap_err().to_string();
    assert_eq!(error, "/conf/day.toml:3: fleet.config: there is no file");
}

#[test]
fn keys_are_set_from_outside() {
    let mut document = Document::new(EVERYTHING.to_owned(), Path::new("/conf/day.toml"));
    for (path, value) in [
        ("fleet.switching.min-residency", "1.5"),
        ("traffic.interactive.daily.most", "600/h"),
        ("traffic.2.prompt", "{ mean = 5 }"),
        ("fleet.lanes.coder.slots", "3"),
        ("lasts", "2h"),
        ("failures.0.at", "1h"),
    ] {
        document.set(path, value).unwrap();
    }
    let scenario = document.scenario().unwrap();
    let fleet = scenario.host(&inline).unwrap().fleet;
    assert_eq!((fleet.rules.min_residency, fleet.lanes[1].setup.slots), (1500, 3));
    assert!(
        matches!(&scenario.streams[0].source, Source::Open(Pace::Daily { most, .. }) if *most == 1.0 / 6.0)
    );
    assert_eq!(scenario.streams[2].prompt, Spread::Exponential { mean: 5.0 });
    assert_eq!(scenario.lasts, Duration::from_secs(7200));
    // What a variant sets goes before.
    assert_eq!(scenario.variants[0].scenario.host(&inline).unwrap().fleet.rules.min_residency, 0);
    for (path, value, expected) in [
        (
            "traffic.interactiv.rate",
            "1/s",
            "traffic.interactiv: is in no list here; did you mean `interactive`?",
        ),
        (
            "fleet.switching.residense",
            "1",
            "fleet.switching.residense: is not a key here; did you mean `min-residency`?",
        ),
        ("seeds", "none", "seeds: must be a whole number, and is of type string"),
    ] {
        let mut document = document.clone();
        document.set(path, value).unwrap();
        let error = document.scenario().unwrap_err().to_string();
        assert_eq!(error, format!("/conf/day.toml: {expected}"));
    }
}

#[test]
fn every_form_of_a_key_is_understood() {
    let traffic =
        |keys: &str| with(&format!("[[traffic]]\nmodel = \"a\"\nprompt = 1\noutput = 1\n{keys}"));
    let files = ["azure", "burstgpt", "records"]
        .map(|format| traffic(&format!("file = \"x\"\nformat = \"{format}\"")));
    let spreads = [
        "5",
        "0.5",
        "\"5s\"",
        "{ median = \"20s\", p99 = \"5m\" }",
        "{ mean = 2 }",
        "{ least = 1, most = 2 }",
        "{ least = 1, shape = 1.1, most = \"2h\" }",
        "[1, \"2s\", 3.0]",
    ]
    .map(|spread| traffic(&format!("every = {spread}")));
    let rates = ["2/s", "2/min", "2.5/h", "2/d"].map(|rate| traffic(&format!("rate = \"{rate}\"")));
    let sessions = "sessions = { daily = { most = \"6/h\" }, turns = 3, think = { mean = 5 } }";
    let troubles = [
        "what = \"crash\"\nat = [\"1h\", \"2h\"]",
        "what = \"hang\"\nevery = \"1h\"\nlasts = \"10m\"",
        "what = \"loads-fail\"\nat = \"1h\"\nlasts = { mean = \"10m\" }",
        "what = \"slow-loads\"\nat = \"1h\"\nlasts = \"10m\"\ntimes = 4",
        "what = \"slow-down\"\nat = \"1h\"\nlasts = \"10m\"\npart = 0.5",
    ]
    .map(|trouble| with(&format!("[[failures]]\nlane = \"a\"\n{trouble}")));
    let others = [
        traffic(sessions),
        traffic("file = \"x\"\nformat = \"sharegpt\"\nrate = \"30/h\"\nthink = \"5s\""),
        with("[engines.default]\ndecode = 30"),
        with("[engines.default]\nservice = { first = \"200ms\" }"),
        format!("begins = 2026-01-05T06:00:00+01:00\nseeds = [7, 9]\npolicies = []\n{}", with("")),
    ];
    for source in files.iter().chain(&spreads).chain(&rates).chain(&troubles).chain(&others) {
        let scenario = parse(source).unwrap_or_else(|errors| panic!("{source}\n{errors:#?}"));
        let fleet = scenario.host(&inline).unwrap().fleet;
        assert!(scenario.failures(&fleet).is_ok(), "{source}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text: String) {
        let _result = parse(&text);
    }

    #[test]
    fn no_value_makes_it_panic(
        keys in prop::collection::vec((prop::sample::select(KEYS), prop::sample::select(VALUES)), 1..8),
        seed: u64,
    ) {
        let mut document = Document::new(EVERYTHING.to_owned(), Path::new("/conf/day.toml"));
        for (key, value) in keys {
            document.set(key, value).unwrap();
        }
        let Ok(scenario) = document.scenario() else { return Ok(()) };
        if let Ok(host) = scenario.host(&inline) {
            let _failures = scenario.failures(&host.fleet);
        }
        // The file is not there.
        prop_assert!(scenario.traffic(seed).is_err());
    }
}

const KEYS: &[&str] = &[
    "begins",
    "lasts",
    "seeds",
    "fleet.groups.gpu0.memory",
    "fleet.lanes.coder.memory",
    "fleet.lanes.coder.group",
    "fleet.lanes.cloud.load",
    "engines.default.load",
    "engines.default.decode",
    "engines.coder",
    "traffic.interactive.daily",
    "traffic.interactive.prompt",
    "traffic.interactive.models",
    "traffic.interactive.tenants",
    "traffic.interactive.skew",
    "traffic.agents.sessions",
    "traffic.agents.sessions.turns",
    "traffic.agents.turns",
    "traffic.2.bursts.every",
    "traffic.2.bursts",
    "traffic.3.speed",
    "failures.0.at",
    "failures.0.lane",
    "variants.nobody.set",
];
const VALUES: &[&str] = &[
    "0",
    "-1",
    "0xffff_ffff_ffff_ffff_ffff",
    "9223372036854775807",
    "nan",
    "inf",
    "1e999",
    "1e-9",
    "0.5",
    "true",
    "[]",
    "[0]",
    "[[1, 2]]",
    "{}",
    "{ mean = 1e300 }",
    "{ median = 0, p99 = 0 }",
    "{ median = 1e-300, p99 = 1e9 }",
    "{ least = 1e-9, shape = 0.01, most = 1e11 }",
    "\"\"",
    "\"18446744073709551615B\"",
    "\"18446744073709551615ms\"",
    "\"9000000000000us\"",
    "\"1e5/s\"",
    "\"99999-01-01T00:00:00Z\"",
    "2020-01-01",
    "0000-01-01T00:00:00Z",
];
