//! The program's own log, on standard error.
//!
//! Both formats show the fields of the spans around an event, such as id and lane of a request.
//! The text format shows a field that was recorded again, such as the lane after a fallback, once
//! for each value; the last one applies. The JSON format has the last value, in `span` for the
//! innermost span and in `spans` for all of them, outermost first.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

use pointsman_config::{Log, LogFormat};

/// Installs the global subscriber. `filter`, from the command line, overrides the configuration.
///
/// # Errors
/// If the filter is invalid or a subscriber is already installed.
pub(crate) fn start(log: &Log, filter: Option<&str>) -> Result<()> {
    let text = filter.unwrap_or(&log.filter);
    let filter: EnvFilter = text.parse().with_context(|| {
        format!("--log: invalid level or filter \"{text}\": expected for example \"info\"")
    })?;
    let has_colors = std::io::stderr().is_terminal();
    let installed = match log.format {
        LogFormat::Text => text_subscriber(filter, has_colors, std::io::stderr).try_init(),
        LogFormat::Json => json_subscriber(filter, std::io::stderr).try_init(),
    };
    installed.context("failed to initialize logging")
}

fn text_subscriber<W>(filter: EnvFilter, has_colors: bool, writer: W) -> impl Subscriber
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(has_colors)
        .finish()
}

/// Event fields are at the top level, so that log processors find them without a path.
fn json_subscriber<W>(filter: EnvFilter, writer: W) -> impl Subscriber
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .json()
        .flatten_event(true)
        .finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::field::Empty;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Buffer {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn log_one_event() {
        let span = tracing::info_span!("request", request_id = "the-id", lane = Empty);
        span.record("lane", "a");
        span.record("lane", "b");
        span.in_scope(|| tracing::warn!(status = 502, "request failed"));
    }

    #[test]
    fn text_shows_span_fields() {
        let buffer = Buffer::default();
        let subscriber = text_subscriber(EnvFilter::new("info"), false, buffer.clone());
        tracing::subscriber::with_default(subscriber, log_one_event);
        let text = buffer.text();
        assert!(text.contains(r#"request{request_id="the-id" lane="a" lane="b"}"#), "{text}");
        assert!(text.contains("status=502"), "{text}");
    }

    #[test]
    fn json_shows_span_fields() {
        let buffer = Buffer::default();
        let subscriber = json_subscriber(EnvFilter::new("info"), buffer.clone());
        tracing::subscriber::with_default(subscriber, log_one_event);
        let event: Value = serde_json::from_str(&buffer.text()).unwrap();
        assert_eq!(event["status"], 502);
        for span in [&event["span"], &event["spans"][0]] {
            assert_eq!((&span["request_id"], &span["lane"]), (&"the-id".into(), &"b".into()));
        }
    }
}
