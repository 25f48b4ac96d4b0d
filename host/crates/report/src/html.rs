//! Self-contained HTML reports: nothing is fetched, no script runs, and the page can be printed.

use std::fmt::Display;

use crate::compare::{Change, Comparison, Difference, Line};
use crate::metric::{Metric, Scope, Unit};
use crate::numbers;
use crate::objective::ObjectiveResult;
use crate::plots::{Plot, Section};
use crate::report::{Report, VariantReport};
use crate::summary::EventCount;
use crate::svg::{COLORS, RULES, SERIES, escaped};
use crate::text::{CAUTION, CLASS_COLUMNS, LANE_COLUMNS, plus_minus, run_count};

const PAGE_CSS: &str = include_str!("html/page.css");

impl Report {
    /// Renders the report as one self-contained HTML page: no scripts, no external files, with
    /// light, dark and print styles.
    pub fn html(&self) -> String {
        render(self)
    }
}

fn render(report: &Report) -> String {
    let title = escaped(&report.title);
    let (light, dark) = (colors(|color| color.1), colors(|color| color.2));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n<style>\n\
         :root {{ {light} }}\n\
         @media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n\
         {PAGE_CSS}{RULES}</style>\n</head>\n<body>\n<main>\n"
    );
    page.push_str(&head(report));
    page.push_str(&objectives(report));
    page.push_str(&statistics(report));
    let plots = report.plots();
    for (section, title, note) in SECTIONS {
        page.push_str(&plot_section(&plots, section, title, note));
        if section == Section::Engines {
            report.variants.iter().for_each(|variant| page.push_str(&details(variant)));
        }
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

const SECTIONS: [(Section, &str, &str); 5] = [
    (
        Section::Sweep,
        "Parameter sweep",
        "Means over the seeds. Error bars are 95 % confidence intervals.",
    ),
    (
        Section::Waits,
        "Latency",
        "All seeds. Latency by percentile. The wait time includes requests whose client \
         disconnected while they were waiting.",
    ),
    (
        Section::Engines,
        "Engines",
        "First seed. Spans too short to be seen are drawn wider, except busy and idle ones.",
    ),
    (Section::OverTime, "Over time", "First seed. Hover over a plot to see its values."),
    (
        Section::Tenants,
        "Tenants",
        "First seed. A flat line means that all tenants are treated equally. Fairness is Jain's \
         index of the tenants' promptness: 1 if all are equal, 1/n if only one of n tenants \
         is served.",
    ),
];

fn colors(select: fn(&(&'static str, &'static str, &'static str)) -> &'static str) -> String {
    COLORS
        .iter()
        .map(|color| format!("{}: {};", color.0, select(color)))
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
        let (met, all) = (
            variant.objectives.iter().filter(|judged| judged.met).count(),
            variant.objectives.len(),
        );
        let verdict = match (met, all) {
            (_, 0) => String::new(),
            _ if met == all => format!("<span class=\"good\">✓ all {all} objectives met</span>"),
            _ => format!("<span class=\"bad\">✗ {met} of {all} objectives met</span>"),
        };
        let requests = variant.estimate(&Scope::All, Metric::Requests);
        let requests = requests.map_or_else(String::new, |estimate| {
            format!("{} requests, ", numbers::count(estimate.mean))
        });
        text.push_str(&format!(
            "<li><span class=\"swatch b{}\"></span><strong>{}</strong> {requests}{} {verdict}\
             </li>\n",
            index % SERIES,
            escaped(&variant.name),
            escaped(&run_count(variant)),
        ));
    }
    text.push_str("</ul>\n</header>\n");
    text
}

/// Renders a table from the text of its head and the HTML cells of its rows.
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

fn cell(content: impl Display) -> String {
    format!("<td>{content}</td>")
}

fn row_head(text: &str) -> String {
    format!("<th scope=\"row\">{}</th>", escaped(text))
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
            let result = variant.objectives.get(index).map_or_else(String::new, objective_result);
            format!("<td class=\"change\">{result}</td>")
        });
        std::iter::once(row_head(&objective.objective)).chain(cells).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    format!("<section class=\"left\">\n<h2>Objectives</h2>\n{}</section>\n", table(&head, &rows))
}

