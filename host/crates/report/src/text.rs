//! Plain-text reports. Lines fit into 100 columns as long as names are of ordinary length.

use pointsman_domain::RequestResult;

use crate::compare::{Comparison, Difference, Estimate};
use crate::metric::{Metric, Scope, Statistic, Unit};
use crate::numbers;
use crate::objective::ObjectiveResult;
use crate::report::{Report, VariantReport};
use crate::summary::{EventCount, PolicyCalls, Summary};
use crate::sweep::Sweep;
use crate::table::{aligned, clean};

impl Report {
    /// Renders the report as plain text for a terminal.
    pub fn text(&self) -> String {
        render(self)
    }
}

fn render(report: &Report) -> String {
    let mut parts = vec![format!("{}\n", clean(&report.title))];
    if !report.scenario.is_empty() {
        parts.push(format!(
            "{}\n",
            report.scenario.trim_end().lines().map(clean).collect::<Vec<_>>().join("\n")
        ));
    }
    parts.extend(report.variants.iter().map(variant));
    // The values of a sweep are shown side by side in the sweep's own tables.
    let values = report.sweep.iter().flat_map(|sweep| &sweep.points).map(|point| &point.value);
    let are_values = values.eq(report.variants.iter().map(|variant| &variant.name));
    if let Some(comparison) = report.comparison().filter(|_| !are_values) {
        parts.push(comparison_tables(&comparison));
    }
    parts.extend(report.sweep.as_ref().map(sweep_tables));
    parts.join("\n")
}

fn variant(variant: &VariantReport) -> String {
    let mut text = format!("{}: {}\n", clean(&variant.name), run_count(variant));
    let classes = variant.names(|run| run.classes.iter().map(|class| class.name.clone()).collect());
    let mut scopes: Vec<(String, Scope)> = vec![("all".to_owned(), Scope::All)];
    scopes.extend(classes.into_iter().map(|name| (name.clone(), Scope::Class(name))));
    text.push_str(&table(variant, "CLASS", &scopes, &CLASS_COLUMNS));
    let lanes = variant.names(|run| run.lanes.iter().map(|lane| lane.name.clone()).collect());
    let scopes: Vec<_> = lanes.into_iter().map(|name| (name.clone(), Scope::Lane(name))).collect();
    text.push('\n');
    text.push_str(&table(variant, "LANE", &scopes, &LANE_COLUMNS));
    text.push('\n');
    text.push_str(&remarks(variant));
    if !variant.objectives.is_empty() {
        text.push('\n');
        text.push_str(&objectives_table(&variant.objectives));
    }
    text
}

/// Describes how many runs a variant has, for example `mean over 3 seeds; first run 24 h`.
pub(crate) fn run_count(variant: &VariantReport) -> String {
    let Some(run) = variant.runs.first() else { return "no runs".to_owned() };
    let span = numbers::span(run.summary.duration);
    match variant.runs.len() {
        1 => format!("1 run of {span}, seed {}", run.summary.seed),
        runs => format!("mean over {runs} seeds; first run {span}"),
    }
}

pub(crate) const CLASS_COLUMNS: [(&str, Metric); 10] = [
    ("REQS", Metric::Requests),
    ("SERVED", Metric::ServedShare),
    ("FALLBACK", Metric::Ended(RequestResult::FellBack)),
    ("REJECTED", Metric::Ended(RequestResult::Rejected)),
    ("ERRORS", Metric::Ended(RequestResult::Error)),
    ("CANCELED", Metric::Ended(RequestResult::ClientGone)),
    ("WAIT P50", Metric::Wait(Statistic::P50)),
    ("P99", Metric::Wait(Statistic::P99)),
    ("TTFB P50", Metric::FirstByte(Statistic::P50)),
    ("P99", Metric::FirstByte(Statistic::P99)),
];

