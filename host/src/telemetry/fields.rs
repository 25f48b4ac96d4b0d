//! The fields of an event or a span, cut to a maximum length. Every value that is logged passes
//! through here, so that no call site can forget to limit what a client, an engine or a policy
//! sent.

use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};

use serde_json::Value;
use tracing::field::{Field, Visit};

/// Maximum length of a value in bytes.
pub(super) const MAX_VALUE: usize = 200;
/// Maximum length in bytes of a value that the host composes of several parts.
pub(super) const MAX_LONG_VALUE: usize = 1024;
/// Maximum length in bytes of a line of an engine's output, which is a message. Longer ones are
/// split before.
const MAX_OUTPUT_LINE: usize = 4096;
/// The mark at the end of a value that was cut.
pub(super) const CUT_MARK: &str = "…";
/// The target of the lines of an engine.
pub(super) const ENGINE: &str = "engine";
/// The name of the field with the message of an event.
pub(super) const MESSAGE: &str = "message";

/// Fields whose values are sentences of the host.
const LONG: [&str; 3] = ["error", "reason", "sections"];
/// Fields that tell repeated events of a call site apart. Their values are the host's own or from
/// its configuration, so a client cannot create any number of them.
const IDENTITY: [&str; 6] = ["event", "code", "kind", "lane", "policy", "tenant"];

/// The fields of an event or a span, in the order of their first recording.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// Collects the fields of a span or an event with this target; `record` records them with a
    /// visitor.
    pub(super) fn collect(target: &str, record: impl FnOnce(&mut dyn Visit)) -> Self {
        let max_message = if target == ENGINE { MAX_OUTPUT_LINE } else { MAX_LONG_VALUE };
        let mut collector = Collector { fields: Self::default(), max_message };
        record(&mut collector);
        collector.fields
    }

    /// Adds the fields of `newer`. A field that is already present gets the newer value.
    pub(super) fn merge(&mut self, newer: Self) {
        for (name, value) in newer.0 {
            self.set(name, value);
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// Hashes the fields by which repeated events are told apart.
    pub(super) fn hash_identity(&self, hasher: &mut impl Hasher) {
        for (name, value) in &self.0 {
            if IDENTITY.contains(name)
                && let Some(text) = value.as_str()
            {
                (name, text).hash(hasher);
            }
        }
    }

    pub(super) fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }
}

/// Cuts and collects fields.
struct Collector {
    fields: Fields,
    max_message: usize,
}

impl Collector {
    fn set_text(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let max = match field.name() {
            MESSAGE => self.max_message,
            name if LONG.contains(&name) => MAX_LONG_VALUE,
            _ => MAX_VALUE,
        };
        let mut text = Bounded { text: String::new(), max };
        // Fails when the value is longer; formatting it ends there.
        text.write_fmt(value).ok();
        self.fields.set(field.name(), text.text.into());
    }
}

impl Visit for Collector {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set_text(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set_text(field, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.set(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.set(field.name(), value.into());
    }
}

/// A text that takes at most `max` bytes and then the mark.
struct Bounded {
    text: String,
    max: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let left = self.max.saturating_sub(self.text.len());
        if part.len() <= left {
            self.text.push_str(part);
            return Ok(());
        }
        self.text.push_str(&part[..part.floor_char_boundary(left)]);
        self.text.push_str(CUT_MARK);
        Err(fmt::Error)
    }
}
