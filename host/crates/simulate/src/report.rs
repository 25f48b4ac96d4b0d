//! What comes out of simulations: figures, and pages that show them.

mod collector;
mod fairness;
mod html;
pub(crate) mod numbers;
mod phase;
mod plots;
mod series;
mod summary;
mod svg;
mod sweep;
mod tally;
pub(crate) mod text;

use serde_json::{Value, json};

pub use self::collector::{Collector, Distribution, Run};
pub use self::fairness::jain;
pub use self::phase::{PHASES, Phase, Timeline};
pub use self::plots::{Part, Plot};
pub use self::series::{ClassPiece, LanePiece, Piece, Series};
pub use self::summary::{
    Counted, Figures, HOWS, LaneFigures, Named, Summary, TenantFigures, Times,
};
pub use self::sweep::{Point, Sweep};
use crate::compare::{Comparison, Estimate};
use crate::metric::{Metric, Scope};
use crate::objective::{Judged, Objective};

/// All that came of a scenario. It says the same of the same runs, whenever and wherever it is made.
#[derive(Debug, Clone)]
pub struct Report {
    /// Name of the scenario.
    pub title: String,
    /// What the scenario is, for people.
    pub scenario: String,
    /// The scenario as it stands, and what it is compared with.
    pub variants: Vec<VariantReport>,
    /// What becomes of the figures when one setting changes.
    pub sweep: Option<Sweep>,
}

/// What came of one variant of a scenario.
#[derive(Debug, Clone)]
pub struct VariantReport {
    /// Its name.
    pub name: String,
    /// One run for each seed.
    pub runs: Vec<Run>,
    /// The objectives, and whether they are met.
    pub objectives: Vec<Judged>,
}

impl VariantReport {
    /// Of these runs, judged by these objectives.
    pub fn new(name: impl Into<String>, runs: Vec<Run>, objectives: &[Objective]) -> Self {
        let summaries = || runs.iter().map(|run| &run.summary);
        let objectives = objectives.iter().map(|objective| objective.over(summaries())).collect();
        Self { name: name.into(), objectives, runs }
    }

    /// A figure over all seeds.
    pub fn estimate(&self, scope: &Scope, metric: Metric) -> Option<Estimate> {
        let values: Vec<f64> =
            self.runs.iter().filter_map(|run| metric.of(scope, &run.summary)).collect();
        Estimate::of(&values)
    }

    /// Does it meet all objectives?
    pub fn met(&self) -> bool {
        self.objectives.iter().all(|objective| objective.met)
    }

    fn names(&self, of: fn(&Summary) -> Vec<String>) -> Vec<String> {
        self.runs.first().map(|run| of(&run.summary)).unwrap_or_default()
    }
}

impl Report {
    /// For a terminal.
    pub fn text(&self) -> String {
        text::of(self)
    }

    /// For people, as one page that needs nothing else: no scripts, no files beside it, light and dark, and for paper.
    pub fn html(&self) -> String {
        html::of(self)
    }

    /// The plots of that page, each of which can be had alone.
    pub fn plots(&self) -> Vec<Plot> {
        plots::of(self)
    }

    /// For programs.
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

    /// The variants side by side, if there are several.
    pub fn comparison(&self) -> Option<Comparison> {
        (self.variants.len() > 1).then(|| Comparison::of(&self.summaries()))
    }

    fn summaries(&self) -> Vec<(&str, Vec<&Summary>)> {
        self.variants
            .iter()
            .map(|variant| {
                (variant.name.as_str(), variant.runs.iter().map(|run| &run.summary).collect())
            })
            .collect()
    }

    /// Do all variants meet all objectives?
    pub fn met(&self) -> bool {
        self.variants.iter().all(VariantReport::met)
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use self::tests::test_run;
