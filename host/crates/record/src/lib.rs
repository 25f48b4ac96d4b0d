//! Decision records: what policies read, what each advised, the merge, the plan, and what became of the request, as JSON
//! lines. What replay reads.
//!
//! ```text
//!   gateway ── Recorder::record ──> queue ──> one thread: redact, write ──> decisions.jsonl ──> decisions.1.jsonl …
//!                   │ full: dropped, counted             │ disk full: dropped, counted
//! ```
//!
//! **Promise.** Whoever records never waits: what does not fit into the queue, which is bounded in records and in bytes, is
//! dropped and counted. Nothing reaches a file that the rules of [`Redact`] keep back.
//!
//! # The format
//!
//! One JSON object a line, with `v` (this is version 1) and `kind`. Within a version, keys and kinds are only added; readers
//! skip kinds that they do not know. Times end with `-us` (microseconds) or `-ms`; lanes are indices into the `lanes` of the
//! topology whose `generation` the decision names.
//!
//! | kind | is written | has |
//! |---|---|---|
//! | `topology` | at the start of each file, and before the first decision on another table of lanes | [`TopologyRecord`] |
//! | `policies` | before the first decision in a file by this chain of policies | [`ChainInfo`](pointsman_domain::ChainInfo) |
//! | `decision` | when a request has ended | [`DecisionRecord`] |
//!
//! `host/docs/records.md` is the page for those who operate a host, with a sample.

mod file;
mod format;
mod metrics;
mod read;
mod recorder;
mod redact;
mod sample;
mod weight;

pub use self::file::files;
pub use self::format::{
    DecisionRecord, End, Ended, Record, RequestRecord, TopologyRecord, TryRecord, VERSION,
};
pub use self::metrics::RecordMetrics;
pub use self::read::{ReadError, ReadProblem, records};
pub use self::recorder::{Body, Entry, Mode, QueueLimits, Recorder, Settings, StartError, Writer};
pub use self::redact::{Key, Redact, Rule, is_redacted};
pub use self::sample::{Interest, Sample};

#[cfg(test)]
mod tests;
