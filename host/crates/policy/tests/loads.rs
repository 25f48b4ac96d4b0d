//! Loading a policy repeatedly does not leak. A test binary of its own, because it counts the
//! memory mappings of the process.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::sync::Arc;

use pointsman_policy::{
    Allocator, CaseRequest, ChainSpec, Policies, PolicyMetrics, PolicySpec, Runtime,
    RuntimeSettings,
};
use prometheus_client::registry::Registry;

/// Returns the number of memory mappings of this process, and its resident memory in kilobytes.
fn mapped() -> (usize, u64) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (maps, resident.trim().strip_suffix(" kB").unwrap().parse().unwrap())
}

#[test]
fn repeated_loads_do_not_leak_mappings_or_memory() {
    let dir = tempfile::tempdir().unwrap();
    let small = wat::parse_str(include_str!("../fixtures/small.wat")).unwrap();
    fs::write(dir.path().join("policy.toml"), "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n")
        .unwrap();
    fs::write(dir.path().join("policy.wasm"), small).unwrap();
    let policy = PolicySpec::new("small", dir.path().to_owned());
    let chain = ChainSpec { policies: vec![policy], ..ChainSpec::default() };
    let settings = RuntimeSettings {
        cache_dir: Some(dir.path().join("cache")),
        allocator: Allocator::OnDemand,
        warm_instances: 1,
        ..RuntimeSettings::default()
    };
    let runtime = Runtime::new(settings).unwrap();
    let metrics: Arc<PolicyMetrics> = PolicyMetrics::register(&mut Registry::default());
    let no_cases = |_: &CaseRequest| Err("no cases".into());
    let policies = Policies::new(&runtime, &metrics, Box::new(no_cases)).unwrap();
    let load = || {
        policies.apply(chain.clone());
        assert_eq!(policies.status()[0].state, "active", "{:?}", policies.status());
        policies.apply(ChainSpec::default());
    };
    // Warm-up, until the allocator has reached its working set.
    (0..20).for_each(|_| load());
    let before = mapped();
    (0..200).for_each(|_| load());
    let after = mapped();
    println!("mappings and resident kB: {before:?} before, {after:?} after");
    assert!(after.0 <= before.0 + 4, "mappings: {} before, {} after", before.0, after.0);
    assert!(after.1 <= before.1 + 2048, "resident kB: {} before, {} after", before.1, after.1);
}
