//! Reads `[responses]`: the responses that the host keeps.

use std::time::Duration;

use pointsman_settings::{Code, Section};

/// The limits of responses that the host keeps.
#[derive(Debug, Clone, Copy)]
pub struct Responses {
    /// Maximum size of one response with the input of its turn, in bytes.
    pub max_response: usize,
    /// Maximum size of all responses of a tenant in bytes.
    pub max_tenant_bytes: u64,
    /// Maximum size of all responses in bytes.
    pub max_bytes: u64,
    /// Maximum number of responses.
    pub max_entries: usize,
    /// Maximum age of a response.
    pub max_age: Duration,
    /// Maximum number of responses of a tenant in the background at a time.
    pub max_background: usize,
}

/// Reads the section.
pub(super) fn read(section: &Section<'_>) -> Responses {
    const MAX_RESPONSE: u64 = 64 << 20;
    let max_response = section.bytes("max-response").unwrap_or(8 << 20);
    if !(1..=MAX_RESPONSE).contains(&max_response) {
        section.error_at("max-response", Code::OutOfRange.with("must be between 1B and 64MiB"));
    }
    let max_bytes = section.bytes("max-bytes").unwrap_or(1 << 30);
    let max_tenant_bytes = section.bytes("max-tenant-bytes").unwrap_or(max_bytes.min(256 << 20));
    for (key, bytes) in [("max-bytes", max_bytes), ("max-tenant-bytes", max_tenant_bytes)] {
        if bytes < max_response {
            section.error_at(key, Code::OutOfRange.with("must be at least `max-response`"));
        }
    }
    let max_entries = section.integer("max-entries", 1..=10_000_000, 100_000);
    let max_age = section.positive_duration("max-age", Duration::from_secs(720 * 3600));
    let max_background = section.integer("max-background", 0..=100_000, 16);
    section.report_unknown();
    Responses {
        max_response: usize::try_from(max_response).unwrap_or(usize::MAX),
        max_tenant_bytes,
        max_bytes,
        max_entries,
        max_age,
        max_background,
    }
}
