//! The plots of a report. With one variant, its classes and lanes are the lines of a plot; with several, the variants are, and
//! each class and lane has a plot of its own.

mod over_time;

use std::time::Duration;

use super::collector::{Distribution, Run};
use super::phase::Phase;
use super::svg::{Axis, Bar, Bars, Chart, Drawing, Form, Line, Row};
use super::{Report, Sweep, VariantReport, numbers};
use crate::histogram::Histogram;
use crate::metric::{Metric, Scope, Unit};

/// One plot of a report.
#[derive(Debug, Clone)]
pub struct Plot {
    /// What it shows, as a name for a file: `wait-interactive`.
    pub name: String,
    /// Where it belongs.
    pub part: Part,
    pub(super) drawing: Drawing,
}

/// A part of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// How long people waited.
    Waits,
    /// What happened when.
    OverTime,
    /// What engines were at.
    Engines,
    /// How tenants were treated.
    Tenants,
    /// What becomes of figures when a setting changes.
    Sweep,
}

impl Plot {
    fn new(part: Part, name: &str, drawing: Drawing) -> Self {
        let safe =
            name.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
        Self { name: safe.collect(), part, drawing }
    }

    /// As a file of its own, with fixed colours.
    pub fn svg(&self) -> String {
        self.drawing.alone()
    }
}

/// All plots that there is something to see on.
pub(super) fn of(report: &Report) -> Vec<Plot> {
    let mut plots = distributions(report);
    plots.extend(over_time::of(report));
    plots.extend(report.variants.iter().filter_map(timeline));
    plots.extend(tenants(report));
    plots.extend(report.sweep.iter().flat_map(sweep));
    plots
}

/// A plot before it has axes: what it is of, and its lines.
struct Panel {
    of: Option<String>,
    lines: Vec<Line>,
}

/// Lines for each name and variant, as panels.
fn panels<T>(
    report: &Report,
    names: &[String],
    of: impl Fn(usize, usize) -> Option<T>,
) -> Vec<PanelOf<T>> {
    let line = |name: &str, colour: usize, values: T| {
        (Line { name: name.to_owned(), colour, ..Line::default() }, values)
    };
    if report.variants.len() == 1 {
        let lines = names
            .iter()
            .enumerate()
            .filter_map(|(index, name)| Some(line(name, index, of(0, index)?)));
        return vec![(None, lines.collect())];
    }
    let of_name = |(index, name): (usize, &String)| {
        let variants = report.variants.iter().enumerate();
        let lines =
            variants.filter_map(|(colour, it)| Some(line(&it.name, colour, of(colour, index)?)));
        (Some(name.clone()), lines.collect())
    };
    names.iter().enumerate().map(of_name).collect()
}

type PanelOf<T> = (Option<String>, Vec<(Line, T)>);

fn titled(title: &str, of: Option<&String>) -> String {
    of.map_or_else(|| title.to_owned(), |of| format!("{title}: {of}"))
}

fn class_names(report: &Report) -> Vec<String> {
    names(report, |run| run.summary.classes.iter().map(|it| it.name.clone()).collect())
}

fn lane_names(report: &Report) -> Vec<String> {
    names(report, |run| run.summary.lanes.iter().map(|it| it.name.clone()).collect())
}

/// Of the first variant; those of the others are the same, or are not shown.
fn names(report: &Report, of: fn(&Run) -> Vec<String>) -> Vec<String> {
    report.variants.iter().find_map(|variant| variant.runs.first()).map(of).unwrap_or_default()
}

/// One of the histograms of a class.
type Times = fn(&Distribution) -> &Histogram;

/// Percentiles that are drawn.
const PARTS: [f64; 18] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995,
    0.999,
];

