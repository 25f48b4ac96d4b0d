//! What policies cost, in tables: a policy that does nothing, the same policy in four languages, chains, many calls at once,
//! a shadow, a swap. Real components in the runtime that serves; nothing is asserted about time.
//!
//! The languages are those that `cargo xtask guests` built into the folder that `POINTSMAN_FRESH_GUESTS` names; without it,
//! that table is left out.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has to fail")]
#![expect(clippy::print_stdout, reason = "tables are what it is for")]

mod shared;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::{Advisor, Facts, FleetView, Trace};
use pointsman_policy::{Allocator, CanaryBy, Policies, PolicySpec, Rollout, RuntimeSettings};
use tempfile::TempDir;

use self::shared::{facts, fleet, load, policies, policy_dir};

/// Calls that are made before any is measured.
const WARM_UP: usize = 200;
/// Calls that are measured.
const CALLS: usize = 5_000;

fn main() {
    // Cargo asks every benchmark for its tests too.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    nothing();
    languages();
    chains();
    at_once();
    shadows();
    swaps();
}

/// A component that has no opinion on anything.
fn no_op() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text = include_str!("../crates/policy/fixtures/small.wat");
    fs::write(dir.path().join("policy.wasm"), wat::parse_str(text).unwrap()).unwrap();
    fs::write(dir.path().join("policy.toml"), "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n")
        .unwrap();
    dir
}

fn runtime() -> RuntimeSettings {
    RuntimeSettings {
        warm_instances: 2,
        allocator: Allocator::Pooling,
        ..RuntimeSettings::default()
    }
}

fn nothing() {
    println!("\nA policy that does nothing, and what it adds to having none (us)\n");
    println!("| prompt | none p50 | no-op p50 | p99 | added, p50 |\n|---|---|---|---|---|");
    let none = policies(runtime());
    let dir = no_op();
    let with = policies(runtime());
    load(&with, vec![PolicySpec::new("small", dir.path().to_owned())]);
    let fleet = fleet(8);
    for (size, bytes) in [("1 KB", 1_000), ("100 KB", 100_000), ("10 MB", 10_000_000)] {
        let facts = facts("auto", bytes);
        let (none, with) = (measured(&none, &facts, &fleet, 0), measured(&with, &facts, &fleet, 1));
        let added = with.p50.saturating_sub(none.p50);
        println!(
            "| {size} | {} | {} | {} | {} |",
            us(none.p50),
            us(with.p50),
            us(with.p99),
            us(added)
        );
    }
}

