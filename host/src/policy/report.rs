//! Formats the results of `policy build` and `policy bench`.

use std::path::Path;
use std::time::Duration;

use pointsman_policy::{Measurement, Workbench};
use pointsman_report::table::clean;
use serde_json::{Value, json};

use super::table::aligned;

/// Formats a benchmark: the policy's sizes, and a table of its call times.
pub(super) fn bench_report(bench: &Workbench, dir: &Path, measured: &[Measurement]) -> String {
    let head = [
        ["policy".to_owned(), format!("{} {} in {}", bench.name(), bench.version(), dir.display())],
        [
            "component".to_owned(),
            format!(
                "{}, compiled in {}",
                bytes(bench.component_bytes() as u64),
                time(bench.compiling())
            ),
        ],
        [
            "input".to_owned(),
            if bench.cases().is_some() {
                "golden cases".to_owned()
            } else {
                "a short chat".to_owned()
            },
        ],
    ];
    let mut rows = vec![
        ["LANES", "INSTANCE", "CALLS", "P50", "P99", "MAX", "MEMORY", "NO ADVICE"]
            .map(str::to_owned),
    ];
    for row in measured {
        let or_dash = |duration: Option<Duration>| duration.map_or_else(|| "-".to_owned(), time);
        rows.push([
            row.lanes.map_or_else(|| "as given".to_owned(), |lanes| lanes.to_string()),
            if row.fresh { "new" } else { "warm" }.to_owned(),
            (row.times.len() + row.failed).to_string(),
            or_dash(row.percentile(50)),
            or_dash(row.percentile(99)),
            or_dash(row.percentile(100)),
            if row.memory == 0 { "-".to_owned() } else { bytes(row.memory) },
            row.failed.to_string(),
        ]);
    }
    let mut text = format!("{}\n{}", aligned(&head), aligned(&rows));
    if let Some(failure) = measured.iter().find_map(|row| row.failure.as_ref()) {
        text.push_str(&format!("\nfirst call without advice: {}\n", clean(failure)));
    }
    text
}

/// Returns a benchmark as JSON. Times are in microseconds.
pub(super) fn bench_json(bench: &Workbench, measured: &[Measurement]) -> Value {
    let us = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
    let row = |row: &Measurement| {
        json!({
            "lanes": row.lanes,
            "instance": if row.fresh { "new" } else { "warm" },
            "calls": row.times.len() + row.failed,
            "p50_us": row.percentile(50).map(us),
            "p99_us": row.percentile(99).map(us),
            "max_us": row.percentile(100).map(us),
            "memory_bytes": (row.memory > 0).then_some(row.memory),
            "no_advice": row.failed,
            "first_failure": row.failure,
        })
    };
    json!({
        "policy": bench.name(),
        "version": bench.version(),
        "component_bytes": bench.component_bytes(),
        "compiled_in_us": us(bench.compiling()),
        "measured": measured.iter().map(row).collect::<Vec<_>>(),
    })
}

/// Formats a duration with three significant digits.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (number, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if number < 9.995 { 2 } else { usize::from(number < 99.95) };
    format!("{number:.digits$} {unit}")
}

/// Formats a size with its unit.
pub(super) fn bytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
    let number = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", number / 1024.0),
        _ => format!("{:.1} MiB", number / f64::from(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (nanos, expected) in [
            (400, "0.40 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (1_500_000, "1.50 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanos)), expected);
        }
        assert_eq!([1023, 77_107, 17 << 20].map(bytes), ["1023 B", "75.3 KiB", "17.0 MiB"]);
    }
}
