//! Reads `[usage]`: how much is kept of what was used.

use std::time::Duration;

use pointsman_settings::Section;

/// How much is kept of what was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Maximum age.
    pub keep: Duration,
    /// Maximum number of rows.
    pub max_rows: u64,
}

/// Reads the section.
pub(super) fn read(section: &Section<'_>) -> Usage {
    let keep = section.positive_duration("keep", Duration::from_secs(9600 * 3600));
    let max_rows = section.integer("max-rows", 1000..=100_000_000, 1_000_000);
    section.report_unknown();
    Usage { keep, max_rows }
}
