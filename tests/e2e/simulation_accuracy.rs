//! Accuracy of the simulator: with the records of a workload it decides as a host did in real time.

use pointsman_tests::host::{Host, program};
use pointsman_tests::simulation_accuracy::{
    RunTrace, config, recorded_engines, run_on_host, run_simulation, scenario, workload,
};
use rustix::process::Signal;

use crate::FAKE_ENGINE;

/// The number of rounds, at least half of which must be equal from the first to the last request.
///
/// In every round a millisecond may decide which lane is loaded next, and on a busy machine that
/// goes differently now and then.
const ROUNDS: usize = 8;
/// Settings with which lanes switch as soon as a request needs another lane.
const SWITCH_IMMEDIATELY: &str = "switching = { min-residency = 0.0, linger = \"0s\" }";

fn assert_simulator_agrees(policies: &str) {
    let program = program(FAKE_ENGINE);
    let mut host = Host::start(&program, &config(FAKE_ENGINE, policies)).wait_until_ready();
    let real = run_on_host(&host, &workload(ROUNDS));
    assert!(real.switches.len() >= ROUNDS, "the lanes must switch: {:?}", real.switches());
    host.signal(Signal::TERM);
    assert!(host.wait_for_exit().success());
    let simulate =
        |set| run_simulation(&program, host.dir.path(), &scenario(&recorded_engines(&real), set));
    let (same, other) = (simulate(""), simulate(SWITCH_IMMEDIATELY));
    let rounds = |trace: &RunTrace| {
        real.compare_with(trace).values().filter(|differences| differences.is_empty()).count()
    };
    let (agreed, agreed_with_other_settings) = (rounds(&same), rounds(&other));
    let differences: Vec<String> = real.compare_with(&same).into_values().flatten().collect();
    let summary = format!(
        "{agreed} of {ROUNDS} rounds agree, {agreed_with_other_settings} with other settings; {} \
         switches, simulated {}; \
         mean wait {:.1} ms, simulated {:.1} ms\n  {}",
        real.switches.len(),
        same.switches.len(),
        real.mean_wait() * 1e3,
        same.mean_wait() * 1e3,
        differences.join("\n  ")
    );
    println!("{summary}");
    assert!(2 * agreed >= ROUNDS, "{summary}");
    // A negative control: the comparison must notice other settings.
    assert!(agreed_with_other_settings < agreed, "other settings make no difference: {summary}");
    if agreed == ROUNDS {
        assert_eq!(real.switches(), same.switches());
    }
}

#[test]
fn simulator_decides_as_host_without_policy() {
    assert_simulator_agrees("");
}

#[test]
fn simulator_decides_as_host_with_policy() {
    assert_simulator_agrees(
        "[[policies.chain]]\nname = \"cortex\"\nconfig = { patience-ms = 1500 }",
    );
}
