//! Counts what single versions did to requests, so that refusals, edits and filters can be
//! attributed.

use std::sync::Arc;

use pointsman_domain::{Advice, Merged, OpinionKind, PolicyRef};
use pointsman_spec::OnError;

use crate::version::Version;

/// Counts the edits and the rejection of a version, or the refusal that follows from its error.
pub(crate) fn count_advice(version: &Version, advice: Option<&Advice>, on_error: OnError) {
    let Some(advice) = advice else {
        if on_error == OnError::Refuse {
            version.metrics().record_effect("refused-on-error");
        }
        return;
    };
    if advice.reject.is_some() {
        version.metrics().record_effect("rejected");
    } else if !advice.edits.is_empty() {
        version.metrics().record_effect("edited");
    }
}

/// Counts the filters that excluded lanes, and what became of them. `version` finds the version
/// with a reference.
pub(crate) fn count_filters<'a>(
    version: impl Fn(&PolicyRef) -> Option<&'a Arc<Version>>,
    merged: &Merged,
) {
    let leaves_no_lane = merged.lanes.is_empty() && merged.reject.is_none();
    for opinion in &merged.opinions {
        let effect = match opinion.kind {
            OpinionKind::Filter if leaves_no_lane => "no-lane",
            OpinionKind::Filter => "filtered",
            OpinionKind::IgnoredFilter => "filter-ignored",
            OpinionKind::Scores => continue,
        };
        if let Some(version) = version(&opinion.policy) {
            version.metrics().record_effect(effect);
        }
    }
}
