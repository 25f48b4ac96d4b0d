//! Self-contained HTML reports: nothing is fetched, no script runs, and the page can be printed.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::compare::{Change, Comparison, Difference, Line};
use crate::metric::{Metric, Scope, Unit};
use crate::numbers;
use crate::objective::ObjectiveResult;
use crate::plots::{Plot, Section};
use crate::report::{Report, VariantReport};
use crate::summary::{EventCount, LaneStatistics, Named};
use crate::svg::{COLORS, RULES, SERIES, Text};
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
    let plots = report.plots();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (Text(&report.title)) }
                style { (PreEscaped(style_sheet())) }
            }
            body {
                main {
                    (head(report))
                    (objectives(report))
                    (statistics(report))
                    @for (section, title, note) in SECTIONS {
                        (plot_section(&plots, section, title, note))
                        @if section == Section::Engines {
                            @for variant in &report.variants { (details(variant)) }
                        }
                    }
                }
            }
        }
    };
    page.into_string() + "\n"
}

fn style_sheet() -> String {
    let (light, dark) = (colors(|color| color.1), colors(|color| color.2));
    format!(
        ":root {{ {light} }}\n\
         @media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n\
         {PAGE_CSS}{RULES}"
    )
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

fn head(report: &Report) -> Markup {
    html! {
        header {
            h1 { (Text(&report.title)) }
            @if !report.scenario.is_empty() {
                p class="scenario" { (Text(report.scenario.trim_end())) }
            }
            ul class="variants" {
                @for (index, variant) in report.variants.iter().enumerate() {
                    (variant_item(index, variant))
                }
            }
        }
    }
}

fn variant_item(index: usize, variant: &VariantReport) -> Markup {
    let all = variant.objectives.len();
    let met = variant.objectives.iter().filter(|judged| judged.met).count();
    let requests = variant.estimate(&Scope::All, Metric::Requests);
    html! {
        li {
            span class={ "swatch b" (index % SERIES) } {}
            strong { (Text(&variant.name)) }
            " "
            @if let Some(estimate) = requests { (numbers::count(estimate.mean)) " requests, " }
            (run_count(variant))
            @if all > 0 {
                " "
                @if met == all {
                    span class="good" { "✓ all " (all) " objectives met" }
                } @else {
                    span class="bad" { "✗ " (met) " of " (all) " objectives met" }
                }
            }
        }
    }
}

/// Renders a table from the text of its head and the cells of its rows.
fn table(head: &[String], rows: &[Markup]) -> Markup {
    html! {
        div class="wide" {
            table {
                thead { tr { @for cell in head { th scope="col" { (Text(cell)) } } } }
                tbody { @for row in rows { tr { (row) } "\n" } }
            }
        }
    }
}

fn row_head(text: &str) -> Markup {
    html! { th scope="row" { (Text(text)) } }
}

/// Renders the cells of metrics of one scope.
fn metric_cells<'a>(
    variant: &VariantReport,
    scope: &Scope,
    metrics: impl IntoIterator<Item = &'a Metric>,
) -> Markup {
    html! {
        @for metric in metrics {
            @let mean = variant.estimate(scope, *metric).map(|estimate| estimate.mean);
            td { (numbers::optional(metric.unit(), mean)) }
        }
    }
}

fn objectives(report: &Report) -> Markup {
    let Some(first) = report.variants.first().filter(|variant| !variant.objectives.is_empty())
    else {
        return Markup::default();
    };
    let names = report.variants.iter().map(|variant| variant.name.clone());
    let head: Vec<String> = std::iter::once("objective".to_owned()).chain(names).collect();
    let row = |(index, objective): (usize, &ObjectiveResult)| {
        html! {
            (row_head(&objective.objective))
            @for variant in &report.variants {
                td class="change" {
                    @if let Some(judged) = variant.objectives.get(index) {
                        (objective_result(judged))
                    }
                }
            }
        }
    };
    let rows: Vec<Markup> = first.objectives.iter().enumerate().map(row).collect();
    html! { section class="left" { h2 { "Objectives" } (table(&head, &rows)) } }
}

/// Renders whether an objective is met, and the values that decide it.
fn objective_result(judged: &ObjectiveResult) -> Markup {
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
    html! { span class=(class) { (verdict) } " " span class="soft" { (values) } }
}

/// Renders the statistics: by class if there is one variant, side by side if there are several.
fn statistics(report: &Report) -> Markup {
    let tables = match &report.variants[..] {
        [] => return Markup::default(),
        [variant] => single_variant(variant),
        _ => side_by_side(report),
    };
    html! { section { h2 { "Statistics" } (tables) } }
}

