//! What happened over the time of a run.

use std::time::Duration;

use super::{PanelOf, Part, Plot, class_names, clock, lane_names, panels, titled};
use crate::metric::Unit;
use crate::report::collector::Run;
use crate::report::series::{ClassPiece, LanePiece, Piece};
use crate::report::svg::{Axis, Chart, Form, Line};
use crate::report::{Report, numbers};

/// The first seeds of all variants, in the same pieces of time.
struct Pieces {
    length: Duration,
    lasted: f64,
    /// By variant.
    all: Vec<Vec<Piece>>,
}

impl Pieces {
    const MOST: usize = 100;

    fn of(report: &Report) -> Option<Self> {
        let firsts = || report.variants.iter().map(|variant| variant.runs.first());
        let coarser = |run: &Run, shortest: Duration| run.series.coarser(Self::MOST, shortest);
        let length = firsts().flatten().map(|run| coarser(run, Duration::ZERO).length()).max()?;
        let lasted = firsts().flatten().map(|run| run.summary.lasted).max()?.as_secs_f64();
        let pieces = |run: Option<&Run>| {
            run.map(|run| coarser(run, length).pieces().to_vec()).unwrap_or_default()
        };
        Some(Self { length, lasted, all: firsts().map(pieces).collect() })
    }

    fn places(&self) -> Vec<(f64, String)> {
        let count = self.all.iter().map(Vec::len).max().unwrap_or(0);
        let place = |index: usize| {
            let begin = self.length * u32::try_from(index).unwrap_or(u32::MAX);
            (
                (begin + self.length / 2).as_secs_f64(),
                format!("{} to {}", clock(begin), clock(begin + self.length)),
            )
        };
        (0..count).map(place).collect()
    }

    fn values(&self, variant: usize, of: impl Fn(&Piece) -> Option<f64>) -> Vec<Option<f64>> {
        self.all.get(variant).map(|pieces| pieces.iter().map(of).collect()).unwrap_or_default()
    }
}

pub(super) fn of(report: &Report) -> Vec<Plot> {
    let Some(pieces) = Pieces::of(report) else { return Vec::new() };
    let mut plots = vec![arrivals(report, &pieces)];
    plots.extend(waits(report, &pieces));
    plots.extend(queues(report, &pieces));
    plots.extend(
        report
            .variants
            .iter()
            .enumerate()
            .filter_map(|(index, it)| troubles(&it.name, index, &pieces)),
    );
    plots
}

/// What came is the same for all variants, but for sessions, so the first one's is shown.
fn arrivals(report: &Report, pieces: &Pieces) -> Plot {
    let per_hour = 3600.0 / pieces.length.as_secs_f64();
    let lines = class_names(report).into_iter().enumerate().map(|(class, name)| {
        let came = |piece: &Piece| piece.classes.get(class).map(|it| it.came as f64 * per_hour);
        Line { name, colour: class, values: pieces.values(0, came), ..Line::default() }
    });
    let chart = stacks(pieces, "Requests that came, per hour".to_owned(), lines.collect());
    Plot::new(Part::OverTime, "arrivals", chart.draw())
}

fn waits(report: &Report, pieces: &Pieces) -> Vec<Plot> {
    let quantile =
        |piece: &ClassPiece, part: f64| piece.waits.quantile(part).map(|time| time.as_secs_f64());
    let waits = |variant: usize, class: usize| {
        let of =
            |part: f64| pieces.values(variant, |piece| quantile(piece.classes.get(class)?, part));
        Some([of(0.99), of(0.5)]).filter(|[p99, _]| p99.iter().any(Option::is_some))
    };
    let figure = Figure {
        name: "wait-over-time",
        title: "Wait of those who came then, p99",
        unit: Unit::Time,
    };
    figure.draw(pieces, "median", panels(report, &class_names(report), waits))
}

