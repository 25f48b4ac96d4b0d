//! The simulator tells the truth: what a host did with a workload in real time, the simulator does with the records of it.

use pointsman_tests::host::{Host, program};
use pointsman_tests::truth::{Course, as_they_were, config, scenario, served, simulated, workload};
use rustix::process::Signal;

use crate::FAKE_ENGINE;

/// A round has moments at which a millisecond decides which lane comes next. A machine that is busy with other things loses one
/// now and then, and then that round goes another way. Half of them have to be the same, from the first request to the last.
const ROUNDS: usize = 8;
/// Rules by which another lane comes as soon as somebody wants it.
const AT_ONCE: &str = "switching = { min-residency = 0.0, linger = \"0s\" }";

fn agree(policies: &str) {
    let program = program(FAKE_ENGINE);
    let mut host = Host::start(&program, &config(FAKE_ENGINE, policies)).ready();
    let real = served(&host, &workload(ROUNDS));
    assert!(real.switches.len() >= ROUNDS, "lanes took turns: {:?}", real.switches());
    host.signal(Signal::TERM);
    assert!(host.ended().success());
    let simulate = |set| simulated(&program, host.dir.path(), &scenario(&as_they_were(&real), set));
    let (same, other) = (simulate(""), simulate(AT_ONCE));
    let rounds =
        |course: &Course| real.differs_from(course).values().filter(|said| said.is_empty()).count();
    let (agreed, agreed_by_other_rules) = (rounds(&same), rounds(&other));
    let differences: Vec<String> = real.differs_from(&same).into_values().flatten().collect();
    let shown = format!(
        "{agreed} of {ROUNDS} rounds agree, {agreed_by_other_rules} by other rules; {} switches, simulated {}; \
         mean wait {:.1} ms, simulated {:.1} ms\n  {}",
        real.switches.len(),
        same.switches.len(),
        real.mean_wait() * 1e3,
        same.mean_wait() * 1e3,
        differences.join("\n  ")
    );
    println!("{shown}");
    assert!(2 * agreed >= ROUNDS, "{shown}");
    // What is looked for would be found.
    assert!(agreed_by_other_rules < agreed, "other rules make no difference: {shown}");
    if agreed == ROUNDS {
        assert_eq!(real.switches(), same.switches());
    }
}

#[test]
fn without_a_policy_the_simulator_decides_as_the_host_did() {
    agree("");
}

#[test]
fn with_a_policy_the_simulator_decides_as_the_host_did() {
    agree("[[policies.chain]]\nname = \"cortex\"\nconfig = { patience-ms = 1500 }");
}
