//! The metrics of an engine, as policies see them: the host scrapes engines at intervals, so the
//! values are slightly old.

use std::time::Duration;

/// The interval between two scrapes, as in the host.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);

/// The metrics of the last scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScrapedMetrics {
    /// The time of the scrape.
    pub(crate) at: Duration,
    /// Requests that wait inside the engine.
    pub(crate) waiting: u32,
    /// The used part of the key-value cache, in thousandths.
    pub(crate) kv_used: u16,
    /// Tokens per second of each response.
    pub(crate) decode_tps: u32,
}

impl ScrapedMetrics {
    /// Returns the age of the metrics in milliseconds.
    pub(crate) fn age_ms(&self, now: Duration) -> u32 {
        u32::try_from(now.saturating_sub(self.at).as_millis()).unwrap_or(u32::MAX)
    }
}

/// The state of an engine at the time of a scrape.
#[derive(Debug)]
pub(super) struct EngineSnapshot {
    pub(super) at: Duration,
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) kv_used: u16,
    /// Microseconds since tokens were last added to the sampler.
    pub(super) elapsed: f64,
    /// Tokens of all responses per microsecond since then.
    pub(super) decode_rate: f64,
}

#[derive(Debug, Clone, Copy)]
struct Scrape {
    metrics: ScrapedMetrics,
    running: usize,
    tokens: f64,
}

/// Takes the scrapes of an engine that serves. The scrapes of other engines find nothing.
#[derive(Debug, Default)]
pub(super) struct MetricsSampler {
    started_at: Option<Duration>,
    /// Response tokens since the start.
    tokens: f64,
    last: Option<Scrape>,
}

impl MetricsSampler {
    pub(super) fn started_at(now: Duration) -> Self {
        Self { started_at: Some(now), ..Self::default() }
    }

    pub(super) fn add_tokens(&mut self, tokens: f64) {
        self.tokens += tokens;
    }

    /// Returns the time of the last scrape that was due.
    pub(super) fn last_scrape(&self, now: Duration) -> Option<Duration> {
        let started_at = self.started_at?;
        let whole_seconds = now.saturating_sub(started_at).as_secs();
        Some(started_at + Duration::from_secs(whole_seconds))
    }

    /// Returns true if no scrape at this time or later has been taken.
    pub(super) fn is_new(&self, at: Duration) -> bool {
        self.last.is_none_or(|last| last.metrics.at < at)
    }

    /// Takes a scrape. The decode speed is the average between two scrapes, and zero if there were
    /// no responses at either of them.
    pub(super) fn scrape(&mut self, now: &EngineSnapshot) {
        let tokens = self.tokens + now.elapsed * now.decode_rate;
        let before = match self.last {
            Some(last) if last.metrics.at + SCRAPE_INTERVAL == now.at => {
                Some((last.running, last.tokens))
            }
            // Scrapes are only taken when they are needed. If the previous one was skipped, nothing
            // has changed since then, so its values follow from the current ones.
            Some(_) => Some((now.running, tokens - now.decode_rate * 1e6)),
            None => None,
        };
        let decode_tps = before.map_or(0.0, |(running, before)| match (running, now.running) {
            (0, _) | (_, 0) => 0.0,
            (before_running, running) => {
                ((tokens - before) / ((before_running + running) as f64 / 2.0)).round()
            }
        });
        let metrics = ScrapedMetrics {
            at: now.at,
            waiting: u32::try_from(now.waiting).unwrap_or(u32::MAX),
            kv_used: now.kv_used,
            decode_tps: decode_tps as u32,
        };
        self.last = Some(Scrape { metrics, running: now.running, tokens });
    }

    pub(super) fn last(&self) -> Option<ScrapedMetrics> {
        self.last.map(|last| last.metrics)
    }
}
