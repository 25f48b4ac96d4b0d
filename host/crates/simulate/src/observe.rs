//! What a simulation shows of itself while it runs.

use std::time::Duration;

use pointsman_domain::dispatch::SwitchReport;
use pointsman_domain::{AttemptResult, EngineState, LaneId};

use crate::traffic::Ask;

/// How a request ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum How {
    /// The first lane that was tried answered.
    Answered,
    /// A later one did.
    FellBack,
    /// A policy refused it.
    Rejected,
    /// It got an explicit error.
    Error,
    /// The client left.
    ClientGone,
}

impl How {
    /// Did the client get its whole answer?
    pub fn is_answer(self) -> bool {
        matches!(self, Self::Answered | Self::FellBack)
    }
}

/// One try of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// The lane.
    pub lane: LaneId,
    /// How it ended.
    pub result: AttemptResult,
    /// When it began.
    pub begun: Duration,
    /// How long it waited for a slot.
    pub queue: Duration,
}

/// One request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended<'a> {
    /// The request.
    pub ask: &'a Ask,
    /// How it ended.
    pub how: How,
    /// When.
    pub at: Duration,
    /// Time from the request to the slot of the lane that answered it, or in queues where none did.
    pub wait: Duration,
    /// Time from the request to the first byte of its answer.
    pub first_byte: Option<Duration>,
    /// The tries, in order.
    pub tries: &'a [Try],
    /// Tokens of its prompt that the engine had already.
    pub cached_tokens: u32,
    /// Tokens that were written, of an answer that broke off too.
    pub output_tokens: u32,
    /// Why it was refused or went wrong, for people.
    pub problem: Option<&'a str>,
}

/// Somebody who watches. Times never go back.
pub trait Observer {
    /// A request came and was decided: with the policies that decided, and the lane that is tried first.
    fn decided(&mut self, _: &Ask, _first: Option<LaneId>, _by: &[pointsman_domain::PolicyRef]) {}
    /// A request got a slot.
    fn granted(&mut self, _at: Duration, _: &Ask, _lane: LaneId) {}
    /// A request has ended.
    fn ended(&mut self, _: &Ended<'_>) {}
    /// An engine has changed its state.
    fn engine(&mut self, _at: Duration, _lane: LaneId, _: EngineState) {}
    /// So many requests wait for a lane now, and so many hold its slots.
    fn load(&mut self, _at: Duration, _lane: LaneId, _waiting: usize, _running: u32) {}
    /// A switch is complete.
    fn switched(&mut self, _at: Duration, _: &SwitchReport) {}
}
