//! What the end to end tests are made of: the real program, engines that do as they are told, and a plain client.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot be set up has to fail"
)]
#![allow(missing_docs, reason = "the tests themselves are the documentation")]

pub mod client;
pub mod fake_engine;
pub mod guests;
pub mod host;
pub mod load;
pub mod site;
pub mod truth;

use std::time::{Duration, Instant};

/// How long anything may take in a test before it counts as hanging. Long, because machines are busy; nothing waits for it
/// to pass.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Wait for a condition.
///
/// # Panics
/// If it does not come about.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited too long: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
