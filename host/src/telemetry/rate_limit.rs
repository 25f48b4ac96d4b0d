//! Limits how often an event is logged. What exceeds the limit is counted, and one line says how
//! many events were left out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::Level;

/// The time in which events are counted.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Maximum number of kinds of events that are counted. There are some hundred call sites; their
/// kinds only multiply with lanes, policies and tenants of the configuration.
const MAX_KINDS: usize = 2048;
/// The kind that the others share beyond [`MAX_KINDS`].
const OTHER_KINDS: u64 = 0;

/// What is known of a kind of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) level: Level,
    pub(super) target: &'static str,
    /// The value of `code`, else that of `event`, else the call site.
    pub(super) name: String,
}

/// Events of one kind that were left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Suppressed {
    pub(super) kind: Kind,
    pub(super) count: u64,
}

/// Whether an event is logged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Log it, after the line about those that were left out before.
    Log(Option<Suppressed>),
    /// Only count it.
    Suppress,
}

#[derive(Debug)]
struct Window {
    begun: Instant,
    logged: u32,
    suppressed: Suppressed,
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.begun) >= WINDOW
    }

    fn take(&mut self) -> Option<Suppressed> {
        let count = std::mem::take(&mut self.suppressed.count);
        let kind = || self.suppressed.kind.clone();
        (count > 0).then(|| Suppressed { kind: kind(), count })
    }
}

/// The limiter of all events.
#[derive(Debug, Default)]
pub(super) struct RateLimiter(Mutex<HashMap<u64, Window>>);

impl RateLimiter {
    /// Counts an event of the kind with the hash `key`, of which at most `max` are logged in one
    /// [`WINDOW`].
    pub(super) fn admit(
        &self,
        key: u64,
        max: u32,
        now: Instant,
        kind: impl FnOnce() -> Kind,
    ) -> Admission {
        let mut windows = self.0.lock();
        let mut key = key;
        if windows.len() >= MAX_KINDS && !windows.contains_key(&key) {
            windows.retain(|_, window| !window.is_over(now) || window.suppressed.count > 0);
            if windows.len() >= MAX_KINDS {
                key = OTHER_KINDS;
            }
        }
        let window = windows.entry(key).or_insert_with(|| Window {
            begun: now,
            logged: 0,
            suppressed: Suppressed { kind: kind(), count: 0 },
        });
        if window.is_over(now) {
            let suppressed = window.take();
            (window.begun, window.logged) = (now, 1);
            return Admission::Log(suppressed);
        }
        if window.logged < max {
            window.logged += 1;
            return Admission::Log(None);
        }
        window.suppressed.count += 1;
        Admission::Suppress
    }

    /// Returns what was left out in windows that are over at `now`; each event is returned once.
    pub(super) fn sweep(&self, now: Instant) -> Vec<Suppressed> {
        let over = |window: &&mut Window| window.is_over(now);
        self.0.lock().values_mut().filter(over).filter_map(Window::take).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Kind {
        Kind { level: Level::WARN, target: "t", name: name.to_owned() }
    }

    #[test]
    fn events_beyond_the_limit_are_counted_until_the_window_is_over() {
        let (limiter, start) = (RateLimiter::default(), Instant::now());
        let admit = |key, after| limiter.admit(key, 2, start + after, || kind("a"));
        for _ in 0..2 {
            assert_eq!(admit(1, Duration::ZERO), Admission::Log(None));
        }
        for _ in 0..3 {
            assert_eq!(admit(1, Duration::from_secs(9)), Admission::Suppress);
        }
        assert_eq!(admit(2, Duration::ZERO), Admission::Log(None), "another kind");
        assert_eq!(limiter.sweep(start + Duration::from_secs(9)), []);
        let expected = Suppressed { kind: kind("a"), count: 3 };
        assert_eq!(admit(1, WINDOW), Admission::Log(Some(expected.clone())));
        for _ in 0..4 {
            admit(1, WINDOW);
        }
        assert_eq!(limiter.sweep(start + 2 * WINDOW), [expected]);
        assert_eq!(limiter.sweep(start + 2 * WINDOW), []);
    }

    #[test]
    fn number_of_kinds_is_bounded() {
        let (limiter, start) = (RateLimiter::default(), Instant::now());
        for key in 1..10_000 {
            limiter.admit(key, 2, start, || kind("a"));
        }
        assert!(limiter.0.lock().len() <= MAX_KINDS + 1);
        assert_eq!(limiter.admit(20_000, 2, start, || kind("a")), Admission::Suppress);
        let later = start + WINDOW;
        assert_eq!(limiter.admit(20_000, 2, later, || kind("a")), Admission::Log(None));
    }
}
