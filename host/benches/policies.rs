//! The cost of policies, as tables: a no-op policy, the same policy in four languages, chains,
//! concurrent calls, staged versions, and activations. The components are real and run in the
//! runtime that serves requests. No time is asserted.
//!
//! The languages are those that `cargo xtask guests` built into the folder in the environment
//! variable `POINTSMAN_FRESH_GUESTS`; without it, their table is omitted.
#![expect(clippy::unwrap_used, reason = "a failed setup has to end the benchmark")]
#![expect(clippy::print_stdout, reason = "the tables are the result")]

mod shared;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::Trace;
use pointsman_policy::{Allocator, CanaryBy, Policies, PolicySpec, Rollout, RuntimeSettings};
use tempfile::TempDir;

use self::shared::calls::{CALLS, LONG_DEADLINE, Percentiles, measure, measure_calls, timed_call};
use self::shared::{facts, fleet, load, policies, policy_dir};

/// Calls of a measurement in which every call creates an instance, which takes milliseconds in some
/// languages.
const FRESH_CALLS: usize = 200;
/// Activations of a measurement.
const ACTIVATIONS: u32 = 20;

fn main() {
    // `cargo test` lists the tests of benchmarks, too.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    no_op_policy();
    languages();
    chains();
    concurrent_calls();
    staged_versions();
    activations();
}

