//! `pointsman usage`: prints what was used, from a running host or from its store.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::Method;
use pointsman_access::{Moment, UsageBook, UsageError, UsageQuery, UsageReport, UsageSettings};
use pointsman_report::table::{aligned, clean};
use pointsman_store::{OpenError, Options, Store};
use serde_json::Value;

use crate::cli::usage::{Format, Usage};
use crate::output;
use crate::policy::{ClientError, HostClient, percent_encoded};
use crate::store::FILE;

/// Maximum size of a report of another host in bytes.
const MAX_REPORT: u64 = 64 << 20;

/// The reason why the store of a host cannot be read.
#[derive(Debug, thiserror::Error)]
enum NoUsage {
    #[error("the host has no state directory, and keeps no usage")]
    NoState,
    #[error("the host has not kept any usage yet: {0} does not exist")]
    NoFile(String),
    #[error("{source} [{}]", source.code())]
    Store { source: OpenError },
}

/// Prints what was used.
pub(crate) fn usage(options: &Usage) -> Result<()> {
    // Checked here as well, so that the error is the same without a host.
    let query = query(options)?;
    let client = HostClient::new(&options.target)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    let called = runtime.block_on(client.call_text(Method::GET, &path(options), String::new()));
    let mut text = match (called, &options.target.address.config) {
        (Err(ClientError::NotRunning { .. }), Some(config)) if !options.all_hosts => {
            from_store(config, &query, options)?
        }
        (called, _) => called?,
    };
    if !options.with.is_empty() {
        text = with_others(&text, options)?;
    }
    output::print(&match options.format {
        Format::Csv => text,
        Format::Json => format!("{:#}\n", parse(&text)?),
        Format::Table => {
            let report = parse(&text)?;
            format!("{}{}", table(&report), hosts(&report))
        }
    })
}

/// Formats which hosts have contributed; empty of a report of one host.
fn hosts(report: &Value) -> String {
    let Some(hosts) = report["hosts"].as_array() else { return String::new() };
    let host = |host: &Value| {
        let name = clean(host["name"].as_str().unwrap_or_default());
        match host["age_seconds"].as_f64() {
            Some(age) if age > 0.0 => format!("{name} ({} ago)", age_text(age)),
            _ => format!("{name} (now)"),
        }
    };
    format!("hosts: {}\n", hosts.iter().map(host).collect::<Vec<_>>().join(", "))
}

/// Formats an age in whole units.
fn age_text(seconds: f64) -> String {
    // Casts: ages of some years at most.
    match seconds {
        ..60.0 => format!("{} s", seconds.ceil() as u64),
        60.0..3600.0 => format!("{} min", (seconds / 60.0) as u64),
        3600.0..86400.0 => format!("{} h", (seconds / 3600.0) as u64),
        _ => format!("{} days", (seconds / 86400.0) as u64),
    }
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).context("the host did not send JSON")
}

/// Adds the reports of other hosts to one that is JSON. Returns it as CSV if that is wanted.
fn with_others(text: &str, options: &Usage) -> Result<String> {
    let read = |text: &str| UsageReport::from_json(&serde_json::from_str(text).ok()?);
    let mut report = read(text).context("the host did not send a report")?;
    for path in &options.with {
        let text = pointsman_files::read_regular_text(path, MAX_REPORT)
            .with_context(|| format!("failed to read {}", path.display()))?;
        let other = read(&text).with_context(|| format!("{}: not a report", path.display()))?;
        report.merge(other).with_context(|| format!("cannot add {}", path.display()))?;
    }
    Ok(match options.format {
        Format::Csv => report.to_csv(),
        Format::Json | Format::Table => report.to_json().to_string(),
    })
}

fn query(options: &Usage) -> Result<UsageQuery, UsageError> {
    let Usage { from, to, by, tenant, .. } = options;
    let now = Moment::now(Duration::ZERO).unix_ms;
    UsageQuery::parse(from.as_deref(), to.as_deref(), Some(by), tenant.as_deref(), now)
}

