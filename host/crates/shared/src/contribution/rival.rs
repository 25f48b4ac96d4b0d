//! Two processes that write as the same host: the state directory of one is a copy.
//!
//! ```text
//!   1. a mark of another process, after a write of this one was confirmed: may be a late write of
//!      the process before this one, which has ended
//!   2. the third one, each with a higher number: that process is running
//!   3. the younger process takes another identity, and the older one writes all again
//! ```

use super::commands::Mark;

/// Marks of another process, each with a higher number, after which that process is running. The
/// process before this one may have two writes that are executed late: the last one, and the one
/// before it that was given up.
const SIGHTINGS: u32 = 3;

/// What is known of another process that writes as this host.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sightings {
    last: Option<Mark>,
    count: u32,
}

/// What a process is of two with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyRole {
    /// The one that keeps the id, and writes all again.
    Older,
    /// The one that goes on with another id, for what it has used since it began.
    Younger,
    /// A copy of the running process, which goes on with another id, for what it uses from now on.
    SameProcess,
}

/// What a mark of another process says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sighting {
    /// The other process may have ended.
    Unclear,
    /// The other process is running.
    Running(CopyRole),
}

impl Sightings {
    /// Notes a mark that this process has not left. `own` is its mark, with the time at which it
    /// began.
    pub(super) fn note(&mut self, own: Mark, found: Mark) -> Sighting {
        // A machine that was copied while it was running: the one that finds it gives way.
        if found.process == own.process {
            return Sighting::Running(CopyRole::SameProcess);
        }
        let is_later = |last: Mark| last.process == found.process && found.number > last.number;
        self.count = if self.last.is_some_and(is_later) { self.count + 1 } else { 1 };
        self.last = Some(found);
        if self.count < SIGHTINGS {
            return Sighting::Unclear;
        }
        // A process of an earlier version does not say when it began, and keeps its identity.
        let is_younger = (own.began, own.process) > (found.began, found.process);
        Sighting::Running(if is_younger { CopyRole::Younger } else { CopyRole::Older })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mark = Mark { process: 5, number: 9, began: Some(100) };

    fn mark(process: u64, number: u64, began: Option<u64>) -> Mark {
        Mark { process, number, began }
    }

    /// Returns what the last of these marks says.
    fn last(marks: &[Mark]) -> Sighting {
        let mut sightings = Sightings::default();
        let found = marks.iter().map(|found| sightings.note(OWN, *found));
        found.last().unwrap()
    }

    #[test]
    fn process_that_goes_on_is_running_and_the_younger_one_gives_way() {
        use CopyRole::{Older, Younger};
        for (process, began, role) in [
            (4, Some(99), Younger),
            (6, Some(99), Younger),
            (4, Some(101), Older),
            // Both have begun at the same time: one of them is enough.
            (4, Some(100), Younger),
            (6, Some(100), Older),
            (6, None, Younger),
        ] {
            let marks = [1, 2, 4].map(|number| mark(process, number, began));
            assert_eq!(last(&marks), Sighting::Running(role), "{process} {began:?}");
        }
    }

    #[test]
    fn late_writes_of_processes_that_have_ended_are_not_taken_for_running_ones() {
        let of = |process, number| mark(process, number, Some(1));
        for marks in [
            &[of(4, 7)][..],
            &[of(4, 7), of(4, 8)],
            // The store was restored from a copy that has an old mark, time and again.
            &[of(4, 7), of(4, 7), of(4, 7), of(4, 7)],
            &[of(4, 7), of(3, 8), of(4, 9), of(3, 10)],
        ] {
            assert_eq!(last(marks), Sighting::Unclear, "{marks:?}");
        }
    }

    #[test]
    fn copy_of_a_running_process_is_found_at_once() {
        let found = last(&[mark(5, 9, Some(100))]);
        assert_eq!(found, Sighting::Running(CopyRole::SameProcess));
    }
}
