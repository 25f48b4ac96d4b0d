//! The promises of host/ARCHITECTURE.md, kept whatever policies are in the chain, whoever asks, and whatever goes wrong.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_policy::Compiler;
use pointsman_simulate::{Document, Experiment, Report, SimulationEnv, Summary};
use proptest::prelude::*;
use tempfile::TempDir;

/// The tree's policies, each with a configuration by which it has something to say here.
const POLICIES: [(&str, &str); 9] = [
    ("budget", "{}"),
    ("canary", "{}"),
    ("cortex", "{ patience-ms = 3000 }"),
    ("deadline", "{}"),
    ("first-come", "{}"),
    (
        "hours",
        "{ schedules = [{ name = \"day\", from = \"00:00\", to = \"24:00\", prefer = [\"coder\"], load = [\"coder\"] }] }",
    ),
    ("quota", "{ default = { requests = 40 }, tenants = { t0 = { priority = 5 } } }"),
    ("redact", "{}"),
    ("spread", "{}"),
];
/// Longest wait of the scenarios, and what their clock may add to it.
const MAX_WAIT: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap().to_owned()
}

/// A scenario: some policies in some order, lanes of which some take turns, streams of requests, and failures.
#[derive(Debug, Clone)]
struct Any {
    chain: Vec<usize>,
    on_error: &'static str,
    slots: u32,
    min_residency: u32,
    streams: Vec<(u8, u32, bool)>,
    failures: Vec<(u8, &'static str, u32)>,
    seed: u64,
}

fn any_scenario() -> impl Strategy<Value = Any> {
    let chain = proptest::sample::subsequence((0..POLICIES.len()).collect::<Vec<_>>(), 0..=4)
        .prop_shuffle();
    let streams = proptest::collection::vec((0u8..4, 1u32..120, any::<bool>()), 1..4);
    let what = prop_oneof![
        Just("crash"),
        Just("hang"),
        Just("loads-fail"),
        Just("slow-loads"),
        Just("slow-down")
    ];
    let failures = proptest::collection::vec((0u8..4, what, 0u32..900), 0..4);
    let on_error = prop_oneof![Just("skip"), Just("default"), Just("refuse")];
    (chain, on_error, 1u32..6, 0u32..3, streams, failures, 0u64..1_000_000).prop_map(
        |(chain, on_error, slots, min_residency, streams, failures, seed)| Any {
            chain,
            on_error,
            slots,
            min_residency,
            streams,
            failures,
            seed,
        },
    )
}

const LANES: [&str; 4] = ["orchestrator", "coder", "fast_rag", "super_reader"];

impl Any {
    fn text(&self) -> String {
        let Self { slots, min_residency, seed, on_error, .. } = self;
        let mut text = format!(
            "title = \"any\"\nlasts = \"15m\"\nseeds = [{seed}]\nobjectives = [\"lost == 0\"]\n"
        );
        for index in &self.chain {
            let (name, config) = POLICIES[*index];
            let dir = root().join("policies").join(name);
            write!(
                text,
                "[[policies]]\nname = {name:?}\ndir = {dir:?}\non-error = {on_error:?}\nconfig = {config}\n"
            )
            .unwrap();
        }
        if self.chain.is_empty() {
            text.push_str("policies = []\n");
        }
        for (index, lane) in LANES.iter().enumerate() {
            let takes_turns = "group = \"gpu\"\nmemory = \"20GiB\"\nload = \"on-demand\"";
            let place = if index < 3 { takes_turns } else { "load = \"always\"" };
            write!(
                text,
                "[[fleet.lanes]]\nname = {lane:?}\nmodels = [{lane:?}, \"auto\"]\nslots = {slots}\n\
                 expected-load-time = \"10s\"\n{place}\n"
            )
            .unwrap();
        }
        write!(
            text,
            "[[fleet.groups]]\nname = \"gpu\"\nmemory = \"30GiB\"\n[fleet.queue]\nmax-wait = \"{}s\"\n\
             [fleet.switching]\nmin-residency = {min_residency}\nstarvation-timeout = \"30s\"\n\
             [engines.default]\nload = {{ median = \"10s\", p99 = \"20s\" }}\nstop = \"1s\"\nprefill = 3000\n\
             decode = [[1, 40], [4, 100]]\nkv-tokens = 20000\nprefix-cache = true\nnotices-hang = \"15s\"\n",
            MAX_WAIT.as_secs()
        )
        .unwrap();
        for (index, (model, rate, sessions)) in self.streams.iter().enumerate() {
            let model = ["auto", LANES[0], LANES[1], LANES[2]][usize::from(*model)];
            let pace = match sessions {
                true => format!("sessions = {{ rate = \"{rate}/h\", turns = 4, think = \"2s\" }}"),
                false => format!("rate = \"{rate}/min\""),
            };
            write!(
                text,
                "[[traffic]]\nclass = \"c{index}\"\nmodel = {model:?}\n{pace}\ntenants = [\"t0\", \"t1\"]\n\
                 prompt = {{ median = 300, p99 = 9000 }}\noutput = {{ median = 60, p99 = 400 }}\nstream = true\npatience = \"50s\"\n"
            )
            .unwrap();
        }
        for (lane, what, at) in &self.failures {
            let more = match *what {
                "crash" => "",
                "slow-loads" => "lasts = \"2m\"\ntimes = 3.0\n",
                "slow-down" => "lasts = \"2m\"\npart = 0.3\n",
                _ => "lasts = \"40s\"\n",
            };
            let lane = LANES[usize::from(*lane)];
            write!(text, "[[failures]]\nlane = {lane:?}\nwhat = {what:?}\nat = \"{at}s\"\n{more}")
                .unwrap();
        }
        // Keys of the whole document go before its first table.
        let (tables, keys): (Vec<&str>, Vec<&str>) =
            text.split_inclusive('\n').partition(|line| *line != "policies = []\n");
        keys.concat() + &tables.concat()
    }

