//! The spans of a switch, which are a trace of their own: several requests may wait for it, and it
//! may begin without one.
//!
//! ```text
//!   switch                from the decision until the lane serves
//!   ├── switch.drain      until the evicted lanes have no requests
//!   ├── switch.unload     until they are unloaded
//!   └── switch.load       until the lane serves
//! ```

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, UNIX_EPOCH};

use pointsman_fleet::FinishedSwitch;
use pointsman_otlp::{EncodedSpans, SpanKind, Spans};

/// Maximum length of the list of evicted lanes, in bytes.
const MAX_EVICTED: usize = 1024;

/// Makes the ids of switches of their numbers, so that a request only has to know the number.
#[derive(Clone, Default)]
pub(super) struct SwitchIds(RandomState);

impl SwitchIds {
    /// Returns the trace and the span of a switch.
    pub(super) fn span(&self, number: u64) -> (u128, u64) {
        let id = |part: u8| self.0.hash_one((number, part)).max(1);
        (u128::from(id(0)) << 64 | u128::from(id(1)), id(2))
    }

    /// Returns the spans of a switch.
    pub(super) fn spans_of(&self, switch: &FinishedSwitch) -> EncodedSpans {
        let (trace_id, span_id) = self.span(switch.number);
        let served = switch.ended.duration_since(UNIX_EPOCH).unwrap_or_default();
        let unloaded = served.saturating_sub(switch.load);
        let drained = unloaded.saturating_sub(switch.stop);
        let begun = drained.saturating_sub(switch.drain);
        let times = (nanos(begun), nanos(served));
        let mut spans = Spans::default();
        let ids = (trace_id, span_id, None);
        let root = spans.begin(ids, &["switch"], SpanKind::Internal, times);
        root.set("pointsman.lane", &*switch.lane);
        root.set("pointsman.cause", switch.cause.label());
        root.set("pointsman.overdue", switch.is_overdue);
        let evicted = switch.evicted.join(", ");
        if !evicted.is_empty() {
            root.set("pointsman.evicted", &evicted[..evicted.floor_char_boundary(MAX_EVICTED)]);
        }
        for (part, name, begun, ended) in [
            (3, "switch.drain", begun, drained),
            (4, "switch.unload", drained, unloaded),
            (5, "switch.load", unloaded, served),
        ] {
            // Nothing is unloaded if memory was free.
            if part < 5 && switch.evicted.is_empty() {
                continue;
            }
            let id = self.0.hash_one((switch.number, part)).max(1);
            let times = (nanos(begun), nanos(ended));
            let ids = (trace_id, id, Some(span_id));
            let span = spans.begin(ids, &[name], SpanKind::Internal, times);
            span.set("pointsman.lane", &*switch.lane);
        }
        spans.finish()
    }
}

/// Returns nanoseconds, until the year 2554.
fn nanos(since_epoch: Duration) -> u64 {
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}
