//! What all instances of a version share: its state, its clock, its metrics, and its log.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_domain::PolicyRef;

use crate::clock::Clock;
use crate::contract::captured_log::CapturedLog;
use crate::contract::state::State;
use crate::metrics::VersionMetrics;

/// Maximum length of a log line, in bytes; longer lines are truncated.
const MAX_LINE_BYTES: usize = 1 << 10;
/// Maximum log lines of one policy per second; further lines are dropped.
const MAX_LINES_PER_SECOND: u32 = 100;

/// The severity of a guest's log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    /// Returns the name of the level in the contract.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// The environment of a version, which outlives its instances: the policy's state, the clock, and
/// the destination of its log lines.
#[derive(Debug, Clone)]
pub(crate) struct HostEnv {
    pub(crate) state: Arc<State>,
    pub(crate) clock: Clock,
    /// Collects log lines instead of the log of this process.
    pub(crate) captured_log: Option<Arc<CapturedLog>>,
}

/// The environment in a host, which runs in real time.
impl From<Arc<State>> for HostEnv {
    fn from(state: Arc<State>) -> Self {
        Self { state, clock: Clock::wall(), captured_log: None }
    }
}

/// Data that all instances of a version share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) policy: PolicyRef,
    pub(crate) state: Arc<State>,
    pub(crate) clock: Clock,
    pub(crate) metrics: VersionMetrics,
    captured_log: Option<Arc<CapturedLog>>,
    /// The start of the current second of the rate limit, and the log lines in it.
    lines: Mutex<(Duration, u32)>,
}

impl Shared {
    pub(crate) fn new(policy: PolicyRef, env: impl Into<HostEnv>, metrics: VersionMetrics) -> Self {
        let HostEnv { state, clock, captured_log } = env.into();
        Self { policy, state, clock, metrics, captured_log, lines: Mutex::default() }
    }

    /// Returns the collected log lines; `None` if they go to the log of this process.
    pub(crate) fn captured_log(&self) -> Option<&CapturedLog> {
        self.captured_log.as_deref()
    }

    /// Takes a log line from the rate limit. Returns false if the limit is reached.
    fn may_log(&self) -> bool {
        let now = self.clock.now();
        let mut lines = self.lines.lock();
        if now >= lines.0 + Duration::from_secs(1) {
            *lines = (now, 0);
        }
        lines.1 += 1;
        lines.1 <= MAX_LINES_PER_SECOND
    }

    /// Logs a line of the guest. The span of the call carries the hook and the request.
    pub(crate) fn log(&self, level: Level, message: &str) {
        let message = pointsman_domain::char_slice(message, 0, MAX_LINE_BYTES);
        // Not subject to the rate limit, which depends on the other lines.
        if self.captured_log().is_some_and(|captured| captured.take_mark(message)) {
            return;
        }
        if !self.may_log() {
            self.metrics.record_dropped("log");
            return;
        }
        // Control characters could forge lines, or drive the terminal that shows the log.
        let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if let Some(captured) = &self.captured_log {
            captured.push(level.name(), line);
            return;
        }
        match level {
            Level::Trace => tracing::trace!(target: "policy", "{line}"),
            Level::Debug => tracing::debug!(target: "policy", "{line}"),
            Level::Info => tracing::info!(target: "policy", "{line}"),
            Level::Warn => tracing::warn!(target: "policy", "{line}"),
            Level::Error => tracing::error!(target: "policy", "{line}"),
        }
    }

    /// Returns whether a line of this severity would be logged. In virtual time the result must not
    /// depend on the log filter of the process.
    pub(crate) fn log_enabled(&self, level: Level) -> bool {
        if self.clock.is_virtual() {
            return !matches!(level, Level::Trace | Level::Debug);
        }
        if self.captured_log.is_some() {
            return true;
        }
        match level {
            Level::Trace => tracing::enabled!(target: "policy", tracing::Level::TRACE),
            Level::Debug => tracing::enabled!(target: "policy", tracing::Level::DEBUG),
            Level::Info => tracing::enabled!(target: "policy", tracing::Level::INFO),
            Level::Warn => tracing::enabled!(target: "policy", tracing::Level::WARN),
            Level::Error => tracing::enabled!(target: "policy", tracing::Level::ERROR),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::PolicyMetrics;

    #[test]
    fn log_limits_follow_a_virtual_clock_and_not_the_subscriber() {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let policy = PolicyRef::new("p", "1");
        let metrics = VersionMetrics::new(&metrics, &policy, &[]);
        let env = HostEnv { state: Arc::default(), clock: Clock::manual(), captured_log: None };
        let shared = Shared::new(policy, env, metrics);
        let admitted = || (0..2 * MAX_LINES_PER_SECOND).filter(|_| shared.may_log()).count() as u32;
        assert_eq!((admitted(), admitted()), (MAX_LINES_PER_SECOND, 0));
        shared.clock.set(Duration::from_secs(1));
        assert_eq!(admitted(), MAX_LINES_PER_SECOND);
        let enabled = [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error]
            .map(|level| shared.log_enabled(level));
        assert_eq!(enabled, [false, false, true, true, true], "without a subscriber");
    }
}
