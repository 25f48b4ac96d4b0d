//! Drawings as SVG, small enough to be written by hand: text in, text out, nothing that runs.
//!
//! Elements have classes instead of colours. A page gives the classes their colours, light or dark; a drawing alone brings the
//! light ones along.

mod axis;
mod bars;
mod chart;

use std::fmt::Write as _;

pub(super) use self::axis::Axis;
pub(super) use self::bars::{Bar, Bars, Row};
pub(super) use self::chart::{Chart, Form, Line};

/// Rules that drawings need, in a page and alone. Colours are variables.
pub(super) const RULES: &str = include_str!("svg/drawing.css");

/// The variables, and their light and dark colours. The series are those of M. Okabe and K. Ito, which people with any kind of
/// colour vision can tell apart.
pub(super) const COLOURS: [(&str, &str, &str); 23] = [
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

/// How many colours series have.
pub(super) const SERIES: usize = 7;

/// A drawing of a size, in which a unit is a pixel.
#[derive(Debug, Clone)]
pub(super) struct Drawing {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

/// Where a text is, from the point that it is given.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    /// With nothing on it but what it is called for those who do not see it.
    pub(super) fn new(width: f64, height: f64, label: &str) -> Self {
        Self { width, height, label: label.to_owned(), body: String::new() }
    }

    pub(super) fn text(&mut self, class: &str, anchor: Anchor, (x, y): (f64, f64), text: &str) {
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

    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(at);
        self.add(format_args!(
            r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#
        ));
    }

    pub(super) fn rect(
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

    pub(super) fn circle(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        self.add(format_args!(
            r#"<circle class="{class}" cx="{}" cy="{}" r="{}"/>"#,
            at(x),
            at(y),
            at(radius)
        ));
    }

    /// A line through these points, with gaps where there are none.
    pub(super) fn path(&mut self, class: &str, points: &[Option<(f64, f64)>]) {
        let mut path = String::new();
        let mut pen_down = false;
        for (index, point) in points.iter().enumerate() {
            let Some((x, y)) = point else {
                pen_down = false;
                continue;
            };
            path.push_str(&format!("{}{} {}", if pen_down { "L" } else { "M" }, at(*x), at(*y)));
            // A point between two gaps is a line of no length, whose round ends are a dot.
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
        // Writing to a string does not fail.
        self.body.write_fmt(element).unwrap_or_default();
        self.body.push('\n');
    }

    /// For a page that has the rules and the colours.
    pub(super) fn inline(&self) -> String {
        let Self { width, height, .. } = self;
        let label = escaped(&self.label);
        let body = &self.body;
        format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{label}\">\n{body}</svg>\n"
        )
    }

    /// For a file of its own, in light colours.
    pub(super) fn alone(&self) -> String {
        let Self { width, height, .. } = self;
        let label = escaped(&self.label);
        let body = &self.body;
        let rules = COLOURS.iter().fold(RULES.to_owned(), |rules, (name, light, _)| {
            rules.replace(&format!("var({name})"), light)
        });
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{label}\">\n<style>\n{rules}</style>\n\
             <rect class=\"paper\" x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\"/>\n{body}</svg>\n"
        )
    }
}

/// A place, to a tenth of a pixel.
fn at(value: f64) -> String {
    super::numbers::trimmed(value, 1)
}

/// Text of any origin, as text of a document and not as anything else.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' => safe.push('\n'),
            // XML knows none of these, and a page needs none.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// About how wide a text is.
fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * 6.4
}

/// Samples of colours with their names, in rows of this width; says how high they are.
fn legend(
    drawing: &mut Drawing,
    (left, top): (f64, f64),
    width: f64,
    names: &[(String, String)],
) -> f64 {
    const LINE: f64 = 18.0;
    let (mut x, mut y) = (left, top);
    for (class, name) in names {
        let takes = width_of(name) + 34.0;
        if x > left && x + takes > left + width {
            (x, y) = (left, y + LINE);
        }
        drawing.rect(class, (x, y + 3.0), (12.0, 10.0), "");
        drawing.text("name", Anchor::Start, (x + 17.0, y + 12.0), name);
        x += takes;
    }
    if names.is_empty() { 0.0 } else { y + LINE - top }
}
