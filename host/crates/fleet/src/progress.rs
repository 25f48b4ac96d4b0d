//! Judges from what an engine does whether it hangs while requests are in flight.
//!
//! * **Progress** is data of a response, or a counter of the engine that moves.
//! * **Life** is progress, or that the engine's processes compute, where that is evidence (see
//!   [`Evidence::computing`]). It is believed up to a far limit without progress.
//! * **A hang** is silence for the stall timeout while a response has begun and its client waits
//!   for more; or for [`PROMPT_FACTOR`] times that if a prompt may be part of the same batch.
//! * Silence before the first data of all responses is a hang only if the engine counts what it
//!   does before that (see [`Evidence::prompts`]), or after the far limit.
//! * Silence while only clients are waited for proves nothing.
//!
//! A prompt can take an engine many minutes, and so can a response that is not streamed, during
//! which nothing is sent. That is bounded by the deadline of the request, not here.

use std::time::Duration;

use crate::activity::InFlight;

/// The interval between two checks counts as at most this much silence: the host itself may have
/// been stopped or starved in between, and has not read what the engine sent.
const MAX_STEP: Duration = Duration::from_secs(10);
/// A batch with a part of a prompt may take this many times as long as one that generates tokens:
/// llama.cpp reads 2048 tokens in a batch, vLLM 8192, which a small GPU computes in minutes.
const PROMPT_FACTOR: u32 = 5;
/// An engine that computes is given this many times the stall timeout without progress.
const LIMIT_FACTOR: u32 = 10;
/// The shortest stall timeout that this limit is computed from.
const MIN_STALL_OF_LIMIT: Duration = Duration::from_secs(120);

/// What silence and computing mean for a kind of engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// The engine's counters move while it reads a prompt, so that its silence before the first
    /// data counts like any other.
    pub(crate) prompts: bool,
    /// The engine reports counters that move at the latest with the first output.
    pub(crate) counters: bool,
    /// An engine that uses a processor is at work. False for engines whose processes poll a GPU in
    /// a loop, and do so too when they hang.
    pub(crate) computing: bool,
}

/// What was seen of an engine since the last check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    /// Time since the last check.
    pub(crate) elapsed: Duration,
    /// The requests in flight now.
    pub(crate) in_flight: InFlight,
    /// Data has arrived, or a counter of the engine has moved.
    pub(crate) progressed: bool,
    /// The engine has reported its counters at least once.
    pub(crate) reports: bool,
    /// The engine's processes used a processor; `None` if that is not known.
    pub(crate) computed: Option<bool>,
}

/// A hang that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hang {
    /// Requests in flight.
    pub(crate) requests: u32,
    /// Time without progress.
    pub(crate) idle: Duration,
}

/// The silence of one start of an engine.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Maximum silence; zero disables the check.
    stall: Duration,
    evidence: Evidence,
    /// Time without any sign of life while requests waited for the engine that it should have
    /// served.
    silent: Duration,
    /// Time without progress while requests waited for the engine, also earlier ones: a hung engine
    /// may have a single client, which gives up and tries again.
    unproven: Duration,
    /// Time since a request last waited for the engine. What an engine did before a long pause says
    /// nothing about it now, and liveness probes have asked it meanwhile.
    idle: Duration,
}

impl Progress {
    pub(crate) fn new(stall: Duration, evidence: Evidence) -> Self {
        let zero = Duration::ZERO;
        Self { stall, evidence, silent: zero, unproven: zero, idle: zero }
    }

    /// Returns true if the processor time of the engine is evidence, and worth measuring.
    pub(crate) fn needs_computed(&self, seen: &Observation) -> bool {
        self.evidence.computing
            && !self.stall.is_zero()
            && !seen.progressed
            && self.counted(seen) > 0
    }

    /// The time without progress after which even an engine that computes hangs.
    fn limit(&self) -> Duration {
        self.stall.max(MIN_STALL_OF_LIMIT) * LIMIT_FACTOR
    }

    /// Requests that the engine should show life for within the stall timeout. A batch of a prompt
    /// may take longer, so that silence before the first data proves nothing without knowing
    /// whether the engine computes.
    fn expected(&self, seen: &Observation) -> u32 {
        let InFlight { first_data, data, .. } = seen.in_flight;
        let judged = self.evidence.prompts && seen.reports && seen.computed.is_some();
        data + if judged { first_data } else { 0 }
    }

    /// Requests that the engine should show progress for within the limit.
    fn counted(&self, seen: &Observation) -> u32 {
        let InFlight { first_data, data, .. } = seen.in_flight;
        data + if self.evidence.counters && seen.reports { first_data } else { 0 }
    }

    /// Judges what was seen since the last check.
    pub(crate) fn observe(&mut self, seen: &Observation) -> Option<Hang> {
        let step = seen.elapsed.min(MAX_STEP);
        let is_idle = self.counted(seen) == 0;
        self.idle = if is_idle { self.idle + step } else { Duration::ZERO };
        if seen.progressed || self.idle >= self.stall {
            self.unproven = Duration::ZERO;
        }
        if seen.progressed || is_idle {
            self.silent = Duration::ZERO;
            return None;
        }
        self.unproven += step;
        if self.expected(seen) == 0 || seen.computed == Some(true) {
            self.silent = Duration::ZERO;
        } else {
            self.silent += step;
        }
        let has_prompt = seen.in_flight.first_data > 0;
        let patience = self.stall * if has_prompt { PROMPT_FACTOR } else { 1 };
        let hangs = self.silent >= patience || self.unproven >= self.limit();
        (hangs && !self.stall.is_zero())
            .then(|| Hang { requests: seen.in_flight.total(), idle: self.unproven })
    }
}

#[cfg(test)]
mod tests;
