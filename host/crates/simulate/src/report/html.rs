//! A report as one page: nothing is fetched, nothing runs, and it is as good on paper.

use std::fmt::Display;

use super::plots::{Part, Plot};
use super::summary::Counted;
use super::svg::{COLOURS, RULES, escaped};
use super::text::{CAUTION, OF_CLASSES, OF_LANES, length, plus_minus};
use super::{Report, VariantReport, numbers};
use crate::compare::{Change, Comparison, Difference, Line};
use crate::metric::{Metric, Scope, Unit};
use crate::objective::Judged;

const PAGE: &str = include_str!("html/page.css");

pub(super) fn of(report: &Report) -> String {
    let title = escaped(&report.title);
    let (light, dark) = (colours(|it| it.1), colours(|it| it.2));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n<style>\n\
         :root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n\
         {PAGE}{RULES}</style>\n</head>\n<body>\n<main>\n"
    );
    page.push_str(&head(report));
    page.push_str(&objectives(report));
    page.push_str(&figures(report));
    let plots = report.plots();
    for (part, title, note) in PARTS {
        page.push_str(&section(&plots, part, title, note));
        if part == Part::Engines {
            report.variants.iter().for_each(|variant| page.push_str(&details(variant)));
        }
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

const PARTS: [(Part, &str, &str); 5] = [
    (
        Part::Sweep,
        "What a setting does",
        "Means over the seeds; the bars are their 95 % intervals.",
    ),
    (
        Part::Waits,
        "Waits",
        "All seeds together. How long requests took at most, for a growing share of them: to the right are the unlucky ones. \
         Those who gave up have waited, too.",
    ),
    (
        Part::Engines,
        "Engines",
        "The first seed. What is too short to be seen is drawn wider than it is, unless it is work.",
    ),
    (Part::OverTime, "Over time", "The first seed. Point at a plot for its numbers."),
    (
        Part::Tenants,
        "Tenants",
        "The first seed. A flat line treats everybody alike. The fairness is Jain's index of the promptness, from 1 (all alike) \
         down to one part for each tenant (one is served, the others are not).",
    ),
];

fn colours(of: fn(&(&'static str, &'static str, &'static str)) -> &'static str) -> String {
    COLOURS
        .iter()
        .map(|colour| format!("{}: {};", colour.0, of(colour)))
        .collect::<Vec<_>>()
        .join(" ")
}

fn head(report: &Report) -> String {
    let mut text = format!("<header>\n<h1>{}</h1>\n", escaped(&report.title));
    if !report.scenario.is_empty() {
        text.push_str(&format!(
            "<p class=\"scenario\">{}</p>\n",
            escaped(report.scenario.trim_end())
        ));
    }
    text.push_str("<ul class=\"variants\">\n");
    for (index, variant) in report.variants.iter().enumerate() {
        let (met, all) =
            (variant.objectives.iter().filter(|it| it.met).count(), variant.objectives.len());
        let verdict = match (met, all) {
            (_, 0) => String::new(),
            _ if met == all => format!("<span class=\"good\">✓ all {all} objectives met</span>"),
            _ => format!("<span class=\"bad\">✗ {met} of {all} objectives met</span>"),
        };
        let requests = variant.estimate(&Scope::All, Metric::Requests);
        let requests = requests
            .map_or_else(String::new, |it| format!("{} requests, ", numbers::count(it.mean)));
        text.push_str(&format!(
            "<li><span class=\"swatch b{}\"></span><strong>{}</strong> {requests}{} {verdict}</li>\n",
            index % super::svg::SERIES,
            escaped(&variant.name),
            escaped(&length(variant)),
        ));
    }
    text.push_str("</ul>\n</header>\n");
    text
}

/// A table: its head, and its rows, whose cells are HTML.
fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let cells = head.iter().map(|cell| format!("<th scope=\"col\">{}</th>", escaped(cell)));
    let mut text = format!(
        "<div class=\"wide\"><table>\n<thead><tr>{}</tr></thead>\n<tbody>\n",
        cells.collect::<String>()
    );
    rows.iter().for_each(|row| text.push_str(&format!("<tr>{}</tr>\n", row.concat())));
    text.push_str("</tbody>\n</table></div>\n");
    text
}

fn cell(what: impl Display) -> String {
    format!("<td>{what}</td>")
}

fn row_head(what: &str) -> String {
    format!("<th scope=\"row\">{}</th>", escaped(what))
}

fn objectives(report: &Report) -> String {
    let Some(first) = report.variants.first().filter(|variant| !variant.objectives.is_empty())
    else {
        return String::new();
    };
    let names = report.variants.iter().map(|variant| variant.name.clone());
    let head: Vec<String> = std::iter::once("objective".to_owned()).chain(names).collect();
    let rows = first.objectives.iter().enumerate().map(|(index, objective)| {
        let cells = report.variants.iter().map(|variant| {
            let judged = variant.objectives.get(index).map_or_else(String::new, judged);
            format!("<td class=\"change\">{judged}</td>")
        });
        std::iter::once(row_head(&objective.objective)).chain(cells).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    format!("<section class=\"left\">\n<h2>Objectives</h2>\n{}</section>\n", table(&head, &rows))
}

/// Whether an objective is met, and by what.
fn judged(it: &Judged) -> String {
    let (class, verdict) = if it.met { ("good", "✓ met") } else { ("bad", "✗ not met") };
    let unit = it.metric.unit();
    let mut said = numbers::maybe(unit, it.mean);
    let worst = numbers::maybe(unit, it.worst);
    if worst != said {
        said.push_str(&format!(", worst {worst}"));
    }
    if !it.met && it.runs_met > 0 {
        said.push_str(&format!(", met with {} of {} seeds", it.runs_met, it.runs));
    }
    format!(
        "<span class=\"{class}\">{verdict}</span> <span class=\"soft\">{}</span>",
        escaped(&said)
    )
}

/// The figures: of one variant its classes, of several side by side.
fn figures(report: &Report) -> String {
    let tables = match &report.variants[..] {
        [] => return String::new(),
        [variant] => of_one(variant),
        _ => side_by_side(report),
    };
    format!("<section>\n<h2>Figures</h2>\n{tables}</section>\n")
}

fn of_one(variant: &VariantReport) -> String {
    let classes = variant.names(|run| run.classes.iter().map(|it| it.name.clone()).collect());
    let classes = classes.into_iter().map(|name| (name.clone(), Scope::Class(name)));
    let scopes: Vec<(String, Scope)> =
        classes.chain([("everybody".to_owned(), Scope::All)]).collect();
    let facts = Metric::OF_THE_WHOLE.map(|metric| (metric.to_string(), metric));
    let all = [("everybody".to_owned(), Scope::All)];
    let columns = OF_CLASSES.map(|(_, metric)| (metric.to_string(), metric));
    grid(variant, "class", &scopes, &columns) + &grid(variant, "", &all, &facts)
}

/// A row for each of somebody, and a column for each figure.
fn grid(
    variant: &VariantReport,
    head: &str,
    scopes: &[(String, Scope)],
    columns: &[(String, Metric)],
) -> String {
    let names = columns.iter().map(|(name, _)| name.clone());
    let head: Vec<String> = std::iter::once(head.to_owned()).chain(names).collect();
    let rows = scopes.iter().map(|(name, scope)| {
        let cells = columns.iter().map(|(_, metric)| {
            let mean = variant.estimate(scope, *metric).map(|it| it.mean);
            cell(escaped(&numbers::maybe(metric.unit(), mean)))
        });
        std::iter::once(row_head(name)).chain(cells).collect()
    });
    table(&head, &rows.collect::<Vec<_>>())
}

/// Each variant against the first one.
fn side_by_side(report: &Report) -> String {
    let comparison = Comparison::of(&report.summaries());
    let first = comparison.variants.iter().take(1).cloned();
    // Each of the others has a column for how it differs.
    let others = comparison.variants.iter().skip(1).flat_map(|name| [name.clone(), String::new()]);
    let head: Vec<String> =
        std::iter::once("figure".to_owned()).chain(first).chain(others).collect();
    let mut rows = Vec::new();
    let mut scope = None;
    for line in &comparison.lines {
        // What is nothing everywhere is nothing to read; but that nothing is lost is.
        let nothing = line.cells.iter().all(|cell| cell.mean.unwrap_or(0.0) == 0.0);
        if nothing && line.metric != Metric::Lost {
            continue;
        }
        if scope != Some(&line.scope) {
            scope = Some(&line.scope);
            let who = match &line.scope {
                Scope::All => "everybody".to_owned(),
                Scope::Class(name) => format!("class {name}"),
                Scope::Tenant(name) => format!("tenant {name}"),
                Scope::Lane(name) => format!("lane {name}"),
            };
            let columns = head.len();
            rows.push(vec![format!(
                "<th class=\"who\" colspan=\"{columns}\">{}</th>",
                escaped(&who)
            )]);
        }
        rows.push(figure(line));
    }
    format!("{}<p class=\"note\">{}</p>\n", table(&head, &rows), escaped(CAUTION))
}

fn figure(line: &Line) -> Vec<String> {
    let unit = line.unit();
    let cells = line.cells.iter().enumerate().map(|(index, it)| {
        let mean = cell(escaped(&numbers::maybe(unit, it.mean)));
        let difference = it.difference.map_or_else(String::new, |it| changed(unit, &it));
        if index == 0 { mean } else { format!("{mean}<td class=\"change\">{difference}</td>") }
    });
    std::iter::once(row_head(&line.metric.to_string())).chain(cells).collect()
}

fn changed(unit: Unit, difference: &Difference) -> String {
    let (class, sign) = match difference.verdict {
        Change::Better => ("good", "▲ better"),
        Change::Worse => ("bad", "▼ worse"),
        verdict @ (Change::Less | Change::More | Change::NoneSeen | Change::OneSeed) => {
            ("soft", verdict.label())
        }
    };
    match plus_minus(unit, difference) {
        None => "<span class=\"soft\">the same</span>".to_owned(),
        Some(size) => {
            let size = escaped(&size);
            format!("<span class=\"{class}\">{sign}</span> <span class=\"soft\">{size}</span>")
        }
    }
}

fn section(plots: &[Plot], part: Part, title: &str, note: &str) -> String {
    let figures: String = plots
        .iter()
        .filter(|plot| plot.part == part)
        .map(|plot| format!("<figure>\n{}</figure>\n", plot.drawing.inline()))
        .collect();
    if figures.is_empty() {
        return String::new();
    }
    let class = if part == Part::Engines { "rows" } else { "plots" };
    format!(
        "<section>\n<h2>{title}</h2>\n<p class=\"note\">{note}</p>\n<div class=\"{class}\">\n{figures}</div>\n</section>\n"
    )
}

/// What there is to know of the lanes of a variant, who decided, and what went wrong.
fn details(variant: &VariantReport) -> String {
    let Some(run) = variant.runs.first().map(|run| &run.summary) else { return String::new() };
    let columns = OF_LANES.iter().map(|(name, _)| name.to_lowercase());
    let times = ["load, mean".to_owned(), "drain, mean".to_owned()];
    let head: Vec<String> =
        std::iter::once("lane".to_owned()).chain(columns).chain(times).collect();
    let rows = run.lanes.iter().map(|lane| {
        let scope = Scope::Lane(lane.name.clone());
        let cells = OF_LANES.iter().map(|(_, metric)| {
            let estimate = variant.estimate(&scope, *metric).map(|it| it.mean);
            cell(escaped(&numbers::maybe(metric.unit(), estimate)))
        });
        let times = [lane.of.load_mean, lane.of.drain_mean].map(|time| {
            let said =
                if time.is_zero() { "-".to_owned() } else { numbers::time(time.as_secs_f64()) };
            cell(escaped(&said))
        });
        std::iter::once(row_head(&lane.name)).chain(cells).chain(times).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let name = escaped(&variant.name);
    let said = said("who decided, first seed", &run.policies)
        + &said("what went wrong, first seed", &run.problems);
    let said =
        if said.is_empty() { said } else { format!("<div class=\"beside\">\n{said}</div>\n") };
    format!(
        "<details open=\"open\">\n<summary>Lanes: {name}</summary>\n{}{said}</details>\n",
        table(&head, &rows)
    )
}

fn said(head: &str, counted: &[Counted]) -> String {
    if counted.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = counted
        .iter()
        .map(|it| vec![row_head(&it.what), cell(escaped(&numbers::count(it.count as f64)))])
        .collect();
    table(&[head.to_owned(), "requests".to_owned()], &rows)
}
