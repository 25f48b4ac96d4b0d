//! Reports for a terminal: plain text, at most a hundred columns as long as names are of the usual length.

use super::numbers;
use super::summary::Counted;
use super::{Report, Sweep, VariantReport};
use crate::compare::{Comparison, Difference, Estimate};
use crate::metric::{Metric, Scope, Statistic, Unit};
use crate::objective::Judged;
use crate::observe::RequestResult;

pub(super) fn of(report: &Report) -> String {
    let mut parts = vec![format!("{}\n", clean(&report.title))];
    if !report.scenario.is_empty() {
        parts.push(format!(
            "{}\n",
            report.scenario.trim_end().lines().map(clean).collect::<Vec<_>>().join("\n")
        ));
    }
    parts.extend(report.variants.iter().map(variant));
    // Where the variants are the values of a sweep, they stand side by side in its own tables.
    let values = report.sweep.iter().flat_map(|sweep| &sweep.points).map(|point| &point.value);
    let are_values = values.eq(report.variants.iter().map(|variant| &variant.name));
    if let Some(comparison) = report.comparison().filter(|_| !are_values) {
        parts.push(compared(&comparison));
    }
    parts.extend(report.sweep.as_ref().map(swept));
    parts.join("\n")
}

fn variant(variant: &VariantReport) -> String {
    let mut text = format!("{}: {}\n", clean(&variant.name), length(variant));
    let classes = variant.names(|run| run.classes.iter().map(|it| it.name.clone()).collect());
    let mut scopes: Vec<(String, Scope)> = vec![("all".to_owned(), Scope::All)];
    scopes.extend(classes.into_iter().map(|name| (name.clone(), Scope::Class(name))));
    text.push_str(&table(variant, "CLASS", &scopes, &OF_CLASSES));
    let lanes = variant.names(|run| run.lanes.iter().map(|it| it.name.clone()).collect());
    let scopes: Vec<_> = lanes.into_iter().map(|name| (name.clone(), Scope::Lane(name))).collect();
    text.push('\n');
    text.push_str(&table(variant, "LANE", &scopes, &OF_LANES));
    text.push('\n');
    text.push_str(&remarks(variant));
    if !variant.objectives.is_empty() {
        text.push('\n');
        text.push_str(&judged(&variant.objectives));
    }
    text
}

/// `3 seeds of 24 h`.
pub(super) fn length(variant: &VariantReport) -> String {
    let Some(run) = variant.runs.first() else { return "no runs".to_owned() };
    let span = numbers::span(run.summary.lasted);
    match variant.runs.len() {
        1 => format!("one run of {span}, seed {}", run.summary.seed),
        runs => format!("mean of {runs} seeds, the first one {span}"),
    }
}

pub(super) const OF_CLASSES: [(&str, Metric); 10] = [
    ("REQUESTS", Metric::Requests),
    ("SERVED", Metric::ServedShare),
    ("FELL BACK", Metric::Ended(RequestResult::FellBack)),
    ("REFUSED", Metric::Ended(RequestResult::Rejected)),
    ("ERRORS", Metric::Ended(RequestResult::Error)),
    ("GONE", Metric::Ended(RequestResult::ClientGone)),
    ("WAIT P50", Metric::Wait(Statistic::P50)),
    ("P99", Metric::Wait(Statistic::P99)),
    ("BYTE P50", Metric::FirstByte(Statistic::P50)),
    ("P99", Metric::FirstByte(Statistic::P99)),
];

pub(super) const OF_LANES: [(&str, Metric); 8] = [
    ("REQUESTS", Metric::Requests),
    ("ERRORS", Metric::Ended(RequestResult::Error)),
    ("LOADS", Metric::Loads),
    ("SWITCHES TO", Metric::Switches),
    ("BUSY", Metric::Busy),
    ("OCCUPIED", Metric::Occupied),
    ("QUEUE", Metric::QueueMean),
    ("LONGEST", Metric::QueueMax),
];

fn table(
    variant: &VariantReport,
    head: &str,
    scopes: &[(String, Scope)],
    columns: &[(&str, Metric)],
) -> String {
    let mut rows = vec![
        std::iter::once(head).chain(columns.iter().map(|it| it.0)).map(str::to_owned).collect(),
    ];
    for (name, scope) in scopes {
        let cells = columns.iter().map(|(_, metric)| {
            numbers::maybe(metric.unit(), variant.estimate(scope, *metric).map(|it| it.mean))
        });
        rows.push(std::iter::once(clean(name)).chain(cells).collect());
    }
    aligned(&rows)
}

