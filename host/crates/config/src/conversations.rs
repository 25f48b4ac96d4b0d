//! Reads `[conversations]`: what is kept of conversations while their lane is unloaded.

use std::time::Duration;

use pointsman_fleet::ConversationSettings;
use pointsman_settings::{Code, Section};

/// Reads the section. Returns `None` if nothing is kept: it is turned off, or there is no state
/// directory.
pub(super) fn read(section: &Section<'_>, has_state: bool) -> Option<ConversationSettings> {
    let defaults = ConversationSettings::default();
    let enabled = section.bool("enabled", has_state);
    if enabled && !has_state {
        let message = "conversations are kept in the state directory; set `state.dir`";
        section.error_at("enabled", Code::Conflict.with(message));
    }
    let max_bytes = section.bytes("max-bytes").unwrap_or(defaults.max_bytes);
    let settings = ConversationSettings {
        max_bytes,
        max_age: section.positive_duration("max-age", defaults.max_age),
        min_tokens: section.integer("min-tokens", 1..=100_000_000, defaults.min_tokens),
        save_timeout: section.positive_duration("save-timeout", defaults.save_timeout),
        share_tenants: section.bool("share-tenants", false),
    };
    if settings.save_timeout > Duration::from_secs(600) {
        section.error_at("save-timeout", Code::OutOfRange.with("must be at most 10m"));
    }
    section.report_unknown();
    enabled.then_some(settings)
}
