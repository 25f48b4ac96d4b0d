//! The harness of the end-to-end tests: the real host program, fake engines, guest policies and a
//! plain HTTP client.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test whose setup fails must fail")]
#![allow(missing_docs, reason = "test code: the names of most items say what they are")]

pub mod client;
pub mod deployment;
pub mod fake_engine;
pub mod guests;
pub mod host;
pub mod load;
pub mod log;
pub mod module_graph;
pub mod simulation_accuracy;

use std::time::{Duration, Instant};

/// The maximum time that a test waits for a condition before it counts as hung.
///
/// It is long because test machines are busy. No test waits for it to expire.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until a condition holds. `what` names the condition in the panic message.
///
/// # Panics
/// If the condition does not hold within [`WAIT_TIMEOUT`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WAIT_TIMEOUT, "timed out waiting until {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
