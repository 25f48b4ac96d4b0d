use std::fs;

use pointsman_domain::{FleetView, LaneState, Topology};

use super::command::Command;
use super::*;
use crate::registry::events::BY_FILE;
use crate::version::runtime::RuntimeSettings;
use crate::wasm::engine::Allocator;

/// Policies with the one in `dir`.
fn load(dir: &std::path::Path) -> Arc<Policies> {
    let component = wat::parse_str(include_str!("../../../fixtures/small.wat")).unwrap();
    fs::write(dir.join("policy.toml"), "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n")
        .unwrap();
    fs::write(dir.join("policy.wasm"), component).unwrap();
    let settings = RuntimeSettings { allocator: Allocator::OnDemand, ..RuntimeSettings::default() };
    let runtime = Runtime::new(settings).unwrap();
    let metrics = PolicyMetrics::register(&mut prometheus_client::registry::Registry::default());
    let policies = Policies::new(&runtime, &metrics, Box::new(|_| Err("no cases".into()))).unwrap();
    let policy = PolicySpec::new("small", dir.to_owned());
    let chain = ChainSpec { policies: vec![policy], ..ChainSpec::default() };
    assert!(matches!(policies.apply(chain).as_slice(), [(_, Change::Active(_))]));
    policies
}

#[test]
fn version_before_the_minimum_is_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let policies = load(dir.path());
    let apply = |min: &str| {
        let min_version = Some(min.parse().unwrap());
        let policy = PolicySpec { min_version, ..PolicySpec::new("small", dir.path().to_owned()) };
        let chain = ChainSpec { policies: vec![policy], ..ChainSpec::default() };
        policies.apply(chain).remove(0).1
    };
    assert!(matches!(apply("1.0"), Change::Unchanged));
    let refused = apply("1.0.1");
    assert!(
        matches!(&refused, Change::Failed(error) if error.code() == "version_too_old"),
        "{refused:?}"
    );
}

/// Calls the active version, as a request does that started when it was in the chain.
fn call(policies: &Policies) {
    let version = policies.registry().entries["small"].slot.active.clone().unwrap();
    let topology = Arc::new(Topology::new(1, Vec::new()));
    let fleet = Arc::new(FleetView::idle(topology, LaneState::Ready));
    version.observe(&fleet, 0, &[], &mut Default::default()).unwrap();
}

#[test]
fn version_keeps_instances_only_while_it_is_in_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let policies = load(dir.path());
    let idle = || policies.status()[0].idle_instances;
    call(&policies);
    assert!(idle() > 0);
    policies.command("small", &Command::Disable, "ann").unwrap();
    assert_eq!(idle(), 0);
    call(&policies);
    assert_eq!(idle(), 0, "a call that ends later leaves no instance");
    policies.command("small", &Command::Enable, "ann").unwrap();
    call(&policies);
    assert!(idle() > 0);
}

/// An instance is used up by its last call, and is replaced before the next one.
#[test]
fn instances_that_are_used_up_are_replaced_without_a_call() {
    let dir = tempfile::tempdir().unwrap();
    let policies = load(dir.path());
    fs::write(
        dir.path().join("policy.toml"),
        "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n[limits]\ncalls = 1\n",
    )
    .unwrap();
    assert!(matches!(policies.look().as_slice(), [(_, Change::Active(_))]));
    for _ in 0..3 {
        call(&policies);
        let deadline = Instant::now() + Duration::from_secs(10);
        while policies.status()[0].idle_instances == 0 {
            assert!(Instant::now() < deadline, "no instance was created");
            std::thread::yield_now();
        }
    }
}

/// Pipes without a writer, endless files and files that are too large are reported, and the policy
/// loads once they are gone.
#[test]
fn files_that_cannot_be_read_are_reported_and_do_not_block() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let dir = tempfile::tempdir().unwrap();
    let policies = load(dir.path());
    let pipe = |path: &std::path::Path| {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    };
    let endless = |path: &std::path::Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    let huge = |path: &std::path::Path| {
        fs::File::create(path).unwrap().set_len(500 << 20).unwrap();
    };
    type Damage<'a> = &'a dyn Fn(&std::path::Path);
    let damages: [(&str, Damage<'_>); 3] =
        [("file_not_regular", &pipe), ("file_not_regular", &endless), ("file_too_large", &huge)];
    for name in ["policy.toml", "policy.wasm", "cases.jsonl", "policy.sig"] {
        for (code, damage) in damages {
            let path = dir.path().join(name);
            let good = fs::read(&path).ok();
            fs::remove_file(&path).ok(); // Two of them do not exist.
            damage(&path);
            let changes = policies.look();
            let [(_, Change::Failed(error))] = changes.as_slice() else {
                panic!("{name}: {changes:?}")
            };
            assert_eq!(error.code(), code, "{name}");
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(policies.status()[0].state, "active", "{name}");
            fs::remove_file(&path).unwrap();
            if let Some(good) = good {
                fs::write(&path, good).unwrap();
            }
            assert!(matches!(policies.look().as_slice(), [(_, Change::Unchanged)]), "{name}");
        }
    }
}

#[test]
fn history_has_events_with_operators_and_is_stored() {
    let (dir, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let policies = load(dir.path());
    let chain = || ChainSpec {
        policies: vec![PolicySpec::new("small", dir.path().to_owned())],
        store: Some(store.path().join("policies")),
        ..ChainSpec::default()
    };
    policies.apply(chain());
    policies.command("small", &Command::Disable, "ann").unwrap();
    policies.command("small", &Command::Enable, "bob").unwrap();
    fs::write(dir.path().join("policy.toml"), "name = ").unwrap();
    policies.apply(chain());
    policies.apply(chain());
    let kinds = |policies: &Policies| -> Vec<(PolicyEventKind, String)> {
        let events = policies.events("small").unwrap();
        events.into_iter().map(|event| (event.event, event.by)).collect()
    };
    let expected = [
        (PolicyEventKind::Activated, BY_FILE),
        (PolicyEventKind::Disabled, "ann"),
        (PolicyEventKind::Enabled, "bob"),
        (PolicyEventKind::Refused, BY_FILE),
    ];
    let expected = expected.map(|(kind, by)| (kind, by.to_owned()));
    assert_eq!(kinds(&policies), expected);
    let events = policies.events("small").unwrap();
    assert_eq!(events[3].code.as_deref(), Some("manifest_invalid"));
    assert!(events.iter().all(|event| event.at_ms > 0) && events[1].version.starts_with("1+"));
    assert_eq!(policies.events("other"), None);

    let stored = Store::for_policy(&store.path().join("policies"), "small").read_events();
    assert_eq!(stored.to_vec(), events);
}
