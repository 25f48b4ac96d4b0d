//! The promises of host/ARCHITECTURE.md hold for any chain of policies, any traffic and any faults.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_policy::Compiler;
use pointsman_report::{Report, Summary};
use pointsman_simulate::{Document, Experiment, SimulationEnv};
use proptest::prelude::*;
use tempfile::TempDir;

/// The repository's policies, each with a configuration that is effective in these scenarios.
const POLICIES: [(&str, &str); 9] = [
    ("budget", "{}"),
    ("canary", "{}"),
    ("cortex", "{ patience-ms = 3000 }"),
    ("deadline", "{}"),
    ("first-come", "{}"),
    (
        "hours",
        "{ schedules = [{ name = \"day\", from = \"00:00\", to = \"24:00\", \
         prefer = [\"coder\"], load = [\"coder\"] }] }",
    ),
    ("quota", "{ default = { requests = 40 }, tenants = { t0 = { priority = 5 } } }"),
    ("redact", "{}"),
    ("spread", "{}"),
];
/// The maximum wait in a queue.
const MAX_WAIT: Duration = Duration::from_secs(60);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap().to_owned()
}

/// An arbitrary scenario: policies in any order, lanes that share a GPU, streams of requests, and
/// faults.
#[derive(Debug, Clone)]
struct ArbitraryScenario {
    chain: Vec<usize>,
    on_error: &'static str,
    slots: u32,
    min_residency: u32,
    /// The model, the rate, and whether the stream has sessions.
    streams: Vec<(u8, u32, bool)>,
    /// The lane, the kind, and the time in seconds.
    faults: Vec<(u8, &'static str, u32)>,
    seed: u64,
}

fn any_scenario() -> impl Strategy<Value = ArbitraryScenario> {
    let chain = proptest::sample::subsequence((0..POLICIES.len()).collect::<Vec<_>>(), 0..=4)
        .prop_shuffle();
    let streams = proptest::collection::vec((0u8..4, 1u32..120, any::<bool>()), 1..4);
    let kind = prop_oneof![
        Just("crash"),
        Just("hang"),
        Just("load-failure"),
        Just("slow-load"),
        Just("slowdown")
    ];
    let faults = proptest::collection::vec((0u8..4, kind, 0u32..900), 0..4);
    let on_error = prop_oneof![Just("skip"), Just("default"), Just("refuse")];
    (chain, on_error, 1u32..6, 0u32..3, streams, faults, 0u64..1_000_000).prop_map(
        |(chain, on_error, slots, min_residency, streams, faults, seed)| ArbitraryScenario {
            chain,
            on_error,
            slots,
            min_residency,
            streams,
            faults,
            seed,
        },
    )
}

const LANES: [&str; 4] = ["orchestrator", "coder", "fast_rag", "super_reader"];

impl ArbitraryScenario {
    /// Returns the scenario file.
    fn text(&self) -> String {
        let Self { slots, min_residency, seed, on_error, .. } = self;
        let mut text = format!(
            "title = \"any\"\nduration = \"15m\"\nseeds = [{seed}]\nobjectives = [\"lost == 0\"]\n"
        );
        for index in &self.chain {
            let (name, config) = POLICIES[*index];
            let dir = repository().join("policies").join(name);
            write!(
                text,
                "[[policies]]\nname = {name:?}\ndir = {dir:?}\non-error = {on_error:?}\n\
                 config = {config}\n"
            )
            .unwrap();
        }
        if self.chain.is_empty() {
            text.push_str("policies = []\n");
        }
        for (index, lane) in LANES.iter().enumerate() {
            let on_demand = "group = \"gpu\"\nmemory = \"20GiB\"\nload = \"on-demand\"";
            let residency = if index < 3 { on_demand } else { "load = \"always\"" };
            write!(
                text,
                "[[fleet.lanes]]\nname = {lane:?}\nmodels = [{lane:?}, \"auto\"]\nslots = {slots}\n\
                 expected-load-time = \"10s\"\n{residency}\n"
            )
            .unwrap();
        }
        write!(
            text,
            "[[fleet.groups]]\nname = \"gpu\"\nmemory = \"30GiB\"\n\
             [fleet.queue]\nmax-wait = \"{}s\"\n\
             [fleet.switching]\nmin-residency = {min_residency}\nstarvation-timeout = \"30s\"\n\
             [engines.default]\nload = {{ median = \"10s\", p99 = \"20s\" }}\nstop = \"1s\"\n\
             prefill = 3000\ndecode = [[1, 40], [4, 100]]\nkv-tokens = 20000\n\
             prefix-cache = true\nhang-detection-time = \"15s\"\n",
            MAX_WAIT.as_secs()
        )
        .unwrap();
        for (index, (model, rate, sessions)) in self.streams.iter().enumerate() {
            let model = ["auto", LANES[0], LANES[1], LANES[2]][usize::from(*model)];
            let arrivals = match sessions {
                true => {
                    format!("sessions = {{ rate = \"{rate}/h\", turns = 4, think-time = \"2s\" }}")
                }
                false => format!("rate = \"{rate}/min\""),
            };
            write!(
                text,
                "[[traffic]]\nclass = \"c{index}\"\nmodel = {model:?}\n{arrivals}\n\
                 tenants = [\"t0\", \"t1\"]\nprompt = {{ median = 300, p99 = 9000 }}\n\
                 output = {{ median = 60, p99 = 400 }}\nstream = true\n\
                 client-timeout = \"50s\"\n"
            )
            .unwrap();
        }
        for (lane, kind, at) in &self.faults {
            let keys = match *kind {
                "crash" => "",
                "slow-load" => "duration = \"2m\"\nload-time-factor = 3.0\n",
                "slowdown" => "duration = \"2m\"\nspeed-factor = 0.3\n",
                _ => "duration = \"40s\"\n",
            };
            let lane = LANES[usize::from(*lane)];
            write!(text, "[[failures]]\nlane = {lane:?}\nkind = {kind:?}\nat = \"{at}s\"\n{keys}")
                .unwrap();
        }
        // TOML requires keys of the root to precede all tables.
        let (tables, keys): (Vec<&str>, Vec<&str>) =
            text.split_inclusive('\n').partition(|line| *line != "policies = []\n");
        keys.concat() + &tables.concat()
    }

