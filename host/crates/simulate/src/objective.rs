//! What a scenario has to achieve, as sentences such as `interactive.wait.p99 < 20s`.
//!
//! ```text
//!   objective = [ scope "." ] metric op value
//!   scope     = class | "tenant." name | "lane." name                     nothing: everybody
//!   metric    = ( "wait" | "first-byte" | "total" ) "." ( "mean" | "p50" | "p90" | "p95" | "p99" | "max" )
//!             | ( "answered" | "fell-back" | "served" | "rejected" | "errors" | "client-gone" ) [ ".share" ]
//!             | "requests" | "lost" | "loads" | "switches" | "switches-per-hour" | "tenant.fairness"
//!             | "busy" | "occupied" | "queue.max" | "queue.mean"
//!   op        = "<" | "<=" | ">" | ">=" | "==" | "!="
//!   value     = 20s, 1.5s, 250ms, 2m, 1h | 12 | 0.9 | 5%
//! ```
//!
//! `answered` are those that the first lane answered, `fell-back` those of a later one, and `served` both. A value with `%`
//! makes a share of a count. In words `_` and `-` are the same.

mod parse;

use std::fmt;

use serde::Serialize;

use crate::metric::{Metric, Scope};
use crate::report::Summary;

/// One thing to achieve.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// As it was written.
    text: String,
    scope: Scope,
    metric: Metric,
    op: Op,
    /// In the unit of the metric.
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

/// What one run makes of an objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// It is met. What cannot be measured is not.
    pub met: bool,
    /// The figure, if there is anything that it could be of.
    pub value: Option<f64>,
}

/// What several runs make of an objective.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Judged {
    /// The objective, as it was written.
    pub objective: String,
    /// It is met in every run, and there is at least one.
    pub met: bool,
    /// Runs that meet it.
    pub runs_met: usize,
    /// All runs.
    pub runs: usize,
    /// Mean of the figure: seconds, or a part from 0 to 1, or how many.
    pub mean: Option<f64>,
    /// The figure of the run that is furthest from meeting it, or nearest to not doing so.
    pub worst: Option<f64>,
    /// Figures that are shown are of this kind.
    #[serde(skip)]
    pub metric: Metric,
}

impl Objective {
    /// The objective that a sentence says.
    ///
    /// # Errors
    /// With what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse::objective(text)
            .map_err(|problem| format!("`{}`: {problem}", text.trim().escape_debug()))
    }

    /// Whether there is what it is about: a class or a lane of this scenario. Tenants are known when they come only.
    ///
    /// # Errors
    /// With the names that there are.
    pub fn check<'a>(
        &self,
        classes: impl IntoIterator<Item = &'a str>,
        lanes: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), String> {
        let (kind, name, known): (_, _, Vec<&str>) = match &self.scope {
            Scope::Class(name) => ("class", name, classes.into_iter().collect()),
            Scope::Lane(name) => ("lane", name, lanes.into_iter().collect()),
            Scope::All | Scope::Tenant(_) => return Ok(()),
        };
        if known.contains(&name.as_str()) {
            return Ok(());
        }
        let hint = parse::hint(name, &known);
        Err(format!("`{}`: there is no {kind} `{}`; {hint}", self.text, name.escape_debug()))
    }

    /// Whether one run meets it.
    pub fn judge(&self, run: &Summary) -> Verdict {
        let value = self.metric.of(&self.scope, run);
        Verdict { met: value.is_some_and(|value| self.holds(value)), value }
    }

    /// Whether all these runs meet it.
    pub fn over<'a>(&self, runs: impl IntoIterator<Item = &'a Summary>) -> Judged {
        let verdicts: Vec<Verdict> = runs.into_iter().map(|run| self.judge(run)).collect();
        let values: Vec<f64> = verdicts.iter().filter_map(|verdict| verdict.value).collect();
        let runs_met = verdicts.iter().filter(|verdict| verdict.met).count();
        Judged {
            objective: self.text.clone(),
            met: runs_met == verdicts.len() && runs_met > 0,
            runs_met,
            runs: verdicts.len(),
            mean: (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64),
            worst: values.into_iter().min_by(|a, b| self.margin(*a).total_cmp(&self.margin(*b))),
            metric: self.metric,
        }
    }

    /// What it is about.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Whose figure it is about.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    #[expect(clippy::float_cmp, reason = "who writes `== 0` means it, and counts are exact")]
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

    /// How far a figure is from breaking it: the smaller, the worse.
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
