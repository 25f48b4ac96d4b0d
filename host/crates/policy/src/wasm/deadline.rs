//! The deadline of a call, in CPU time of the thread that makes it.
//!
//! A thread that other work preempts does not use up its deadline, so a busy machine causes no
//! faults. A far limit in wall clock time bounds how long a call holds its thread; a call that it
//! ends was preempted, so that says nothing about the policy.
//!
//! Reading the CPU time is a system call, which takes longer than the code of most policies. It is
//! therefore read once within [`MAX_READING_AGE`] for all calls of a thread.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::wasm::epoch_clock::TICK;

/// Wall clock time that a call may take, as a multiple of its deadline, but at least [`MIN_WALL`].
const WALL_FACTOR: u32 = 10;
/// Minimum wall clock limit, which is above the delays of an overloaded scheduler.
const MIN_WALL: Duration = Duration::from_secs(3);

/// Age up to which a reading of a thread's CPU time is used for the start of a call: the resolution
/// of deadlines. The CPU time of a call is too low by what the thread waited since the reading.
const MAX_READING_AGE: Duration = TICK;

/// The CPU time of a thread at an instant.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    cpu_time: Duration,
}

thread_local! {
    /// The last reading for the start of a call.
    static READING: Cell<Option<Reading>> = const { Cell::new(None) };
}

/// The deadline of a running call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    limit: Duration,
    start: Instant,
    /// CPU time of the thread at the start; too high by what the thread waited since the reading.
    cpu_start: Duration,
}

impl Deadline {
    /// Starts a deadline for a call on this thread.
    pub(crate) fn start(limit: Duration) -> Self {
        let start = Instant::now();
        Self { limit, start, cpu_start: cpu_time_at(start) }
    }

    /// Returns the CPU time that is left; `None` if the deadline has expired. Called on the thread
    /// that started the deadline.
    pub(crate) fn left(&self) -> Option<Duration> {
        let wall = self.start.elapsed();
        // No thread uses more CPU time than passes on the wall, which is cheaper to read.
        if wall < self.limit {
            return Some(self.limit.saturating_sub(wall));
        }
        if wall >= self.limit.saturating_mul(WALL_FACTOR).max(MIN_WALL) {
            return None;
        }
        self.limit.checked_sub(self.cpu_used()).filter(|left| !left.is_zero())
    }

    /// Returns whether the CPU time is used up, and not only the wall clock limit. Called on the
    /// thread that started the deadline.
    pub(crate) fn is_used_up(&self) -> bool {
        self.cpu_used() >= self.limit
    }

    /// Returns the CPU time since the start, less what the thread waited in the
    /// [`MAX_READING_AGE`] before. Called on the thread that started the deadline.
    pub(crate) fn cpu_used(&self) -> Duration {
        // Saturates if the thread waited before the start for longer than the call has run.
        thread_cpu_time().saturating_sub(self.cpu_start)
    }
}

/// Returns the ticks of the epoch after which a call with this much time left is looked at. The
/// first tick may come at once, so the call is looked at between this many ticks and one tick less.
pub(crate) fn ticks(left: Duration) -> u64 {
    u64::try_from(left.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX).saturating_add(1)
}

/// Returns the CPU time of this thread at `now`, as if it had not waited since the last reading.
fn cpu_time_at(now: Instant) -> Duration {
    let last = READING.get().map(|last| (last, now.saturating_duration_since(last.at)));
    match last {
        Some((last, age)) if age < MAX_READING_AGE => last.cpu_time + age,
        Some(_) | None => {
            let cpu_time = thread_cpu_time();
            READING.set(Some(Reading { at: now, cpu_time }));
            cpu_time
        }
    }
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // The clock starts at zero with the thread, so neither part is negative.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpu_time_of_this_thread_counts() {
        let deadline = Deadline::start(Duration::from_millis(2));
        #[expect(clippy::disallowed_methods, reason = "time has to pass without CPU time")]
        std::thread::sleep(Duration::from_millis(20));
        assert!(deadline.left().is_some(), "{deadline:?}");
        while deadline.cpu_used() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        assert_eq!(deadline.left(), None);
        assert!(deadline.is_used_up());
    }

    #[test]
    fn cpu_time_is_never_too_high_and_too_low_by_less_than_the_age_of_a_reading() {
        let limit = Duration::from_millis(3);
        for wait in [Duration::ZERO, MAX_READING_AGE / 2, MAX_READING_AGE * 2] {
            // Takes a reading, or uses one.
            Deadline::start(limit);
            #[expect(clippy::disallowed_methods, reason = "time has to pass without CPU time")]
            std::thread::sleep(wait);
            let before = thread_cpu_time();
            let deadline = Deadline::start(limit);
            let started = thread_cpu_time();
            while thread_cpu_time() < started + limit {
                std::hint::spin_loop();
            }
            let used = deadline.cpu_used();
            assert!(used + MAX_READING_AGE > limit, "{wait:?}: {used:?}");
            assert!(used <= thread_cpu_time() - before, "{wait:?}: {used:?}");
        }
    }

    #[test]
    fn wall_clock_limit_ends_a_call_without_cpu_time() {
        let start = Instant::now().checked_sub(MIN_WALL).unwrap();
        let deadline = Deadline { start, ..Deadline::start(Duration::from_millis(5)) };
        assert_eq!(deadline.left(), None);
        assert!(!deadline.is_used_up());
        let longer = Deadline { limit: MIN_WALL / 4, ..deadline };
        assert!(longer.left().is_some(), "ten times the deadline");
    }

    #[test]
    fn ticks_cover_the_time_that_is_left() {
        let of_micros = |micros| ticks(Duration::from_micros(micros));
        assert_eq!([0, 999, 1000, 5000].map(of_micros), [1, 1, 2, 6]);
    }
}
