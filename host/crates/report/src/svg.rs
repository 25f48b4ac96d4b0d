//! Drawings as SVG, without scripts.
//!
//! Elements have classes instead of colors. An HTML page defines the colors of the classes, light
//! or dark; a drawing that is a file of its own contains the light ones.

mod axis;
mod bars;
mod chart;

use maud::{Markup, PreEscaped, Render, html};

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
        self.add(&html! {
            text class=(class) x=(at(x)) y=(at(y)) text-anchor=(anchor) { (Text(text)) }
        });
    }

    pub(crate) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(at);
        self.add(&html! { line class=(class) x1=(x1) y1=(y1) x2=(x2) y2=(y2) {} });
    }

    pub(crate) fn rect(
        &mut self,
        class: &str,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        tooltip: &str,
    ) {
        let [x, y, width, height] = [x, y, width, height].map(at);
        self.add(&html! {
            rect class=(class) x=(x) y=(y) width=(width) height=(height) {
                @if !tooltip.is_empty() { title { (Text(tooltip)) } }
            }
        });
    }

    pub(crate) fn circle(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        self.add(&html! { circle class=(class) cx=(at(x)) cy=(at(y)) r=(at(radius)) {} });
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
            self.add(&html! { path class=(class) d=(path) {} });
        }
    }

    fn add(&mut self, element: &Markup) {
        self.body.push_str(&element.0);
        self.body.push('\n');
    }

    /// Renders the drawing for a page that has the style sheet and the colors.
    pub(crate) fn inline(&self) -> Markup {
        html! {
            svg viewBox=(self.view_box()) role="img" aria-label=(Text(&self.label)) {
                "\n" (PreEscaped(&self.body))
            }
        }
    }

    /// Renders the drawing as a file of its own, in light colors.
    pub(crate) fn standalone(&self) -> String {
        let Self { width, height, .. } = self;
        let rules = COLORS.iter().fold(RULES.to_owned(), |rules, (name, light, _)| {
            rules.replace(&format!("var({name})"), light)
        });
        let drawing = html! {
            svg xmlns="http://www.w3.org/2000/svg" viewBox=(self.view_box()) width=(width)
                height=(height) role="img" aria-label=(Text(&self.label)) {
                "\n" style { "\n" (PreEscaped(rules)) }
                "\n" rect class="paper" x="0" y="0" width=(width) height=(height) {}
                "\n" (PreEscaped(&self.body))
            }
        };
        drawing.into_string() + "\n"
    }

    fn view_box(&self) -> String {
        format!("0 0 {} {}", self.width, self.height)
    }
}

/// Formats a coordinate to a tenth of a pixel.
fn at(value: f64) -> String {
    numbers::trimmed(value, 1)
}

/// A text of any origin, in an element or an attribute.
pub(crate) struct Text<'a>(pub(crate) &'a str);

impl Render for Text<'_> {
    fn render_to(&self, buffer: &mut String) {
        let allowed = |c: char| match c {
            '\n' => c,
            // Control characters are not allowed in XML, and these two are not characters at all.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => ' ',
            c => c,
        };
        self.0.chars().map(allowed).collect::<String>().render_to(buffer);
    }
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
