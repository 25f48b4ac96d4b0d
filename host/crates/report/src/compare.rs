//! Comparison of variants: the mean of each metric over the seeds, and whether it differs
//! significantly from the first variant.
//!
//! Runs with the same seed see the same traffic, so differences are paired by seed, which removes
//! the variation between seeds. The confidence interval is that of Student's t for paired samples,
//! with a confidence level of 95 %.

use pointsman_domain::RequestResult;
use serde::{Serialize, Serializer};

use crate::metric::{Direction, Metric, Scope, Statistic, Unit};
use crate::summary::Summary;

/// A comparison of variants by their metrics.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Comparison {
    /// Names of the variants; the first one is the baseline.
    pub variants: Vec<String>,
    /// One line for each metric.
    pub lines: Vec<Line>,
}

/// One metric of all variants.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Line {
    /// Scope of the metric.
    #[serde(serialize_with = "as_text")]
    pub scope: Scope,
    /// The metric.
    #[serde(serialize_with = "as_text")]
    pub metric: Metric,
    /// One cell for each variant.
    pub cells: Vec<Cell>,
}

/// One metric of one variant.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cell {
    /// Mean over the seeds: seconds, a share from 0 to 1, or a count.
    pub mean: Option<f64>,
    /// Difference from the baseline; `None` for the baseline itself, and if either has no value.
    pub difference: Option<Difference>,
}

/// The difference between a variant and the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// Mean of the differences between runs with the same seed.
    pub mean: f64,
    /// 95 % confidence interval of the mean; `None` with a single seed.
    pub interval: Option<(f64, f64)>,
    /// Interpretation of the difference.
    pub verdict: Change,
}

/// The interpretation of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// The variant is better.
    Better,
    /// The variant is worse.
    Worse,
    /// The value is lower, which is neither better nor worse in general.
    Less,
    /// The value is higher, which is neither better nor worse in general.
    More,
    /// The interval includes zero: the difference may be due to chance.
    NotSignificant,
    /// A single seed does not allow for a confidence interval.
    SingleSeed,
}

impl Change {
    /// Returns the interpretation as text.
    pub fn label(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Less => "lower",
            Self::More => "higher",
            Self::NotSignificant => "not significant",
            Self::SingleSeed => "single seed",
        }
    }
}

/// A mean with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half of the confidence interval; `None` for a single value.
    pub half: Option<f64>,
}

impl Estimate {
    /// Estimates the mean of a population from a sample; `None` if the sample is empty.
    pub fn from_values(values: &[f64]) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        let half = (count > 1).then(|| {
            let deviation = (squares / (count - 1) as f64).sqrt();
            student(count - 1) * deviation / (count as f64).sqrt()
        });
        Some(Self { mean, half })
    }
}

/// 97.5th percentiles of Student's t-distribution with 1 to 30 degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// Returns the critical value of Student's t-distribution. Beyond 30 degrees of freedom, it is the
/// next larger value of the table, so that intervals are never too narrow.
fn student(freedom: usize) -> f64 {
    match freedom {
        0..=30 => STUDENT[freedom.saturating_sub(1)],
        31..40 => 2.042,
        40..60 => 2.021,
        60..120 => 2.000,
        _ => 1.980,
    }
}

impl Comparison {
    /// Compares variants, each given by its name and its runs.
    pub fn new(variants: &[(&str, Vec<&Summary>)]) -> Self {
        let metrics = compared_metrics(variants);
        let lines = metrics.into_iter().map(|(scope, metric)| Line::new(scope, metric, variants));
        Self {
            variants: variants.iter().map(|(name, _)| (*name).to_owned()).collect(),
            lines: lines.filter(|line| line.cells.iter().any(|cell| cell.mean.is_some())).collect(),
        }
    }
}

