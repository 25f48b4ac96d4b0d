//! Errors in objectives.

use crate::metric::{Metric, ScopeError};

/// An objective that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}`: {kind}", objective.escape_debug())]
pub struct ObjectiveError {
    /// The objective as it was written.
    pub objective: String,
    /// What is wrong with it.
    pub kind: ObjectiveErrorKind,
}

/// The reason why an objective cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectiveErrorKind {
    /// The text contains no comparison operator.
    #[error("expected a comparison, for example `wait.p99 < 20s`")]
    MissingOperator,
    /// The operator does not exist.
    #[error("invalid operator; expected one of `<`, `<=`, `>`, `>=`, `==`, `!=`")]
    InvalidOperator,
    /// The left-hand side is empty.
    #[error("missing metric before the operator; expected for example `wait.p99 < 20s`")]
    MissingMetric,
    /// The name of a tenant or lane is empty.
    #[error("missing name after `{scope}.`")]
    MissingName {
        /// `tenant` or `lane`.
        scope: &'static str,
    },
    /// The metric has several statistics, none of which is named.
    #[error("missing statistic of `{metric}`; expected one of `{}`", expected.join("`, `"))]
    MissingStatistic {
        /// Name of the metric.
        metric: String,
        /// Names with a statistic.
        expected: Vec<String>,
    },
    /// The metric does not exist.
    #[error("unknown metric `{}`; {hint}", name.escape_debug())]
    UnknownMetric {
        /// Name of the metric.
        name: String,
        /// The closest name, or all names.
        hint: String,
    },
    /// The metric does not exist for this scope.
    #[error("`{metric}` is {error}")]
    Scope {
        /// The metric.
        metric: Metric,
        /// The scopes for which it exists.
        #[source]
        error: ScopeError,
    },
    /// A metric that cannot be taken as a share is compared with a percentage.
    #[error("`{metric}` cannot be compared with the percentage `{}`", value.escape_debug())]
    NotAShare {
        /// The metric.
        metric: Metric,
        /// The right-hand side.
        value: String,
    },
    /// The right-hand side is invalid in the unit of the metric.
    #[error("invalid {expected} `{}`: expected for example {example}", value.escape_debug())]
    InvalidValue {
        /// The right-hand side.
        value: String,
        /// Kind of value that the metric is compared with.
        expected: &'static str,
        /// Valid values.
        example: &'static str,
    },
    /// The scenario has no class or lane of this name.
    #[error("unknown {scope} `{}`; {hint}", name.escape_debug())]
    UnknownName {
        /// `class` or `lane`.
        scope: &'static str,
        /// The name.
        name: String,
        /// The closest name, or all names.
        hint: String,
    },
}

impl ObjectiveError {
    pub(super) fn new(objective: &str, kind: ObjectiveErrorKind) -> Self {
        Self { objective: objective.to_owned(), kind }
    }
}
