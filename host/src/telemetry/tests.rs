use std::io::{BufRead as _, BufReader};
use std::sync::Mutex;

use pointsman_config::{AccessLog, Log, LogFileLimits, LogFormat, ShownAddress};
use serde_json::Value;
use tracing::field::Empty;

use super::fields::{CUT_MARK, MAX_LONG_VALUE, MAX_VALUE};
use super::layer::MAX_FAILURES;
use super::*;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts a log that writes to `out`.
fn started(
    format: LogFormat,
    out: impl Write + Send + 'static,
) -> (impl Subscriber + Send + Sync, LogHandle) {
    subscriber(EnvFilter::new("info"), (format, Style::default()), out, None).unwrap()
}

/// Returns what is logged while `log` runs.
fn logged(format: LogFormat, log: impl FnOnce()) -> String {
    let buffer = Buffer::default();
    let (subscriber, handle) = started(format, buffer.clone());
    tracing::subscriber::with_default(subscriber, log);
    assert!(handle.flush(Duration::from_secs(60)));
    String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
}

fn events(log: impl FnOnce()) -> Vec<Value> {
    let text = logged(LogFormat::Json, log);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn dropped(handle: &LogHandle, reason: &str) -> u64 {
    let mut registry = Registry::default();
    handle.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let name = format!("pointsman_log_lines_dropped_total{{reason=\"{reason}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap();
    value.parse().unwrap()
}

#[test]
fn level_and_format_change_while_the_host_runs() {
    let buffer = Buffer::default();
    let (subscriber, handle) = started(LogFormat::Text, buffer.clone());
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!("one");
        tracing::debug!("two");
        let mut control = handle.control();
        let log = |filter: &str| log_settings(filter, LogFormat::Json);
        control.apply(&log("debug"));
        tracing::debug!("three");
        control.is_overridden = true;
        control.apply(&log("error"));
        tracing::debug!("four");
    });
    assert!(handle.flush(Duration::from_secs(60)));
    let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains(" INFO ") && lines[0].contains("one"), "{text}");
    for (line, message) in [(lines[1], "three"), (lines[2], "four")] {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["message"], message);
    }
}

fn log_settings(filter: &str, format: LogFormat) -> Log {
    let access = AccessLog { output: None, omit: Vec::new(), client: ShownAddress::Full };
    let files = LogFileLimits::default();
    Log { filter: filter.to_owned(), format, dir: None, files, access }
}

fn log_one_event() {
    let span = tracing::info_span!("request", request_id = "the-id", lane = Empty);
    span.record("lane", "a");
    span.record("lane", "b");
    span.in_scope(|| tracing::warn!(status = 502, ratio = 0.5, is = true, "request failed"));
}

#[test]
fn text_shows_span_fields() {
    let text = logged(LogFormat::Text, log_one_event);
    let (_, rest) = text.split_once("Z  WARN ").unwrap();
    assert_eq!(
        rest,
        "request{request_id=\"the-id\" lane=\"b\"}: pointsman::telemetry::tests: request failed \
         status=502 ratio=0.5 is=true\n"
    );
}

#[test]
fn json_shows_span_fields() {
    let event = events(log_one_event).remove(0);
    assert_eq!((&event["status"], &event["level"]), (&502.into(), &"WARN".into()));
    for span in [&event["span"], &event["spans"][0]] {
        assert_eq!((&span["request_id"], &span["lane"]), (&"the-id".into(), &"b".into()));
        assert_eq!(span["name"], "request");
    }
}