fn distributions(report: &Report) -> Vec<Plot> {
    let names = class_names(report);
    let kinds: [(&str, &str, Times); 2] = [
        ("wait", "Wait", |it| &it.wait),
        ("first-byte", "Time to the first byte", |it| &it.first_byte),
    ];
    let mut drawn = Vec::new();
    for (file, title, of) in kinds {
        for (name, lines) in
            panels(report, &names, |variant, class| together(&report.variants[variant], class, of))
        {
            let lines = lines.into_iter().map(|(line, histogram)| {
                // What happened once in a hundred is not known of twenty.
                let known = 1.0 - 1.0 / histogram.count() as f64;
                let values = PARTS.map(|part| {
                    histogram
                        .quantile(part)
                        .filter(|_| part <= known)
                        .map(|time| time.as_secs_f64())
                });
                Line { values: values.to_vec(), ..line }
            });
            let panel = Panel { of: name, lines: lines.collect() };
            let places = PARTS
                .map(|part| (part, format!("{} of requests, at most", numbers::share(part))))
                .to_vec();
            let x = Axis::percentiles("share of the requests that took no longer");
            drawn.extend(times_chart(Part::Waits, (file, title), panel, x, places));
        }
    }
    // By class, with wait and first byte next to each other.
    let classes = drawn.len() / 2;
    if drawn.len() == classes * 2 && classes > 1 {
        let second = drawn.split_off(classes);
        return drawn.into_iter().zip(second).flat_map(|(a, b)| [a, b]).collect();
    }
    drawn
}

/// One class over all seeds.
fn together(variant: &VariantReport, class: usize, of: Times) -> Option<Histogram> {
    let mut all = Histogram::default();
    variant
        .runs
        .iter()
        .filter_map(|run| run.distributions.get(class))
        .for_each(|it| all.merge(of(it)));
    (all.count() > 0).then_some(all)
}

/// A plot of times that differ a lot.
fn times_chart(
    part: Part,
    (file, title): (&str, &str),
    panel: Panel,
    x: Axis,
    places: Vec<(f64, String)>,
) -> Option<Plot> {
    let values = panel.lines.iter().flat_map(|line| line.values.iter().flatten().copied());
    let y = Axis::times("", values);
    let title = titled(title, panel.of.as_ref());
    let name = panel.of.map_or_else(|| file.to_owned(), |of| format!("{file}-{of}"));
    let chart =
        Chart { title, x, y, unit: Unit::Time, places, lines: panel.lines, form: Form::Lines };
    (!chart.lines.is_empty()).then(|| Plot::new(part, &name, chart.draw()))
}

/// What each lane was at, with the first seed.
fn timeline(variant: &VariantReport) -> Option<Plot> {
    let run = variant.runs.first()?;
    let lasted = run.summary.lasted;
    let mut seen = [false; super::PHASES];
    let rows = run.timelines.iter().zip(&run.summary.lanes).map(|(timeline, lane)| {
        // Half a pixel; and no more bars than there are pixels.
        let mut shown = timeline.coarser(lasted / 1_500, false);
        if shown.spans().count() > 1_500 {
            shown = timeline.coarser(lasted / 1_500, true);
        }
        shown.spans().for_each(|(.., phase)| seen[phase as usize] = true);
        let mut bars: Vec<Bar> =
            shown.spans().filter(|span| span.2 != Phase::Cold).map(bar).collect();
        bars.sort_by_key(|bar| bar.always_seen);
        let loads = match lane.of.loads {
            0 => String::new(),
            1 => "1 load, ".to_owned(),
            loads => format!("{} loads, ", numbers::count(loads as f64)),
        };
        let remark = format!("{loads}{} busy", numbers::share(lane.of.busy));
        Row { name: lane.name.clone(), remark, bars }
    });
    let rows: Vec<Row> = rows.collect();
    let legend = Phase::ALL.into_iter().filter(|phase| seen[*phase as usize]);
    let bars = Bars {
        title: format!("What the engines were at: {}, seed {}", variant.name, run.summary.seed),
        x: Axis::run(lasted.as_secs_f64(), 12.0),
        legend: legend.map(|phase| (phase.label().to_owned(), phase.label().to_owned())).collect(),
        rows,
    };
    Some(Plot::new(Part::Engines, &format!("engines-{}", variant.name), bars.draw()))
}

