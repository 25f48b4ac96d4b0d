//! Promise 1, kept by construction: every accepted request ends in exactly one way.
//!
//! ```text
//!   accepted = answered + fell back and answered + explicit error + client gone + in flight
//! ```
//!
//! [`Accepted`] is made when a request is taken in and counts its end exactly once: explicitly, or on drop, which is
//! what happens to it when hyper abandons the request because the client left.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::{End, GatewayMetrics};

/// One accepted request, until it has ended.
#[derive(Debug)]
pub(crate) struct Accepted {
    metrics: Arc<GatewayMetrics>,
    endpoint: &'static str,
    since: Instant,
    lane: Option<Arc<str>>,
    tries: u32,
    /// Another lane than the first one is being tried.
    moved: bool,
    ended: bool,
}

impl Accepted {
    pub(crate) fn new(metrics: Arc<GatewayMetrics>, endpoint: &'static str) -> Self {
        metrics.accepted.inc();
        metrics.in_flight.inc();
        Self { metrics, endpoint, since: Instant::now(), lane: None, tries: 0, moved: false, ended: false }
    }

    /// Time since the request was accepted.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// A lane is being tried.
    pub(crate) fn tries(&mut self, lane: &str) {
        // The same lane may be asked once more, which is no falling back.
        self.moved |= self.lane.as_deref().is_some_and(|before| before != lane);
        self.lane = Some(lane.into());
        self.tries += 1;
    }

    /// How often a lane was tried.
    pub(crate) fn tried(&self) -> u32 {
        self.tries
    }

    /// The first byte of the answer goes out.
    pub(crate) fn first_byte(&self) {
        self.metrics.first_byte_seconds.observe(self.age().as_secs_f64());
    }

    /// The whole answer went out.
    pub(crate) fn answered(&mut self) {
        self.end(if self.moved { End::FellBack } else { End::Answered });
    }

    /// The client got an explicit error.
    pub(crate) fn failed(&mut self) {
        self.end(End::Error);
    }

    fn end(&mut self, end: End) {
        if !std::mem::replace(&mut self.ended, true) {
            let lane = self.lane.as_deref().unwrap_or("");
            self.metrics.ended(self.endpoint, lane, end, self.age());
        }
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.end(End::ClientGone);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn asking_a_lane_once_more_is_no_falling_back() {
        for (lanes, outcome) in
            [(["a", "a"], "pointsman_answered_total 1"), (["a", "b"], "pointsman_fell_back_total 1")]
        {
            let mut registry = Registry::default();
            let mut accepted = Accepted::new(GatewayMetrics::register(&mut registry), "chat");
            lanes.into_iter().for_each(|lane| accepted.tries(lane));
            assert_eq!(accepted.tried(), 2);
            accepted.answered();
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            assert!(text.contains(outcome), "{lanes:?}: {text}");
        }
    }
}
