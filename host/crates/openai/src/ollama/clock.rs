//! Times in Ollama's responses.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// Measures a request from its arrival at the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    arrived: Instant,
    /// When the request was sent to the engine.
    sent: Instant,
    first: Option<Instant>,
}

impl Clock {
    /// Starts the clock of a request that is sent to an engine now.
    pub(super) fn new(arrived: Option<Instant>) -> Self {
        let sent = Instant::now();
        Self { arrived: arrived.unwrap_or(sent), sent, first: None }
    }

    /// Notes that the first text of the response has arrived.
    pub(super) fn first(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// Adds the total time, and the time until the request was sent: in the queue, and for the load
    /// of the lane.
    pub(super) fn add_total(&self, fields: &mut Map<String, Value>) {
        let mut set = |name: &str, time| fields.insert(name.to_owned(), nanoseconds(time));
        set("total_duration", self.arrived.elapsed());
        set("load_duration", self.sent.duration_since(self.arrived));
    }

    /// Returns the times that the engine took for the prompt and for the response. A response that
    /// arrives as a whole does not tell them apart.
    pub(super) fn evaluation(&self) -> (Duration, Duration) {
        let total = self.sent.elapsed();
        match self.first.map(|first| first.duration_since(self.sent)) {
            Some(prompt) => (prompt, total.saturating_sub(prompt)),
            None => (Duration::ZERO, total),
        }
    }
}

/// Saturates: no request takes 500 years.
pub(super) fn nanoseconds(time: Duration) -> Value {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).into()
}
