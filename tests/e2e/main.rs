//! End to end: the real program, real processes, real sockets.
#![expect(clippy::unwrap_used, reason = "tests")]

mod admin;
mod author;
mod captures;
mod chaos;
mod check;
mod clients;
mod compat;
mod hooks;
mod hostile;
mod languages;
mod middleware;
mod openai;
mod policy;
mod pool;
mod real;
mod records;
mod reload;
mod replay;
mod rollout;
mod shutdown;
mod simulate;
mod stream;
mod supervise;
mod tidy;
mod truth;

use pointsman_tests::host::{Host, fake_lane, program};

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");

/// A lane with a fake engine.
fn lane(name: &str, models: &[&str], arguments: &[&str]) -> String {
    fake_lane(FAKE_ENGINE, name, models, "", arguments)
}

/// A host with these lanes, all of them serving.
fn host(config: &str) -> Host {
    Host::start(&program(FAKE_ENGINE), config).ready()
}

/// A host with one lane `a`.
fn one_lane(arguments: &[&str]) -> Host {
    host(&lane("a", &["a"], arguments))
}
