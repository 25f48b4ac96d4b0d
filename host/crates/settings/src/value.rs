//! Values of TOML, and the texts about them in messages.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::diagnostics::{Code, Problem};

/// Returns the problem of a missing key or table, with what to write as a hint.
pub fn missing(example: impl std::fmt::Display) -> Problem {
    Code::MissingKey.with(format!("missing; set for example {example}"))
}

/// Names the TOML type of a value, with its article.
pub(crate) fn found(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a datetime",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Returns the known name that is most similar to `name`, if one is similar enough for a hint.
pub fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, near)| near)
}

/// Formats a duration as it is written in a file: `90s`, `30m`.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (factor, unit) in [(3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if ms >= factor && ms.is_multiple_of(factor) {
            return format!("{}{unit}", ms / factor);
        }
    }
    format!("{ms}ms")
}

/// Converts a TOML value to JSON.
pub(crate) fn to_json(value: &DeValue<'_>) -> Result<serde_json::Value, Problem> {
    use serde_json::Value;
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(integer) => {
            i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix())
                .map(Value::from)
                .map_err(|_| {
                    Code::OutOfRange.with(format!("{} is out of range", integer.as_str()))
                })?
        }
        DeValue::Float(float) => float
            .as_str()
            .replace('_', "")
            .parse()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map(Value::Number)
            .ok_or_else(|| {
                Problem::from(format!("{} cannot be represented in JSON", float.as_str()))
            })?,
        DeValue::Datetime(datetime) => Value::String(datetime.to_string()),
        DeValue::Array(array) => Value::Array(
            array.iter().map(|item| to_json(item.get_ref())).collect::<Result<_, _>>()?,
        ),
        DeValue::Table(table) => {
            let pair =
                |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
                    to_json(value.get_ref()).map(|json| (key.get_ref().to_string(), json))
                };
            Value::Object(table.iter().map(pair).collect::<Result<_, _>>()?)
        }
    })
}
