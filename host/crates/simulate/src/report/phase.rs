//! What the engine of a lane is at, and when.

use std::time::Duration;

use pointsman_domain::EngineState;
use serde::Serialize;

/// What an engine is at: its state, and whether it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Not loaded.
    Cold,
    /// Being started or woken.
    Starting,
    /// Serving, and somebody holds a slot.
    Busy,
    /// Serving nobody.
    Idle,
    /// Finishing its work before it is stopped.
    Draining,
    /// Asked to end.
    Stopping,
    /// Ended without being asked to: before the next start, or after several that failed.
    Down,
}

/// How many phases there are.
pub const PHASES: usize = 7;

impl Phase {
    /// All of them.
    pub const ALL: [Self; PHASES] = [
        Self::Cold,
        Self::Starting,
        Self::Busy,
        Self::Idle,
        Self::Draining,
        Self::Stopping,
        Self::Down,
    ];

    /// What an engine is at in this state while so many slots are held.
    pub fn of(state: EngineState, running: u32) -> Self {
        match state {
            EngineState::Cold => Self::Cold,
            EngineState::Starting => Self::Starting,
            EngineState::Ready if running > 0 => Self::Busy,
            EngineState::Ready => Self::Idle,
            EngineState::Draining => Self::Draining,
            EngineState::Stopping => Self::Stopping,
            EngineState::BackingOff | EngineState::Failed => Self::Down,
        }
    }

    /// Name, for people and programs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Starting => "starting",
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Down => "down",
        }
    }
}

/// No more spans of one lane than this.
const MOST: usize = 8_000;

/// The phases of one lane, one after the other. When there are too many of them, those that are too short to be seen are
/// shown as the longest one of their neighbourhood: at first only where it is busy and idle in turn, because loads and stops
/// are what a timeline is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// When each began, and what it is; each ends where the next one begins.
    spans: Vec<(Duration, Phase)>,
    end: Duration,
}

impl Timeline {
    /// From this phase on, at the begin of the run.
    pub(super) fn new(phase: Phase) -> Self {
        Self { spans: vec![(Duration::ZERO, phase)], end: Duration::ZERO }
    }

    /// From now on it is at this.
    pub(super) fn change(&mut self, at: Duration, phase: Phase) {
        self.end = self.end.max(at);
        // What lasts for no time was never there.
        while self.spans.last().is_some_and(|(begin, _)| *begin >= at) {
            self.spans.pop();
        }
        push(&mut self.spans, at, phase);
        if self.spans.len() > MOST {
            self.shrink();
        }
    }

    /// Makes room for as many spans as there are after this.
    fn shrink(&mut self) {
        for all in [false, true] {
            let mut grain = self.end / (MOST as u32 * 2);
            while self.spans.len() > MOST / 2 && grain < self.end / if all { 1 } else { 500 } {
                self.spans = self.coarser(grain, all).spans;
                grain *= 2;
            }
        }
    }

    /// The run is over.
    pub(super) fn finish(&mut self, at: Duration) {
        self.end = self.end.max(at);
    }

    /// When each phase began and ended.
    pub fn spans(&self) -> impl Iterator<Item = (Duration, Duration, Phase)> {
        let ends = self.spans.iter().skip(1).map(|(begin, _)| *begin).chain([self.end]);
        self.spans.iter().zip(ends).map(|((begin, phase), end)| (*begin, end, *phase))
    }

    /// The same with neighbours that are shorter than this put together: all of them, or only those that are busy and idle.
    pub fn coarser(&self, grain: Duration, all: bool) -> Self {
        let mut spans = Vec::new();
        let mut together = Together::default();
        for (begin, end, phase) in self.spans() {
            if end - begin >= grain || !(all || matches!(phase, Phase::Busy | Phase::Idle)) {
                together.flush(&mut spans);
                push(&mut spans, begin, phase);
                continue;
            }
            together.add(begin, end - begin, phase);
            if together.length >= grain {
                together.flush(&mut spans);
            }
        }
        together.flush(&mut spans);
        Self { spans, end: self.end }
    }
}

/// Short spans that become one.
#[derive(Default)]
struct Together {
    begin: Option<Duration>,
    length: Duration,
    phases: [Duration; PHASES],
}

impl Together {
    fn add(&mut self, begin: Duration, length: Duration, phase: Phase) {
        self.begin.get_or_insert(begin);
        self.length += length;
        self.phases[phase as usize] += length;
    }

    fn flush(&mut self, spans: &mut Vec<(Duration, Phase)>) {
        let Self { begin, phases, .. } = std::mem::take(self);
        let longest = Phase::ALL.into_iter().max_by_key(|phase| phases[*phase as usize]);
        if let (Some(begin), Some(phase)) = (begin, longest) {
            push(spans, begin, phase);
        }
    }
}

fn push(spans: &mut Vec<(Duration, Phase)>, at: Duration, phase: Phase) {
    if spans.last().is_none_or(|(_, last)| *last != phase) {
        spans.push((at, phase));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn spans_follow_each_other() {
        let mut timeline = Timeline::new(Phase::Cold);
        timeline.change(at(0), Phase::Starting);
        timeline.change(at(40), Phase::Idle);
        timeline.change(at(41), Phase::Busy);
        timeline.change(at(50), Phase::Busy);
        timeline.change(at(60), Phase::Draining);
        timeline.change(at(60), Phase::Stopping);
        timeline.finish(at(65));
        let spans: Vec<_> = timeline.spans().collect();
        let expected = [
            (at(0), at(40), Phase::Starting),
            (at(40), at(41), Phase::Idle),
            (at(41), at(60), Phase::Busy),
            (at(60), at(65), Phase::Stopping),
        ];
        assert_eq!(spans, expected);
        let coarser: Vec<_> = timeline.coarser(at(10), true).spans().collect();
        assert_eq!(coarser[..], [expected[0], expected[1], expected[2], expected[3]]);
        let coarsest: Vec<_> = timeline.coarser(at(100), true).spans().collect();
        assert_eq!(coarsest, [(at(0), at(65), Phase::Starting)]);
    }

    #[test]
    fn a_flickering_lane_takes_no_more_memory_and_keeps_its_loads() {
        let mut timeline = Timeline::new(Phase::Cold);
        for second in 0..100_000 {
            let phase = match second % 10_000 {
                4_000..4_045 => Phase::Starting,
                _ if second % 3 == 0 => Phase::Idle,
                _ => Phase::Busy,
            };
            timeline.change(at(second), phase);
            assert!(timeline.spans.len() <= MOST);
        }
        timeline.finish(at(100_000));
        let loads: Vec<_> = timeline.spans().filter(|span| span.2 == Phase::Starting).collect();
        let expected = (0..10)
            .map(|load| (at(load * 10_000 + 4_000), at(load * 10_000 + 4_045), Phase::Starting));
        assert_eq!(loads, expected.collect::<Vec<_>>());
        let busy: Duration =
            timeline.spans().filter(|span| span.2 == Phase::Busy).map(|it| it.1 - it.0).sum();
        assert!(busy > at(60_000), "{busy:?}");
        assert_eq!(timeline.spans().last().map(|it| it.1), Some(at(100_000)));
    }

    #[test]
    fn a_lane_that_only_switches_takes_no_more_memory_either() {
        let mut timeline = Timeline::new(Phase::Cold);
        for second in 0..50_000 {
            let phase =
                [Phase::Starting, Phase::Busy, Phase::Draining, Phase::Stopping, Phase::Cold];
            timeline.change(at(second), phase[second as usize % 5]);
            assert!(timeline.spans.len() <= MOST);
        }
    }
}
