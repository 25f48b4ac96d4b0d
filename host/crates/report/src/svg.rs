//! Drawings as SVG, simple enough to be written as text, and without scripts.
//!
//! Elements have classes instead of colors. An HTML page defines the colors of the classes, light
//! or dark; a drawing that is a file of its own contains the light ones.

mod axis;
mod bars;
mod chart;

use std::fmt::Write as _;

pub(crate) use self::axis::Axis;
pub(crate) use self::bars::{Bar, Bars, Row};
pub(crate) use self::chart::{Chart, DataSeries, Form};
use crate::numbers;

/// Style sheet of drawings, in a page and as a file of their own. Colors are CSS variables.
pub(crate) const RULES: &str = include_str!("svg/drawing.css");

/// CSS variables with their light and dark colors. The colors of the series are those of M. Okabe
/// and K. Ito, which can be told apart with any kind of color vision.
pub(crate) const COLORS: [(&str, &str, &str); 23] = [
    ("--paper", "#ffffff", "#16181d"),
    ("--card", "#f7f8fa", "#1e2128"),
    ("--ink", "#1b1f24", "#e6e8eb"),
    ("--soft", "#5b6470", "#a0a8b4"),
    ("--line", "#d9dde3", "#363b45"),
    ("--good", "#00704f", "#3fcf9f"),
    ("--bad", "#b34700", "#ff9a57"),
    ("--s0", "#0072b2", "#5eb3f0"),
    ("--s1", "#d55e00", "#ff8c42"),
    ("--s2", "#009e73", "#2cc79b"),
    ("--s3", "#b8578f", "#e79ac6"),
    ("--s4", "#c98a00", "#f2b736"),
    ("--s5", "#3f97cf", "#a3d8f7"),
    ("--s6", "#6b6b6b", "#b9b9b9"),
    ("--cold", "#eceef1", "#2a2e36"),
    ("--starting", "#e69f00", "#e69f00"),
    ("--busy", "#0072b2", "#2f8fd0"),
    ("--idle", "#a9d3ee", "#28506d"),
    ("--draining", "#cc79a7", "#cc79a7"),
    ("--stopping", "#7a5195", "#9d7bb8"),
    ("--down", "#d43d1a", "#f0562f"),
    ("--band", "#0072b2", "#5eb3f0"),
    ("--hover", "#000000", "#ffffff"),
];

/// Number of colors of the series.
pub(crate) const SERIES: usize = 7;

/// A drawing of a fixed size in pixels.
#[derive(Debug, Clone)]
pub(crate) struct Drawing {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

/// The part of a text that is placed at its position.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    /// Creates an empty drawing with a label for screen readers.
    pub(crate) fn new(width: f64, height: f64, label: &str) -> Self {
        Self { width, height, label: label.to_owned(), body: String::new() }
    }

    pub(crate) fn text(&mut self, class: &str, anchor: Anchor, (x, y): (f64, f64), text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y, text) = (at(x), at(y), escaped(text));
        self.add(format_args!(
            r#"<text class="{class}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    pub(crate) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(at);
        self.add(format_args!(
            r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#
        ));
    }

    pub(crate) fn rect(
        &mut self,
        class: &str,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        title: &str,
    ) {
        let [x, y, width, height] = [x, y, width, height].map(at);
        let open =
            format!(r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}""#);
        if title.is_empty() {
            self.add(format_args!("{open}/>"));
        } else {
            self.add(format_args!("{open}><title>{}</title></rect>", escaped(title)));
        }
    }

    pub(crate) fn circle(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        self.add(format_args!(
            r#"<circle class="{class}" cx="{}" cy="{}" r="{}"/>"#,
            at(x),
            at(y),
            at(radius)
        ));
    }

    /// Draws a polyline, which is interrupted where a point is missing.
    pub(crate) fn path(&mut self, class: &str, points: &[Option<(f64, f64)>]) {
        let mut path = String::new();
        let mut pen_down = false;
        for (index, point) in points.iter().enumerate() {
            let Some((x, y)) = point else {
                pen_down = false;
                continue;
            };
            path.push_str(&format!("{}{} {}", if pen_down { "L" } else { "M" }, at(*x), at(*y)));
            // A point between two gaps becomes a line of length zero, whose round caps are a dot.
            if !pen_down && points.get(index + 1).is_none_or(Option::is_none) {
                path.push_str("h0");
            }
            pen_down = true;
        }
        if !path.is_empty() {
            self.add(format_args!(r#"<path class="{class}" d="{path}"/>"#));
        }
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        self.body.write_fmt(element).unwrap_or_default();
        self.body.push('\n');
    }

    /// Renders the drawing for a page that has the style sheet and the colors.
    pub(crate) fn inline(&self) -> String {
        let Self { width, height, .. } = self;
        let label = escaped(&self.label);
        let body = &self.body;
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">\n\
             {body}</svg>\n"
        )
    }

    /// Renders the drawing as a file of its own, in light colors.
    pub(crate) fn standalone(&self) -> String {
        let Self { width, height, .. } = self;
        let label = escaped(&self.label);
        let body = &self.body;
        let rules = COLORS.iter().fold(RULES.to_owned(), |rules, (name, light, _)| {
            rules.replace(&format!("var({name})"), light)
        });
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{label}\">\n\
             <style>\n{rules}</style>\n\
             <rect class=\"paper\" x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\"/>\n\
             {body}</svg>\n"
        )
    }
}

/// Formats a coordinate to a tenth of a pixel.
fn at(value: f64) -> String {
    numbers::trimmed(value, 1)
}

/// Escapes text of any origin for use in elements and attributes.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' => safe.push('\n'),
            // Control characters are not allowed in XML, and these two are not characters at all.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// Estimates the width of a text in pixels.
fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * 6.4
}

/// Draws a legend in rows of at most `width`, and returns its height.
fn legend(
    drawing: &mut Drawing,
    (left, top): (f64, f64),
    width: f64,
    names: &[(String, String)],
) -> f64 {
    const LINE: f64 = 18.0;
    let (mut x, mut y) = (left, top);
    for (class, name) in names {
        let item_width = width_of(name) + 34.0;
        if x > left && x + item_width > left + width {
            (x, y) = (left, y + LINE);
        }
        drawing.rect(class, (x, y + 3.0), (12.0, 10.0), "");
        drawing.text("name", Anchor::Start, (x + 17.0, y + 12.0), name);
        x += item_width;
    }
    if names.is_empty() { 0.0 } else { y + LINE - top }
}
