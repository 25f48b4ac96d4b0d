//! Watches external engines: whether they serve, and their own metrics.
//!
//! ```text
//!   down ──probe soon, then less often──> ready ──probe and scrape at intervals──> down
//! ```

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use pointsman_domain::dispatch::EngineEvent;
use tokio::time::{Instant, sleep_until};

use crate::driver::{Driver, MetricsSource, Target};
use crate::failures::FailureKind;
use crate::learning::learn;
use crate::message::EngineReporter;
use crate::probing::{ProbeError, probe};
use crate::scrape::{EngineMetrics, Rates, rates};
use crate::upstream::Upstream;

/// The interval between probes of an engine that has just gone down or has not come up yet.
const FAST_PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// Time for which an engine is probed that often. After that, the interval doubles with each probe
/// up to the configured one.
const FAST_PROBE_TIME: Duration = Duration::from_secs(30);
/// The interval between scrapes of an engine that has metrics.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum time for the response to a scrape.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// The time until an engine without metrics is asked for them again.
const ABSENT_INTERVAL: Duration = Duration::from_secs(60);

/// An external engine, and how it is watched.
pub(crate) struct ExternalEngine<'a> {
    pub(crate) driver: &'a dyn Driver,
    pub(crate) upstream: &'a Upstream,
    /// The configured interval between probes.
    pub(crate) interval: Duration,
    /// Names of the lane's own model in the engine's list of models.
    pub(crate) models: &'a [String],
    pub(crate) reporter: &'a EngineReporter,
}

/// Watches an external engine, and reports changes of its readiness, what it says about its models
/// when it becomes ready, and its metrics. Never returns.
pub(crate) async fn watch_external(engine: ExternalEngine<'_>) {
    let ExternalEngine { driver, upstream, interval, .. } = engine;
    let target = Arc::new(driver.target(0));
    // An engine that must not be probed is not scraped either.
    let is_probed = !driver.ready_paths().is_empty();
    let sources = if is_probed { driver.metrics_sources() } else { &[] };
    let mut scraper = Scraper::new(upstream, &target, sources);
    let mut pace = Pace::new(interval);
    let mut ready = None;
    loop {
        let problem = probe(driver, upstream, &target).await.err();
        let is_ready = problem.is_none();
        if ready != Some(is_ready) {
            ready = Some(is_ready);
            engine.report(&target, problem).await;
        }
        let next_probe = Instant::now() + pace.after_probe(is_ready);
        if is_ready {
            while let Some(due) = scraper.next_due().filter(|due| *due < next_probe) {
                sleep_until(due).await;
                if let Some((metrics, rates)) = scraper.scrape().await {
                    engine.reporter.metrics(metrics, rates);
                }
            }
        } else {
            // The next engine at this address may be another one.
            scraper = Scraper::new(upstream, &target, sources);
        }
        sleep_until(next_probe).await;
    }
}

impl ExternalEngine<'_> {
    /// Reports that the engine serves, or why it does not.
    async fn report(&self, target: &Arc<Target>, problem: Option<ProbeError>) {
        let (engine, reporter) = (&target.authority, self.reporter);
        match problem {
            None => {
                tracing::info!(engine, "external engine is ready");
                let card = learn(self.driver, self.upstream, target, self.models).await;
                reporter.learned(card);
                reporter.ready(target);
            }
            Some(error) => {
                tracing::warn!(engine, error = %error, "external engine is not ready");
                let kind = FailureKind::with_code("engine_unreachable");
                let cause = format!("{}: {error}", kind.cause);
                // The address is the operator's business.
                let details = format!("the engine at {engine}");
                let problem = kind.problem_because(&cause).with_details(details);
                reporter.event(EngineEvent::Lost(problem));
            }
        }
    }
}

/// The pauses between probes.
#[derive(Debug)]
struct Pace {
    /// The configured interval.
    interval: Duration,
    /// Since when the engine has been down; `None` while it serves.
    down_since: Option<Instant>,
    pause: Duration,
}

impl Pace {
    fn new(interval: Duration) -> Self {
        Self { interval, down_since: None, pause: FAST_PROBE_INTERVAL }
    }

    /// Returns the pause after a probe.
    fn after_probe(&mut self, is_ready: bool) -> Duration {
        if is_ready {
            (self.down_since, self.pause) = (None, FAST_PROBE_INTERVAL);
            return self.interval;
        }
        let since = *self.down_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= FAST_PROBE_TIME {
            // Saturating: an operator may configure any interval.
            self.pause = self.pause.saturating_mul(2);
        }
        self.pause = self.pause.min(self.interval);
        self.pause
    }
}

/// Scrapes the metrics of an engine that may have none.
struct Scraper<'a> {
    upstream: &'a Upstream,
    target: &'a Target,
    /// The sources, and when each is due.
    sources: Vec<(MetricsSource, Instant)>,
    last: Option<(EngineMetrics, Instant)>,
}

impl<'a> Scraper<'a> {
    fn new(upstream: &'a Upstream, target: &'a Target, sources: &[MetricsSource]) -> Self {
        let now = Instant::now();
        let sources = sources.iter().map(|source| (*source, now)).collect();
        Self { upstream, target, sources, last: None }
    }

    fn next_due(&self) -> Option<Instant> {
        self.sources.iter().map(|(_, due)| *due).min()
    }

    /// Asks the sources that are due. A source that the engine lacks is left out for a while.
    async fn scrape(&mut self) -> Option<(EngineMetrics, Rates)> {
        let mut found: Option<EngineMetrics> = None;
        for ((path, parse), due) in &mut self.sources {
            if *due > Instant::now() {
                continue;
            }
            let response =
                self.upstream.call(self.target, Method::GET, path, None, SCRAPE_TIMEOUT).await;
            let parsed = match &response {
                Ok((StatusCode::OK, body)) => Some(parse(body)),
                Ok(_) | Err(_) => None,
            };
            let parsed = parsed.filter(|metrics| *metrics != EngineMetrics::default());
            // A busy engine may not respond in time, and has metrics nevertheless.
            let is_absent = parsed.is_none() && response.is_ok();
            *due = Instant::now() + if is_absent { ABSENT_INTERVAL } else { SCRAPE_INTERVAL };
            if let Some(metrics) = parsed {
                found = Some(found.unwrap_or_default().or(metrics));
            }
        }
        let (metrics, now) = (found?, Instant::now());
        let rates = match &self.last {
            Some((earlier, scraped)) => rates(earlier, &metrics, now.duration_since(*scraped)),
            None => Rates::default(),
        };
        self.last = Some((metrics, now));
        Some((metrics, rates))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn engine_that_is_down_is_probed_often_at_first() {
        let interval = Duration::from_secs(5);
        let mut pace = Pace::new(interval);
        let begun = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..200 {
            let pause = pace.after_probe(false);
            tokio::time::sleep(pause).await;
            pauses.push((begun.elapsed(), pause));
        }
        let is_fast = |(at, pause): &(Duration, Duration)| {
            *at > FAST_PROBE_TIME || *pause == FAST_PROBE_INTERVAL
        };
        assert!(pauses.iter().all(is_fast), "{pauses:?}");
        assert_eq!(pauses.last().unwrap().1, interval);
        assert_eq!(pace.after_probe(true), interval);
        assert_eq!(pace.after_probe(false), FAST_PROBE_INTERVAL, "anew after it has served");
        let mut hasty = Pace::new(Duration::from_millis(100));
        assert_eq!(hasty.after_probe(false), Duration::from_millis(100));
    }
}
