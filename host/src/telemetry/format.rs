//! The two formats of a log line.
//!
//! A line is exactly one line, whatever its values contain: control characters, and characters that
//! change the direction of text or are invisible, are escaped. Otherwise a client could write lines
//! of its own, or control the terminal of an operator.

pub(super) mod entry;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use pointsman_config::LogFormat;
use serde_json::{Map, Value, json};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};

use super::fields::{Fields, MESSAGE};

/// How lines are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    format: LogFormat,
    style: Style,
}

/// What an output adds to lines, whatever their format is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Style {
    /// Only for text.
    pub(super) has_colors: bool,
    /// Lines begin with their priority, which the journal reads (`sd-daemon(3)`).
    pub(super) has_priority: bool,
    /// Lines are entries of the journal, for its native protocol.
    pub(super) is_entry: bool,
}

impl Style {
    /// Returns how lines of this format are written.
    pub(super) fn of_lines(self, format: LogFormat) -> Format {
        Format { format, style: self }
    }
}

/// One event, with the names and the fields of the spans around it, outermost first.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) fields: &'a Fields,
    pub(super) spans: &'a [(&'static str, Fields)],
}

impl<'a> Line<'a> {
    pub(super) fn new(
        metadata: &'a Metadata<'_>,
        fields: &'a Fields,
        spans: &'a [(&'static str, Fields)],
    ) -> Self {
        Self { level: *metadata.level(), target: metadata.target(), fields, spans }
    }
}

impl Format {
    /// Returns the line, with the line break at its end.
    pub(super) fn line(self, line: &Line<'_>) -> String {
        let text = match (self.format, self.style.is_entry) {
            (LogFormat::Text, false) => text(line, self.style.has_colors),
            (LogFormat::Json, false) => json_line(line),
            // The journal has time and level itself.
            (LogFormat::Text, true) => {
                let mut message = String::new();
                push_event(&mut message, line, |_, text| text.to_owned());
                entry::entry(line, &message)
            }
            (LogFormat::Json, true) => entry::entry(line, json_line(line).trim_end()),
        };
        match self.style.has_priority {
            true => format!("{}{text}", priority(line.level)),
            false => text,
        }
    }
}

/// Returns the mark of a line's priority for the journal.
pub(super) fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

pub(super) fn timestamp() -> String {
    let mut text = String::new();
    // Fails only if writing to the string did.
    SystemTime.format_time(&mut Writer::new(&mut text)).ok();
    text
}

/// Appends a timestamp. Within a second, only the fraction is formatted anew: a line of the access
/// log would otherwise cost a third more.
pub(super) fn push_timestamp(text: &mut String) {
    /// `2026-01-01T00:00:00.`
    const PREFIX: usize = 20;
    thread_local! {
        static PREFIX_OF_SECOND: RefCell<(u64, String)> =
            const { RefCell::new((0, String::new())) };
    }
    let now = || std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begun = now();
    PREFIX_OF_SECOND.with_borrow_mut(|(second, prefix)| {
        if *second == begun.as_secs() && prefix.len() == PREFIX {
            // Six digits: the one before them is cut off.
            let micros = 1_000_000 + begun.subsec_micros();
            text.push_str(prefix);
            text.push_str(&itoa::Buffer::new().format(micros)[1..]);
            text.push('Z');
            return;
        }
        let whole = timestamp();
        text.push_str(&whole);
        // The second may have ended between the two readings of the clock.
        if now().as_secs() == begun.as_secs() {
            whole.get(..PREFIX).unwrap_or_default().clone_into(prefix);
            *second = begun.as_secs();
        }
    });
}

fn text(line: &Line<'_>, has_colors: bool) -> String {
    let paint = |code: &str, text: &str| match has_colors {
        true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    };
    let color = match line.level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG => "34",
        Level::TRACE => "35",
    };
    let level = paint(color, &format!("{:>5}", line.level));
    let mut text = format!("{} {level} ", paint("2", &timestamp()));
    push_event(&mut text, line, paint);
    text.push('\n');
    text
}

