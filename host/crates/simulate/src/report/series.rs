//! What happens over time, in a bounded number of pieces of time: they get longer when the run outgrows them.

use std::time::Duration;

use super::phase::{PHASES, Phase};
use crate::histogram::Histogram;
use crate::observe::RequestResult;

/// No more pieces than this.
const MOST: usize = 480;

/// Lengths of the pieces, in seconds. Each is a multiple of the one before it.
const LENGTHS: [u64; 16] = [
    1, 5, 10, 30, 60, 300, 900, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400, 604_800, 6_048_000,
    60_480_000,
];

/// What can be put together with another one of its kind.
pub(super) trait Merge {
    /// Takes in another one.
    fn merge(&mut self, other: &Self);
}

/// Pieces of time from the begin of the run, one after the other.
#[derive(Debug, Clone)]
pub struct Series {
    /// Index into the lengths.
    length: usize,
    pieces: Vec<Piece>,
    classes: usize,
    lanes: usize,
}

/// One piece of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    /// By class.
    pub classes: Vec<ClassPiece>,
    /// By lane.
    pub lanes: Vec<LanePiece>,
}

/// One class in one piece of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassPiece {
    /// Requests that came.
    pub came: u64,
    /// How long those waited that came in this time.
    pub waits: Histogram<4>,
    /// Requests that ended with an answer of a later lane.
    pub fell_back: u64,
    /// Requests that were refused.
    pub rejected: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Requests whose clients left.
    pub client_gone: u64,
}

/// One lane in one piece of time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LanePiece {
    /// The longest queue.
    pub most_waiting: u64,
    /// Requests that waited, times how long, in microseconds.
    pub waiting_us: u128,
    /// Slots that were held, times how long, in microseconds.
    pub running_us: u128,
    /// Time in each phase, in microseconds.
    pub phases_us: [u64; PHASES],
}

impl Merge for Piece {
    fn merge(&mut self, other: &Self) {
        for (class, more) in self.classes.iter_mut().zip(&other.classes) {
            class.came += more.came;
            class.waits.merge(&more.waits);
            class.fell_back += more.fell_back;
            class.rejected += more.rejected;
            class.errors += more.errors;
            class.client_gone += more.client_gone;
        }
        for (lane, more) in self.lanes.iter_mut().zip(&other.lanes) {
            lane.most_waiting = lane.most_waiting.max(more.most_waiting);
            lane.waiting_us += more.waiting_us;
            lane.running_us += more.running_us;
            for (time, more) in lane.phases_us.iter_mut().zip(more.phases_us) {
                *time += more;
            }
        }
    }
}

impl ClassPiece {
    pub(super) fn count(&mut self, how: RequestResult) {
        match how {
            RequestResult::Answered => {}
            RequestResult::FellBack => self.fell_back += 1,
            RequestResult::Rejected => self.rejected += 1,
            RequestResult::Error => self.errors += 1,
            RequestResult::ClientGone => self.client_gone += 1,
        }
    }
}

impl LanePiece {
    /// Time that was watched.
    fn watched_us(&self) -> u64 {
        self.phases_us.iter().sum()
    }

    /// Requests that waited, on average.
    pub fn mean_waiting(&self) -> f64 {
        part(self.waiting_us, self.watched_us())
    }

    /// Slots that were held, on average.
    pub fn mean_running(&self) -> f64 {
        part(self.running_us, self.watched_us())
    }

    /// Part of the time in a phase.
    pub fn share(&self, phase: Phase) -> f64 {
        part(u128::from(self.phases_us[phase as usize]), self.watched_us())
    }
}

fn part(of: u128, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { of as f64 / whole as f64 }
}

impl Series {
    /// Nothing has happened yet.
    pub(super) fn new(classes: usize, lanes: usize) -> Self {
        Self { length: 0, pieces: Vec::new(), classes, lanes }
    }

    /// Length of each piece.
    pub fn length(&self) -> Duration {
        Duration::from_secs(LENGTHS[self.length])
    }

    /// The pieces.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The same in no more pieces than this, and none shorter than this.
    #[must_use]
    pub fn coarser(&self, most: usize, shortest: Duration) -> Self {
        let mut series = self.clone();
        while (series.pieces.len() > most || series.length() < shortest)
            && series.length + 1 < LENGTHS.len()
        {
            series.lengthen();
        }
        series
    }

    /// The piece of this time.
    pub(super) fn at(&mut self, at: Duration) -> &mut Piece {
        let index = self.reach(at);
        &mut self.pieces[index]
    }

    /// Calls for each piece of a time with how much of the time is in it, in microseconds.
    pub(super) fn between(
        &mut self,
        from: Duration,
        to: Duration,
        mut add: impl FnMut(&mut Piece, u64),
    ) {
        if to <= from {
            return;
        }
        // What ends where a piece begins is not in it.
        let last = self.reach(to.saturating_sub(Duration::from_micros(1)).max(from));
        let length = self.length();
        let first = self.index(from).min(last);
        for (index, piece) in self.pieces[first..=last].iter_mut().enumerate() {
            let begin = length * u32::try_from(first + index).unwrap_or(u32::MAX);
            let inside = to.min(begin + length).saturating_sub(from.max(begin));
            if !inside.is_zero() {
                add(piece, micros(inside));
            }
        }
    }

    /// Makes sure that there is a piece for this time, and says which.
    fn reach(&mut self, at: Duration) -> usize {
        while self.index(at) >= MOST && self.length + 1 < LENGTHS.len() {
            self.lengthen();
        }
        let index = self.index(at).min(MOST - 1);
        while self.pieces.len() <= index {
            self.pieces.push(Piece {
                classes: vec![ClassPiece::default(); self.classes],
                lanes: vec![LanePiece::default(); self.lanes],
            });
        }
        index
    }

    fn index(&self, at: Duration) -> usize {
        usize::try_from(at.as_secs() / LENGTHS[self.length]).unwrap_or(usize::MAX)
    }

    fn lengthen(&mut self) {
        let times = usize::try_from(LENGTHS[self.length + 1] / LENGTHS[self.length]).unwrap_or(1);
        self.length += 1;
        let pieces = std::mem::take(&mut self.pieces);
        for some in pieces.chunks(times) {
            let mut together = some[0].clone();
            some[1..].iter().for_each(|piece| together.merge(piece));
            self.pieces.push(together);
        }
    }
}

/// A time in microseconds; more than half a million years are half a million.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
