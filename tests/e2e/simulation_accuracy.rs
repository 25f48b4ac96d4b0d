//! Accuracy of the simulator: with the records of a workload it decides as a host did in real time.
//!
//! The workload consists of rounds, which do not affect each other. In some of them a millisecond
//! decides which lane is loaded next, and no simulator can know how that went on a busy machine. So
//! the host measures by how much this machine delays threads while the workload runs, and the
//! simulator predicts each round several times, with loads and stops that take up to this time more
//! or less. A round is unambiguous if all predictions are the same, and these rounds have to be as
//! predicted. The more a machine disturbs, the fewer rounds are unambiguous, instead of the more
//! fail.

use std::collections::BTreeSet;

use pointsman_tests::host::{Host, program};
use pointsman_tests::simulation_accuracy::{
    RunTrace, config, independent_rounds, perturbed_engines, recorded_engines, run_on_host,
    run_simulation, scenario,
};
use rustix::process::Signal;

use crate::FAKE_ENGINE;

const ROUNDS: usize = 12;
/// The minimum number of unambiguous rounds: with fewer of them the test would show nothing.
const MIN_UNAMBIGUOUS: usize = 4;
/// The share of the unambiguous rounds that have to be as predicted, in percent.
const MIN_AGREEMENT: usize = 90;
/// The number of predictions with other times.
const PREDICTIONS: u64 = 6;
/// A decision depends on several threads, of the host and of engines, one after the other.
const WAKE_UPS: f64 = 3.0;
/// Noise in seconds that any machine has: the log has the times of loads in milliseconds, and
/// engines are asked in intervals.
const MIN_NOISE: f64 = 0.005;
/// Settings with which lanes switch as soon as a request needs another lane.
const SWITCH_IMMEDIATELY: &str = "switching = { min-residency = 0.0, linger = \"0s\" }";

/// Returns the rounds that are the same in both traces.
fn same_rounds(one: &RunTrace, other: &RunTrace) -> BTreeSet<usize> {
    let rounds = one.compare_with(other).into_iter();
    rounds.filter(|(_, differences)| differences.is_empty()).map(|(round, _)| round).collect()
}

fn assert_simulator_agrees(policies: &str) {
    let program = program(FAKE_ENGINE);
    let mut host = Host::start(&program, &config(FAKE_ENGINE, policies)).wait_until_ready();
    let real = run_on_host(&host, &independent_rounds(ROUNDS));
    assert!(real.switches.len() >= ROUNDS, "the lanes must switch: {:?}", real.switches());
    host.signal(Signal::TERM);
    assert!(host.wait_for_exit().success());
    let simulate =
        |engines: &str, set| run_simulation(&program, host.dir.path(), &scenario(engines, set));
    let noise = MIN_NOISE.max(WAKE_UPS * real.noise);
    let predicted = simulate(&recorded_engines(&real), "");
    let mut unambiguous: BTreeSet<usize> = (0..ROUNDS).collect();
    for variant in 0..PREDICTIONS {
        let other = simulate(&perturbed_engines(&real, noise, variant), "");
        unambiguous.retain(|round| same_rounds(&predicted, &other).contains(round));
    }
    let agreed = &same_rounds(&real, &predicted) & &unambiguous;
    let other_settings = simulate(&recorded_engines(&real), SWITCH_IMMEDIATELY);
    let agreed_with_other_settings = &same_rounds(&real, &other_settings) & &unambiguous;
    let differences: Vec<String> = real
        .compare_with(&predicted)
        .into_iter()
        .flat_map(|(round, differences)| {
            let kind = if unambiguous.contains(&round) { "" } else { ", ambiguous" };
            differences.into_iter().map(move |text| format!("round {round}{kind}: {text}"))
        })
        .collect();
    let summary = format!(
        "{} of {ROUNDS} rounds are unambiguous with a noise of {:.1} ms; {} of these are as \
         predicted, {} as predicted for other settings; {} switches, predicted {}; mean wait \
         {:.1} ms, predicted {:.1} ms\n  {}",
        unambiguous.len(),
        noise * 1e3,
        agreed.len(),
        agreed_with_other_settings.len(),
        real.switches.len(),
        predicted.switches.len(),
        real.mean_wait() * 1e3,
        predicted.mean_wait() * 1e3,
        differences.join("\n  ")
    );
    println!("{summary}");
    assert!(unambiguous.len() >= MIN_UNAMBIGUOUS, "the machine is too busy: {summary}");
    assert!(100 * agreed.len() >= MIN_AGREEMENT * unambiguous.len(), "{summary}");
    // A negative control: the comparison must notice other settings.
    assert!(
        2 * agreed_with_other_settings.len() <= agreed.len(),
        "other settings make no difference: {summary}"
    );
    if same_rounds(&real, &predicted).len() == ROUNDS {
        assert_eq!(real.switches(), predicted.switches());
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
