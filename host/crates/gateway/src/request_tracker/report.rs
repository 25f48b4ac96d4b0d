//! What is kept of a decision for those who learn of the end of its request.

use std::sync::Arc;

use pointsman_domain::{Note, OutcomeSubject, OutcomeWatch, PolicyRef};

use crate::recording::Recording;
use crate::settings::AdvisorHandle;

/// The request that the outcome is about, and the receivers of the outcome.
#[derive(Debug)]
pub(super) struct OutcomeReport {
    pub(super) subject: OutcomeSubject,
    /// The advisor that decided about the request, if it observes outcomes.
    pub(super) observer: Option<AdvisorHandle>,
    pub(super) recording: Option<Recording>,
    /// Judges versions of policies by the outcome.
    pub(super) watch: Option<Arc<dyn OutcomeWatch>>,
}

/// What of a decision is kept until the end of its request.
#[derive(Debug)]
pub(crate) struct Observed {
    /// The notes that policies get with the outcome.
    pub(crate) notes: Vec<(PolicyRef, Note)>,
    pub(crate) recording: Option<Recording>,
    /// Judges versions of policies by the outcome.
    pub(crate) watch: Option<Arc<dyn OutcomeWatch>>,
}
