//! The phases of a lane's engine over time.

use std::time::Duration;

use pointsman_domain::EngineState;
use serde::Serialize;

/// What an engine is doing: its state, and whether any slot is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Not loaded.
    Cold,
    /// Being started or woken up.
    Starting,
    /// Ready, with at least one slot in use.
    Busy,
    /// Ready, with no slot in use.
    Idle,
    /// Finishing in-flight requests before it is stopped.
    Draining,
    /// Being stopped.
    Stopping,
    /// Ended unexpectedly: before the next start, or given up after repeated failures.
    Down,
}

/// Number of phases.
pub const PHASES: usize = 7;

impl Phase {
    /// All phases.
    pub const ALL: [Self; PHASES] = [
        Self::Cold,
        Self::Starting,
        Self::Busy,
        Self::Idle,
        Self::Draining,
        Self::Stopping,
        Self::Down,
    ];

    /// Returns the phase of an engine in this state, of which `running` slots are in use.
    pub fn from_state(state: EngineState, running: u32) -> Self {
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

    /// Returns the name of the phase.
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

/// Maximum number of spans of one lane.
const MAX_SPANS: usize = 8_000;

/// The consecutive phases of one lane's engine.
///
/// The number of spans is bounded. If there are too many, adjacent spans that are too short to be
/// seen are merged, and shown as the phase that lasted longest among them: at first only busy and
/// idle spans, because loads and stops are what a timeline is read for.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// Start of each span, and its phase. A span ends where the next one begins.
    spans: Vec<(Duration, Phase)>,
    end: Duration,
}

impl Timeline {
    /// Creates a timeline that begins with this phase at time zero.
    pub(crate) fn new(phase: Phase) -> Self {
        Self { spans: vec![(Duration::ZERO, phase)], end: Duration::ZERO }
    }

    /// Enters a phase at `at`.
    pub(crate) fn change(&mut self, at: Duration, phase: Phase) {
        self.end = self.end.max(at);
        // A phase that was left at the moment it was entered has no length and is not shown.
        while self.spans.last().is_some_and(|(start, _)| *start >= at) {
            self.spans.pop();
        }
        push(&mut self.spans, at, phase);
        if self.spans.len() > MAX_SPANS {
            self.shrink();
        }
    }

    /// Halves the number of spans at least, by merging short ones.
    fn shrink(&mut self) {
        // If merging busy and idle spans is not enough, all short spans are merged.
        for all in [false, true] {
            let mut grain = self.end / (MAX_SPANS as u32 * 2);
            while self.spans.len() > MAX_SPANS / 2 && grain < self.end / if all { 1 } else { 500 } {
                self.spans = self.simplified(grain, all).spans;
                grain *= 2;
            }
        }
    }

    /// Ends the run at `at`.
    pub(crate) fn finish(&mut self, at: Duration) {
        self.end = self.end.max(at);
    }

    /// Returns start, end and phase of each span.
    pub fn spans(&self) -> impl Iterator<Item = (Duration, Duration, Phase)> {
        let ends = self.spans.iter().skip(1).map(|(start, _)| *start).chain([self.end]);
        self.spans.iter().zip(ends).map(|((start, phase), end)| (*start, end, *phase))
    }

    /// Merges adjacent spans that are shorter than `grain`: all of them, or only busy and idle
    /// ones.
    pub fn simplified(&self, grain: Duration, all: bool) -> Self {
        let mut spans = Vec::new();
        let mut group = SpanGroup::default();
        for (start, end, phase) in self.spans() {
            if end - start >= grain || !(all || matches!(phase, Phase::Busy | Phase::Idle)) {
                group.flush(&mut spans);
                push(&mut spans, start, phase);
                continue;
            }
            group.add(start, end - start, phase);
            if group.length >= grain {
                group.flush(&mut spans);
            }
        }
        group.flush(&mut spans);
        Self { spans, end: self.end }
    }
}

/// A group of short spans that become one.
#[derive(Default)]
struct SpanGroup {
    start: Option<Duration>,
    length: Duration,
    phases: [Duration; PHASES],
}

impl SpanGroup {
    fn add(&mut self, start: Duration, length: Duration, phase: Phase) {
        self.start.get_or_insert(start);
        self.length += length;
        self.phases[phase as usize] += length;
    }

    fn flush(&mut self, spans: &mut Vec<(Duration, Phase)>) {
        let Self { start, phases, .. } = std::mem::take(self);
        let longest = Phase::ALL.into_iter().max_by_key(|phase| phases[*phase as usize]);
        if let (Some(start), Some(phase)) = (start, longest) {
            push(spans, start, phase);
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
    fn adjacent_spans_of_one_phase_are_merged() {
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
        let simplified: Vec<_> = timeline.simplified(at(10), true).spans().collect();
        assert_eq!(simplified[..], [expected[0], expected[1], expected[2], expected[3]]);
        let coarsest: Vec<_> = timeline.simplified(at(100), true).spans().collect();
        assert_eq!(coarsest, [(at(0), at(65), Phase::Starting)]);
    }

    #[test]
    fn rapid_busy_and_idle_phases_are_bounded_and_loads_are_kept() {
        let mut timeline = Timeline::new(Phase::Cold);
        for second in 0..100_000 {
            let phase = match second % 10_000 {
                4_000..4_045 => Phase::Starting,
                _ if second % 3 == 0 => Phase::Idle,
                _ => Phase::Busy,
            };
            timeline.change(at(second), phase);
            assert!(timeline.spans.len() <= MAX_SPANS);
        }
        timeline.finish(at(100_000));
        let loads: Vec<_> = timeline.spans().filter(|span| span.2 == Phase::Starting).collect();
        let expected = (0..10)
            .map(|load| (at(load * 10_000 + 4_000), at(load * 10_000 + 4_045), Phase::Starting));
        assert_eq!(loads, expected.collect::<Vec<_>>());
        let busy: Duration =
            timeline.spans().filter(|span| span.2 == Phase::Busy).map(|span| span.1 - span.0).sum();
        assert!(busy > at(60_000), "{busy:?}");
        assert_eq!(timeline.spans().last().map(|span| span.1), Some(at(100_000)));
    }

    #[test]
    fn constant_switching_is_bounded() {
        let mut timeline = Timeline::new(Phase::Cold);
        for second in 0..50_000 {
            let phase =
                [Phase::Starting, Phase::Busy, Phase::Draining, Phase::Stopping, Phase::Cold];
            timeline.change(at(second), phase[second as usize % 5]);
            assert!(timeline.spans.len() <= MAX_SPANS);
        }
    }
}
