//! Reports as JSON and CSV.

use serde_json::{Map, Value, json};

use super::counts::Counts;
use super::query::{UsageReport, format_hour};

/// The names of what is counted.
const COUNTS: [&str; 7] = [
    "requests",
    "failed",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "waiting_seconds",
    "engine_seconds",
];

/// Characters with which a cell of a spreadsheet begins that is computed.
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

fn values(counts: &Counts) -> [Value; 7] {
    let Counts { requests, failed, prompt_tokens, cached_tokens, output_tokens, .. } = *counts;
    let seconds = |ms: u64| json!(ms as f64 / 1000.0);
    let [a, b, c, d, e] =
        [requests, failed, prompt_tokens, cached_tokens, output_tokens].map(Value::from);
    [a, b, c, d, e, seconds(counts.waiting_ms), seconds(counts.engine_ms)]
}

impl UsageReport {
    /// Returns the report as JSON: `from`, `to`, `by` and `rows`.
    pub fn to_json(&self) -> Value {
        let by: Vec<&str> = self.query.by.iter().map(|column| column.name()).collect();
        let row = |(group, counts): (&Vec<String>, &Counts)| {
            let names = by.iter().zip(group).map(|(name, value)| (*name, json!(value)));
            let counts = COUNTS.into_iter().zip(values(counts));
            let row = names.chain(counts).map(|(name, value)| (name.to_owned(), value));
            Value::Object(row.collect::<Map<_, _>>())
        };
        json!({
            "from": format_hour(self.query.from),
            "to": format_hour(self.query.to),
            "by": by,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// Returns the report as CSV (RFC 4180). A name that a spreadsheet would compute gets a `'`.
    pub fn to_csv(&self) -> String {
        let by = self.query.by.iter().map(|column| column.name());
        let mut csv = by.chain(COUNTS).collect::<Vec<_>>().join(",");
        csv.push_str("\r\n");
        for (group, counts) in &self.rows {
            let names = group.iter().map(|name| cell(name));
            let counts = values(counts).into_iter().map(|value| value.to_string());
            csv.push_str(&names.chain(counts).collect::<Vec<_>>().join(","));
            csv.push_str("\r\n");
        }
        csv
    }
}

fn cell(name: &str) -> String {
    let name = if name.starts_with(FORMULA) { format!("'{name}") } else { name.to_owned() };
    if name.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_not_computed() {
        for (name, expected) in [
            ("team", "team"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=HYPERLINK(\"x\")", "\"'=HYPERLINK(\"\"x\"\")\""),
            ("-1", "'-1"),
            ("@a", "'@a"),
            ("", ""),
        ] {
            assert_eq!(cell(name), expected);
        }
    }
}
