//! Reports as JSON and CSV.

use serde_json::{Map, Value, json};

use super::counts::Counts;
use super::hosts::ReportedHost;
use super::query::{MAX_GROUPS, UsageError, UsageQuery, UsageReport, format_hour};

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
    /// Returns the report as JSON: `from`, `to`, `by`, `rows`, and `hosts` of one of all hosts.
    pub fn to_json(&self) -> Value {
        let by: Vec<&str> = self.query.by.iter().map(|column| column.name()).collect();
        let row = |(group, counts): (&Vec<String>, &Counts)| {
            let names = by.iter().zip(group).map(|(name, value)| (*name, json!(value)));
            let counts = COUNTS.into_iter().zip(values(counts));
            let row = names.chain(counts).map(|(name, value)| (name.to_owned(), value));
            Value::Object(row.collect::<Map<_, _>>())
        };
        let mut report = json!({
            "from": format_hour(self.query.from),
            "to": format_hour(self.query.to),
            "by": by,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        });
        if let Some(hosts) = &self.hosts {
            let host = |host: &ReportedHost| {
                let age = host.age.as_millis() as f64 / 1000.0;
                json!({ "name": host.name, "age_seconds": age })
            };
            report["hosts"] = hosts.iter().map(host).collect();
        }
        report
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

impl UsageReport {
    /// Reads a report as [`UsageReport::to_json`] writes it; `None` if it is something else.
    pub fn from_json(report: &Value) -> Option<Self> {
        let text = |name: &str| report.get(name).and_then(Value::as_str);
        let columns = report.get("by")?.as_array()?.iter().map(Value::as_str);
        let columns = columns.collect::<Option<Vec<&str>>>()?.join(",");
        let (from, to) = (text("from"), text("to"));
        let query = UsageQuery::parse(from, to, Some(&columns), None, 0).ok()?;
        let mut read = Self::new(&query);
        for row in report.get("rows")?.as_array()? {
            let names =
                query.by.iter().map(|column| Some(row.get(column.name())?.as_str()?.into()));
            let number = |name| row.get(name).and_then(Value::as_u64);
            // Rounded to the milliseconds that they were.
            let ms = |name| Some((row.get(name)?.as_f64()? * 1000.0).round() as u64);
            let counts = Counts {
                requests: number("requests")?,
                failed: number("failed")?,
                prompt_tokens: number("prompt_tokens")?,
                cached_tokens: number("cached_tokens")?,
                output_tokens: number("output_tokens")?,
                waiting_ms: ms("waiting_seconds")?,
                engine_ms: ms("engine_seconds")?,
            };
            read.rows.entry(names.collect::<Option<_>>()?).or_default().add(&counts);
        }
        Some(read)
    }

    /// Adds the report of another host, of the same time and with the same columns.
    ///
    /// # Errors
    /// If the report is of another time or has other columns, or there are too many rows.
    pub fn merge(&mut self, other: Self) -> Result<(), UsageError> {
        let shape = |report: &Self| {
            let UsageQuery { from, to, by, .. } = report.query.clone();
            (from, to, by)
        };
        if shape(self) != shape(&other) {
            return Err(UsageError::OtherReport);
        }
        for (names, counts) in other.rows {
            self.rows.entry(names).or_default().add(&counts);
        }
        if self.rows.len() > MAX_GROUPS { Err(UsageError::TooManyRows) } else { Ok(()) }
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

    fn report(by: &str, to: &str, rows: &[(&str, u64)]) -> UsageReport {
        let query = UsageQuery::parse(Some("2026-11-01"), Some(to), Some(by), None, 0).unwrap();
        let mut report = UsageReport::new(&query);
        for (name, requests) in rows {
            let (waiting_ms, engine_ms) = (requests * 7, requests * 1001);
            let counts = Counts { requests: *requests, waiting_ms, engine_ms, ..Counts::default() };
            report.rows.insert(vec![(*name).to_owned()], counts);
        }
        report
    }

    #[test]
    fn reports_of_hosts_are_added_up() {
        let mut sum = report("key", "2026-11-28", &[("a", 1), ("=b", 2)]);
        let other = report("key", "2026-11-28", &[("=b", 40), ("", 3)]);
        let read = UsageReport::from_json(&other.to_json()).unwrap();
        assert_eq!(read.rows, other.rows);
        sum.merge(read).unwrap();
        let all = report("key", "2026-11-28", &[("", 3), ("=b", 42), ("a", 1)]);
        assert_eq!(sum.rows, all.rows);
        for different in [report("tenant", "2026-11-28", &[]), report("key", "2026-11-27", &[])] {
            assert!(matches!(sum.merge(different), Err(UsageError::OtherReport)));
        }
        assert!(UsageReport::from_json(&json!({ "by": ["key"], "rows": 3 })).is_none());
    }
}
