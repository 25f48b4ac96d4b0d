//! The requests in flight at one start of an engine, from which the health monitor judges whether
//! that engine is alive. Requests to an earlier start are never counted for a later one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The first data of the response. An engine may compute for minutes before it sends any.
    FirstData,
    /// More data from the engine.
    Data,
    /// The client, which has not taken the data that has arrived. The engine may be blocked by
    /// this, so its silence says nothing.
    Client,
}

/// The requests in flight, by what they wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct InFlight {
    /// Waiting for the first data of their responses.
    pub(crate) first_data: u32,
    /// Waiting for more data.
    pub(crate) data: u32,
    /// Waiting for their clients.
    pub(crate) client: u32,
}

impl InFlight {
    /// Returns the number of requests in flight.
    pub(crate) fn total(self) -> u32 {
        self.first_data.saturating_add(self.data).saturating_add(self.client)
    }
}

/// Values of [`Activity::repeats_ids`].
const UNKNOWN: u8 = 0;
const REPEATS: u8 = 1;
const CONFUSED: u8 = 2;

/// The traffic between the host and one start of an engine.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    first_data: AtomicU32,
    data: AtomicU32,
    client: AtomicU32,
    /// How many times data was received. Comments of a stream are not data.
    received: AtomicU64,
    /// Requests that were sent or have ended.
    turnover: AtomicU64,
    /// Whether the engine repeats the ids of requests in its responses: see [`crate::proof`].
    repeats_ids: AtomicU8,
    /// Cancelled when the host takes the engine for hung, before it is killed.
    hung: CancellationToken,
}

impl Activity {
    /// Returns the requests in flight.
    pub(crate) fn in_flight(&self) -> InFlight {
        let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        InFlight {
            first_data: count(&self.first_data),
            data: count(&self.data),
            client: count(&self.client),
        }
    }

    /// Returns a number that changes whenever data is received.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Returns a number that changes whenever a request is sent or ends, or data is received.
    pub(crate) fn traffic(&self) -> u64 {
        self.received().wrapping_add(self.turnover.load(Ordering::Relaxed))
    }

    /// The token of requests that end because the host takes the engine for hung.
    pub(crate) fn hung(&self) -> &CancellationToken {
        &self.hung
    }

    /// Returns true if the engine has proved to repeat the ids of requests, and has never confused
    /// them.
    pub(crate) fn repeats_ids(&self) -> bool {
        self.repeats_ids.load(Ordering::Relaxed) == REPEATS
    }

    /// Notes that the engine has repeated an id.
    pub(crate) fn prove_ids(&self) {
        let (unknown, order) = (UNKNOWN, Ordering::Relaxed);
        // Fails if it is known already, or if the engine has confused responses.
        self.repeats_ids.compare_exchange(unknown, REPEATS, order, order).ok();
    }

    /// Notes that the engine has sent the response of another request.
    pub(crate) fn distrust_ids(&self) {
        self.repeats_ids.store(CONFUSED, Ordering::Relaxed);
    }

    fn counter(&self, phase: Phase) -> &AtomicU32 {
        match phase {
            Phase::FirstData => &self.first_data,
            Phase::Data => &self.data,
            Phase::Client => &self.client,
        }
    }
}

/// A guard that counts one request as in flight until dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard {
    activity: Arc<Activity>,
    phase: Phase,
}

impl InFlightGuard {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        let phase = Phase::FirstData;
        activity.counter(phase).fetch_add(1, Ordering::Relaxed);
        activity.turnover.fetch_add(1, Ordering::Relaxed);
        Self { activity: Arc::clone(activity), phase }
    }

    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Returns what the request waits for.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Records that data has arrived, which now waits for the client.
    pub(crate) fn received(&mut self) {
        self.activity.received.fetch_add(1, Ordering::Relaxed);
        self.set(Phase::Client);
    }

    /// Records that something which is not data waits for the client: comments. Returns true if the
    /// request waited for the engine until then. Before the first data it still does.
    pub(crate) fn passed_on(&mut self) -> bool {
        let waited = self.phase == Phase::Data;
        if waited {
            self.set(Phase::Client);
        }
        waited
    }

    /// Records that the client waits for more data. Returns true if it has just taken what had
    /// arrived.
    pub(crate) fn wants_data(&mut self) -> bool {
        let has_taken = self.phase == Phase::Client;
        if has_taken {
            self.set(Phase::Data);
        }
        has_taken
    }

    fn set(&mut self, phase: Phase) {
        if self.phase != phase {
            // In this order, so that the request is never missing from the total.
            self.activity.counter(phase).fetch_add(1, Ordering::Relaxed);
            self.activity.counter(self.phase).fetch_sub(1, Ordering::Relaxed);
            self.phase = phase;
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.activity.counter(self.phase).fetch_sub(1, Ordering::Relaxed);
        self.activity.turnover.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns true if a chunk of a response is data. Comments of an event stream, which engines send
/// to keep a connection alive while they compute, are not. A chunk that begins in the middle of a
/// line is taken for what it looks like, which matters for this chunk only.
pub(crate) fn is_data(chunk: &[u8]) -> bool {
    chunk
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .any(|line| !line.is_empty() && !line.starts_with(b":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_not_data() {
        for (chunk, expected) in [
            ("", false),
            (":\n\n", false),
            (": keep-alive\r\n\r\n:\n", false),
            ("\n", false),
            ("data: {}\n\n", true),
            (":\n\ndata: [DONE]\n\n", true),
            ("{\"a\":1}", true),
            (" ", true),
        ] {
            assert_eq!(is_data(chunk.as_bytes()), expected, "{chunk:?}");
        }
    }

    #[test]
    fn requests_are_counted_by_what_they_wait_for() {
        let activity = Arc::new(Activity::default());
        let mut first = InFlightGuard::new(&activity);
        let second = InFlightGuard::new(&activity);
        let counts = |first_data, data, client| InFlight { first_data, data, client };
        assert_eq!(activity.in_flight(), counts(2, 0, 0));
        // Until data has arrived, a request waits for the first data, however often it is polled.
        assert!(!first.wants_data() && !first.passed_on());
        assert_eq!(activity.in_flight(), counts(2, 0, 0));
        first.received();
        assert_eq!((activity.in_flight(), activity.received()), (counts(1, 0, 1), 1));
        assert!(first.wants_data());
        assert_eq!(activity.in_flight(), counts(1, 1, 0));
        // A comment waits for the client like data, but it does not count as progress.
        assert!(first.passed_on() && !first.passed_on());
        assert_eq!((activity.in_flight(), activity.received()), (counts(1, 0, 1), 1));
        assert!(first.wants_data());
        let traffic = activity.traffic();
        drop(second);
        assert_eq!((activity.in_flight(), activity.received()), (counts(0, 1, 0), 1));
        assert_ne!(activity.traffic(), traffic);
        drop(first);
        assert_eq!(activity.in_flight().total(), 0);
    }
}
