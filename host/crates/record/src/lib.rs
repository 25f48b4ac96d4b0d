//! Decision records: what policies read and advised, the merged advice, the plan and the outcome of
//! a request, as JSON lines. Replay reads these records.
//!
//! ```text
//!   gateway ── Recorder::record ──> queue ──> one thread: redact, write ──> decisions.jsonl
//!                   │ full: dropped, counted             │ disk full: dropped, counted
//! ```
//!
//! **Guarantee.** Recording never blocks a request: a record that does not fit into the queue,
//! which is bounded in records and in bytes, is dropped and counted. Nothing that the rules of
//! [`Redact`] withhold reaches a file.
//!
//! # The format
//!
//! One JSON object per line, with `v` (the version, currently 2) and `kind`. Within a version, keys
//! and kinds are only added; readers skip unknown kinds. Version 1, which differs only in the names
//! of keys, is still read. Durations end with `-us` (microseconds) or `-ms`; lanes are indices into
//! the `lanes` of the topology whose `generation` the decision names.
//!
//! * `topology` ([`TopologyRecord`]): at the start of each file, and before the first decision on
//!   another table of lanes.
//! * `policies` ([`ChainInfo`](pointsman_domain::ChainInfo)): before the first decision of a
//!   chain of policies in a file.
//! * `decision` ([`DecisionRecord`]): when a request has ended.
//!
//! `host/docs/records.md` describes the format for operators, with an example.

mod error;
mod explanation;
mod file;
mod find;
mod format;
mod metrics;
mod read;
mod recorder;
mod redact;
mod sample;
mod weight;

pub use self::error::StartError;
pub use self::explanation::{
    Assumptions, CallReplay, DecisionReplay, ExplainedAttempt, ExplainedCall, ExplainedDecision,
    ExplainedError, ExplainedLane, ExplainedOutcome, Explanation, Source,
};
pub use self::file::files;
pub use self::find::{MissingTopology, RecordedDecision, find};
pub use self::format::{
    AttemptRecord, DecisionRecord, End, Ended, Record, RequestRecord, TopologyRecord, VERSION,
};
pub use self::metrics::RecordMetrics;
pub use self::read::{ReadError, ReadProblem, records};
pub use self::recorder::{Body, Entry, Mode, QueueLimits, Recorder, Settings, Writer};
pub use self::redact::{Key, PERSONAL_HEADERS, Redact, Rule, is_redacted};
pub use self::sample::{Interest, Sample};

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