fn languages() {
    let Some(built) = std::env::var_os("POINTSMAN_FRESH_GUESTS").map(PathBuf::from) else { return };
    println!("\nThe same policy in four languages, 2 KB prompt: one call (us)\n");
    println!(
        "| language | component | 1 lane p50 | p99 | 8 lanes p50 | p99 | 64 lanes p50 | p99 | fresh instance, 8 lanes p50 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let settings = RuntimeSettings { cache_dir: Some(built.join("bench-cache")), ..runtime() };
    for language in ["rust", "c", "javascript", "python"] {
        let folder = built.join(format!("team-lanes-{language}"));
        let bytes = fs::metadata(folder.join("policy.wasm")).unwrap().len();
        let of = |dir: &Path| {
            let mut spec = PolicySpec::new("team-lanes", dir.to_owned());
            // Interpreters on a busy machine: what is measured is the call, not its deadline.
            spec.settings.deadline = Some(Duration::from_millis(100));
            let policies = policies(settings.clone());
            load(&policies, vec![spec]);
            policies
        };
        let warm = of(&folder);
        let mut cells = vec![language.to_owned(), format!("{} KB", bytes / 1000)];
        for lanes in [1, 8, 64] {
            let figures = measured(&warm, &facts("auto", 2_000), &fleet(lanes), 1);
            cells.extend([us(figures.p50), us(figures.p99)]);
        }
        let fresh = fresh(&folder);
        let figures = measured_times(&of(fresh.path()), &facts("auto", 2_000), &fleet(8), 1, 200);
        cells.push(us(figures.p50));
        println!("| {} |", cells.join(" | "));
    }
}

/// The same policy, with a new instance for each call.
fn fresh(folder: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(folder.join("policy.wasm"), dir.path().join("policy.wasm")).unwrap();
    let manifest = fs::read_to_string(folder.join("policy.toml")).unwrap();
    let manifest = manifest.replace("[limits]\n", "[limits]\ncalls = 1\n");
    assert!(manifest.contains("calls = 1"), "{manifest}");
    fs::write(dir.path().join("policy.toml"), manifest).unwrap();
    dir
}

fn chains() {
    println!("\nChains of the tree's policies, 2 KB prompt, 8 lanes (us)\n");
    println!("| chain | p50 | p99 |\n|---|---|---|");
    let names = ["quota", "redact", "spread", "budget", "canary"];
    for chain in names.iter().map(std::slice::from_ref).chain([&names[..]]) {
        let policies = policies(runtime());
        load(&policies, chain.iter().map(|name| PolicySpec::new(name, policy_dir(name))).collect());
        let figures = measured(&policies, &facts("auto", 2_000), &fleet(8), chain.len());
        println!("| {} | {} | {} |", chain.join(", "), us(figures.p50), us(figures.p99));
    }
}

fn at_once() {
    println!("\nCalls from many threads at once: cortex, 8 lanes (us)\n");
    println!("| threads | calls | without advice | p50 | p99 | longest | instances afterwards |");
    println!("|---|---|---|---|---|---|---|");
    for threads in [1, 8, 64] {
        let policies = policies(runtime());
        let mut spec = PolicySpec::new("cortex", policy_dir("cortex"));
        // With more threads than processors a call may be held up by others for long.
        spec.settings.deadline = Some(Duration::from_millis(100));
        load(&policies, vec![spec]);
        let advisor = policies.slot().load_full();
        let (facts, fleet) = (facts("coder", 1_000), fleet(8));
        let results: Vec<(Duration, bool)> = std::thread::scope(|scope| {
            let calls = || {
                let call = |_| timed(&**advisor, &facts, &fleet, 1);
                (0..CALLS / 4).map(call).collect::<Vec<_>>()
            };
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(calls)).collect();
            running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let without = results.iter().filter(|(_, advised)| !advised).count();
        let mut times: Vec<Duration> = results.iter().map(|(time, _)| *time).collect();
        let longest = times.iter().max().copied().unwrap_or_default();
        let figures = Figures::of(&mut times);
        println!(
            "| {threads} | {} | {without} | {} | {} | {} | {} |",
            times.len(),
            us(figures.p50),
            us(figures.p99),
            us(longest),
            policies.status()[0].idle_instances
        );
    }
}

fn shadows() {
    println!(
        "\nWhat trying out another version costs the requests: cortex, 2 KB prompt, 8 lanes (us)\n"
    );
    println!("| | p50 | p99 | of them compared | dropped |\n|---|---|---|---|---|");
    let canary = Rollout::Canary { share: 50, by: CanaryBy::Request };
    for (name, rollout) in [
        ("nothing is tried out", None),
        ("a shadow", Some(Rollout::Shadow)),
        ("a canary of 5 %", Some(canary)),
    ] {
        let policies = policies(runtime());
        let spec = PolicySpec::new("cortex", policy_dir("cortex"));
        load(&policies, vec![spec.clone()]);
        if let Some(rollout) = rollout {
            let mut other = PolicySpec { rollout, ..spec };
            other.settings.config = serde_json::json!({ "patience-ms": 1 });
            load(&policies, vec![other]);
            assert!(policies.status()[0].candidate.is_some());
        }
        let figures = measured(&policies, &facts("auto", 2_000), &fleet(8), 1);
        let trial = policies.status().remove(0).candidate;
        let trial = trial.map(|trial| serde_json::to_value(trial).unwrap()).unwrap_or_default();
        let count = |key: &str| trial[key].as_u64().unwrap_or(0);
        let compared = count("agreed") + count("differed") + count("failed");
        println!(
            "| {name} | {} | {} | {compared} | {} |",
            us(figures.p50),
            us(figures.p99),
            count("dropped")
        );
    }
}

fn swaps() {
    println!(
        "\nA new version, from the changed file to the first decision by it (ms, the watcher's quarter of a second not counted)\n"
    );
    println!("| what changed | p50 | longest |\n|---|---|---|");
    let cache = tempfile::tempdir().unwrap();
    let settings = RuntimeSettings { cache_dir: Some(cache.path().to_owned()), ..runtime() };
    for (what, component, cases) in [
        ("the manifest of cortex, with its 30 golden cases", false, true),
        ("the component of cortex, to be compiled, without cases", true, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for file in ["policy.wasm", "cases.jsonl"] {
            if cases || file != "cases.jsonl" {
                fs::copy(policy_dir("cortex").join(file), dir.path().join(file)).unwrap();
            }
        }
        let manifest = fs::read_to_string(policy_dir("cortex").join("policy.toml")).unwrap();
        let manifest = manifest.split("[build]").next().unwrap().to_owned();
        fs::write(dir.path().join("policy.toml"), &manifest).unwrap();
        let policies = policies(settings.clone());
        load(&policies, vec![PolicySpec::new("cortex", dir.path().to_owned())]);
        let mut times: Vec<Duration> =
            (0..20).map(|round| swap(&policies, dir.path(), &manifest, round, component)).collect();
        let longest = times.iter().max().copied().unwrap_or_default();
        let figures = Figures::of(&mut times);
        println!(
            "| {what} | {:.1} | {:.1} |",
            figures.p50.as_secs_f64() * 1e3,
            longest.as_secs_f64() * 1e3
        );
    }
}

fn swap(
    policies: &Arc<Policies>,
    dir: &Path,
    manifest: &str,
    round: u32,
    component: bool,
) -> Duration {
    let (facts, fleet) = (facts("coder", 1_000), fleet(8));
    let version = |policies: &Policies| {
        let merged = policies.slot().load_full().advise(&facts, &fleet, &mut Trace::off());
        merged.by.first().map(|by| by.version.to_string())
    };
    let before = version(policies);
    if component {
        // A custom section more makes it another component.
        let mut bytes = fs::read(policy_dir("cortex").join("policy.wasm")).unwrap();
        bytes.extend([0, 6, 1, b'n']);
        bytes.extend(round.to_le_bytes());
        fs::write(dir.join("policy.wasm"), bytes).unwrap();
    } else {
        fs::write(dir.join("policy.toml"), format!("{manifest}\n# {round}\n")).unwrap();
    }
    let begun = Instant::now();
    policies.look();
    let after = version(policies);
    let took = begun.elapsed();
    assert_ne!(before, after, "{:?}", policies.status());
    took
}

#[derive(Debug, Clone, Copy)]
struct Figures {
    p50: Duration,
    p99: Duration,
}

impl Figures {
    fn of(times: &mut [Duration]) -> Self {
        times.sort_unstable();
        let at = |permille: usize| times[(times.len() - 1) * permille / 1000];
        Self { p50: at(500), p99: at(990) }
    }
}

/// One call, and whether so many policies had advice.
fn timed(
    advisor: &dyn Advisor,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    policies: usize,
) -> (Duration, bool) {
    let begun = Instant::now();
    let merged = std::hint::black_box(advisor.advise(facts, fleet, &mut Trace::off()));
    (begun.elapsed(), merged.by.len() == policies)
}

fn measured(policies: &Policies, facts: &Facts, fleet: &Arc<FleetView>, advised: usize) -> Figures {
    measured_times(policies, facts, fleet, advised, CALLS)
}

fn measured_times(
    policies: &Policies,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    advised: usize,
    calls: usize,
) -> Figures {
    let advisor = policies.slot().load_full();
    let call = || timed(&**advisor, facts, fleet, advised);
    for _ in 0..WARM_UP.min(calls) {
        call();
    }
    let results: Vec<(Duration, bool)> = (0..calls).map(|_| call()).collect();
    // A call that was ended by its deadline, on a busy machine, says nothing about what one costs.
    let mut times: Vec<Duration> =
        results.into_iter().filter(|(_, advised)| *advised).map(|(time, _)| time).collect();
    assert!(times.len() * 10 > calls * 9, "only {} of {calls} calls had advice", times.len());
    Figures::of(&mut times)
}

fn us(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}
