//! Objectives of a scenario, such as `interactive.wait.p99 < 20s`.
//!
//! ```text
//!   objective = [ scope "." ] metric op value
//!   scope     = class | "tenant." name | "lane." name               without: all requests
//!   metric    = ( "wait" | "first-byte" | "total" ) "." statistic
//!             | outcome [ ".share" ]
//!             | "requests" | "lost" | "loads" | "switches" | "switches-per-hour"
//!             | "tenant.fairness" | "busy" | "occupied" | "queue.max" | "queue.mean"
//!   statistic = "mean" | "p50" | "p90" | "p95" | "p99" | "max"
//!   outcome   = "answered" | "fell-back" | "served" | "rejected" | "errors" | "client-gone"
//!   op        = "<" | "<=" | ">" | ">=" | "==" | "!="
//!   value     = 20s, 1.5s, 250ms, 2m, 1h | 12 | 0.9 | 5%
//! ```
//!
//! `answered` counts the requests that the first lane served, `fell-back` those that a fallback
//! served, and `served` both. With a value in `%`, a count is taken as a share of all requests. `_`
//! and `-` are equivalent in the names of metrics.

mod error;
mod parse;

use std::fmt;

use serde::Serialize;

pub use self::error::{ObjectiveError, ObjectiveErrorKind};
use crate::metric::{Metric, Scope};
use crate::summary::Summary;

/// A condition on a metric that a scenario has to meet.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// The objective as it was written.
    text: String,
    scope: Scope,
    metric: Metric,
    op: Op,
    /// Right-hand side in the unit of the metric.
    value: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
    Unequal,
}

/// The result of an objective in one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// True if the objective is met. A metric without a value does not meet it.
    pub met: bool,
    /// Value of the metric, if there is one.
    pub value: Option<f64>,
}

/// The result of an objective over several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ObjectiveResult {
    /// The objective as it was written.
    pub objective: String,
    /// True if there is at least one run and every run meets the objective.
    pub met: bool,
    /// Number of runs that meet the objective.
    pub runs_met: usize,
    /// Number of runs.
    pub runs: usize,
    /// Mean of the metric: seconds, a share from 0 to 1, or a count.
    pub mean: Option<f64>,
    /// Value of the run with the smallest margin.
    pub worst: Option<f64>,
    /// The metric, whose unit the values have.
    #[serde(skip)]
    pub metric: Metric,
}

impl Objective {
    /// Parses an objective.
    ///
    /// # Errors
    /// Returns an error if the text is not a comparison of a known metric with a value of its unit.
    pub fn parse(text: &str) -> Result<Self, ObjectiveError> {
        parse::objective(text).map_err(|kind| ObjectiveError::new(text.trim(), kind))
    }

    /// Checks that the scenario has the class or lane of the objective. Tenants are not known
    /// before they send requests, so they are not checked.
    ///
    /// # Errors
    /// Returns an error with the closest name, or the known names.
    pub fn check<'a>(
        &self,
        classes: impl IntoIterator<Item = &'a str>,
        lanes: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), ObjectiveError> {
        let (scope, name, known): (_, _, Vec<&str>) = match &self.scope {
            Scope::Class(name) => ("class", name, classes.into_iter().collect()),
            Scope::Lane(name) => ("lane", name, lanes.into_iter().collect()),
            Scope::All | Scope::Tenant(_) => return Ok(()),
        };
        if known.contains(&name.as_str()) {
            return Ok(());
        }
        let kind = ObjectiveErrorKind::UnknownName {
            scope,
            name: name.clone(),
            hint: parse::suggestion(name, &known),
        };
        Err(ObjectiveError::new(&self.text, kind))
    }

    /// Evaluates the objective in one run.
    pub fn judge(&self, run: &Summary) -> Verdict {
        let value = self.metric.value(&self.scope, run);
        Verdict { met: value.is_some_and(|value| self.holds(value)), value }
    }

    /// Evaluates the objective over several runs.
    pub fn over<'a>(&self, runs: impl IntoIterator<Item = &'a Summary>) -> ObjectiveResult {
        let verdicts: Vec<Verdict> = runs.into_iter().map(|run| self.judge(run)).collect();
        let values: Vec<f64> = verdicts.iter().filter_map(|verdict| verdict.value).collect();
        let runs_met = verdicts.iter().filter(|verdict| verdict.met).count();
        ObjectiveResult {
            objective: self.text.clone(),
            met: runs_met == verdicts.len() && runs_met > 0,
            runs_met,
            runs: verdicts.len(),
            mean: (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64),
            worst: values.into_iter().min_by(|a, b| self.margin(*a).total_cmp(&self.margin(*b))),
            metric: self.metric,
        }
    }

    /// Returns the metric of the objective.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Returns the scope of the objective.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    #[expect(clippy::float_cmp, reason = "`== 0` is meant literally, and counts are exact")]
    fn holds(&self, value: f64) -> bool {
        match self.op {
            Op::Less => value < self.value,
            Op::AtMost => value <= self.value,
            Op::More => value > self.value,
            Op::AtLeast => value >= self.value,
            Op::Equal => value == self.value,
            Op::Unequal => value != self.value,
        }
    }

    /// Returns the distance of a value from violating the objective; negative if it is violated.
    fn margin(&self, value: f64) -> f64 {
        match self.op {
            Op::Less | Op::AtMost => self.value - value,
            Op::More | Op::AtLeast => value - self.value,
            Op::Equal => -(value - self.value).abs(),
            Op::Unequal => (value - self.value).abs(),
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
