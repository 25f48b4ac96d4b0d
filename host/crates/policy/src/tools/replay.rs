//! Replay of a recorded policy call, with the recorded results of its host calls.
//!
//! The result of a policy call only depends on its inputs. A record has all of them, so the same
//! version returns the same result again, and another version shows what it would have returned,
//! together with the host calls that the record cannot answer. The rules are those of [`Replayed`].

use std::sync::Arc;

use pointsman_domain::{PolicyRef, Read, RequestView};

use crate::contract::captured_log::LogLine;
use crate::contract::replay_log::{Differing, Missing};
use crate::version::call_error::CallError;

/// The result of replaying a policy call.
///
/// * A host call about the request or the fleet gets the recorded result of the same call, wherever
///   it is in the record.
/// * State changes between calls, so host calls about the state get the recorded results in order.
///   Only reads may be skipped: a guest that writes something else, or does not write, gets no
///   further recorded results. A counter that is incremented differently continues from its
///   recorded value.
/// * A record has the statistics of the lanes beside the host calls, so these calls are answered
///   from the fleet that the caller passes.
/// * A host call that the record cannot answer is [missing](Missing). It is answered from the
///   request and the fleet that the caller passes, and from an empty state. The same applies to
///   results that were [redacted](crate::marks).
#[derive(Debug, Clone)]
pub struct Replayed<A> {
    /// The version that was called.
    pub policy: PolicyRef,
    /// The result, without parts that the policy is not allowed to advise.
    pub answer: Result<A, CallError>,
    /// Parts of the result that were dropped, with the reasons.
    pub dropped: Vec<String>,
    /// Log lines of the call.
    pub log: Vec<LogLine>,
    /// The host calls, with the results that the guest got.
    pub reads: Vec<Read>,
    /// Host calls that the record could not answer. Without any, the result is the one that this
    /// version would have returned when the record was made.
    pub missing: Vec<Missing>,
    /// Host calls whose recorded result differs from the request or the fleet that the caller
    /// passed.
    pub differing: Vec<Differing>,
    /// The request with the edits of the advice, as the next policy of the chain sees it.
    pub request: Arc<dyn RequestView>,
}

/// Returns whether the note of a recorded call stands for a transient failure, which a replay
/// cannot reproduce: a timeout, preemption, an open breaker, or a failed instantiation.
pub fn is_transient(note: &str) -> bool {
    // Records of earlier versions have no kind in front of the message.
    const LEGACY: [&str; 3] =
        ["it did not finish within ", "it is out of service ", "no instance of it can be made: "];
    let kind = note.split_once(": ").map_or("", |(kind, _)| kind);
    matches!(kind, "timeout" | "wall-limit" | "breaker-open" | "instantiate")
        || LEGACY.iter().any(|prefix| note.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::types::PolicyError;
    use crate::fault::Fault;

    #[test]
    fn transient_failures_are_recognised_by_kind() {
        let transient = [
            CallError::BreakerOpen,
            CallError::TenantBreakerOpen,
            Fault::Timeout(Duration::from_millis(5)).into(),
            Fault::WallLimit(Duration::from_millis(5)).into(),
            Fault::Instantiate(Arc::new(wasmtime::Error::msg("out of memory"))).into(),
        ];
        assert!(transient.iter().all(|error| is_transient(&error.to_note())), "{transient:?}");
        // The format of records before the kind was added.
        assert!(is_transient("it did not finish within 5 ms"));
        let permanent = [
            CallError::from(Fault::Trap(Arc::new(wasmtime::Error::msg("timeout: not a kind")))),
            PolicyError::Other("timeout: not a kind".to_owned()).into(),
            Fault::Memory(1).into(),
            Fault::Output(1).into(),
        ];
        assert!(!permanent.iter().any(|error| is_transient(&error.to_note())), "{permanent:?}");
    }
}
