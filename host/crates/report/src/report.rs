//! The report of a scenario.

use serde_json::{Value, json};

use crate::compare::{Comparison, Estimate};
use crate::metric::{Metric, Scope};
use crate::objective::{Objective, ObjectiveResult};
use crate::run::Run;
use crate::summary::Summary;
use crate::sweep::Sweep;

/// The result of a scenario. The same runs give the same report, byte for byte, on every machine.
#[derive(Debug, Clone)]
pub struct Report {
    /// Title of the scenario.
    pub title: String,
    /// Description of the scenario: the comment at the head of its file.
    pub scenario: String,
    /// The scenario itself, followed by the variants that are compared with it.
    pub variants: Vec<VariantReport>,
    /// The runs by value of the swept key, if a key is swept.
    pub sweep: Option<Sweep>,
}

/// The result of one variant of a scenario.
#[derive(Debug, Clone)]
pub struct VariantReport {
    /// Name of the variant.
    pub name: String,
    /// The runs, one for each seed.
    pub runs: Vec<Run>,
    /// The result of each objective.
    pub objectives: Vec<ObjectiveResult>,
}

impl VariantReport {
    /// Creates the report of a variant by evaluating `objectives` over its runs.
    pub fn new(name: impl Into<String>, runs: Vec<Run>, objectives: &[Objective]) -> Self {
        let summaries = || runs.iter().map(|run| &run.summary);
        let objectives = objectives.iter().map(|objective| objective.over(summaries())).collect();
        Self { name: name.into(), objectives, runs }
    }

    /// Estimates a metric over all seeds. Returns `None` if no run has a value for it.
    pub fn estimate(&self, scope: &Scope, metric: Metric) -> Option<Estimate> {
        let values: Vec<f64> =
            self.runs.iter().filter_map(|run| metric.value(scope, &run.summary)).collect();
        Estimate::from_values(&values)
    }

    /// Returns true if every objective is met.
    pub fn met(&self) -> bool {
        self.objectives.iter().all(|objective| objective.met)
    }

    pub(crate) fn names(&self, list: fn(&Summary) -> Vec<String>) -> Vec<String> {
        self.runs.first().map(|run| list(&run.summary)).unwrap_or_default()
    }
}

impl Report {
    /// Returns the report as JSON. Durations carry their unit in the key (`-s`, `-ms`).
    pub fn json(&self) -> Value {
        let variants = self.variants.iter().map(|variant| {
            let runs: Vec<&Summary> = variant.runs.iter().map(|run| &run.summary).collect();
            json!({ "name": variant.name, "objectives": variant.objectives, "runs": runs })
        });
        json!({
            "title": self.title,
            "scenario": self.scenario,
            "variants": variants.collect::<Vec<_>>(),
            "comparison": self.comparison(),
            "sweep": self.sweep,
        })
    }

    /// Compares the variants; `None` if there is only one.
    pub fn comparison(&self) -> Option<Comparison> {
        (self.variants.len() > 1).then(|| Comparison::new(&self.summaries()))
    }

    pub(crate) fn summaries(&self) -> Vec<(&str, Vec<&Summary>)> {
        self.variants
            .iter()
            .map(|variant| {
                (variant.name.as_str(), variant.runs.iter().map(|run| &run.summary).collect())
            })
            .collect()
    }

    /// Returns true if every variant meets every objective.
    pub fn met(&self) -> bool {
        self.variants.iter().all(VariantReport::met)
    }
}
