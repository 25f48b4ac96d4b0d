//! The harness of the end-to-end tests: the real host program, fake engines, guest policies and a
//! plain HTTP client.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test whose setup fails must fail")]
#![allow(missing_docs, reason = "test code: the names of most items say what they are")]

pub mod attack;
pub mod client;
pub mod deployment;
pub mod encoding;
pub mod fake_engine;
pub mod guests;
pub mod host;
pub mod issuer;
pub mod load;
pub mod log;
pub mod memory;
pub mod module_graph;
pub mod simulation_accuracy;
pub mod streams;
pub mod terminal;
pub mod upgrade;

use std::time::Duration;

pub use pointsman_xtask::wait::pause;
use pointsman_xtask::wait::poll;

/// The maximum time that a test waits for a condition before it counts as hung.
///
/// It is long because test machines are busy. No test waits for it to expire.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Waits until a condition holds. `what` names the condition in the panic message.
///
/// # Panics
/// If the condition does not hold within [`WAIT_TIMEOUT`].
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    wait_at_most(WAIT_TIMEOUT, what, condition);
}

/// Waits until a condition holds, for conditions that may take longer than [`WAIT_TIMEOUT`].
///
/// # Panics
/// If the condition does not hold within `timeout`.
pub fn wait_at_most(timeout: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let found = poll(timeout, Duration::from_millis(10), || condition().then_some(()));
    assert!(found.is_some(), "timed out waiting until {what}");
}
