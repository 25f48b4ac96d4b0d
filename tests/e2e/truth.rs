//! The simulator tells the truth: what a host did with a workload in real time, the simulator does with the records of it.

use std::collections::BTreeMap;

use pointsman_tests::host::{Host, program};
use pointsman_tests::truth::{as_they_were, config, scenario, served, simulated, workload};
use rustix::process::Signal;

use crate::FAKE_ENGINE;

/// A round has moments at which a millisecond decides which lane comes next. If the machine loses one there, that round is
/// lived again. A simulator that decides otherwise does so each time.
const ATTEMPTS: usize = 3;
const ROUNDS: usize = 8;
/// Rules by which another lane comes as soon as somebody wants it.
const AT_ONCE: &str = "switching = { residence = 0.0, linger = \"0s\" }";

fn agree(policies: &str) {
    let program = program(FAKE_ENGINE);
    let mut open: BTreeMap<usize, Vec<String>> = (0..ROUNDS).map(|round| (round, Vec::new())).collect();
    for _ in 0..ATTEMPTS {
        let mut host = Host::start(&program, &config(FAKE_ENGINE, policies)).ready();
        let real = served(&host, &workload(ROUNDS));
        assert!(real.switches.len() >= ROUNDS, "lanes took turns: {:?}", real.switches());
        host.signal(Signal::TERM);
        assert!(host.ended().success());
        let simulate = |set| simulated(&program, host.dir.path(), &scenario(&as_they_were(&real), set));
        let (same, other) = (simulate(""), simulate(AT_ONCE));
        // What is looked for would be found.
        assert!(real.differs_from(&other).values().any(|said| said.len() > 1), "rules make a difference");
        let differences = real.differs_from(&same);
        let agreed = differences.values().filter(|said| said.is_empty()).count();
        println!(
            "{agreed} of {ROUNDS} rounds agree; {} switches, simulated {}; mean wait {:.1} ms, simulated {:.1} ms",
            real.switches.len(),
            same.switches.len(),
            real.mean_wait() * 1e3,
            same.mean_wait() * 1e3
        );
        if agreed == ROUNDS {
            assert_eq!(real.switches(), same.switches());
        }
        for (round, said) in differences {
            said.iter().for_each(|said| println!("  {said}"));
            match (said.is_empty(), open.get_mut(&round)) {
                (true, _) => drop(open.remove(&round)),
                (false, Some(before)) => before.extend(said),
                (false, None) => {}
            }
        }
        if open.is_empty() {
            return;
        }
    }
    panic!("{open:#?}");
}

#[test]
fn without_a_policy_the_simulator_decides_as_the_host_did() {
    agree("");
}

#[test]
fn with_a_policy_the_simulator_decides_as_the_host_did() {
    agree("[[policies.chain]]\nname = \"cortex\"\nconfig = { patience-ms = 1500 }");
}
