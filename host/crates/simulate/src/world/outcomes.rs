//! What is done beside the requests: policies learn from outcomes, in batches, and are asked for wishes.
//!
//! The host's background looks at intervals whether there is anything to tell or to ask. Here only the looks happen that find
//! something.

use std::time::Duration;

use pointsman_domain::Outcome;

/// How often the host looks.
const BEAT: Duration = Duration::from_millis(100);
/// Outcomes that are shown at once.
const BATCH: usize = 256;

/// Outcomes that have not been shown yet, and the beat.
#[derive(Debug, Default)]
pub(super) struct Lessons {
    waiting: Vec<Outcome>,
    /// When the first of them is shown.
    due: Option<Duration>,
    /// The last beat.
    beat: Duration,
}

impl Lessons {
    /// Something to be learned.
    pub(super) fn add(&mut self, outcome: Outcome, now: Duration) {
        self.waiting.push(outcome);
        let due = if self.waiting.len() >= BATCH { now } else { self.beat_after(now) };
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// When there is something to be shown, or to be asked at `tick`.
    pub(super) fn next(&self, tick: Option<Duration>) -> Option<Duration> {
        let asked = tick.map(|tick| self.beat_at(tick));
        self.due.into_iter().chain(asked).min()
    }

    /// The beat that is now.
    pub(super) fn beats(&mut self, now: Duration) -> Vec<Outcome> {
        self.beat = now;
        self.due = None;
        std::mem::take(&mut self.waiting)
    }

    /// The first beat after a time.
    fn beat_after(&self, time: Duration) -> Duration {
        let beats = time.saturating_sub(self.beat).as_micros() / BEAT.as_micros() + 1;
        self.beat.saturating_add(BEAT * u32::try_from(beats).unwrap_or(u32::MAX))
    }

    /// The first beat that is not before a time.
    fn beat_at(&self, time: Duration) -> Duration {
        let beats = time.saturating_sub(self.beat).as_micros().div_ceil(BEAT.as_micros()).max(1);
        self.beat.saturating_add(BEAT * u32::try_from(beats).unwrap_or(u32::MAX))
    }
}
