//! What becomes of the figures when one setting changes.

use serde::Serialize;

use super::summary::Summary;
use crate::compare::Estimate;
use crate::metric::{Metric, Scope, Statistic};

/// Runs with several values of one setting.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sweep {
    /// The setting.
    pub parameter: String,
    /// What is shown; the most telling figures, if nothing.
    #[serde(skip)]
    pub shown: Vec<(Scope, Metric)>,
    /// For each value, and each line of the plots.
    pub points: Vec<Point>,
}

/// The runs with one value.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Point {
    /// Whom it belongs to: the name of a variant.
    pub line: String,
    /// The value as it was written.
    pub value: String,
    /// The value as a number, if it is one: where it is on the axis.
    pub number: Option<f64>,
    /// One run for each seed.
    pub runs: Vec<Summary>,
}

impl Point {
    /// A figure over all seeds.
    pub fn estimate(&self, scope: &Scope, metric: Metric) -> Option<Estimate> {
        let values: Vec<f64> = self.runs.iter().filter_map(|run| metric.of(scope, run)).collect();
        Estimate::of(&values)
    }
}

impl Sweep {
    /// What is shown.
    pub fn figures(&self) -> Vec<(Scope, Metric)> {
        if !self.shown.is_empty() {
            return self.shown.clone();
        }
        let run = self.points.iter().find_map(|point| point.runs.first());
        let classes = run.into_iter().flat_map(|run| &run.classes);
        let of_classes = classes.flat_map(|class| {
            [Metric::Wait(Statistic::Mean), Metric::Wait(Statistic::P99)]
                .map(|metric| (Scope::Class(class.name.clone()), metric))
        });
        let of_all = [Metric::ServedShare, Metric::SwitchesPerHour, Metric::Fairness];
        of_classes.chain(of_all.map(|metric| (Scope::All, metric))).collect()
    }

    /// The values, in order, each once.
    pub fn values(&self) -> Vec<&str> {
        once(self.points.iter().map(|point| point.value.as_str()))
    }

    /// The lines, in order, each once.
    pub fn lines(&self) -> Vec<&str> {
        once(self.points.iter().map(|point| point.line.as_str()))
    }

    /// What came of a value.
    pub fn point(&self, line: &str, value: &str) -> Option<&Point> {
        self.points.iter().find(|point| point.line == line && point.value == value)
    }
}

fn once<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut once = Vec::new();
    for one in all {
        if !once.contains(&one) {
            once.push(one);
        }
    }
    once
}