/// Appends an event with its spans, without time and level.
fn push_event(text: &mut String, line: &Line<'_>, paint: impl Fn(&str, &str) -> String) {
    for (name, fields) in line.spans {
        text.push_str(name);
        text.push('{');
        for (index, (name, value)) in fields.iter().enumerate() {
            push_field(text, if index == 0 { "" } else { " " }, name, value);
        }
        text.push_str("}:");
    }
    if !line.spans.is_empty() {
        text.push(' ');
    }
    text.push_str(&paint("2", &format!("{}:", line.target)));
    if let Some(message) = line.fields.get(MESSAGE).and_then(Value::as_str) {
        text.push(' ');
        push_escaped(text, message);
    }
    for (name, value) in line.fields.iter().filter(|(name, _)| *name != MESSAGE) {
        push_field(text, " ", name, value);
    }
}

/// Appends `name=value`. Strings are quoted, so that they cannot look like further fields.
fn push_field(text: &mut String, separator: &str, name: &str, value: &Value) {
    text.push_str(separator);
    text.push_str(name);
    text.push('=');
    match value.as_str() {
        Some(value) => {
            text.push('"');
            push_escaped(text, &value.replace('\\', "\\\\").replace('"', "\\\""));
            text.push('"');
        }
        // Numbers and booleans.
        None => text.push_str(&value.to_string()),
    }
}

fn push_escaped(text: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            letter if is_unsafe(letter) => text.extend(letter.escape_unicode()),
            letter => text.push(letter),
        }
    }
}

/// Returns true for control characters, and for characters that are invisible or change the order
/// in which others are shown (Unicode's category Cf).
pub(super) fn is_unsafe(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{ad}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Event fields are at the top level, so that log processors find them without a path.
fn json_line(line: &Line<'_>) -> String {
    let mut object = Map::new();
    object.insert("timestamp".to_owned(), timestamp().into());
    object.insert("level".to_owned(), line.level.as_str().into());
    object.extend(entries(line.fields));
    object.insert("target".to_owned(), line.target.into());
    let span = |(name, fields): &(&'static str, Fields)| {
        let mut span: Map<String, Value> = entries(fields).collect();
        span.insert("name".to_owned(), (*name).into());
        Value::from(span)
    };
    let spans: Vec<Value> = line.spans.iter().map(span).collect();
    if let Some(innermost) = spans.last() {
        object.insert("span".to_owned(), innermost.clone());
        object.insert("spans".to_owned(), spans.into());
    }
    let object = Value::from(object).to_string();
    let mut text = String::with_capacity(object.len() + 1);
    for letter in object.chars() {
        // JSON has escaped what is below U+0020. All others are within strings.
        if is_unsafe(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").ok(); // A string accepts everything.
            }
        } else {
            text.push(letter);
        }
    }
    text.push('\n');
    text
}

/// Returns a line for the console, as a JSON object. The fields of spans are among those of the
/// line, which take precedence. A page shows values as text, so that nothing is escaped.
pub(super) fn feed_entry(line: &Line<'_>) -> String {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    let mut fields = Map::new();
    for (_, span) in line.spans {
        fields.extend(entries(span));
    }
    fields.extend(entries(line.fields));
    let message = fields.remove(MESSAGE).unwrap_or_default();
    json!({
        // Saturates after millions of years.
        "unix_ms": u64::try_from(now).unwrap_or(u64::MAX),
        "level": line.level.as_str(),
        "target": line.target,
        "message": message,
        "fields": fields,
    })
    .to_string()
}

fn entries(fields: &Fields) -> impl Iterator<Item = (String, Value)> {
    fields.iter().map(|(name, value)| (name.to_owned(), value.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_timestamps_are_those_of_the_clock() {
        for _ in 0..1000 {
            let before = timestamp();
            let mut text = String::new();
            push_timestamp(&mut text);
            // All have the same length, so that their order is that of time.
            assert_eq!(text.len(), before.len());
            assert!(before <= text && text <= timestamp(), "{before} {text}");
        }
    }
}