pub(crate) const LANE_COLUMNS: [(&str, Metric); 8] = [
    ("REQS", Metric::Requests),
    ("ERRORS", Metric::Ended(RequestResult::Error)),
    ("LOADS", Metric::Loads),
    ("SWITCHES", Metric::Switches),
    ("BUSY", Metric::Busy),
    ("OCCUPIED", Metric::Occupied),
    ("QUEUE MEAN", Metric::QueueMean),
    ("MAX", Metric::QueueMax),
];

fn table(
    variant: &VariantReport,
    head: &str,
    scopes: &[(String, Scope)],
    columns: &[(&str, Metric)],
) -> String {
    let mut rows = vec![
        std::iter::once(head)
            .chain(columns.iter().map(|(name, _)| *name))
            .map(str::to_owned)
            .collect(),
    ];
    for (name, scope) in scopes {
        let cells = columns.iter().map(|(_, metric)| {
            let mean = variant.estimate(scope, *metric).map(|estimate| estimate.mean);
            numbers::optional(metric.unit(), mean)
        });
        rows.push(std::iter::once(clean(name)).chain(cells).collect());
    }
    aligned(&rows)
}

/// Returns the run-wide metrics, the policies that decided, and the rejections and errors.
fn remarks(variant: &VariantReport) -> String {
    let of_all = |metric: Metric| {
        variant.estimate(&Scope::All, metric).map(|estimate| numbers::digits(estimate.mean))
    };
    let mut text = String::new();
    let facts = [
        of_all(Metric::SwitchesPerHour).map(|rate| format!("{rate} switches/h")),
        of_all(Metric::Fairness).map(|index| format!("tenant fairness {index}")),
        of_all(Metric::Lost).map(|lost| {
            // A lost request is a bug of the simulator, so it must not be overlooked.
            if lost == "0" { "0 lost".to_owned() } else { format!("{lost} LOST") }
        }),
    ];
    text.push_str(&facts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    text.push('\n');
    let list = |counts: &[EventCount]| {
        let lines = counts.iter().map(|event| {
            format!("  {:>8}  {}\n", numbers::count(event.count as f64), clean(&event.name))
        });
        lines.collect::<String>()
    };
    if let Some(run) = variant.runs.first().map(|run| &run.summary) {
        if !run.policies.is_empty() {
            text.push_str(&format!(
                "decisions by policy, seed {}:\n{}",
                run.seed,
                list(&run.policies)
            ));
        }
        if !run.problems.is_empty() {
            text.push_str(&format!(
                "rejections and errors, seed {}:\n{}",
                run.seed,
                list(&run.problems)
            ));
        }
        text.push_str(&policy_problems(run));
        for warning in &run.warnings {
            text.push_str(&format!("warning: {}\n", clean(warning)));
        }
    }
    text
}

/// Describes the calls of policies that failed, what was dropped of their advice, and what they
/// logged; empty if there is nothing of it.
fn policy_problems(run: &Summary) -> String {
    run.policy_calls.iter().map(|calls| calls_of_policy(run.seed, calls)).collect()
}

fn calls_of_policy(seed: u64, calls: &PolicyCalls) -> String {
    let mut text = String::new();
    let counts = [
        ("faults", calls.faults, &calls.first_fault),
        ("errors", calls.errors, &calls.first_error),
        ("dropped parts of advice", calls.dropped, &calls.first_dropped),
    ];
    for (what, count, first) in counts.into_iter().filter(|(_, count, _)| *count > 0) {
        let count = numbers::count(count as f64);
        let first = clean(first.as_deref().unwrap_or_default());
        text.push_str(&format!("  {count:>8}  {what}; the first one: {first}\n"));
    }
    for line in &calls.log {
        text.push_str(&format!("       log  {}\n", clean(line)));
    }
    if text.is_empty() {
        return text;
    }
    let all = numbers::count(calls.calls as f64);
    format!("{all} calls of {}, seed {seed}:\n{text}", clean(&calls.policy))
}

fn objectives_table(objectives: &[ObjectiveResult]) -> String {
    let mut rows = vec![["OBJECTIVE", "", "MEAN", "WORST", "SEEDS"].map(str::to_owned).to_vec()];
    for judged in objectives {
        let unit = judged.metric.unit();
        rows.push(vec![
            clean(&judged.objective),
            if judged.met { "met" } else { "NOT MET" }.to_owned(),
            numbers::optional(unit, judged.mean),
            numbers::optional(unit, judged.worst),
            format!("{} of {}", judged.runs_met, judged.runs),
        ]);
    }
    aligned(&rows)
}

/// Renders one table for each variant, compared with the first one.
fn comparison_tables(comparison: &Comparison) -> String {
    let first = comparison.variants.first().map(|name| clean(name)).unwrap_or_default();
    let mut tables = Vec::new();
    for (index, name) in comparison.variants.iter().enumerate().skip(1) {
        let name = clean(name);
        let head = [
            "METRIC".to_owned(),
            first.clone(),
            name.clone(),
            "DIFFERENCE".to_owned(),
            String::new(),
        ];
        let mut rows = vec![head.to_vec()];
        for line in &comparison.lines {
            let [before, after] = [&line.cells[0], &line.cells[index]].map(|cell| cell.mean);
            // A metric that is zero in both variants carries no information.
            if before.unwrap_or(0.0) == 0.0 && after.unwrap_or(0.0) == 0.0 {
                continue;
            }
            let unit = line.unit();
            let difference = line.cells[index].difference;
            let size = difference.and_then(|difference| plus_minus(unit, &difference));
            let verdict = match difference {
                None => "",
                // What is too small to be shown is not called better or worse.
                Some(_) if size.is_none() => "equal",
                Some(difference) => difference.verdict.label(),
            };
            rows.push(vec![
                clean(&line.name()),
                numbers::optional(unit, before),
                numbers::optional(unit, after),
                size.unwrap_or_else(|| difference.map_or("-", |_| "0").to_owned()),
                verdict.to_owned(),
            ]);
        }
        tables.push(format!("{name} vs. {first}\n{}", aligned(&rows)));
    }
    tables.push(format!("{CAUTION}\n"));
    tables.join("\n")
}

/// Explains how differences are computed, and warns about multiple comparisons.
pub(crate) const CAUTION: &str = "\
Means over the seeds. Differences are paired by seed, with 95 % confidence intervals (Student's t).
Of 20 metrics that have not changed, about one is expected to be called better or worse by chance.";

/// Formats a difference as `-12.3 ± 1.1 s`; `None` if it rounds to zero.
pub(crate) fn plus_minus(unit: Unit, difference: &Difference) -> Option<String> {
    let half = difference.interval.map(|(low, high)| (high - low) / 2.0);
    numbers::plus_minus(unit, difference.mean, half)
}

fn sweep_tables(sweep: &Sweep) -> String {
    let mut tables = vec![format!("sweep of {}\n", clean(&sweep.parameter))];
    for (scope, metric) in sweep.metrics() {
        let mut rows = vec![
            std::iter::once(String::new()).chain(sweep.values().into_iter().map(clean)).collect(),
        ];
        for line in sweep.lines() {
            let cells = sweep.values().into_iter().map(|value| {
                let point =
                    sweep.point(line, value).and_then(|point| point.estimate(&scope, metric));
                point.map_or_else(|| "-".to_owned(), |point| estimate(metric.unit(), point))
            });
            rows.push(std::iter::once(clean(line)).chain(cells).collect());
        }
        tables.push(format!("{}\n{}", clean(&format!("{scope}{metric}")), aligned(&rows)));
    }
    tables.join("\n")
}

fn estimate(unit: Unit, estimate: Estimate) -> String {
    let mean = numbers::number(unit, estimate.mean);
    match estimate.half {
        Some(half) if half > 0.0 => {
            format!("{mean} ± {}", numbers::signed(unit, half).trim_start_matches('+'))
        }
        _ => mean,
    }
}

#[cfg(test)]
mod tests;
