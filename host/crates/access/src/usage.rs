//! What was used, by hour, tenant, key, model and lane.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::TokenCounts;

use crate::identity::Identity;

/// What one request has used on one lane.
#[derive(Debug, Clone)]
pub struct UsageEvent<'a> {
    /// When the request ended, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Who sent it.
    pub identity: &'a Arc<Identity>,
    /// The model name, as the lane has it.
    pub model: &'a str,
    /// The lane; empty if none was attempted.
    pub lane: &'a str,
    /// One for the lane that ended the request, and zero for lanes that failed before it.
    pub requests: u64,
    /// True if the request ended with an error.
    pub failed: bool,
    /// Tokens that the engine reported, or that were counted.
    pub tokens: TokenCounts,
    /// Time that the request waited for a slot of the lane.
    pub waiting: Duration,
    /// Time for which the engine worked on it.
    pub engine: Duration,
}

/// What was used.
#[derive(Debug, Default)]
pub struct UsageBook {}

impl UsageBook {
    /// Adds what a request has used. Does not block.
    pub fn record(&self, _event: &UsageEvent<'_>) {}
}
