//! How true the simulator is, as a table: one workload, served by a host in real time and simulated from its records. Once with
//! the times that the engines took, which shows whether all is decided in the same way; and once with those that they are told
//! to take, as somebody would write them into a scenario, which shows what predictions are worth.

use std::path::Path;

use clap::Parser;
use pointsman_tests::host::{Host, program};
use pointsman_tests::truth::{
    Course, as_they_are_told, as_they_were, config, scenario, served, simulated, workload,
};
use rustix::process::Signal;

/// How much is asked for.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Requests, some five a second.
    #[arg(long, default_value_t = 300)]
    requests: usize,
}

fn main() {
    let options = Options::parse();
    println!("| | requests | loads | wait mean | p50 | p99 | differences |\n|---|---|---|---|---|---|---|");
    let cortex = "[[policies.chain]]\nname = \"cortex\"\nconfig = { patience-ms = 1500 }";
    for (name, policies) in [("no policy", ""), ("cortex", cortex)] {
        compare(name, policies, options.requests);
    }
}

#[expect(clippy::expect_used, reason = "a measurement that cannot be set up has to fail")]
fn compare(name: &str, policies: &str, requests: usize) {
    let myself = std::env::current_exe().expect("this program");
    let fake_engine = myself.with_file_name("fake-engine");
    let fake_engine = fake_engine.to_str().expect("a path of text");
    let program = program(fake_engine);
    let mut host = Host::start(&program, &config(fake_engine, policies)).ready();
    let real = served(&host, &workload(requests));
    host.signal(Signal::TERM);
    host.ended();
    show(&format!("{name}, real time"), &real, None);
    let simulate = |engines: &str| simulate(&program, host.dir.path(), engines);
    show(&format!("{name}, times as they were"), &simulate(&as_they_were(&real)), Some(&real));
    show(&format!("{name}, times as told"), &simulate(&as_they_are_told()), Some(&real));
}

fn simulate(program: &Path, dir: &Path, engines: &str) -> Course {
    simulated(program, dir, &scenario(engines, ""))
}

fn show(name: &str, course: &Course, real: Option<&Course>) {
    let wait = |of: fn(&Course) -> f64| {
        let value = of(course);
        let error = real.map(|real| format!(" ({:+.1} %)", (value / of(real) - 1.0) * 100.0));
        format!("{:.1} ms{}", value * 1e3, error.unwrap_or_default())
    };
    println!(
        "| {name} | {} | {} | {} | {} | {} | {} |",
        course.grants.len(),
        course.switches.len(),
        wait(Course::mean_wait),
        wait(|course| course.wait(50)),
        wait(|course| course.wait(99)),
        real.map_or(String::new(), |real| real.differs_from(course).len().to_string()),
    );
}
