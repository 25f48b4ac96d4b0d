//! The plots of a report. If there is one variant, the series of a plot are its classes or lanes;
//! if there are several, each class and lane has a plot of its own, whose series are the variants.

mod over_time;

use std::time::Duration;

use crate::histogram::Histogram;
use crate::metric::{Metric, Scope, Unit};
use crate::numbers;
use crate::phase::{PHASES, Phase};
use crate::report::{Report, VariantReport};
use crate::run::{LatencyHistograms, Run};
use crate::svg::{Axis, Bar, Bars, Chart, DataSeries, Drawing, Form, Row};
use crate::sweep::Sweep;

/// A plot of a report.
#[derive(Debug, Clone)]
pub struct Plot {
    /// Name of the plot, which is suitable as a file name: `wait-interactive`.
    pub name: String,
    /// Section of the report that the plot belongs to.
    pub section: Section,
    pub(crate) drawing: Drawing,
}

/// A section of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Latency by percentile.
    Waits,
    /// Statistics over time.
    OverTime,
    /// Engine states over time.
    Engines,
    /// Fairness between tenants.
    Tenants,
    /// Metrics by value of a swept key.
    Sweep,
}

impl Plot {
    fn new(section: Section, name: &str, drawing: Drawing) -> Self {
        let safe =
            name.chars().map(|c| if c.is_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
        Self { name: safe.collect(), section, drawing }
    }

    /// Renders the plot as an SVG file of its own, in light colors.
    pub fn svg(&self) -> String {
        self.drawing.standalone()
    }
}

impl Report {
    /// Draws the plots of the HTML page, each of which is also available as an SVG file of its own.
    pub fn plots(&self) -> Vec<Plot> {
        draw(self)
    }
}

/// Draws all plots that have data.
fn draw(report: &Report) -> Vec<Plot> {
    let mut plots = histograms(report);
    plots.extend(over_time::draw(report));
    plots.extend(report.variants.iter().filter_map(timeline));
    plots.extend(tenants(report));
    plots.extend(report.sweep.iter().flat_map(sweep));
    plots
}

/// A plot without axes: the class or lane that it shows, and its series.
struct Panel {
    subject: Option<String>,
    lines: Vec<DataSeries>,
}

/// Groups the values of all names and variants into panels.
fn panels<T>(
    report: &Report,
    names: &[String],
    values: impl Fn(usize, usize) -> Option<T>,
) -> Vec<PanelData<T>> {
    let line = |name: &str, color: usize, values: T| {
        (DataSeries { name: name.to_owned(), color, ..DataSeries::default() }, values)
    };
    if report.variants.len() == 1 {
        let lines = names
            .iter()
            .enumerate()
            .filter_map(|(index, name)| Some(line(name, index, values(0, index)?)));
        return vec![(None, lines.collect())];
    }
    let panel = |(index, name): (usize, &String)| {
        let variants = report.variants.iter().enumerate();
        let lines = variants
            .filter_map(|(color, variant)| Some(line(&variant.name, color, values(color, index)?)));
        (Some(name.clone()), lines.collect())
    };
    names.iter().enumerate().map(panel).collect()
}

type PanelData<T> = (Option<String>, Vec<(DataSeries, T)>);

fn titled(title: &str, subject: Option<&String>) -> String {
    subject.map_or_else(|| title.to_owned(), |subject| format!("{title}: {subject}"))
}

fn class_names(report: &Report) -> Vec<String> {
    names(report, |run| run.summary.classes.iter().map(|class| class.name.clone()).collect())
}

fn lane_names(report: &Report) -> Vec<String> {
    names(report, |run| run.summary.lanes.iter().map(|lane| lane.name.clone()).collect())
}

/// Returns the names of the first variant. Names that only other variants have are not shown.
fn names(report: &Report, list: fn(&Run) -> Vec<String>) -> Vec<String> {
    report.variants.iter().find_map(|variant| variant.runs.first()).map(list).unwrap_or_default()
}

/// Selects one of the histograms of a class.
type HistogramSelector = fn(&LatencyHistograms) -> &Histogram;

/// Percentiles that are drawn, from 0 to 1.
const PERCENTILES: [f64; 18] = [
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995,
    0.999,
];

fn histograms(report: &Report) -> Vec<Plot> {
    let names = class_names(report);
    let kinds: [(&str, &str, HistogramSelector); 2] = [
        ("wait", "Wait time", |histograms| &histograms.wait),
        ("first-byte", "Time to first byte", |histograms| &histograms.first_byte),
    ];
    let mut drawn = Vec::new();
    for (file, title, select) in kinds {
        for (name, lines) in panels(report, &names, |variant, class| {
            merged_seeds(&report.variants[variant], class, select)
        }) {
            let lines = lines.into_iter().map(|(line, histogram)| {
                // A percentile needs at least one request beyond it: 20 requests have no 99th
                // percentile.
                let known = 1.0 - 1.0 / histogram.count() as f64;
                let values = PERCENTILES.map(|part| {
                    histogram
                        .quantile(part)
                        .filter(|_| part <= known)
                        .map(|time| time.as_secs_f64())
                });
                DataSeries { values: values.to_vec(), ..line }
            });
            let panel = Panel { subject: name, lines: lines.collect() };
            let places = PERCENTILES
                .map(|part| (part, format!("{} of requests within", numbers::share(part))))
                .to_vec();
            let x = Axis::percentiles("percentile of requests");
            drawn.extend(times_chart(Section::Waits, (file, title), panel, x, places));
        }
    }
    // Sort by class, with wait time and time to first byte next to each other.
    let classes = drawn.len() / 2;
    if drawn.len() == classes * 2 && classes > 1 {
        let second = drawn.split_off(classes);
        return drawn.into_iter().zip(second).flat_map(|(a, b)| [a, b]).collect();
    }
    drawn
}

/// Merges the histograms of a class over all seeds; `None` if they are empty.
fn merged_seeds(
    variant: &VariantReport,
    class: usize,
    select: HistogramSelector,
) -> Option<Histogram> {
    let mut all = Histogram::default();
    variant
        .runs
        .iter()
        .filter_map(|run| run.histograms.get(class))
        .for_each(|histograms| all.merge(select(histograms)));
    (all.count() > 0).then_some(all)
}

/// Draws durations on a logarithmic axis, because they differ by orders of magnitude.
fn times_chart(
    section: Section,
    (file, title): (&str, &str),
    panel: Panel,
    x: Axis,
    places: Vec<(f64, String)>,
) -> Option<Plot> {
    let values = panel.lines.iter().flat_map(|line| line.values.iter().flatten().copied());
    let y = Axis::times("", values);
    let title = titled(title, panel.subject.as_ref());
    let name = panel.subject.map_or_else(|| file.to_owned(), |subject| format!("{file}-{subject}"));
    let chart =
        Chart { title, x, y, unit: Unit::Time, places, lines: panel.lines, form: Form::Lines };
    (!chart.lines.is_empty()).then(|| Plot::new(section, &name, chart.draw()))
}

/// Draws the phases of each lane's engine in the run of the first seed.
fn timeline(variant: &VariantReport) -> Option<Plot> {
    let run = variant.runs.first()?;
    let duration = run.summary.duration;
    let mut seen = [false; PHASES];
    let rows = run.timelines.iter().zip(&run.summary.lanes).map(|(timeline, lane)| {
        // Merge spans below half a pixel; if there are still more bars than pixels, merge loads and
        // stops as well.
        let mut shown = timeline.simplified(duration / 1_500, false);
        if shown.spans().count() > 1_500 {
            shown = timeline.simplified(duration / 1_500, true);
        }
        shown.spans().for_each(|(.., phase)| seen[phase as usize] = true);
        let mut bars: Vec<Bar> =
            shown.spans().filter(|span| span.2 != Phase::Cold).map(bar).collect();
        bars.sort_by_key(|bar| bar.always_seen);
        let loads = match lane.value.loads {
            0 => String::new(),
            1 => "1 load, ".to_owned(),
            loads => format!("{} loads, ", numbers::count(loads as f64)),
        };
        let remark = format!("{loads}{} busy", numbers::share(lane.value.busy));
        Row { name: lane.name.clone(), remark, bars }
    });
    let rows: Vec<Row> = rows.collect();
    let legend = Phase::ALL.into_iter().filter(|phase| seen[*phase as usize]);
    let bars = Bars {
        title: format!("Engine states: {}, seed {}", variant.name, run.summary.seed),
        x: Axis::run(duration.as_secs_f64(), 12.0),
        legend: legend.map(|phase| (phase.label().to_owned(), phase.label().to_owned())).collect(),
        rows,
    };
    Some(Plot::new(Section::Engines, &format!("engines-{}", variant.name), bars.draw()))
}

/// Formats a time of a run as `26:05:00`.
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
    let lines = report.variants.iter().enumerate().filter_map(|(color, variant)| {
        let tenants = &variant.runs.first()?.summary.tenants;
        let mut values: Vec<f64> =
            tenants.iter().filter_map(|tenant| tenant.value.promptness).collect();
        values.sort_unstable_by(f64::total_cmp);
        let index = variant.estimate(&Scope::All, Metric::Fairness)?.mean;
        let name = format!("{}, fairness {}", variant.name, numbers::digits(index));
        Some(DataSeries {
            name,
            color,
            values: values.into_iter().map(Some).collect(),
            ..DataSeries::default()
        })
    });
    let lines: Vec<DataSeries> = lines.collect();
    let count = lines.iter().map(|line| line.values.len()).max()?;
    let chart = Chart {
        title: "Promptness by tenant (share of the request time spent in service)".to_owned(),
        x: Axis::ranks("tenants by promptness, ascending", count),
        y: Axis::linear("", Unit::Share, 1.0),
        unit: Unit::Share,
        places: (1..=count)
            .map(|rank| (rank as f64, format!("tenant {rank} of {count}")))
            .collect(),
        lines,
        form: if count > 40 { Form::Lines } else { Form::Dots },
    };
    (count > 1).then(|| Plot::new(Section::Tenants, "tenants", chart.draw()))
}

