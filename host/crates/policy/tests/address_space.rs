//! Policies work under a limit of the address space. A test binary of its own, because it runs
//! itself again under such a limit.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::process::Command;
use std::sync::Arc;

use pointsman_policy::{
    Allocator, CaseRequest, ChainSpec, Policies, PolicyMetrics, PolicySpec, Runtime,
    RuntimeSettings,
};
use prometheus_client::registry::Registry;

/// Set in the process that has the limit.
const IS_LIMITED: &str = "POINTSMAN_TEST_LIMITED_ADDRESS_SPACE";
/// As for `ulimit -v`: 4 GiB.
const LIMIT_KIB: u64 = 4 << 20;

#[test]
fn policies_work_under_a_limit_of_the_address_space() {
    if std::env::var_os(IS_LIMITED).is_some() {
        return load_policies();
    }
    let status = Command::new("sh")
        .args(["-c", &format!("ulimit -v {LIMIT_KIB} && exec \"$0\" --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .env(IS_LIMITED, "1")
        .status();
    assert!(status.unwrap().success());
}

/// Loads three policies, and calls their instances.
fn load_policies() {
    let dir = tempfile::tempdir().unwrap();
    let small = wat::parse_str(include_str!("../fixtures/small.wat")).unwrap();
    let policies: Vec<PolicySpec> = (0..3)
        .map(|number| {
            // Folders differ; the name is that of the component.
            let folder = dir.path().join(number.to_string());
            fs::create_dir(&folder).unwrap();
            let manifest = "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n";
            fs::write(folder.join("policy.toml"), manifest).unwrap();
            fs::write(folder.join("policy.wasm"), &small).unwrap();
            PolicySpec::new("small", folder)
        })
        .collect();
    let settings = RuntimeSettings { warm_instances: 8, ..RuntimeSettings::default() };
    let runtime = Runtime::new(settings).unwrap();
    assert_eq!(runtime.allocator(), Allocator::OnDemand);
    let metrics: Arc<PolicyMetrics> = PolicyMetrics::register(&mut Registry::default());
    let hosts: Vec<Arc<Policies>> = policies
        .into_iter()
        .map(|policy| {
            let no_cases = |_: &CaseRequest| Err("no cases".into());
            let host = Policies::new(&runtime, &metrics, Box::new(no_cases)).unwrap();
            host.apply(ChainSpec { policies: vec![policy], ..ChainSpec::default() });
            let status = &host.status()[0];
            assert_eq!((status.state, status.idle_instances), ("active", 8), "{status:?}");
            host
        })
        .collect();
    drop(hosts);
}