fn queues(report: &Report, pieces: &Pieces) -> Vec<Plot> {
    let lanes = |variant: usize, lane: usize| {
        let of = |what: fn(&LanePiece) -> f64| {
            pieces.values(variant, |piece| piece.lanes.get(lane).map(what))
        };
        // A queue of one that has gone at once is none to look at.
        let both = [of(LanePiece::mean_waiting), of(|lane| lane.most_waiting as f64)];
        Some(both).filter(|[mean, _]| mean.iter().flatten().any(|mean| *mean > 0.05))
    };
    let figure = Figure { name: "queue", title: "Queue, mean", unit: Unit::Number };
    figure.draw(pieces, "longest", panels(report, &lane_names(report), lanes))
}

/// One figure, drawn once for each of those whom it is about.
struct Figure {
    name: &'static str,
    title: &'static str,
    unit: Unit,
}

impl Figure {
    /// `aside` is what the second values of each line are.
    fn draw(&self, pieces: &Pieces, aside: &str, panels: Vec<PanelOf<TwoFold>>) -> Vec<Plot> {
        let drawn = panels.into_iter().filter(|(_, lines)| !lines.is_empty()).map(|(of, lines)| {
            let (lines, note) = with_aside(lines, aside);
            let chart = Chart {
                title: titled(self.title, of.as_ref()) + &note,
                x: Axis::run(pieces.lasted, 8.0),
                y: Axis::linear("", self.unit, most(&lines)),
                unit: self.unit,
                places: pieces.places(),
                lines,
                form: Form::Lines,
            };
            let name = of.map_or_else(|| self.name.to_owned(), |of| format!("{}-{of}", self.name));
            Plot::new(Part::OverTime, &name, chart.draw())
        });
        drawn.collect()
    }
}

/// The values of a line, and those beside them.
type TwoFold = [Vec<Option<f64>>; 2];

fn most(lines: &[Line]) -> f64 {
    lines.iter().flat_map(|line| line.values.iter().flatten().copied()).fold(0.0, f64::max)
}

/// Lines, and what is said of them: one that is alone has room for a second one of its colour, below it.
fn with_aside(lines: Vec<(Line, TwoFold)>, name: &str) -> (Vec<Line>, String) {
    let alone = lines.len() == 1;
    let aside = lines.iter().filter(|_| alone).map(|(line, [_, values])| Line {
        name: format!("{}, {name}", line.name),
        values: values.clone(),
        aside: true,
        ..line.clone()
    });
    let mut all: Vec<Line> = aside.collect();
    all.extend(lines.into_iter().map(|(line, [values, _])| Line { values, ..line }));
    (all, if alone { format!(" (dotted: {name})") } else { String::new() })
}

/// One of the counts of a class.
type Count = fn(&ClassPiece) -> u64;

/// What did not go as it should, if anything.
fn troubles(variant: &str, index: usize, pieces: &Pieces) -> Option<Plot> {
    let kinds: [(&str, usize, Count); 4] = [
        ("fell back", 5, |it| it.fell_back),
        ("refused", 6, |it| it.rejected),
        ("errors", 1, |it| it.errors),
        ("client gone", 4, |it| it.client_gone),
    ];
    let lines = kinds.map(|(name, colour, of)| Line {
        name: name.to_owned(),
        colour,
        values: pieces
            .values(index, |piece| Some(piece.classes.iter().map(of).sum::<u64>() as f64)),
        ..Line::default()
    });
    let happened = |line: &Line| line.values.iter().flatten().any(|value| *value > 0.0);
    let lines: Vec<Line> = lines.into_iter().filter(happened).collect();
    let title = format!(
        "Not answered by the first lane, every {}: {variant}",
        numbers::span(pieces.length)
    );
    let chart = stacks(pieces, title, lines);
    (!chart.lines.is_empty())
        .then(|| Plot::new(Part::OverTime, &format!("troubles-{variant}"), chart.draw()))
}

/// Counts of things, one upon the other.
fn stacks(pieces: &Pieces, title: String, lines: Vec<Line>) -> Chart {
    let places = pieces.places();
    let sums =
        (0..places.len()).map(|index| lines.iter().filter_map(|it| *it.values.get(index)?).sum());
    Chart {
        title,
        x: Axis::run(pieces.lasted, 8.0),
        y: Axis::linear("", Unit::Count, sums.fold(0.0, f64::max)),
        unit: Unit::Count,
        places,
        lines,
        form: Form::Stacks,
    }
}
