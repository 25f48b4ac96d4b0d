//! Plots of statistics over the time of a run.

use std::time::Duration;

use super::{PanelData, Plot, Section, class_names, clock, lane_names, panels, titled};
use crate::metric::Unit;
use crate::numbers;
use crate::report::Report;
use crate::run::Run;
use crate::series::{ClassInterval, Interval, LaneInterval};
use crate::svg::{Axis, Chart, DataSeries, Form};

/// The first seeds of all variants, in intervals of one length.
struct Intervals {
    length: Duration,
    duration: f64,
    /// The intervals of each variant.
    all: Vec<Vec<Interval>>,
}

impl Intervals {
    const MAX_INTERVALS: usize = 100;

    fn new(report: &Report) -> Option<Self> {
        let firsts = || report.variants.iter().map(|variant| variant.runs.first());
        let downsampled = |run: &Run, min_length: Duration| {
            run.series.downsampled(Self::MAX_INTERVALS, min_length)
        };
        let length =
            firsts().flatten().map(|run| downsampled(run, Duration::ZERO).length()).max()?;
        let duration = firsts().flatten().map(|run| run.summary.duration).max()?.as_secs_f64();
        let intervals = |run: Option<&Run>| {
            run.map(|run| downsampled(run, length).intervals().to_vec()).unwrap_or_default()
        };
        Some(Self { length, duration, all: firsts().map(intervals).collect() })
    }

    fn places(&self) -> Vec<(f64, String)> {
        let count = self.all.iter().map(Vec::len).max().unwrap_or(0);
        let place = |index: usize| {
            let start = self.length * u32::try_from(index).unwrap_or(u32::MAX);
            (
                (start + self.length / 2).as_secs_f64(),
                format!("{} to {}", clock(start), clock(start + self.length)),
            )
        };
        (0..count).map(place).collect()
    }

    fn values(&self, variant: usize, value: impl Fn(&Interval) -> Option<f64>) -> Vec<Option<f64>> {
        self.all
            .get(variant)
            .map(|intervals| intervals.iter().map(value).collect())
            .unwrap_or_default()
    }
}

pub(super) fn draw(report: &Report) -> Vec<Plot> {
    let Some(intervals) = Intervals::new(report) else { return Vec::new() };
    let mut plots = vec![arrivals(report, &intervals)];
    plots.extend(waits(report, &intervals));
    plots.extend(queues(report, &intervals));
    plots.extend(
        report
            .variants
            .iter()
            .enumerate()
            .filter_map(|(index, variant)| failures(&variant.name, index, &intervals)),
    );
    plots
}

/// Draws the arrivals of the first variant. Those of the others are the same, except for sessions.
fn arrivals(report: &Report, intervals: &Intervals) -> Plot {
    let per_hour = 3600.0 / intervals.length.as_secs_f64();
    let lines = class_names(report).into_iter().enumerate().map(|(class, name)| {
        let arrivals = |interval: &Interval| {
            interval.classes.get(class).map(|class| class.arrivals as f64 * per_hour)
        };
        DataSeries {
            name,
            color: class,
            values: intervals.values(0, arrivals),
            ..DataSeries::default()
        }
    });
    let chart = stacks(intervals, "Arrivals per hour".to_owned(), lines.collect());
    Plot::new(Section::OverTime, "arrivals", chart.draw())
}

fn waits(report: &Report, intervals: &Intervals) -> Vec<Plot> {
    let quantile = |interval: &ClassInterval, part: f64| {
        interval.waits.quantile(part).map(|time| time.as_secs_f64())
    };
    let waits = |variant: usize, class: usize| {
        let of = |part: f64| {
            intervals.values(variant, |interval| quantile(interval.classes.get(class)?, part))
        };
        Some([of(0.99), of(0.5)]).filter(|[p99, _]| p99.iter().any(Option::is_some))
    };
    let plot = TimePlot {
        name: "wait-over-time",
        title: "Wait time by arrival time, p99",
        unit: Unit::Time,
    };
    plot.draw(intervals, "median", panels(report, &class_names(report), waits))
}

fn queues(report: &Report, intervals: &Intervals) -> Vec<Plot> {
    let lanes = |variant: usize, lane: usize| {
        let of = |value: fn(&LaneInterval) -> f64| {
            intervals.values(variant, |interval| interval.lanes.get(lane).map(value))
        };
        // A queue that is almost always empty is not worth a plot.
        let both = [of(LaneInterval::mean_waiting), of(|lane| lane.max_waiting as f64)];
        Some(both).filter(|[mean, _]| mean.iter().flatten().any(|mean| *mean > 0.05))
    };
    let plot = TimePlot { name: "queue", title: "Queue length, mean", unit: Unit::Number };
    plot.draw(intervals, "maximum", panels(report, &lane_names(report), lanes))
}

