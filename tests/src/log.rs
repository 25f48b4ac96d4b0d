//! Events in the JSON log of a host, found by their fields instead of by their messages.

use serde_json::Value;

/// One event of a host's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEvent(Value);

impl LogEvent {
    /// Parses a line of the log; `None` for text that the logger did not write, such as a panic.
    fn parse(line: &str) -> Option<Self> {
        let event: Value = serde_json::from_str(line).ok()?;
        event["level"].is_string().then_some(Self(event))
    }

    /// Returns the level in upper case, for example `WARN`.
    pub fn level(&self) -> &str {
        self.0["level"].as_str().unwrap_or_default()
    }

    /// Returns the target, which is the module of the event unless the event names another one.
    pub fn target(&self) -> &str {
        self.0["target"].as_str().unwrap_or_default()
    }

    /// Returns the message. Only for text that comes from a guest or an engine: the host's own
    /// messages may be reworded.
    pub fn message(&self) -> &str {
        self.0["message"].as_str().unwrap_or_default()
    }

    /// Returns a field of the event, or of the innermost span that has the field.
    pub fn field(&self, name: &str) -> Option<&Value> {
        let spans = self.0["spans"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.0.get(name).or_else(|| spans.iter().rev().find_map(|span| span.get(name)))
    }

    /// Returns a field as text: a string as it is, any other value as JSON, "" if it is missing.
    pub fn text(&self, name: &str) -> String {
        match self.field(name) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    /// Returns a field as a number.
    ///
    /// # Panics
    /// If the field is missing or is not a number.
    pub fn number(&self, name: &str) -> f64 {
        let value = self.field(name).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no number `{name}` in {}", self.0))
    }

    /// Returns true if the event is called `name` in its field `event` and has these fields.
    pub fn matches(&self, name: &str, fields: &[(&str, &str)]) -> bool {
        self.text("event") == name && fields.iter().all(|(key, value)| self.text(key) == *value)
    }
}

/// Parses a log, oldest event first.
pub fn parse(log: &str) -> Vec<LogEvent> {
    log.lines().filter_map(LogEvent::parse).collect()
}