/// What there is one of, and what people should see.
fn remarks(variant: &VariantReport) -> String {
    let of_all =
        |metric: Metric| variant.estimate(&Scope::All, metric).map(|it| numbers::digits(it.mean));
    let mut text = String::new();
    let facts = [
        of_all(Metric::SwitchesPerHour).map(|rate| format!("{rate} switches an hour")),
        of_all(Metric::Fairness).map(|index| format!("fairness between tenants {index}")),
        of_all(Metric::Lost).map(|lost| {
            if lost == "0" { "nothing lost".to_owned() } else { format!("{lost} LOST") }
        }),
    ];
    text.push_str(&facts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    text.push('\n');
    let said = |of: &[Counted]| {
        let parts = of
            .iter()
            .map(|it| format!("  {:>8}  {}\n", numbers::count(it.count as f64), clean(&it.what)));
        parts.collect::<String>()
    };
    if let Some(run) = variant.runs.first().map(|run| &run.summary) {
        if !run.policies.is_empty() {
            text.push_str(&format!("who decided, seed {}:\n{}", run.seed, said(&run.policies)));
        }
        if !run.problems.is_empty() {
            text.push_str(&format!("what went wrong, seed {}:\n{}", run.seed, said(&run.problems)));
        }
    }
    text
}

fn judged(objectives: &[Judged]) -> String {
    let mut rows = vec![["OBJECTIVE", "", "MEAN", "WORST", "SEEDS"].map(str::to_owned).to_vec()];
    for it in objectives {
        let unit = it.metric.unit();
        rows.push(vec![
            clean(&it.objective),
            if it.met { "met" } else { "NOT MET" }.to_owned(),
            numbers::maybe(unit, it.mean),
            numbers::maybe(unit, it.worst),
            format!("{} of {}", it.runs_met, it.runs),
        ]);
    }
    aligned(&rows)
}

/// One table for each variant, against the first one.
fn compared(comparison: &Comparison) -> String {
    let first = comparison.variants.first().map(|name| clean(name)).unwrap_or_default();
    let mut tables = Vec::new();
    for (index, name) in comparison.variants.iter().enumerate().skip(1) {
        let name = clean(name);
        let head = [
            "FIGURE".to_owned(),
            first.clone(),
            name.clone(),
            "DIFFERENCE".to_owned(),
            String::new(),
        ];
        let mut rows = vec![head.to_vec()];
        for line in &comparison.lines {
            let [before, after] = [&line.cells[0], &line.cells[index]].map(|cell| cell.mean);
            // What is nothing everywhere is nothing to read.
            if before.unwrap_or(0.0) == 0.0 && after.unwrap_or(0.0) == 0.0 {
                continue;
            }
            let unit = line.unit();
            let difference = line.cells[index].difference;
            rows.push(vec![
                clean(&line.name()),
                numbers::maybe(unit, before),
                numbers::maybe(unit, after),
                difference.map_or_else(
                    || "-".to_owned(),
                    |it| plus_minus(unit, &it).unwrap_or_else(|| "0".to_owned()),
                ),
                difference.map_or("", |it| it.verdict.label()).to_owned(),
            ]);
        }
        tables.push(format!("{name} against {first}\n{}", aligned(&rows)));
    }
    tables.push(format!("{CAUTION}\n"));
    tables.join("\n")
}

/// What readers of many comparisons should know.
pub(super) const CAUTION: &str = "\
Means over the seeds; differences are taken within each seed, with the 95 % interval of Student's t.
Of twenty figures that nothing has changed, one is expected to be called better or worse by chance.";

/// `-12.3 ± 1.1 s`, or `None` for nothing to speak of.
pub(super) fn plus_minus(unit: Unit, difference: &Difference) -> Option<String> {
    let half = difference.interval.map(|(low, high)| (high - low) / 2.0);
    numbers::plus_minus(unit, difference.mean, half)
}

fn swept(sweep: &Sweep) -> String {
    let figures = sweep.figures();
    let mut tables = vec![format!("by {}\n", clean(&sweep.parameter))];
    for (scope, metric) in figures {
        let mut rows = vec![
            std::iter::once(String::new()).chain(sweep.values().into_iter().map(clean)).collect(),
        ];
        for line in sweep.lines() {
            let cells = sweep.values().into_iter().map(|value| {
                let point =
                    sweep.point(line, value).and_then(|point| point.estimate(&scope, metric));
                point.map_or_else(|| "-".to_owned(), |it| estimate(metric.unit(), it))
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

/// Columns with two blanks between them: the first one begins and all others end at the same place, but for words.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column: usize| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let numeric = |column: usize| {
        column > 0
            && cells(column)
                .skip(1)
                .all(|cell| cell.starts_with(|c: char| "-+<>0123456789".contains(c)))
    };
    let shape: Vec<(usize, bool)> =
        (0..columns).map(|column| (width(column), numeric(column))).collect();
    let mut text = String::new();
    for row in rows {
        let padded = row.iter().zip(&shape).map(|(cell, (width, right))| {
            if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// What a file says may hold anything; a terminal gets none of its commands.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