/// Creates the folder of a policy that gives no advice.
fn no_op_dir() -> TempDir {
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

fn no_op_policy() {
    println!("\nA no-op policy, compared with no policy (us)\n");
    println!("| prompt | no policy p50 | no-op p50 | p99 | added, p50 |\n|---|---|---|---|---|");
    let empty = policies(runtime());
    let dir = no_op_dir();
    let no_op = policies(runtime());
    load(&no_op, vec![PolicySpec::new("small", dir.path().to_owned())]);
    let fleet = fleet(8);
    for (size, bytes) in [("1 KB", 1_000), ("100 KB", 100_000), ("10 MB", 10_000_000)] {
        let facts = facts("auto", bytes);
        let baseline = measure(&empty, &facts, &fleet, 0);
        let no_op = measure(&no_op, &facts, &fleet, 1);
        // The difference of two medians can be negative, because of noise.
        let added = no_op.p50.saturating_sub(baseline.p50);
        println!(
            "| {size} | {} | {} | {} | {} |",
            us(baseline.p50),
            us(no_op.p50),
            us(no_op.p99),
            us(added)
        );
    }
}

fn languages() {
    let Some(built) = std::env::var_os("POINTSMAN_FRESH_GUESTS").map(PathBuf::from) else { return };
    println!("\nThe same policy in four languages, 2 KB prompt, time of a call (us)\n");
    println!(
        "| language | component | 1 lane p50 | p99 | 8 lanes p50 | p99 | 64 lanes p50 | p99 | new \
         instance, 8 lanes p50 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let settings = RuntimeSettings { cache_dir: Some(built.join("bench-cache")), ..runtime() };
    for language in ["rust", "c", "javascript", "python"] {
        let folder = built.join(format!("team-lanes-{language}"));
        let bytes = fs::metadata(folder.join("policy.wasm")).unwrap().len();
        let loaded = |dir: &Path| {
            let mut spec = PolicySpec::new("team-lanes", dir.to_owned());
            spec.settings.deadline = Some(LONG_DEADLINE);
            let policies = policies(settings.clone());
            load(&policies, vec![spec]);
            policies
        };
        let warm = loaded(&folder);
        let mut cells = vec![language.to_owned(), format!("{} KB", bytes / 1000)];
        for lanes in [1, 8, 64] {
            let times = measure(&warm, &facts("auto", 2_000), &fleet(lanes), 1);
            cells.extend([us(times.p50), us(times.p99)]);
        }
        let single_use = single_use_dir(&folder);
        let (facts, fleet) = (facts("auto", 2_000), fleet(8));
        let times = measure_calls(&loaded(single_use.path()), &facts, &fleet, 1, FRESH_CALLS);
        cells.push(us(times.p50));
        println!("| {} |", cells.join(" | "));
    }
}

/// Creates a copy of a policy's folder whose instances are used for one call only.
fn single_use_dir(folder: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(folder.join("policy.wasm"), dir.path().join("policy.wasm")).unwrap();
    let manifest = fs::read_to_string(folder.join("policy.toml")).unwrap();
    let manifest = manifest.replace("[limits]\n", "[limits]\ncalls = 1\n");
    assert!(manifest.contains("calls = 1"), "{manifest}");
    fs::write(dir.path().join("policy.toml"), manifest).unwrap();
    dir
}

fn chains() {
    println!("\nChains of built-in policies, 2 KB prompt, 8 lanes (us)\n");
    println!("| chain | p50 | p99 |\n|---|---|---|");
    let names = ["quota", "redact", "spread", "budget", "canary"];
    for chain in names.iter().map(std::slice::from_ref).chain([&names[..]]) {
        let policies = policies(runtime());
        load(&policies, chain.iter().map(|name| PolicySpec::new(name, policy_dir(name))).collect());
        let times = measure(&policies, &facts("auto", 2_000), &fleet(8), chain.len());
        println!("| {} | {} | {} |", chain.join(", "), us(times.p50), us(times.p99));
    }
}

fn concurrent_calls() {
    println!("\nConcurrent calls: cortex, 8 lanes (us)\n");
    println!("| threads | calls | without advice | p50 | p99 | max | instances afterwards |");
    println!("|---|---|---|---|---|---|---|");
    for threads in [1, 8, 64] {
        let policies = policies(runtime());
        let mut spec = PolicySpec::new("cortex", policy_dir("cortex"));
        spec.settings.deadline = Some(LONG_DEADLINE);
        load(&policies, vec![spec]);
        let advisor = policies.slot().load_full();
        let (facts, fleet) = (facts("coder", 1_000), fleet(8));
        let results: Vec<(Duration, bool)> = std::thread::scope(|scope| {
            let calls = || {
                let call = |_| timed_call(&**advisor, &facts, &fleet, 1);
                (0..CALLS / 4).map(call).collect::<Vec<_>>()
            };
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(calls)).collect();
            running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let without_advice = results.iter().filter(|(_, advised)| !advised).count();
        let mut times: Vec<Duration> = results.iter().map(|(time, _)| *time).collect();
        let max = times.iter().max().copied().unwrap_or_default();
        let percentiles = Percentiles::from_times(&mut times);
        println!(
            "| {threads} | {} | {without_advice} | {} | {} | {} | {} |",
            times.len(),
            us(percentiles.p50),
            us(percentiles.p99),
            us(max),
            policies.status()[0].idle_instances
        );
    }
}

fn staged_versions() {
    println!("\nThe cost of a candidate for requests: cortex, 2 KB prompt, 8 lanes (us)\n");
    println!("| candidate | p50 | p99 | compared | dropped |\n|---|---|---|---|---|");
    let canary = Rollout::Canary { share: 50, by: CanaryBy::Request };
    for (name, rollout) in
        [("none", None), ("shadow", Some(Rollout::Shadow)), ("canary, 5 %", Some(canary))]
    {
        let policies = policies(runtime());
        let spec = PolicySpec::new("cortex", policy_dir("cortex"));
        load(&policies, vec![spec.clone()]);
        if let Some(rollout) = rollout {
            let mut other = PolicySpec { rollout, ..spec };
            other.settings.config = serde_json::json!({ "patience-ms": 1 });
            load(&policies, vec![other]);
            assert!(policies.status()[0].candidate.is_some());
        }
        let times = measure(&policies, &facts("auto", 2_000), &fleet(8), 1);
        let candidate = policies.status().remove(0).candidate;
        let status = candidate.map(|candidate| serde_json::to_value(candidate).unwrap());
        let status = status.unwrap_or_default();
        let count = |key: &str| status[key].as_u64().unwrap_or(0);
        let compared = count("agreed") + count("differed") + count("failed");
        println!(
            "| {name} | {} | {} | {compared} | {} |",
            us(times.p50),
            us(times.p99),
            count("dropped")
        );
    }
}

fn activations() {
    println!(
        "\nActivation of a new version: from the changed file to the first decision by it, without \
         the watcher's debounce time (ms)\n"
    );
    println!("| change | p50 | max |\n|---|---|---|");
    let cache = tempfile::tempdir().unwrap();
    let settings = RuntimeSettings { cache_dir: Some(cache.path().to_owned()), ..runtime() };
    for (change, changes_component, has_cases) in [
        ("manifest of cortex, with its 30 golden cases", false, true),
        ("component of cortex, which has to be compiled, without golden cases", true, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for file in ["policy.wasm", "cases.jsonl"] {
            if has_cases || file != "cases.jsonl" {
                fs::copy(policy_dir("cortex").join(file), dir.path().join(file)).unwrap();
            }
        }
        let manifest = fs::read_to_string(policy_dir("cortex").join("policy.toml")).unwrap();
        // `[build]` has the digest of the component, which changes.
        let manifest = manifest.split("[build]").next().unwrap().to_owned();
        fs::write(dir.path().join("policy.toml"), &manifest).unwrap();
        let policies = policies(settings.clone());
        load(&policies, vec![PolicySpec::new("cortex", dir.path().to_owned())]);
        let mut times: Vec<Duration> = (0..ACTIVATIONS)
            .map(|round| activate(&policies, dir.path(), &manifest, round, changes_component))
            .collect();
        let max = times.iter().max().copied().unwrap_or_default();
        let percentiles = Percentiles::from_times(&mut times);
        println!(
            "| {change} | {:.1} | {:.1} |",
            percentiles.p50.as_secs_f64() * 1e3,
            max.as_secs_f64() * 1e3
        );
    }
}

/// Changes the policy's component or manifest, and returns the time until the new version decides.
fn activate(
    policies: &Arc<Policies>,
    dir: &Path,
    manifest: &str,
    round: u32,
    changes_component: bool,
) -> Duration {
    let (facts, fleet) = (facts("coder", 1_000), fleet(8));
    let version = |policies: &Policies| {
        let merged = policies.slot().load_full().advise(&facts, &fleet, &mut Trace::off()).merged;
        merged.by.first().map(|by| by.version.to_string())
    };
    let before = version(policies);
    if changes_component {
        // An additional custom section changes the digest of the component, but not its behavior.
        let mut bytes = fs::read(policy_dir("cortex").join("policy.wasm")).unwrap();
        bytes.extend([0, 6, 1, b'n']);
        bytes.extend(round.to_le_bytes());
        fs::write(dir.join("policy.wasm"), bytes).unwrap();
    } else {
        fs::write(dir.join("policy.toml"), format!("{manifest}\n# {round}\n")).unwrap();
    }
    let started = Instant::now();
    policies.look();
    let after = version(policies);
    let elapsed = started.elapsed();
    assert_ne!(before, after, "{:?}", policies.status());
    elapsed
}

/// Formats a duration in microseconds.
fn us(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e6)
}