fn single_variant(variant: &VariantReport) -> Markup {
    let classes = variant.names(|run| run.classes.iter().map(|class| class.name.clone()).collect());
    let classes = classes.into_iter().map(|name| (name.clone(), Scope::Class(name)));
    let scopes: Vec<(String, Scope)> = classes.chain([("all".to_owned(), Scope::All)]).collect();
    let all = [("all".to_owned(), Scope::All)];
    html! {
        (grid(variant, "class", &scopes, &CLASS_COLUMNS.map(|(_, metric)| metric)))
        (grid(variant, "", &all, &Metric::RUN_METRICS))
    }
}

/// Renders a table with a row for each scope and a column for each metric.
fn grid(
    variant: &VariantReport,
    head: &str,
    scopes: &[(String, Scope)],
    metrics: &[Metric],
) -> Markup {
    let names = metrics.iter().map(ToString::to_string);
    let head: Vec<String> = std::iter::once(head.to_owned()).chain(names).collect();
    let row = |(name, scope): &(String, Scope)| {
        html! { (row_head(name)) (metric_cells(variant, scope, metrics)) }
    };
    table(&head, &scopes.iter().map(row).collect::<Vec<_>>())
}

/// Renders each variant in comparison with the first one.
fn side_by_side(report: &Report) -> Markup {
    let comparison = Comparison::new(&report.summaries());
    let first = comparison.variants.iter().take(1).cloned();
    let difference = |name: &String| [name.clone(), "difference".to_owned()];
    let others = comparison.variants.iter().skip(1).flat_map(difference);
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
            rows.push(html! { th class="scope" colspan=(head.len()) { (Text(&heading)) } });
        }
        rows.push(comparison_row(line));
    }
    html! { (table(&head, &rows)) p class="note" { (CAUTION) } }
}

fn comparison_row(line: &Line) -> Markup {
    let unit = line.unit();
    html! {
        (row_head(&line.metric.to_string()))
        @for (index, value) in line.cells.iter().enumerate() {
            td { (numbers::optional(unit, value.mean)) }
            @if index > 0 {
                td class="change" {
                    @if let Some(difference) = &value.difference { (change(unit, difference)) }
                }
            }
        }
    }
}

fn change(unit: Unit, difference: &Difference) -> Markup {
    let (class, sign) = match difference.verdict {
        Change::Better => ("good", "▲ better"),
        Change::Worse => ("bad", "▼ worse"),
        verdict @ (Change::Less | Change::More | Change::NotSignificant | Change::SingleSeed) => {
            ("soft", verdict.label())
        }
    };
    match plus_minus(unit, difference) {
        None => html! { span class="soft" { "equal" } },
        Some(size) => html! { span class=(class) { (sign) } " " span class="soft" { (size) } },
    }
}

fn plot_section(plots: &[Plot], section: Section, title: &str, note: &str) -> Markup {
    let plots: Vec<&Plot> = plots.iter().filter(|plot| plot.section == section).collect();
    if plots.is_empty() {
        return Markup::default();
    }
    let class = if section == Section::Engines { "rows" } else { "plots" };
    html! {
        section {
            h2 { (title) }
            p class="note" { (note) }
            div class=(class) { @for plot in plots { figure { (plot.drawing.inline()) } "\n" } }
        }
    }
}

/// Renders the lanes of a variant, its deciding policies, and its rejections and errors.
fn details(variant: &VariantReport) -> Markup {
    let Some(run) = variant.runs.first().map(|run| &run.summary) else { return Markup::default() };
    let metrics = LANE_COLUMNS.map(|(_, metric)| metric);
    let names = metrics.iter().map(ToString::to_string);
    let times = ["load mean".to_owned(), "drain mean".to_owned()];
    let head: Vec<String> = std::iter::once("lane".to_owned()).chain(names).chain(times).collect();
    let row = |lane: &Named<LaneStatistics>| {
        html! {
            (row_head(&lane.name))
            (metric_cells(variant, &Scope::Lane(lane.name.clone()), &metrics))
            @for time in [lane.value.load_mean, lane.value.drain_mean] {
                td { @if time.is_zero() { "-" } @else { (numbers::time(time.as_secs_f64())) } }
            }
        }
    };
    let rows: Vec<Markup> = run.lanes.iter().map(row).collect();
    html! {
        details open="open" {
            summary { "Lanes: " (Text(&variant.name)) }
            (table(&head, &rows))
            @if !(run.policies.is_empty() && run.problems.is_empty()) {
                div class="beside" {
                    (event_counts("decisions by policy, first seed", &run.policies))
                    (event_counts("rejections and errors, first seed", &run.problems))
                }
            }
            @for warning in &run.warnings { p class="note" { "Warning: " (Text(warning)) } }
        }
    }
}

fn event_counts(head: &str, counted: &[EventCount]) -> Markup {
    if counted.is_empty() {
        return Markup::default();
    }
    let row = |event: &EventCount| {
        html! { (row_head(&event.name)) td { (numbers::count(event.count as f64)) } }
    };
    let rows: Vec<Markup> = counted.iter().map(row).collect();
    table(&[head.to_owned(), "requests".to_owned()], &rows)
}

#[cfg(test)]
mod tests;