/// Renders whether an objective is met, and the values that decide it.
fn objective_result(judged: &ObjectiveResult) -> String {
    let (class, verdict) = if judged.met { ("good", "✓ met") } else { ("bad", "✗ not met") };
    let unit = judged.metric.unit();
    let mut values = numbers::optional(unit, judged.mean);
    let worst = numbers::optional(unit, judged.worst);
    if worst != values {
        values.push_str(&format!(", worst {worst}"));
    }
    if !judged.met && judged.runs_met > 0 {
        values.push_str(&format!(", met by {} of {} seeds", judged.runs_met, judged.runs));
    }
    format!(
        "<span class=\"{class}\">{verdict}</span> <span class=\"soft\">{}</span>",
        escaped(&values)
    )
}

/// Renders the statistics: by class if there is one variant, side by side if there are several.
fn statistics(report: &Report) -> String {
    let tables = match &report.variants[..] {
        [] => return String::new(),
        [variant] => single_variant(variant),
        _ => side_by_side(report),
    };
    format!("<section>\n<h2>Statistics</h2>\n{tables}</section>\n")
}

fn single_variant(variant: &VariantReport) -> String {
    let classes = variant.names(|run| run.classes.iter().map(|class| class.name.clone()).collect());
    let classes = classes.into_iter().map(|name| (name.clone(), Scope::Class(name)));
    let scopes: Vec<(String, Scope)> = classes.chain([("all".to_owned(), Scope::All)]).collect();
    let run_metrics = Metric::RUN_METRICS.map(|metric| (metric.to_string(), metric));
    let all = [("all".to_owned(), Scope::All)];
    let columns = CLASS_COLUMNS.map(|(_, metric)| (metric.to_string(), metric));
    grid(variant, "class", &scopes, &columns) + &grid(variant, "", &all, &run_metrics)
}

/// Renders a table with a row for each scope and a column for each metric.
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
            let mean = variant.estimate(scope, *metric).map(|estimate| estimate.mean);
            cell(escaped(&numbers::optional(metric.unit(), mean)))
        });
        std::iter::once(row_head(name)).chain(cells).collect()
    });
    table(&head, &rows.collect::<Vec<_>>())
}

/// Renders each variant in comparison with the first one.
fn side_by_side(report: &Report) -> String {
    let comparison = Comparison::new(&report.summaries());
    let first = comparison.variants.iter().take(1).cloned();
    // The column of differences that follows each of the other variants has no name.
    let others = comparison.variants.iter().skip(1).flat_map(|name| [name.clone(), String::new()]);
    let head: Vec<String> =
        std::iter::once("metric".to_owned()).chain(first).chain(others).collect();
    let mut rows = Vec::new();
    let mut scope = None;
    for line in &comparison.lines {
        // A metric that is zero everywhere carries no information, except that no request is lost.
        let is_zero = line.cells.iter().all(|cell| cell.mean.unwrap_or(0.0) == 0.0);
        if is_zero && line.metric != Metric::Lost {
            continue;
        }
        if scope != Some(&line.scope) {
            scope = Some(&line.scope);
            let heading = match &line.scope {
                Scope::All => "all requests".to_owned(),
                Scope::Class(name) => format!("class {name}"),
                Scope::Tenant(name) => format!("tenant {name}"),
                Scope::Lane(name) => format!("lane {name}"),
            };
            let columns = head.len();
            rows.push(vec![format!(
                "<th class=\"scope\" colspan=\"{columns}\">{}</th>",
                escaped(&heading)
            )]);
        }
        rows.push(comparison_row(line));
    }
    format!("{}<p class=\"note\">{}</p>\n", table(&head, &rows), escaped(CAUTION))
}