/// A moment of a run: `26:05`, or with seconds in short runs.
fn clock(at: Duration) -> String {
    let seconds = at.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn bar((from, to, phase): (Duration, Duration, Phase)) -> Bar {
    let took = numbers::time((to - from).as_secs_f64());
    Bar {
        from: from.as_secs_f64(),
        to: to.as_secs_f64(),
        class: phase.label(),
        title: format!("{} for {took}, {} to {}", phase.label(), clock(from), clock(to)),
        always_seen: !matches!(phase, Phase::Busy | Phase::Idle),
    }
}

fn tenants(report: &Report) -> Option<Plot> {
    let lines = report.variants.iter().enumerate().filter_map(|(colour, variant)| {
        let tenants = &variant.runs.first()?.summary.tenants;
        let mut values: Vec<f64> =
            tenants.iter().filter_map(|tenant| tenant.of.promptness).collect();
        values.sort_unstable_by(f64::total_cmp);
        let index = variant.estimate(&Scope::All, Metric::Fairness)?.mean;
        let name = format!("{}, fairness {}", variant.name, numbers::digits(index));
        Some(Line {
            name,
            colour,
            values: values.into_iter().map(Some).collect(),
            ..Line::default()
        })
    });
    let lines: Vec<Line> = lines.collect();
    let count = lines.iter().map(|line| line.values.len()).max()?;
    let chart = Chart {
        title: "Promptness of each tenant: the part of its time in which it was served".to_owned(),
        x: Axis::ranks("tenants, from the least to the most promptly served one", count),
        y: Axis::linear("", Unit::Share, 1.0),
        unit: Unit::Share,
        places: (1..=count)
            .map(|rank| (rank as f64, format!("tenant {rank} of {count}")))
            .collect(),
        lines,
        form: if count > 40 { Form::Lines } else { Form::Dots },
    };
    (count > 1).then(|| Plot::new(Part::Tenants, "tenants", chart.draw()))
}

fn sweep(sweep: &Sweep) -> Vec<Plot> {
    let values = sweep.values();
    // Values that are no numbers are equally far from each other.
    let number = |value: &str| {
        sweep.points.iter().find(|point| point.value == value).and_then(|point| point.number)
    };
    let all_numbers = values.iter().all(|value| number(value).is_some_and(f64::is_finite));
    let place = |(index, value): (usize, &&str)| {
        number(value).filter(|_| all_numbers).unwrap_or(index as f64)
    };
    let mut places: Vec<(f64, &str)> =
        values.iter().enumerate().map(|it| (place(it), *it.1)).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    let drawn = sweep.figures().into_iter().filter_map(|(scope, metric)| {
        let line = |(colour, name): (usize, &str)| {
            let at = |(_, value): &(f64, &str)| sweep.point(name, value)?.estimate(&scope, metric);
            let estimates: Vec<_> = places.iter().map(at).collect();
            Line {
                name: name.to_owned(),
                colour,
                values: estimates.iter().map(|it| it.map(|it| it.mean)).collect(),
                halves: estimates.iter().map(|it| it.and_then(|it| it.half)).collect(),
                aside: false,
            }
        };
        let lines: Vec<Line> = sweep.lines().into_iter().enumerate().map(line).collect();
        let tops = lines.iter().flat_map(|line| {
            let halves = line.halves.iter().map(|half| half.unwrap_or(0.0));
            line.values
                .iter()
                .zip(halves)
                .filter_map(|(value, half)| value.map(|value| value + half))
        });
        let most =
            tops.fold(None, |most: Option<f64>, top| Some(most.map_or(top, |most| most.max(top))))?;
        let chart = Chart {
            title: format!("{scope}{metric}"),
            x: Axis::values(&sweep.parameter, &places),
            y: Axis::linear("", metric.unit(), if metric == Metric::Fairness { 1.0 } else { most }),
            unit: metric.unit(),
            places: places
                .iter()
                .map(|(place, value)| (*place, format!("{} = {value}", sweep.parameter)))
                .collect(),
            lines,
            form: Form::Dots,
        };
        Some(Plot::new(Part::Sweep, &format!("sweep-{scope}{metric}"), chart.draw()))
    });
    drawn.collect()
}
