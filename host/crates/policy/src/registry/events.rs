//! What happened to the versions of a policy, when, and on whose behalf.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Maximum events that are kept of a policy.
const MAX_EVENTS: usize = 100;
/// Maximum length of a reason in bytes.
const MAX_REASON: usize = 400;

/// On whose behalf an event happened if a file was changed.
pub(crate) const BY_FILE: &str = "file";
/// On whose behalf an event happened if the host caused it.
pub(crate) const BY_HOST: &str = "host";

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyEventKind {
    /// A new version is active.
    Activated,
    /// A new version is the candidate.
    Staged,
    /// A new version was not loaded.
    Refused,
    /// A version was rolled back.
    RolledBack,
    /// An operator promoted a version.
    Promoted,
    /// An operator disabled the policy.
    Disabled,
    /// An operator enabled the policy.
    Enabled,
}

/// Something that happened to the versions of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEvent {
    /// The time, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What happened.
    pub event: PolicyEventKind,
    /// The version that it happened to; empty if it is not known.
    pub version: String,
    /// The name of the operator, `file` for a changed file or configuration, or `host`.
    pub by: String,
    /// The code of the error or of the reason, if the version was refused or rolled back.
    pub code: Option<String>,
    /// The error or the reason.
    pub reason: Option<String>,
}

impl PolicyEvent {
    /// Returns an event without a reason.
    pub(crate) fn new(event: PolicyEventKind, at_ms: u64, version: &str, by: &str) -> Self {
        let (version, by) = (version.to_owned(), by.to_owned());
        Self { at_ms, event, version, by, code: None, reason: None }
    }

    /// Adds why the version was refused or rolled back.
    pub(crate) fn because(self, code: &str, reason: &str) -> Self {
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
        Self { code: Some(code.to_owned()), reason: Some(reason.to_owned()), ..self }
    }

    /// Returns whether another event tells the same, apart from the time.
    fn is_like(&self, other: &Self) -> bool {
        *self == Self { at_ms: self.at_ms, ..other.clone() }
    }
}

/// The latest events of a policy, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Events(VecDeque<PolicyEvent>);

impl Events {
    /// Adds an event, unless it repeats the last one: a version that was refused is refused again
    /// at each reload. Returns whether it was added.
    pub(crate) fn add(&mut self, event: PolicyEvent) -> bool {
        if self.0.back().is_some_and(|last| last.is_like(&event)) {
            return false;
        }
        self.0.push_back(event);
        // Files that were written by hand may have more.
        let excess = self.0.len().saturating_sub(MAX_EVENTS);
        self.0.drain(..excess);
        true
    }

    /// Returns the events, oldest first.
    pub(crate) fn to_vec(&self) -> Vec<PolicyEvent> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_bounded_and_not_repeated() {
        let refused = |at_ms| {
            let event = PolicyEvent::new(PolicyEventKind::Refused, at_ms, "1+a", BY_FILE);
            event.because("case_failed", &"\u{e4}".repeat(MAX_REASON))
        };
        let mut events = Events::default();
        assert!(events.add(refused(1)) && !events.add(refused(2)));
        for at_ms in 0..150 {
            let version = format!("{at_ms}");
            events.add(PolicyEvent::new(PolicyEventKind::Activated, at_ms, &version, BY_FILE));
        }
        let kept = events.to_vec();
        assert_eq!((kept.len(), kept[0].at_ms), (MAX_EVENTS, 50));
        assert!(refused(1).reason.is_some_and(|reason| reason.len() <= MAX_REASON));
    }
}
