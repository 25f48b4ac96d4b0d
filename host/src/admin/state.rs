//! The state of policies, as the admin API shows it.

use std::time::{Duration, UNIX_EPOCH};

use pointsman_gateway::{AdminError, ErrorCode, StateAdmin};
use pointsman_policy::{StateBackingError, StateEntry, StateSummary, StateValue};
use serde_json::{Value, json};

use super::AdminBackend;

impl StateAdmin for AdminBackend {
    fn states(&self) -> Result<Value, AdminError> {
        let summary = |summary: StateSummary| {
            let StateSummary { policy, is_loaded, is_durable, entries, bytes } = summary;
            json!({
                "policy": policy, "loaded": is_loaded, "durable": is_durable, "entries": entries,
                "bytes": bytes,
            })
        };
        Ok(self.policies.states().map_err(unavailable)?.into_iter().map(summary).collect())
    }

    fn state(&self, policy: &str, key: Option<&str>) -> Result<Value, AdminError> {
        let entries = self.policies.state_entries(policy).map_err(unavailable)?;
        let entries = entries.ok_or_else(|| no_state(policy))?;
        let Some(key) = key else {
            let entries: Vec<Value> = entries.iter().map(outline).collect();
            return Ok(json!({ "policy": policy, "entries": entries }));
        };
        let entry = entries.iter().find(|entry| entry.key == key).ok_or_else(|| {
            let message = format!("the state of policy `{policy}` has no key `{key}`");
            AdminError::new(ErrorCode::StateKeyNotFound, message)
        })?;
        let mut shown = outline(entry);
        shown["policy"] = policy.into();
        if let StateValue::Bytes(bytes) = &entry.value {
            match std::str::from_utf8(bytes) {
                Ok(text) => shown["text"] = text.into(),
                Err(_) => {
                    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    shown["hex"] = hex.into();
                }
            }
        }
        Ok(shown)
    }

    fn clear_state(&self, policy: &str, key: Option<&str>) -> Result<usize, AdminError> {
        let cleared = self.policies.clear_state(policy, key).map_err(unavailable)?;
        let cleared = cleared.ok_or_else(|| no_state(policy))?;
        // At once: what an operator has removed must not come back by a kill.
        self.policies.save_state().map_err(|error| {
            let message = format!("cleared until a restart, but not in the store: {error}");
            AdminError::new(ErrorCode::StoreUnavailable, message)
        })?;
        Ok(cleared)
    }
}

/// Describes an entry without the bytes of its value.
fn outline(entry: &StateEntry) -> Value {
    let expires = entry.expires_ms.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_millis(at)));
    let expires = expires.map(|at| humantime::format_rfc3339_seconds(at).to_string());
    let (kind, counter) = match &entry.value {
        StateValue::Bytes(_) => ("bytes", None),
        StateValue::Counter(count) => ("counter", Some(count)),
    };
    let mut shown =
        json!({ "key": entry.key, "kind": kind, "bytes": entry.size(), "expires": expires });
    if let Some(count) = counter {
        shown["counter"] = (*count).into();
    }
    shown
}

fn no_state(policy: &str) -> AdminError {
    AdminError::new(ErrorCode::PolicyNotFound, format!("no policy `{policy}` has a state"))
}

fn unavailable(error: StateBackingError) -> AdminError {
    AdminError::new(ErrorCode::StoreUnavailable, error.to_string())
}
