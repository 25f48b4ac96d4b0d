//! End-to-end tests: the real host program, real processes and real sockets. See `README.md`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod access_secrets;
mod admin;
mod attacks;
mod attribution;
mod by_hand;
mod captures;
mod chaos;
mod check;
mod clients;
mod compat;
mod console;
mod container;
mod container_files;
mod conversations;
mod cortex;
mod docs_links;
mod docs_openai;
mod doctor;
mod endpoints;
mod engine_failures;
mod explain;
mod faults;
mod fidelity;
mod groups;
mod guards;
mod handover;
mod health_command;
mod hostile_policies;
mod idempotency;
mod import;
mod inner_loop;
mod keeper;
mod keys;
mod languages;
mod limits;
mod listeners;
mod messages;
mod metrics;
mod middleware;
mod model_names;
mod models;
mod module_cycles;
mod multipart;
mod native;
mod nix_scripts;
mod ollama;
mod openai;
mod peer_lanes;
mod peers;
mod policies;
mod policy_author;
mod policy_cli;
mod policy_coverage;
mod policy_dev;
mod policy_hooks;
mod policy_install;
mod policy_outcomes;
mod policy_prints;
mod policy_simulation;
mod policy_state;
mod policy_types;
mod real;
mod recipes;
mod records;
mod redaction;
mod reload;
mod replay;
mod requirements;
mod responses;
mod rollout;
mod routing;
mod shell_help;
mod shutdown;
mod simulate;
mod simulation_accuracy;
mod source_tree;
mod stream;
mod streams;
mod supervision;
mod systemd;
mod telemetry;
mod tokens;
mod top;
mod usage;
mod version;

use pointsman_tests::host::{Host, fake_lane, program};

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");

/// Returns a lane with a fake engine.
fn lane(name: &str, models: &[&str], arguments: &[&str]) -> String {
    fake_lane(FAKE_ENGINE, name, models, "", arguments)
}

/// Starts a host and waits until all of its lanes are ready.
fn host(config: &str) -> Host {
    Host::start(&program(FAKE_ENGINE), config).wait_until_ready()
}

/// Starts a host with one lane `a`.
fn one_lane(arguments: &[&str]) -> Host {
    host(&lane("a", &["a"], arguments))
}
