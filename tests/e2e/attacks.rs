//! Attacks on a host, one test for each way in which it could be harmed.
//!
//! What each test protects is in `host/docs/security.md`. Attacks that take longer are in
//! `tests/attacks`.

mod answers;
mod clients;
mod disclosure;
mod engines;
mod files;
mod logging;
mod policies;
mod stopping;

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::host::Host;

use crate::host;

const CHAT: &str = "/v1/chat/completions";
const MODELS: &str = "/v1/models";

/// Starts a host whose only lane `a` has this engine.
fn host_with(engine: &HostileEngine) -> Host {
    host(&external_lane("a", &["a"], engine, ""))
}

/// Starts a host with the lanes `bad` and `good`, which both serve `auto`. Requests for `auto` are
/// sent to `bad` first: it has more free slots.
fn host_with_fallback(bad: &HostileEngine, good: &HostileEngine, more: &str) -> Host {
    let lanes = [
        external_lane("bad", &["auto", "bad"], bad, more),
        external_lane("good", &["auto", "good"], good, "").replace("slots = 16", "slots = 8"),
    ];
    host(&lanes.concat())
}

/// Returns true if the circuit breaker of a lane is open.
fn breaker_is_open(host: &Host, lane: &str) -> bool {
    host.metric("pointsman_lane_breaker_open", &format!("lane=\"{lane}\"")) > 0.0
}