fn sweep(sweep: &Sweep) -> Vec<Plot> {
    let values = sweep.values();
    // If some values are not numbers, all values are equally spaced.
    let number = |value: &str| {
        sweep.points.iter().find(|point| point.value == value).and_then(|point| point.number)
    };
    let all_numbers = values.iter().all(|value| number(value).is_some_and(f64::is_finite));
    let place = |(index, value): (usize, &&str)| {
        number(value).filter(|_| all_numbers).unwrap_or(index as f64)
    };
    let mut places: Vec<(f64, &str)> =
        values.iter().enumerate().map(|entry| (place(entry), *entry.1)).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    let drawn = sweep.metrics().into_iter().filter_map(|(scope, metric)| {
        let line = |(color, name): (usize, &str)| {
            let at = |(_, value): &(f64, &str)| sweep.point(name, value)?.estimate(&scope, metric);
            let estimates: Vec<_> = places.iter().map(at).collect();
            DataSeries {
                name: name.to_owned(),
                color,
                values: estimates.iter().map(|point| point.map(|estimate| estimate.mean)).collect(),
                halves: estimates
                    .iter()
                    .map(|point| point.and_then(|estimate| estimate.half))
                    .collect(),
                secondary: false,
            }
        };
        let lines: Vec<DataSeries> = sweep.lines().into_iter().enumerate().map(line).collect();
        let tops = lines.iter().flat_map(|line| {
            let halves = line.halves.iter().map(|half| half.unwrap_or(0.0));
            line.values
                .iter()
                .zip(halves)
                .filter_map(|(value, half)| value.map(|value| value + half))
        });
        let max =
            tops.fold(None, |max: Option<f64>, top| Some(max.map_or(top, |max| max.max(top))))?;
        let chart = Chart {
            title: format!("{scope}{metric}"),
            x: Axis::values(&sweep.parameter, &places),
            y: Axis::linear("", metric.unit(), if metric == Metric::Fairness { 1.0 } else { max }),
            unit: metric.unit(),
            places: places
                .iter()
                .map(|(place, value)| (*place, format!("{} = {value}", sweep.parameter)))
                .collect(),
            lines,
            form: Form::Dots,
        };
        Some(Plot::new(Section::Sweep, &format!("sweep-{scope}{metric}"), chart.draw()))
    });
    drawn.collect()
}
