//! The events of a run that statistics are collected from.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Attempt, RequestResult};

/// All request results with their names, in the order of their variants.
pub const OUTCOMES: [(RequestResult, &str); 5] = [
    (RequestResult::Answered, "answered"),
    (RequestResult::FellBack, "fell-back"),
    (RequestResult::Rejected, "rejected"),
    (RequestResult::Error, "errors"),
    (RequestResult::ClientGone, "client-gone"),
];

/// A request that has ended. Times are relative to the start of the run.
#[derive(Debug, Clone, Copy)]
pub struct EndedRequest<'a> {
    /// When the request arrived.
    pub arrived_at: Duration,
    /// The index of the request's class.
    pub class: usize,
    /// The tenant, if the client identified itself.
    pub tenant: Option<&'a Arc<str>>,
    /// The length of the prompt.
    pub prompt_tokens: u32,
    /// How the request ended.
    pub result: RequestResult,
    /// When the request ended.
    pub at: Duration,
    /// The time from arrival to the slot of the lane that served the request, or the total time in
    /// queues if none did.
    pub wait: Duration,
    /// The time from arrival to the first byte of the response.
    pub first_byte: Option<Duration>,
    /// The attempts in order.
    pub attempts: &'a [Attempt],
    /// Prompt tokens that the engine had in its prefix cache.
    pub cached_tokens: u32,
    /// Response tokens that were generated, also by an aborted response.
    pub output_tokens: u32,
    /// Why the request was rejected or failed, for people.
    pub reason: Option<&'a str>,
}
