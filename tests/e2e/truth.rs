//! The simulator tells the truth: what a host did with a workload in real time, the simulator does with the records of it.

use std::fmt::Write as _;

use pointsman_tests::host::{Host, program};
use pointsman_tests::truth::{as_they_were, config, scenario, served, simulated, workload};
use rustix::process::Signal;

use crate::FAKE_ENGINE;

/// A workload has moments at which a millisecond decides which lane comes next. If the machine loses one there, all is
/// different from then on, and the day is lived again. A simulator that decides otherwise does so each time.
const ATTEMPTS: usize = 3;
const REQUESTS: usize = 150;
/// Rules by which another lane comes as soon as somebody wants it.
const AT_ONCE: &str = "switching = { residence = 0.0, linger = \"0s\" }";

fn agree(policies: &str) {
    let program = program(FAKE_ENGINE);
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        let mut host = Host::start(&program, &config(FAKE_ENGINE, policies)).ready();
        let real = served(&host, &workload(REQUESTS));
        assert!(real.switches.len() >= 5, "lanes took turns: {:?}", real.switches);
        host.signal(Signal::TERM);
        assert!(host.ended().success());
        let simulate = |set| simulated(&program, host.dir.path(), &scenario(&as_they_were(&real), set));
        let (same, other) = (simulate(""), simulate(AT_ONCE));
        println!(
            "{} switches; mean wait {:.1} ms, simulated {:.1} ms",
            real.switches.len(),
            real.mean_wait() * 1e3,
            same.mean_wait() * 1e3
        );
        // What is looked for would be found.
        assert!(real.differs_from(&other).len() > 1, "rules make a difference");
        let differences = real.differs_from(&same);
        if differences.is_empty() {
            return;
        }
        let _written = writeln!(said, "--- {} differences:\n{}", differences.len(), differences.join("\n"));
    }
    panic!("{said}");
}

#[test]
fn without_a_policy_the_simulator_decides_as_the_host_did() {
    agree("");
}

#[test]
fn with_a_policy_the_simulator_decides_as_the_host_did() {
    agree("[[policies.chain]]\nname = \"cortex\"\nconfig = { patience-ms = 1500 }");
}
