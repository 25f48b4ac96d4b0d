//! Variants side by side: what each figure is on average over the seeds, and whether it differs from the first variant's by more
//! than chance.
//!
//! Runs with the same seed see the same traffic, so differences are taken within a seed before anything else, which leaves
//! out what the seeds differ in. The interval is that of Student's t for paired samples, with 95 % confidence.

use serde::{Serialize, Serializer};

use crate::metric::{Direction, Metric, Scope, Statistic, Unit};
use crate::observe::RequestResult;
use crate::report::Summary;

/// All figures of all variants.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Comparison {
    /// The variants; the others are compared with the first one.
    pub variants: Vec<String>,
    /// One line for each figure.
    pub lines: Vec<Line>,
}

/// One figure of all variants.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Line {
    /// Whose figure.
    #[serde(serialize_with = "as_text")]
    pub scope: Scope,
    /// Which figure.
    #[serde(serialize_with = "as_text")]
    pub metric: Metric,
    /// For each variant.
    pub cells: Vec<Cell>,
}

/// One figure of one variant.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cell {
    /// Mean over the seeds: seconds, or a part from 0 to 1, or how many.
    pub mean: Option<f64>,
    /// How it differs from the first variant; nothing for that one itself, and where one of them has no figure.
    pub difference: Option<Difference>,
}

/// How a variant differs from the first one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// Mean of the differences with the same seed.
    pub mean: f64,
    /// Where the true one is, with 95 % confidence; nothing can be said of one seed.
    pub interval: Option<(f64, f64)>,
    /// What it means.
    pub verdict: Change,
}

/// What a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is better.
    Better,
    /// It is worse.
    Worse,
    /// It is less, and whether that is better depends.
    Less,
    /// It is more, and whether that is better depends.
    More,
    /// It may be chance.
    NoneSeen,
    /// There is one seed only, so nobody knows whether it is chance.
    OneSeed,
}

impl Change {
    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Less => "less",
            Self::More => "more",
            Self::NoneSeen => "no difference seen",
            Self::OneSeed => "one seed",
        }
    }
}

/// A mean, and how far the true one may be from it with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half of the interval; nothing can be said of one value.
    pub half: Option<f64>,
}

impl Estimate {
    /// Of these values; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
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

/// 97.5th percentiles of Student's distribution for 1 to 30 degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// Between the lines of the table, the larger one.
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
    /// Of these variants, each with its name and its runs.
    pub fn of(variants: &[(&str, Vec<&Summary>)]) -> Self {
        let figures = figures(variants);
        let lines = figures.into_iter().map(|(scope, metric)| Line::of(scope, metric, variants));
        Self {
            variants: variants.iter().map(|(name, _)| (*name).to_owned()).collect(),
            lines: lines.filter(|line| line.cells.iter().any(|cell| cell.mean.is_some())).collect(),
        }
    }
}

impl Line {
    fn of(scope: Scope, metric: Metric, variants: &[(&str, Vec<&Summary>)]) -> Self {
        let first = variants.first().map_or(&[][..], |(_, runs)| runs);
        let cell = |(index, (_, runs)): (usize, &(&str, Vec<&Summary>))| {
            let values: Vec<f64> = runs.iter().filter_map(|run| metric.of(&scope, run)).collect();
            let paired: Vec<f64> = runs
                .iter()
                .filter_map(|run| {
                    let other = first.iter().find(|other| other.seed == run.seed)?;
                    Some(metric.of(&scope, run)? - metric.of(&scope, other)?)
                })
                .collect();
            Cell {
                mean: Estimate::of(&values).map(|it| it.mean),
                difference: Estimate::of(&paired)
                    .filter(|_| index > 0)
                    .map(|it| Difference::of(it, metric)),
            }
        };
        Self { cells: variants.iter().enumerate().map(cell).collect(), scope, metric }
    }
}