impl Line {
    fn new(scope: Scope, metric: Metric, variants: &[(&str, Vec<&Summary>)]) -> Self {
        let first = variants.first().map_or(&[][..], |(_, runs)| runs);
        let cell = |(index, (_, runs)): (usize, &(&str, Vec<&Summary>))| {
            let values: Vec<f64> =
                runs.iter().filter_map(|run| metric.value(&scope, run)).collect();
            let paired: Vec<f64> = runs
                .iter()
                .filter_map(|run| {
                    let other = first.iter().find(|other| other.seed == run.seed)?;
                    Some(metric.value(&scope, run)? - metric.value(&scope, other)?)
                })
                .collect();
            Cell {
                mean: Estimate::from_values(&values).map(|estimate| estimate.mean),
                difference: Estimate::from_values(&paired)
                    .filter(|_| index > 0)
                    .map(|estimate| Difference::new(estimate, metric)),
            }
        };
        Self { cells: variants.iter().enumerate().map(cell).collect(), scope, metric }
    }
}

impl Difference {
    fn new(estimate: Estimate, metric: Metric) -> Self {
        let Estimate { mean, half } = estimate;
        let interval = half.map(|half| (mean - half, mean + half));
        let verdict = match interval {
            None if mean == 0.0 => Change::NotSignificant,
            None => Change::SingleSeed,
            Some((low, high)) if low <= 0.0 && high >= 0.0 => Change::NotSignificant,
            Some(_) => match (metric.direction(), mean < 0.0) {
                (Direction::Lower, true) | (Direction::Higher, false) => Change::Better,
                (Direction::Lower, false) | (Direction::Higher, true) => Change::Worse,
                (Direction::Neither, true) => Change::Less,
                (Direction::Neither, false) => Change::More,
            },
        };
        Self { mean, interval, verdict }
    }
}

/// Returns the metrics that are compared: those that matter to users and operators, and no more,
/// because the more metrics are compared, the more of them differ by chance.
fn compared_metrics(variants: &[(&str, Vec<&Summary>)]) -> Vec<(Scope, Metric)> {
    let mut metrics = Vec::new();
    for class in
        names(variants, |run| run.classes.iter().map(|class| class.name.as_str()).collect())
    {
        let of_class = [
            Metric::Wait(Statistic::Mean),
            Metric::Wait(Statistic::P50),
            Metric::Wait(Statistic::P99),
            Metric::FirstByte(Statistic::P50),
            Metric::FirstByte(Statistic::P99),
            Metric::Total(Statistic::P99),
            Metric::ServedShare,
        ];
        metrics.extend(of_class.map(|metric| (Scope::Class(class.clone()), metric)));
    }
    let of_all = [
        Metric::Served,
        Metric::Ended(RequestResult::FellBack),
        Metric::Ended(RequestResult::Rejected),
        Metric::Ended(RequestResult::Error),
        Metric::Ended(RequestResult::ClientGone),
    ];
    metrics
        .extend(of_all.into_iter().chain(Metric::RUN_METRICS).map(|metric| (Scope::All, metric)));
    for lane in names(variants, |run| run.lanes.iter().map(|lane| lane.name.as_str()).collect()) {
        metrics.extend(
            [Metric::Busy, Metric::Occupied].map(|metric| (Scope::Lane(lane.clone()), metric)),
        );
    }
    metrics
}

/// Returns the distinct names, in the order in which the variants have them.
fn names(variants: &[(&str, Vec<&Summary>)], list: fn(&Summary) -> Vec<&str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in variants.iter().flat_map(|(_, runs)| runs.first()).flat_map(|run| list(run)) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Serializes a scope or metric by its name; a scope without the dot that follows it.
fn as_text<T: std::fmt::Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(value.to_string().trim_end_matches('.'))
}

impl Line {
    /// Returns the name of the metric with its scope, for example `interactive.wait.p99`.
    pub fn name(&self) -> String {
        format!("{}{}", self.scope, self.metric)
    }

