//! The comparison of a shadow with the active version.

use pointsman_domain::Advice;

/// Maximum differences between a shadow and the active version that the status shows.
const MAX_DIFFERENCES: usize = 16;

/// The comparison of a shadow with the active version.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Comparison {
    pub(crate) agreed: u64,
    pub(crate) differed: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    /// The latest differences, oldest first.
    pub(crate) differences: Vec<ShadowDifference>,
}

/// A decision in which a shadow differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ShadowDifference {
    pub(crate) request: String,
    /// The parts of the advice that differ.
    pub(crate) fields: Vec<&'static str>,
    pub(crate) active: Option<Advice>,
    pub(crate) shadow: Option<Advice>,
}

impl Comparison {
    /// Counts a difference, and keeps the latest ones.
    pub(crate) fn record_difference(&mut self, difference: ShadowDifference) {
        self.differed += 1;
        if self.differences.len() == MAX_DIFFERENCES {
            self.differences.remove(0);
        }
        self.differences.push(difference);
    }
}
