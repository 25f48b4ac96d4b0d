//! Fuzzing of scenarios, and of what policies return.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_domain::{Advice, Endpoint, Facts, FleetView, LaneState, Topology};
use pointsman_fuzz::Fuzz;
use pointsman_openai::{Head, Request};
use pointsman_policy::{ChainSpec, DryRunChain, Metering, PolicySpec, Runtime, RuntimeSettings};

use crate::Scenario;

/// Every error of a scenario has a line of the file, and reading does not depend on anything but
/// the text.
#[test]
fn scenarios() {
    let fuzz = Fuzz::new("scenarios").files("examples/scenarios", ".toml");
    let fuzz = fuzz.files("host/crates/build/templates/common/scenarios", ".toml").words(&[
        "sequence",
        "p99",
        "mean",
        "shape",
        "every",
        "[[failures]]",
        "kind = \"crash\"",
        "2/min",
    ]);
    fuzz.run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        match Scenario::parse(text, Path::new("scenario.toml")) {
            Ok(scenario) => {
                let again = Scenario::parse(text, Path::new("scenario.toml"));
                let again = again.expect("an accepted scenario is accepted again");
                assert_eq!(format!("{scenario:?}"), format!("{again:?}"));
                true
            }
            Err(error) => {
                let lines = text.lines().count() + 1;
                assert!(!error.diagnostics().is_empty());
                assert!(error.diagnostics().iter().all(|error| error.line <= lines), "{error}");
                false
            }
        }
    });
}

/// A policy that writes three numbers of its context to where it returns its advice from: each has
/// the place in its low nine bits, and the value in the others.
fn policy(folder: &Path) -> DryRunChain {
    let small = include_str!("../../policy/fixtures/small.wat");
    let (before, rest) = small.split_once("(local i32)").unwrap();
    let (_, after) = rest.split_once("(data (;0;)").unwrap();
    let store = |context: u32| {
        format!(
            "(i64.store offset=1024 (i32.and (i32.wrap_i64 (local.get {context})) (i32.const 511))
             (i64.shr_u (local.get {context}) (i64.const 9)))"
        )
    };
    // The time, the seed and the age.
    let advise = [0, 1, 3].map(store).concat();
    let text = format!("{before}{advise} i32.const 1024) (data (;0;){after}");
    fs::write(folder.join("policy.wasm"), wat::parse_str(text).unwrap()).unwrap();
    let manifest = "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n[allow]\nmodel = true\n\
                    system = true\nbody = true\npriority = [-1000, 1000]\n";
    fs::write(folder.join("policy.toml"), manifest).unwrap();
    let spec = PolicySpec::new("small", folder.to_owned());
    let chain = ChainSpec { policies: vec![spec], ..ChainSpec::default() };
    let settings = RuntimeSettings { metering: Metering::Fuel, ..RuntimeSettings::default() };
    DryRunChain::load(&Runtime::new(settings).unwrap(), &chain).unwrap()
}

/// Whatever bytes a policy returns as its advice, it is a fault, or advice of a bounded size that a
/// record can hold.
#[test]
fn wit_values() {
    let folder = tempfile::tempdir().unwrap();
    let policy = policy(folder.path());
    let body = Bytes::from_static(br#"{"model": "m", "messages": []}"#);
    let request = Request::parse(Endpoint::ChatCompletions, body, Head::default()).unwrap();
    let topology = Arc::new(Topology::new(1, Vec::new()));
    let fleet = Arc::new(FleetView::idle(topology, LaneState::Ready));
    let mut fuzz = Fuzz::new("wit_values").input([0; 24]);
    for place in (0..256).step_by(4) {
        for value in [1_u64, 3, 1 << 32] {
            let number = (place | (value << 9)).to_le_bytes();
            fuzz = fuzz.input([number, [0; 8], [0; 8]].concat());
        }
    }
    fuzz.run(|input| {
        let number = |index: usize| {
            let mut bytes = [0; 8];
            let from = input.get(8 * index..).unwrap_or_default();
            let length = from.len().min(8);
            bytes[..length].copy_from_slice(&from[..length]);
            u64::from_le_bytes(bytes)
        };
        let facts = Facts {
            request: Arc::new(request.clone()),
            now_ms: number(0),
            seed: number(1),
            age: Duration::from_micros(number(2)),
            attempt: 0,
            time_left: None,
            lanes_left: None,
        };
        let replayed = policy.replay("small", &facts, &fleet, &[]).unwrap();
        let Ok(advice) = replayed.answer else { return false };
        let text = serde_json::to_string(&advice).unwrap();
        assert!(text.len() < 1 << 20, "{} bytes of advice", text.len());
        assert_eq!(serde_json::from_str::<Advice>(&text).unwrap(), advice);
        true
    });
}