/// A kind of plot that is drawn once for each class or lane.
struct TimePlot {
    name: &'static str,
    title: &'static str,
    unit: Unit,
}

impl TimePlot {
    /// Draws the plots; `secondary` names the second values of each series.
    fn draw(
        &self,
        intervals: &Intervals,
        secondary: &str,
        panels: Vec<PanelData<PrimaryAndSecondary>>,
    ) -> Vec<Plot> {
        let drawn = panels.into_iter().filter(|(_, lines)| !lines.is_empty());
        let drawn = drawn.map(|(subject, lines)| {
            let (lines, note) = with_secondary(lines, secondary);
            let chart = Chart {
                title: titled(self.title, subject.as_ref()) + &note,
                x: Axis::run(intervals.duration, 8.0),
                y: Axis::linear("", self.unit, maximum(&lines)),
                unit: self.unit,
                places: intervals.places(),
                lines,
                form: Form::Lines,
            };
            let name = subject
                .map_or_else(|| self.name.to_owned(), |subject| format!("{}-{subject}", self.name));
            Plot::new(Section::OverTime, &name, chart.draw())
        });
        drawn.collect()
    }
}

/// The primary and the secondary values of a series.
type PrimaryAndSecondary = [Vec<Option<f64>>; 2];

fn maximum(lines: &[DataSeries]) -> f64 {
    lines.iter().flat_map(|line| line.values.iter().flatten().copied()).fold(0.0, f64::max)
}

/// Returns the series and a note for the title. Only a plot with a single series has space for
/// its secondary values, which are drawn below it in the same color.
fn with_secondary(
    lines: Vec<(DataSeries, PrimaryAndSecondary)>,
    name: &str,
) -> (Vec<DataSeries>, String) {
    let is_single = lines.len() == 1;
    let secondary = lines.iter().filter(|_| is_single).map(|(line, [_, values])| DataSeries {
        name: format!("{}, {name}", line.name),
        values: values.clone(),
        secondary: true,
        ..line.clone()
    });
    let mut all: Vec<DataSeries> = secondary.collect();
    all.extend(lines.into_iter().map(|(line, [values, _])| DataSeries { values, ..line }));
    (all, if is_single { format!(" (dotted: {name})") } else { String::new() })
}

/// Selects one of the counts of a class.
type CountSelector = fn(&ClassInterval) -> u64;

/// Draws what was not served by the first lane, by reason; `None` if there is nothing to show.
fn failures(variant: &str, index: usize, intervals: &Intervals) -> Option<Plot> {
    let kinds: [(&str, usize, CountSelector); 4] = [
        ("fallbacks", 5, |class| class.fell_back),
        ("rejected", 6, |class| class.rejected),
        ("errors", 1, |class| class.errors),
        ("canceled by client", 4, |class| class.client_gone),
    ];
    let lines = kinds.map(|(name, color, count)| DataSeries {
        name: name.to_owned(),
        color,
        values: intervals
            .values(index, |interval| Some(interval.classes.iter().map(count).sum::<u64>() as f64)),
        ..DataSeries::default()
    });
    let happened = |line: &DataSeries| line.values.iter().flatten().any(|value| *value > 0.0);
    let lines: Vec<DataSeries> = lines.into_iter().filter(happened).collect();
    let title = format!(
        "Requests not served by the first lane, per {}: {variant}",
        numbers::span(intervals.length)
    );
    let chart = stacks(intervals, title, lines);
    (!chart.lines.is_empty())
        .then(|| Plot::new(Section::OverTime, &format!("failures-{variant}"), chart.draw()))
}

/// Stacks counts on top of each other.
fn stacks(intervals: &Intervals, title: String, lines: Vec<DataSeries>) -> Chart {
    let places = intervals.places();
    let sums = (0..places.len())
        .map(|index| lines.iter().filter_map(|line| *line.values.get(index)?).sum());
    Chart {
        title,
        x: Axis::run(intervals.duration, 8.0),
        y: Axis::linear("", Unit::Count, sums.fold(0.0, f64::max)),
        unit: Unit::Count,
        places,
        lines,
        form: Form::Stacks,
    }
}
