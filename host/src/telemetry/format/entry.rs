//! Entries of the journal, before they are sent.

use serde_json::{Map, Value};
use tracing::Level;

use super::{Line, priority};
use crate::telemetry::fields;

/// The field with the message of an entry.
pub(in super::super) const MESSAGE: &str = "MESSAGE";
/// The field with the severity of an entry.
pub(in super::super) const PRIORITY: &str = "PRIORITY";

/// Returns an entry as a JSON object, with a line break at its end. The fields of an event take
/// precedence over those of its spans.
pub(super) fn entry(line: &Line<'_>, message: &str) -> String {
    let mut entry = Map::new();
    let spans = line.spans.iter().map(|(_, fields)| fields);
    for (name, value) in spans.chain([line.fields]).flat_map(|fields| fields.iter()) {
        if name != fields::MESSAGE {
            entry.insert(field_name(name), value.clone());
        }
    }
    entry.insert(field_name("target"), line.target.into());
    entry.insert(PRIORITY.to_owned(), severity(line.level).into());
    entry.insert(MESSAGE.to_owned(), message.into());
    format!("{}\n", Value::from(entry))
}

/// Returns the severity of syslog.
fn severity(level: Level) -> &'static str {
    priority(level).trim_matches(['<', '>'])
}

/// Returns the name of a field in the journal. Names are the host's own, and never a client's.
pub(in super::super) fn field_name(name: &str) -> String {
    let name = match name {
        "request_id" | "id" => "REQUEST",
        name => name,
    };
    let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    format!("POINTSMAN_{}", name.chars().map(letter).collect::<String>().to_ascii_uppercase())
}
