//! What operators see of the shared store.

use std::time::{SystemTime, UNIX_EPOCH};

use pointsman_shared::Status;
use serde_json::{Value, json};

use super::usage::CopiedIdentity;

/// Describes the store. `expected` is the number of hosts in the configuration, and `copied` the
/// other host that had the identity of this one. Nothing in it changes just because time passes.
pub(super) fn to_json(status: &Status, expected: u32, copied: Option<&CopiedIdentity>) -> Value {
    let unix_ms = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    };
    json!({
        // Neither at first: the connection is being made.
        "state": match (status.since, status.is_up) {
            (None, _) => "connecting",
            (Some(_), true) => "up",
            (Some(_), false) => "down",
        },
        "since_unix_ms": status.since.map(unix_ms),
        "pending": status.pending,
        "dropped": status.dropped,
        "replicas": status.replicas,
        "expected_replicas": expected,
        "identity_copied": copied.map(|copied| json!({
            "other": copied.other,
            "is_renewed": copied.is_renewed,
            "at_unix_ms": unix_ms(copied.at),
        })),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn store_is_up_or_down_since_a_point_in_time() {
        let mut status = Status {
            is_up: false,
            age: Duration::ZERO,
            round_trip: Duration::ZERO,
            rounds: 0,
            failures: 0,
            pending: 7,
            dropped: 1,
            since: None,
            replicas: None,
        };
        let found = to_json(&status, 3, None);
        assert_eq!((&found["state"], &found["pending"]), (&json!("connecting"), &json!(7)));
        status.since = Some(UNIX_EPOCH + Duration::from_secs(9));
        status.replicas = Some(2);
        let found = to_json(&status, 3, None);
        assert_eq!((&found["state"], &found["since_unix_ms"]), (&json!("down"), &json!(9000)));
        assert_eq!((&found["replicas"], &found["expected_replicas"]), (&json!(2), &json!(3)));
        status.is_up = true;
        let copied = CopiedIdentity {
            other: "gpu-2".to_owned(),
            is_renewed: true,
            at: UNIX_EPOCH + Duration::from_secs(8),
        };
        let found = to_json(&status, 3, Some(&copied));
        let expected = json!({ "other": "gpu-2", "is_renewed": true, "at_unix_ms": 8000 });
        assert_eq!((&found["state"], &found["identity_copied"]), (&json!("up"), &expected));
    }
}
