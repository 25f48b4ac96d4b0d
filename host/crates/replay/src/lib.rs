//! Replay of decision records: whether the same policies still make the same decisions, and what
//! other policies would have decided about the recorded requests.
//!
//! ```text
//!   Record ──> ReplayContext: fleet, facts, the request as far as it was recorded
//!                    │
//!                    ▼         recorded host calls
//!   ReplayChain ──> DryRunChain::replay ──> advice ──> Merge ──> Plan ──> compared with record
//!   (the policies)   │
//!                    └─ host calls that the record cannot answer: the result is unknown
//! ```
//!
//! Records are replayed one at a time, and the size of the resulting [`ReplayReport`] is bounded.

mod chain;
mod context;
mod decision;
mod divergence;
mod missing;
mod replay;
mod report;
mod text;
mod trace;

pub use self::chain::{ChainSource, ReplayError};
pub use self::divergence::{Divergence, compare_results};
pub use self::replay::Replay;
pub use self::report::{
    Agreement, CallDivergence, DecisionDivergence, DivergenceKind, MissingInputCount,
    PolicyStatistics, ReplayEffect, ReplayReport,
};