    fn run(&self, env: &SimulationEnv) -> Report {
        let scenario = Document::new(self.text(), Path::new("any.toml")).scenario();
        let scenario = scenario.unwrap_or_else(|error| panic!("{error}\n{}", self.text()));
        Experiment::from_scenario(&scenario, env).unwrap().run().unwrap()
    }
}

/// Checks promise 1, that no request is lost, and promise 3, that no request waits longer than the
/// maximum in the queue of each attempt.
fn check_promises(run: &Summary) -> Result<(), TestCaseError> {
    let all = &run.all;
    prop_assert_eq!(run.lost, 0);
    prop_assert_eq!(all.ends.iter().sum::<u64>(), run.accepted);
    let max_attempts = 5;
    let max_wait = all.wait.map(|wait| wait.max).unwrap_or_default();
    prop_assert!(max_wait <= MAX_WAIT * max_attempts, "a request waited for {max_wait:?}");
    Ok(())
}

/// Returns an environment whose cache compiles each policy once for all cases.
fn simulation_env() -> (SimulationEnv, TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let dir = Some(cache.path().to_owned());
    (SimulationEnv::with_compiler(Compiler::default(), dir).unwrap(), cache)
}

#[test]
fn promises_hold_for_any_scenario() {
    let (env, _cache) = simulation_env();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 48,
        ..ProptestConfig::default()
    });
    let result = runner.run(&any_scenario(), |scenario| {
        let report = scenario.run(&env);
        for run in &report.variants[0].runs {
            check_promises(&run.summary)?;
        }
        // Promise 9: the same inputs yield the same decisions, and so the same statistics.
        prop_assert_eq!(scenario.run(&env).json(), report.json());
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