    fn run(&self, stage: &SimulationEnv) -> Report {
        let scenario = Document::new(self.text(), Path::new("any.toml")).scenario();
        let scenario = scenario.unwrap_or_else(|error| panic!("{error}\n{}", self.text()));
        Experiment::of(&scenario, stage).unwrap().run().unwrap()
    }
}

/// 1. No request is lost, and 3. nobody waits for longer than the host allows, in one queue for each try at most.
fn keeps_its_promises(run: &Summary) -> Result<(), TestCaseError> {
    let all = &run.all;
    prop_assert_eq!(run.lost, 0);
    prop_assert_eq!(all.ends.iter().sum::<u64>(), run.accepted);
    let attempts = 5;
    let longest = all.wait.map(|wait| wait.max).unwrap_or_default();
    prop_assert!(longest <= MAX_WAIT * attempts, "somebody waited for {longest:?}");
    Ok(())
}

/// Compiled once for all cases.
fn stage() -> (SimulationEnv, TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let refuse = |_: &Path, _: &toml::Table| Err("there is none".to_owned());
    (
        SimulationEnv::with(Compiler::default(), Some(cache.path().to_owned()), Box::new(refuse))
            .unwrap(),
        cache,
    )
}

#[test]
fn promises_are_kept_whatever_the_policies() {
    let (stage, _cache) = stage();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 48,
        ..ProptestConfig::default()
    });
    let kept = runner.run(&any_scenario(), |any| {
        let report = any.run(&stage);
        for run in &report.variants[0].runs {
            keeps_its_promises(&run.summary)?;
        }
        // 9. The same inputs, the same decisions: to the last figure.
        prop_assert_eq!(any.run(&stage).json(), report.json());
        Ok(())
    });
    kept.unwrap_or_else(|error| panic!("{error}"));
}
