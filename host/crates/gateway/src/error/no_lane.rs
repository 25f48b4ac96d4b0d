//! What an error says of the policies and the lanes because of which no lane is available.

use std::time::Duration;

use pointsman_domain::dispatch::{Problem, again};

use crate::error_response::ErrorResponse;
use crate::failure::MAX_RETRY_ESTIMATE;
use crate::headers::{POLICY, to_header_value};

/// A lane that is down.
#[derive(Debug)]
pub(crate) struct DownLane {
    pub(crate) name: String,
    pub(crate) problem: Option<Problem>,
    pub(crate) retry_in: Duration,
}

/// Names the policies that left no lane.
pub(super) fn blamed(filtering: &str) -> String {
    if filtering.is_empty() { String::new() } else { format!(": {filtering}") }
}

/// Returns why lanes are down and when they may serve again. Of several lanes only the causes,
/// because the ends of their logs would make the message too long.
pub(super) fn explained(lanes: &[DownLane]) -> String {
    /// Maximum number of lanes that a message explains.
    const MAX_LANES: usize = 4;
    let explain = |lane: &DownLane| {
        let problem = lane.problem.as_ref().map(|problem| match lanes.len() {
            1 => problem.for_clients(),
            _ => problem.in_short(),
        });
        let problem = problem.unwrap_or_else(|| "it is down".to_owned());
        format!("; lane `{}`: {problem}{}", lane.name, again(lane.retry_in))
    };
    let left = lanes.len().saturating_sub(MAX_LANES);
    let more = if left == 0 { String::new() } else { format!("; {left} more lanes are down") };
    lanes.iter().take(MAX_LANES).map(explain).collect::<String>() + &more
}

/// Adds when a lane may serve again, and the policies that left no lane.
pub(super) fn for_no_lane(
    response: ErrorResponse,
    filtering: &str,
    retry_in: Duration,
) -> ErrorResponse {
    let policies = Some(filtering).filter(|filtering| !filtering.is_empty());
    response
        .with_optional(POLICY, policies.and_then(to_header_value))
        .with_retry_after(Some(retry_in.min(MAX_RETRY_ESTIMATE)))
}