fn comparison_row(line: &Line) -> Vec<String> {
    let unit = line.unit();
    let cells = line.cells.iter().enumerate().map(|(index, value)| {
        let mean = cell(escaped(&numbers::optional(unit, value.mean)));
        let difference =
            value.difference.map_or_else(String::new, |difference| change(unit, &difference));
        if index == 0 { mean } else { format!("{mean}<td class=\"change\">{difference}</td>") }
    });
    std::iter::once(row_head(&line.metric.to_string())).chain(cells).collect()
}

fn change(unit: Unit, difference: &Difference) -> String {
    let (class, sign) = match difference.verdict {
        Change::Better => ("good", "▲ better"),
        Change::Worse => ("bad", "▼ worse"),
        verdict @ (Change::Less | Change::More | Change::NotSignificant | Change::SingleSeed) => {
            ("soft", verdict.label())
        }
    };
    match plus_minus(unit, difference) {
        None => "<span class=\"soft\">equal</span>".to_owned(),
        Some(size) => {
            let size = escaped(&size);
            format!("<span class=\"{class}\">{sign}</span> <span class=\"soft\">{size}</span>")
        }
    }
}

fn plot_section(plots: &[Plot], section: Section, title: &str, note: &str) -> String {
    let drawings: String = plots
        .iter()
        .filter(|plot| plot.section == section)
        .map(|plot| format!("<figure>\n{}</figure>\n", plot.drawing.inline()))
        .collect();
    if drawings.is_empty() {
        return String::new();
    }
    let class = if section == Section::Engines { "rows" } else { "plots" };
    format!(
        "<section>\n<h2>{title}</h2>\n<p class=\"note\">{note}</p>\n<div class=\"{class}\">\n\
         {drawings}</div>\n</section>\n"
    )
}

/// Renders the lanes of a variant, its deciding policies, and its rejections and errors.
fn details(variant: &VariantReport) -> String {
    let Some(run) = variant.runs.first().map(|run| &run.summary) else { return String::new() };
    let columns = LANE_COLUMNS.map(|(_, metric)| (metric.to_string(), metric));
    let names = columns.iter().map(|(name, _)| name.clone());
    let times = ["load mean".to_owned(), "drain mean".to_owned()];
    let head: Vec<String> = std::iter::once("lane".to_owned()).chain(names).chain(times).collect();
    let rows = run.lanes.iter().map(|lane| {
        let scope = Scope::Lane(lane.name.clone());
        let cells = columns.iter().map(|(_, metric)| {
            let mean = variant.estimate(&scope, *metric).map(|estimate| estimate.mean);
            cell(escaped(&numbers::optional(metric.unit(), mean)))
        });
        let times = [lane.value.load_mean, lane.value.drain_mean].map(|time| {
            let text =
                if time.is_zero() { "-".to_owned() } else { numbers::time(time.as_secs_f64()) };
            cell(escaped(&text))
        });
        std::iter::once(row_head(&lane.name)).chain(cells).chain(times).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let name = escaped(&variant.name);
    let counts = event_counts("decisions by policy, first seed", &run.policies)
        + &event_counts("rejections and errors, first seed", &run.problems);
    let counts = if counts.is_empty() {
        counts
    } else {
        format!("<div class=\"beside\">\n{counts}</div>\n")
    };
    format!(
        "<details open=\"open\">\n<summary>Lanes: {name}</summary>\n{}{counts}</details>\n",
        table(&head, &rows)
    )
}

fn event_counts(head: &str, counted: &[EventCount]) -> String {
    if counted.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = counted
        .iter()
        .map(|event| {
            vec![row_head(&event.name), cell(escaped(&numbers::count(event.count as f64)))]
        })
        .collect();
    table(&[head.to_owned(), "requests".to_owned()], &rows)
}

#[cfg(test)]
mod tests;
