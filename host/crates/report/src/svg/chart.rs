//! Charts of lines or stacked columns.

use super::{Anchor, Axis, Drawing, SERIES, legend};
use crate::metric::Unit;
use crate::numbers;

/// A chart of data series with common x values.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    /// Unit of the y values.
    pub(crate) unit: Unit,
    /// The x values, and their labels.
    pub(crate) places: Vec<(f64, String)>,
    pub(crate) lines: Vec<DataSeries>,
    pub(crate) form: Form,
}

/// The way in which series are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Lines,
    /// Lines with a dot at each value.
    Dots,
    /// Columns on top of each other.
    Stacks,
}

/// A data series.
#[derive(Debug, Clone, Default)]
pub(crate) struct DataSeries {
    pub(crate) name: String,
    pub(crate) color: usize,
    pub(crate) values: Vec<Option<f64>>,
    /// Half of the confidence interval of each value.
    pub(crate) halves: Vec<Option<f64>>,
    /// True for a companion of another series of the same color: it is drawn thin, and is not in
    /// the legend.
    pub(crate) secondary: bool,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 42.0;

/// The position of the axes.
struct Frame<'a> {
    chart: &'a Chart,
    top: f64,
}

impl Frame<'_> {
    fn x(&self, value: f64) -> f64 {
        LEFT + self.chart.x.part(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        self.y_of_part(self.chart.y.part(value))
    }

    fn y_of_part(&self, part: f64) -> f64 {
        HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - self.top)
    }
}

impl Chart {
    pub(crate) fn draw(&self) -> Drawing {
        let named = || self.lines.iter().filter(|line| !line.secondary);
        let names: Vec<&str> = named().map(|line| line.name.as_str()).collect();
        let mut drawing =
            Drawing::new(WIDTH, HEIGHT, &format!("{}: {}", self.title, names.join(", ")));
        drawing.text("title", Anchor::Start, (8.0, 17.0), &self.title);
        let names: Vec<_> =
            named().map(|line| (format!("f{}", line.color % SERIES), line.name.clone())).collect();
        let high = legend(&mut drawing, (8.0, 24.0), WIDTH - 16.0, &names);
        let frame = Frame { chart: self, top: 34.0 + high };
        self.draw_axes(&mut drawing, &frame);
        match self.form {
            Form::Stacks => self.draw_stacks(&mut drawing, &frame),
            Form::Lines | Form::Dots => self.draw_lines(&mut drawing, &frame),
        }
        self.draw_tips(&mut drawing, &frame);
        drawing
    }

    fn draw_axes(&self, drawing: &mut Drawing, frame: &Frame<'_>) {
        let base = HEIGHT - BOTTOM;
        for (part, label) in self.y.ticks() {
            let y = frame.y_of_part(part);
            drawing.line("grid", (LEFT, y), (WIDTH - RIGHT, y));
            drawing.text("tick", Anchor::End, (LEFT - 6.0, y + 4.0), label);
        }
        let mut free_from = 0.0;
        for (part, label) in self.x.ticks() {
            let x = LEFT + part * (WIDTH - LEFT - RIGHT);
            drawing.line("base", (x, base), (x, base + 4.0));
            // Labels that would overlap are left out.
            let half = super::width_of(label) / 2.0;
            if x - half >= free_from {
                drawing.text("tick", Anchor::Middle, (x.min(WIDTH - half), base + 16.0), label);
                free_from = x + half + 4.0;
            }
        }
        drawing.line("base", (LEFT, base), (WIDTH - RIGHT, base));
        drawing.text(
            "axis-name",
            Anchor::Middle,
            ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0),
            &self.x.name,
        );
    }

    fn draw_lines(&self, drawing: &mut Drawing, frame: &Frame<'_>) {
        for line in &self.lines {
            let color = line.color % SERIES;
            let values = line.values.iter().zip(&self.places);
            let points: Vec<_> = values
                .map(|(value, (place, _))| value.map(|value| (frame.x(*place), frame.y(value))))
                .collect();
            let thin = if line.secondary { " thin" } else { "" };
            drawing.path(&format!("s s{color}{thin}"), &points);
            if self.form == Form::Dots {
                points
                    .iter()
                    .flatten()
                    .for_each(|point| drawing.circle(&format!("f{color}"), *point, 3.2));
            }
            for ((half, value), (place, _)) in
                line.halves.iter().zip(&line.values).zip(&self.places)
            {
                if let (Some(half), Some(value)) = (half, value) {
                    let (x, low, high) =
                        (frame.x(*place), frame.y(value - half), frame.y(value + half));
                    drawing.line(&format!("s{color} whisker"), (x, low), (x, high));
                }
            }
        }
    }

    fn draw_stacks(&self, drawing: &mut Drawing, frame: &Frame<'_>) {
        let width = (self.column_width(frame) - 0.5).max(1.0);
        for (index, (place, _)) in self.places.iter().enumerate() {
            let mut below = 0.0;
            for line in &self.lines {
                let Some(value) =
                    line.values.get(index).copied().flatten().filter(|value| *value > 0.0)
                else {
                    continue;
                };
                let (top, bottom) = (frame.y(below + value), frame.y(below));
                let place = (frame.x(*place) - width / 2.0, top);
                drawing.rect(
                    &format!("f{}", line.color % SERIES),
                    place,
                    (width, bottom - top),
                    "",
                );
                below += value;
            }
        }
    }

    /// Returns the minimum distance between neighboring x values, in pixels.
    fn column_width(&self, frame: &Frame<'_>) -> f64 {
        let between = self.places.windows(2).map(|pair| frame.x(pair[1].0) - frame.x(pair[0].0));
        between.filter(|width| *width > 0.1).fold(24.0, f64::min)
    }

    /// Draws invisible areas with tooltips that list the values.
    fn draw_tips(&self, drawing: &mut Drawing, frame: &Frame<'_>) {
        for (index, (place, name)) in self.places.iter().enumerate() {
            let values: Vec<String> = self
                .lines
                .iter()
                .filter_map(|line| Some((line, line.values.get(index).copied().flatten()?)))
                .filter(|(_, value)| self.form != Form::Stacks || *value > 0.0)
                .map(|(line, value)| {
                    format!("{}: {}", line.name, numbers::number(self.unit, value))
                })
                .collect();
            if values.is_empty() {
                continue;
            }
            // The area extends halfway to the neighboring x values.
            let middle = |other: Option<&(f64, String)>, edge: f64| {
                other.map_or(edge, |(other, _)| f64::midpoint(frame.x(*place), frame.x(*other)))
            };
            let before = index.checked_sub(1).and_then(|before| self.places.get(before));
            let from = middle(before, LEFT);
            let to = middle(self.places.get(index + 1), WIDTH - RIGHT);
            let size = ((to - from).max(1.0), HEIGHT - BOTTOM - frame.top);
            drawing.rect(
                "hover",
                (from, frame.top),
                size,
                &format!("{name}\n{}", values.join("\n")),
            );
        }
    }
}
