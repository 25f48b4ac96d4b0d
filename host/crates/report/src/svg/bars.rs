//! Timelines: one row of colored bars for each lane.

use super::{Anchor, Axis, Drawing, legend, width_of};

/// A chart of rows of bars over time.
#[derive(Debug, Clone)]
pub(crate) struct Bars {
    pub(crate) title: String,
    pub(crate) x: Axis,
    /// CSS classes and labels of the legend.
    pub(crate) legend: Vec<(String, String)>,
    pub(crate) rows: Vec<Row>,
}

/// A row of bars.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Text at the end of the row.
    pub(crate) remark: String,
    pub(crate) bars: Vec<Bar>,
}

/// A bar. Later bars are drawn over earlier ones.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) class: &'static str,
    pub(crate) title: String,
    /// True if the bar is drawn wide enough to be seen, however short it is.
    pub(crate) always_seen: bool,
}

const WIDTH: f64 = 1140.0;
const ROW: f64 = 30.0;
const BAR: f64 = 22.0;

impl Bars {
    pub(crate) fn draw(&self) -> Drawing {
        let widest = |texts: fn(&Row) -> &str, max: f64| {
            self.rows.iter().map(|row| width_of(texts(row))).fold(40.0, f64::max).min(max) + 14.0
        };
        let (left, right) = (widest(|row| &row.name, 220.0), widest(|row| &row.remark, 200.0));
        let width = WIDTH - left - right;
        let x = |value: f64| left + self.x.part(value) * width;
        let height = 48.0 + ROW * self.rows.len() as f64 + 42.0;
        let names: Vec<&str> = self.rows.iter().map(|row| row.name.as_str()).collect();
        let mut drawing =
            Drawing::new(WIDTH, height, &format!("{}: {}", self.title, names.join(", ")));
        drawing.text("title", Anchor::Start, (8.0, 17.0), &self.title);
        legend(&mut drawing, (8.0, 24.0), WIDTH - 16.0, &self.legend);
        let top = 50.0;
        let base = top + ROW * self.rows.len() as f64;
        for (part, label) in self.x.ticks() {
            let x = left + part * width;
            drawing.line("grid", (x, top), (x, base + 4.0));
            drawing.text("tick", Anchor::Middle, (x, base + 16.0), label);
        }
        drawing.text("axis-name", Anchor::Middle, (left + width / 2.0, base + 32.0), &self.x.name);
        for (index, row) in self.rows.iter().enumerate() {
            let y = top + ROW * index as f64 + (ROW - BAR) / 2.0;
            drawing.text(
                "name",
                Anchor::End,
                (left - 8.0, y + 15.0),
                &shortened(&row.name, left - 14.0),
            );
            drawing.text("tick", Anchor::Start, (left + width + 8.0, y + 15.0), &row.remark);
            drawing.rect("cold", (left, y), (width, BAR), "");
            for bar in &row.bars {
                let min_width = if bar.always_seen { 1.2 } else { 0.3 };
                let (from, to) = (x(bar.from), x(bar.to));
                drawing.rect(bar.class, (from, y), ((to - from).max(min_width), BAR), &bar.title);
            }
        }
        drawing
    }
}

/// Truncates a name to a width in pixels.
fn shortened(name: &str, width: f64) -> String {
    let fits = (width / width_of("x")).max(2.0) as usize;
    if name.chars().count() <= fits {
        return name.to_owned();
    }
    name.chars().take(fits - 1).chain(['…']).collect()
}