impl Difference {
    fn of(estimate: Estimate, metric: Metric) -> Self {
        let Estimate { mean, half } = estimate;
        let interval = half.map(|half| (mean - half, mean + half));
        let verdict = match interval {
            None if mean == 0.0 => Change::NoneSeen,
            None => Change::OneSeed,
            Some((low, high)) if low <= 0.0 && high >= 0.0 => Change::NoneSeen,
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

/// What is compared: what tells how people and lanes fared, and no more, because the more is compared, the more differs by
/// chance.
fn figures(variants: &[(&str, Vec<&Summary>)]) -> Vec<(Scope, Metric)> {
    let mut figures = Vec::new();
    for class in names(variants, |run| run.classes.iter().map(|it| it.name.as_str()).collect()) {
        let of_class = [
            Metric::Wait(Statistic::Mean),
            Metric::Wait(Statistic::P50),
            Metric::Wait(Statistic::P99),
            Metric::FirstByte(Statistic::P50),
            Metric::FirstByte(Statistic::P99),
            Metric::Total(Statistic::P99),
            Metric::ServedShare,
        ];
        figures.extend(of_class.map(|metric| (Scope::Class(class.clone()), metric)));
    }
    let of_all = [
        Metric::Served,
        Metric::Ended(RequestResult::FellBack),
        Metric::Ended(RequestResult::Rejected),
        Metric::Ended(RequestResult::Error),
        Metric::Ended(RequestResult::ClientGone),
    ];
    figures
        .extend(of_all.into_iter().chain(Metric::OF_THE_WHOLE).map(|metric| (Scope::All, metric)));
    for lane in names(variants, |run| run.lanes.iter().map(|it| it.name.as_str()).collect()) {
        figures.extend(
            [Metric::Busy, Metric::Occupied].map(|metric| (Scope::Lane(lane.clone()), metric)),
        );
    }
    figures
}

/// Names in the order in which variants have them, each once.
fn names(variants: &[(&str, Vec<&Summary>)], of: fn(&Summary) -> Vec<&str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in variants.iter().flat_map(|(_, runs)| runs.first()).flat_map(|run| of(run)) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn as_text<T: std::fmt::Display, S: Serializer>(what: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(what.to_string().trim_end_matches('.'))
}

impl Line {
    /// What is compared: `interactive.wait.p99`.
    pub fn name(&self) -> String {
        format!("{}{}", self.scope, self.metric)
    }

    /// What the numbers mean.
    pub fn unit(&self) -> Unit {
        self.metric.unit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::test_run;

    /// Runs with seeds from 1 on, and so many loads each.
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
        let comparison = Comparison::of(&[
            ("first", first.iter().collect()),
            ("second", second.iter().rev().collect()),
        ]);
        let line = comparison.lines.iter().find(|line| line.metric == Metric::Loads).unwrap();
        assert_eq!((line.name().as_str(), line.cells[0].difference), ("loads", None));
        let means = [0, 1].map(|index| line.cells[index].mean.unwrap());
        (means[0], means[1], line.cells[1].difference.unwrap())
    }

    #[test]
    fn differences_are_taken_within_a_seed() {
        // Far apart from seed to seed, and always about two less.
        let (first, second, difference) = loads(&[10, 50, 90], &[8, 49, 87]);
        assert_eq!((first, second, difference.mean), (50.0, 48.0, -2.0));
        // Differences -2, -1, -3: deviation 1, so 4.303 / sqrt(3).
        let (low, high) = difference.interval.unwrap();
        let half = 4.303 / 3f64.sqrt();
        assert!(
            (low + 2.0 + half).abs() < 1e-9 && (high + 2.0 - half).abs() < 1e-9,
            "{low} {high}"
        );
        assert_eq!(difference.verdict, Change::NoneSeen);
        assert_eq!(loads(&[10, 50, 90, 20], &[8, 49, 87, 18]).2.verdict, Change::Better);
        assert_eq!(loads(&[8, 49, 87, 18], &[10, 50, 90, 20]).2.verdict, Change::Worse);
    }

    #[test]
    fn one_seed_proves_nothing_and_the_same_is_the_same() {
        let (_, _, difference) = loads(&[10], &[5]);
        assert_eq!((difference.interval, difference.verdict), (None, Change::OneSeed));
        assert_eq!(loads(&[10], &[10]).2.verdict, Change::NoneSeen);
        let (_, _, difference) = loads(&[10, 20], &[10, 20]);
        assert_eq!((difference.interval, difference.verdict), (Some((0.0, 0.0)), Change::NoneSeen));
        assert_eq!(loads(&[10, 20], &[9, 19]).2.verdict, Change::Better);
    }

    #[test]
    fn estimates_are_those_of_the_textbook() {
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[3.0]), Some(Estimate { mean: 3.0, half: None }));
        let ten: Vec<f64> = (1..=10).map(f64::from).collect();
        let estimate = Estimate::of(&ten).unwrap();
        assert_eq!(estimate.mean, 5.5);
        assert!((estimate.half.unwrap() - 2.165_869).abs() < 1e-3, "{estimate:?}");
        assert!(student(1) > 12.7 && student(1000) < 1.981);
        assert!((1..200).all(|freedom| student(freedom) >= student(freedom + 1)));
    }

    #[test]
    fn json_says_what_is_compared() {
        let runs = runs(&[1, 2]);
        let variants = [("a", runs.iter().collect()), ("b", runs.iter().collect())];
        let json = serde_json::to_value(Comparison::of(&variants)).unwrap();
        assert_eq!(json["variants"], serde_json::json!(["a", "b"]));
        assert_eq!(json["lines"][0]["scope"], "interactive");
        assert_eq!(json["lines"][0]["metric"], "wait.mean");
        assert_eq!(json["lines"][0]["cells"][1]["difference"]["verdict"], "none-seen");
    }
}