#[test]
fn foreign_text_stays_within_its_line_and_its_value() {
    let forged = "x\n2026-01-01T00:00:00.0Z ERROR forged\r\u{1b}[31m\0\u{202e}\u{85}\" code=\"y\\";
    let log = || {
        let span = tracing::info_span!("request", model = forged, other = %forged);
        span.in_scope(|| tracing::info!(model = forged, path = %forged, "{forged}"));
    };
    let text = logged(LogFormat::Text, log);
    assert_eq!(text.matches('\n').count(), 1, "{text:?}");
    assert!(text.chars().all(|letter| letter == '\n' || (' '..='~').contains(&letter)), "{text:?}");
    // The message is not quoted, and stands before all fields.
    let (_, fields) = text.split_once(" model=\"x\\n").unwrap();
    let count = |part: &str| fields.matches(part).count();
    assert_eq!((count(" code="), count(r#"\" code=\""#)), (2, 2), "{fields}");
    let line = logged(LogFormat::Json, log);
    assert_eq!(line.matches('\n').count(), 1, "{line:?}");
    assert!(line.is_ascii() && !line.contains('\u{7f}'), "{line:?}");
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["model"], &event["path"]), (&forged.into(), &forged.into()));
    assert_eq!((&event["message"], &event["span"]["other"]), (&forged.into(), &forged.into()));
}

#[test]
fn long_values_are_cut_at_a_character() {
    let long = "ä".repeat(1 << 20);
    let event = events(|| tracing::info!(model = long, tenant = %long, shape = ?long, "{long}"));
    for name in ["model", "tenant", "shape"] {
        let value = event[0][name].as_str().unwrap();
        assert!(value.len() <= MAX_VALUE + CUT_MARK.len() && value.ends_with(CUT_MARK), "{name}");
    }
    let message = event[0]["message"].as_str().unwrap();
    assert!(message.len() > MAX_VALUE && message.len() <= MAX_LONG_VALUE + CUT_MARK.len());
    assert_eq!(events(|| tracing::info!("{}", "a".repeat(MAX_LONG_VALUE)))[0]["message"], {
        "a".repeat(MAX_LONG_VALUE)
    });
}

#[test]
fn repeated_failures_are_limited_by_code_and_lane() {
    let count =
        |events: &[Value], code: &str| events.iter().filter(|event| event["code"] == code).count();
    let events = events(|| {
        for index in 0..10 * MAX_FAILURES {
            for code in ["a", "b"] {
                tracing::warn!(code, model = index, "failed");
            }
            tracing::info!(code = "c", "request failed");
            tracing::info!("request finished");
        }
        tracing::info_span!("lane", lane = "x").in_scope(|| tracing::warn!("other call site"));
    });
    let max = usize::try_from(MAX_FAILURES).unwrap();
    for code in ["a", "b", "c"] {
        assert_eq!(count(&events, code), max);
    }
    assert!(events.iter().any(|event| event["span"]["lane"] == "x"));
    let finished = events.iter().filter(|event| event["message"] == "request finished");
    assert_eq!(finished.count(), 10 * max);
}

#[test]
fn stalled_and_absent_readers_harm_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (subscriber, handle) = started(LogFormat::Json, writer);
    tracing::subscriber::with_default(subscriber, || {
        // More than fit into the pipe and the buffer.
        let text = "x".repeat(1000);
        for _ in 0..3000 {
            tracing::info!("{text}");
        }
        assert!(!handle.flush(Duration::from_millis(1)));
        let lost = dropped(&handle, "queue");
        assert!(lost > 0);
        let (found, taken) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut reported = 0;
            // A second report follows if the writer began before all lines were there.
            for line in BufReader::new(reader).lines() {
                let line = line.unwrap();
                if line.contains("log_dropped") {
                    let report: Value = serde_json::from_str(&line).unwrap();
                    reported += report["count"].as_u64().unwrap();
                }
                if reported >= lost {
                    break;
                }
            }
            found.send(reported).unwrap();
        });
        assert_eq!(taken.recv_timeout(Duration::from_secs(60)), Ok(lost));
        // The reader is gone.
        tracing::info!("unread");
        assert!(handle.flush(Duration::from_secs(60)));
        assert!(dropped(&handle, "write") >= 1);
    });
}

#[test]
fn files_get_the_same_lines_without_colors_and_priorities() {
    let (dir, buffer) = (tempfile::tempdir().unwrap(), Buffer::default());
    let file = rotating_file::RotatingFile::new(dir.path(), "pointsman", LogFileLimits::default());
    let style = Style { has_colors: true, has_priority: true, is_entry: false };
    let started =
        subscriber(EnvFilter::new("info"), (LogFormat::Text, style), buffer.clone(), Some(file));
    let (subscriber, handle) = started.unwrap();
    tracing::subscriber::with_default(subscriber, || {
        tracing::warn!("one");
        tracing::info!("two");
    });
    assert!(handle.flush(Duration::from_secs(60)));
    let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    let starts: Vec<&str> = text.lines().filter_map(|line| line.get(..4)).collect();
    assert_eq!(starts, ["<4>\u{1b}", "<6>\u{1b}"], "{text:?}");
    let file = std::fs::read_to_string(dir.path().join("pointsman.log")).unwrap();
    let lines: Vec<&str> = file.lines().collect();
    assert!(lines[0].ends_with(" one") && lines[1].ends_with(" two"), "{file:?}");
    assert!(!file.contains('\u{1b}') && file.starts_with("20"), "{file:?}");
}