fn path(options: &Usage) -> String {
    let Usage { from, to, by, tenant, format, .. } = options;
    let is_csv = *format == Format::Csv && options.with.is_empty();
    let format = if is_csv { "csv" } else { "json" };
    let mut path = format!("/usage?format={format}&by={}", percent_encoded(by));
    for (name, value) in [("from", from), ("to", to), ("tenant", tenant)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", percent_encoded(value)));
        }
    }
    if options.all_hosts {
        path.push_str("&hosts=all");
    }
    path
}

/// Reads the store of a host that is not running.
fn from_store(config: &Path, query: &UsageQuery, wanted: &Usage) -> Result<String> {
    let dir = pointsman_config::find_state_dir(config)?.ok_or(NoUsage::NoState)?;
    let path = dir.join(FILE);
    if !path.is_file() {
        return Err(NoUsage::NoFile(path.display().to_string()).into());
    }
    let options = Options { path: Some(path), namespaces: Vec::new(), on_loss: Box::new(|_| {}) };
    let store = Store::open(options).map_err(|source| NoUsage::Store { source })?;
    let report = UsageBook::new(store, UsageSettings::default()).report(query)?;
    Ok(match wanted.format {
        Format::Csv if wanted.with.is_empty() => report.to_csv(),
        Format::Csv | Format::Json | Format::Table => report.to_json().to_string(),
    })
}

/// Formats a report as a table.
fn table(report: &Value) -> String {
    const COUNTS: [(&str, &str); 7] = [
        ("requests", "REQUESTS"),
        ("failed", "FAILED"),
        ("prompt_tokens", "PROMPT"),
        ("cached_tokens", "CACHED"),
        ("output_tokens", "OUTPUT"),
        ("waiting_seconds", "WAITING/S"),
        ("engine_seconds", "ENGINE/S"),
    ];
    let by: Vec<&str> =
        report["by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let header = by.iter().map(|name| name.to_uppercase());
    let header = header.chain(COUNTS.map(|(_, title)| title.to_owned())).collect();
    let rows = report["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let lines = rows.iter().map(|row| {
        let names = by.iter().map(|name| match row[*name].as_str() {
            None | Some("") => "-".to_owned(),
            Some(name) => clean(name),
        });
        let counts = COUNTS.iter().map(|(key, _)| match row[*key].as_f64() {
            Some(seconds) if key.ends_with("seconds") => format!("{seconds:.1}"),
            _ => row[*key].to_string(),
        });
        names.chain(counts).collect()
    });
    let table: Vec<Vec<String>> = std::iter::once(header).chain(lines).collect();
    let text = aligned(&table);
    if rows.is_empty() { format!("{text}no usage in this time\n") } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hosts_are_listed_with_their_ages() {
        let host = |name: &str, age: f64| json!({ "name": name, "age_seconds": age });
        let all = [host("a", 0.0), host("b", 1.2), host("c\u{7}", 90.0), host("d", 200_000.0)];
        let text = hosts(&json!({ "hosts": all }));
        assert!(text.contains("a (now), b (2 s ago)") && text.contains("(1 min ago)"), "{text}");
        assert!(text.contains("d (2 days ago)") && !text.contains('\u{7}'), "{text}");
        assert_eq!(hosts(&json!({ "rows": [] })), "");
    }

    #[test]
    fn table_is_aligned() {
        let row = |tenant: &str, requests: u64| {
            json!({
                "tenant": tenant, "requests": requests, "failed": 0, "prompt_tokens": 12,
                "cached_tokens": 0, "output_tokens": 5, "waiting_seconds": 0.01,
                "engine_seconds": 12.345,
            })
        };
        let report = json!({ "by": ["tenant"], "rows": [row("", 1), row("a\u{1b}[31m", 1000)] });
        let text = table(&report);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].starts_with("- ") && lines[1].ends_with("12.3"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
