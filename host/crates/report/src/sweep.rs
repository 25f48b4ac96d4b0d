//! Runs with different values of one key.

use serde::Serialize;

use crate::compare::Estimate;
use crate::metric::{Metric, Scope, Statistic};
use crate::summary::Summary;

/// The runs of a scenario with several values of one key.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sweep {
    /// Path of the key.
    pub parameter: String,
    /// The runs of each value, for each line of the plots.
    pub points: Vec<Point>,
}

/// The runs with one value.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Point {
    /// The line of the plots that the point belongs to: the name of a variant.
    pub line: String,
    /// The value as it was written.
    pub value: String,
    /// The value as a number, which is its position on the axis; `None` if it is not a number.
    pub number: Option<f64>,
    /// The statistics of the runs, one for each seed.
    pub runs: Vec<Summary>,
}

impl Point {
    /// Estimates a metric over all seeds. Returns `None` if no run has a value for it.
    pub fn estimate(&self, scope: &Scope, metric: Metric) -> Option<Estimate> {
        let values: Vec<f64> =
            self.runs.iter().filter_map(|run| metric.value(scope, run)).collect();
        Estimate::from_values(&values)
    }
}

impl Sweep {
    /// Returns the metrics that are shown.
    pub fn metrics(&self) -> Vec<(Scope, Metric)> {
        let run = self.points.iter().find_map(|point| point.runs.first());
        let classes = run.into_iter().flat_map(|run| &run.classes);
        let of_classes = classes.flat_map(|class| {
            [Metric::Wait(Statistic::Mean), Metric::Wait(Statistic::P99)]
                .map(|metric| (Scope::Class(class.name.clone()), metric))
        });
        let of_all = [Metric::ServedShare, Metric::SwitchesPerHour, Metric::Fairness];
        of_classes.chain(of_all.map(|metric| (Scope::All, metric))).collect()
    }

    /// Returns the distinct values, in order.
    pub fn values(&self) -> Vec<&str> {
        once(self.points.iter().map(|point| point.value.as_str()))
    }

    /// Returns the distinct lines, in order.
    pub fn lines(&self) -> Vec<&str> {
        once(self.points.iter().map(|point| point.line.as_str()))
    }

    /// Returns the runs of a line with a value.
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
