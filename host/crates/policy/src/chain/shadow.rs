//! Evaluation of shadows: the same decision by another version, which has no effect.

use std::sync::Arc;

use pointsman_domain::{Advice, Facts, FleetView, Trace};

use crate::chain::evaluate::evaluate;
use crate::version::Version;
use crate::version::comparison::ShadowDifference;
use pointsman_spec::{Hook, OnError};

/// A decision that a shadow evaluates as well.
#[derive(Debug)]
pub(crate) struct ShadowJob {
    /// The span of the request, so that log lines of the shadow carry the request id.
    pub(crate) request_span: tracing::Span,
    pub(crate) shadow: Arc<Version>,
    pub(crate) facts: Facts,
    pub(crate) fleet: Arc<FleetView>,
    /// The advice of the deciding version; `None` if it gave none.
    pub(crate) advice: Option<Advice>,
}

/// Evaluates a shadow, and compares its advice with that of the deciding version.
pub(crate) fn evaluate_shadow(job: ShadowJob) {
    let ShadowJob { request_span, shadow, mut facts, fleet, advice } = job;
    let _request_span = request_span.entered();
    let _span = shadow.span(Hook::Request.name()).entered();
    let request = facts.request.id().to_owned();
    let trace = &mut Trace::off();
    let evaluated = evaluate(&shadow, &mut facts, &fleet, OnError::Skip, trace).result;
    let result = match (&advice, &evaluated) {
        (_, Err(_)) => "failed",
        (Some(active), Ok(shadow)) if differences(active, shadow).is_empty() => "agreed",
        (_, Ok(_)) => "differed",
    };
    shadow.metrics().record_shadow(result);
    shadow.update_comparison(|comparison| match result {
        "agreed" => comparison.agreed += 1,
        "failed" => comparison.failed += 1,
        _ => {
            let shadow_advice = evaluated.ok();
            let fields = match (&advice, &shadow_advice) {
                (Some(active), Some(shadow)) => differences(active, shadow),
                _ => vec!["advice"],
            };
            comparison.record_difference(ShadowDifference {
                request,
                fields,
                active: advice,
                shadow: shadow_advice,
            });
        }
    });
}

/// Returns the parts in which two pieces of advice differ. Notes and hints have no effect, so they
/// are not compared.
fn differences(a: &Advice, b: &Advice) -> Vec<&'static str> {
    let parts = [
        ("reject", a.reject == b.reject),
        ("lanes", a.lanes == b.lanes),
        ("switching", a.switching == b.switching),
        ("queue", a.queue == b.queue),
        ("fallback", a.fallback == b.fallback),
        ("edits", a.edits == b.edits),
    ];
    parts.into_iter().filter(|(_, is_same)| !is_same).map(|(field, _)| field).collect()
}