    /// Returns the unit of the metric.
    pub fn unit(&self) -> Unit {
        self.metric.unit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::test_run;

    /// Returns runs with the seeds 1, 2, … and these numbers of loads.
    fn runs(loads: &[u64]) -> Vec<Summary> {
        let run = |(index, loads): (usize, &u64)| {
            let mut run = test_run().summary;
            (run.seed, run.loads) = (index as u64 + 1, *loads);
            run
        };
        loads.iter().enumerate().map(run).collect()
    }

    fn loads(first: &[u64], second: &[u64]) -> (f64, f64, Difference) {
        let (first, second) = (runs(first), runs(second));
        let comparison = Comparison::new(&[
            ("first", first.iter().collect()),
            ("second", second.iter().rev().collect()),
        ]);
        let line = comparison.lines.iter().find(|line| line.metric == Metric::Loads).unwrap();
        assert_eq!((line.name().as_str(), line.cells[0].difference), ("loads", None));
        let means = [0, 1].map(|index| line.cells[index].mean.unwrap());
        (means[0], means[1], line.cells[1].difference.unwrap())
    }

    #[test]
    fn differences_are_paired_by_seed() {
        // The seeds differ by far more than the variants, which differ by about two in each seed.
        let (first, second, difference) = loads(&[10, 50, 90], &[8, 49, 87]);
        assert_eq!((first, second, difference.mean), (50.0, 48.0, -2.0));
        // The differences -2, -1 and -3 have a standard deviation of 1, so 4.303 / sqrt(3).
        let (low, high) = difference.interval.unwrap();
        let half = 4.303 / 3f64.sqrt();
        assert!(
            (low + 2.0 + half).abs() < 1e-9 && (high + 2.0 - half).abs() < 1e-9,
            "{low} {high}"
        );
        assert_eq!(difference.verdict, Change::NotSignificant);
        assert_eq!(loads(&[10, 50, 90, 20], &[8, 49, 87, 18]).2.verdict, Change::Better);
        assert_eq!(loads(&[8, 49, 87, 18], &[10, 50, 90, 20]).2.verdict, Change::Worse);
    }

    #[test]
    fn single_seeds_and_equal_runs_are_not_significant() {
        let (_, _, difference) = loads(&[10], &[5]);
        assert_eq!((difference.interval, difference.verdict), (None, Change::SingleSeed));
        assert_eq!(loads(&[10], &[10]).2.verdict, Change::NotSignificant);
        let (_, _, difference) = loads(&[10, 20], &[10, 20]);
        let expected = (Some((0.0, 0.0)), Change::NotSignificant);
        assert_eq!((difference.interval, difference.verdict), expected);
        assert_eq!(loads(&[10, 20], &[9, 19]).2.verdict, Change::Better);
    }

    #[test]
    fn estimates_match_the_textbook() {
        assert_eq!(Estimate::from_values(&[]), None);
        assert_eq!(Estimate::from_values(&[3.0]), Some(Estimate { mean: 3.0, half: None }));
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        let estimate = Estimate::from_values(&ten).unwrap();
        assert_eq!(estimate.mean, 5.5);
        assert!((estimate.half.unwrap() - 2.165_869).abs() < 1e-3, "{estimate:?}");
        assert!(student(1) > 12.7 && student(1000) < 1.981);
        assert!((1..200).all(|freedom| student(freedom) >= student(freedom + 1)));
    }

    #[test]
    fn json_names_variants_scopes_and_metrics() {
        let runs = runs(&[1, 2]);
        let variants = [("a", runs.iter().collect()), ("b", runs.iter().collect())];
        let json = serde_json::to_value(Comparison::new(&variants)).unwrap();
        assert_eq!(json["variants"], serde_json::json!(["a", "b"]));
        assert_eq!(json["lines"][0]["scope"], "interactive");
        assert_eq!(json["lines"][0]["metric"], "wait.mean");
        assert_eq!(json["lines"][0]["cells"][1]["difference"]["verdict"], "not-significant");
    }
}
