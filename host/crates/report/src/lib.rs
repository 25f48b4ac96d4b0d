//! Statistics of runs, objectives on them, and reports that show and compare them.
//!
//! ```text
//!   events ──> Collector ──> Run: Summary, histograms, time series, timelines
//!                             │
//!   Objective, Metric ────────┼──> Report ──> text, JSON, HTML, SVG
//!                             └──> Comparison
//! ```
//!
//! This crate does not know how runs are simulated. The same events give the same report, byte for
//! byte, on every machine.

mod collector;
mod compare;
mod counters;
mod events;
mod fairness;
mod histogram;
mod html;
mod metric;
pub mod numbers;
mod objective;
mod phase;
mod plots;
mod report;
mod run;
mod series;
mod summary;
mod svg;
mod sweep;
pub mod table;
mod text;

pub use self::collector::Collector;
pub use self::compare::{Cell, Change, Comparison, Difference, Estimate, Line};
pub use self::events::{EndedRequest, OUTCOMES};
pub use self::fairness::jain;
pub use self::histogram::Histogram;
pub use self::metric::{Direction, Metric, Scope, ScopeError, Statistic, Unit};
pub use self::objective::{
    Objective, ObjectiveError, ObjectiveErrorKind, ObjectiveResult, Verdict,
};
pub use self::phase::{PHASES, Phase, Timeline};
pub use self::plots::{Plot, Section};
pub use self::report::{Report, VariantReport};
pub use self::run::{LatencyHistograms, Run};
pub use self::series::{ClassInterval, Interval, LaneInterval, TimeSeries};
pub use self::summary::{
    DurationSummary, EventCount, LaneStatistics, Named, PolicyCalls, RequestStatistics, Summary,
    TenantStatistics,
};
pub use self::sweep::{Point, Sweep};

#[cfg(test)]
mod testing;
