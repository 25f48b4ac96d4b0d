//! The span of a request.

use tracing::Span;
use tracing::field::Empty;

/// Creates the span of a request. Fields that are not known yet are recorded later.
pub(crate) fn request_span(request_id: &str, endpoint: &'static str) -> Span {
    tracing::info_span!(
        "request",
        request_id,
        endpoint,
        tenant = Empty,
        model = Empty,
        policy = Empty,
        lane = Empty,
        attempt = Empty,
    )
}
