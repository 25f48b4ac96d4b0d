//! What would be decided about a request now. It takes the same way as a request of a client up to
//! its first attempt, with copies of everything that it would change: its metrics, its accounts and
//! the states of policies are dropped afterwards.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use pointsman_access::{Identity, Rights};
use pointsman_domain::request_flow::Event;
use pointsman_domain::{Advised, Advisor, ChainInfo, Endpoint, Facts, FleetView, Trace};
use pointsman_record::{Explanation, Source};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber as _;
use tracing::{Dispatch, Span};

use crate::count_tokens;
use crate::decision::{Accepted, Incoming, accept_from, decide};
use crate::decisions::Decisions;
use crate::error::RouteError;
use crate::in_flight::InFlightRequests;
use crate::metrics::GatewayMetrics;
use crate::pipeline::Pipeline;
use crate::policy_threads::PolicyThreads;
use crate::request_tracker::RequestTracker;
use crate::rights;
use crate::settings::{AdvisorHandle, ListenerSettings};
use crate::upload::{Received, Reservation};

/// A request that is not sent.
pub(crate) struct PreviewRequest {
    pub(crate) id: String,
    pub(crate) endpoint: Endpoint,
    /// Its headers, and the settings of its listener as an extension.
    pub(crate) parts: Parts,
    pub(crate) body: Bytes,
    /// Who sends it. `None` is the operator: without limits, and with all rights.
    pub(crate) identity: Option<Arc<Identity>>,
}

/// Returns what would be decided about a request now.
pub(crate) async fn preview(pipeline: &Pipeline, request: PreviewRequest) -> Explanation {
    let pipeline = without_effects(pipeline);
    let (id, identity) = (request.id.clone(), request.identity.clone());
    // The log is about requests that there are.
    let limits = run(&pipeline, request).with_subscriber(Dispatch::none()).await;
    let ended = pipeline.decisions.last();
    let explained = ended.map(|ended| ended.explain(None, Source::Preview));
    let mut explanation = explained.unwrap_or_else(|| Explanation::empty(&id, Source::Preview));
    explanation.attempts.clear();
    explanation.outcome = None;
    if let Some(identity) = identity {
        explanation.rights = rights_of(&identity, limits);
    }
    explanation
}

/// Takes a request up to its first attempt. What becomes of it is the only one of the decisions.
/// Returns what the limits of its key leave.
async fn run(pipeline: &Pipeline, request: PreviewRequest) -> Value {
    let PreviewRequest { id, endpoint, parts, body, identity } = request;
    let mut tracker = RequestTracker::new(pipeline, &id, endpoint, Span::none(), &parts);
    let listener = parts.extensions.get::<Arc<ListenerSettings>>().map(|listener| &**listener);
    let identity = identity.unwrap_or_default();
    let accepted = match rights::check_listener(&identity.rights, listener) {
        Ok(()) => {
            let tenant = identity.tenant.as_deref();
            let reservation = Arc::new(Reservation::new(&pipeline.uploads.memory, tenant));
            let body = Incoming::Received(Received::Json(body), reservation);
            let (id, identity) = (id.as_str(), &identity);
            accept_from(pipeline, endpoint, (id, identity), parts, body, &mut tracker).await
        }
        Err(error) => Err(error),
    };
    let accepted = match accepted {
        Ok(Accepted::Request(request, fleet)) => match count_tokens::estimate(&request, &fleet) {
            None => Ok((request, fleet)),
            Some(_) => return served(pipeline, tracker),
        },
        Ok(Accepted::Load(_)) => return served(pipeline, tracker),
        Err(error) => Err(error),
    };
    let decided = decide(pipeline, accepted, None, &mut tracker).await;
    let limits = json!(tracker.allowance());
    if let Err(error) = decided {
        tracker.error_response(&error);
    }
    limits
}

/// Ends a request that the host answers itself, without a decision.
fn served(pipeline: &Pipeline, mut tracker: Box<RequestTracker>) -> Value {
    let refused = tracker.admit(&pipeline.meter, None).err();
    let limits = json!(tracker.allowance());
    match refused {
        None => {
            tracker.on(Event::Served);
        }
        Some(refusal) => {
            let error = tracker.refuse(&pipeline.meter, RouteError::from(refusal));
            tracker.error_response(&error);
        }
    }
    limits
}

/// Returns the components for one request about which is only decided.
fn without_effects(pipeline: &Pipeline) -> Pipeline {
    let advisor: Box<dyn Advisor> = Box::new(WithoutEffects(pipeline.advisor.load_full()));
    Pipeline {
        settings: pipeline.settings.clone(),
        keys: pipeline.keys.clone(),
        meter: pipeline.meter.copy(),
        idempotency: pipeline.idempotency.clone(),
        uploads: pipeline.uploads.clone(),
        parsers: Arc::clone(&pipeline.parsers),
        fleet: pipeline.fleet.clone(),
        advisor: Arc::new(ArcSwap::from_pointee(advisor)),
        // Its own, so that it takes no place of a request.
        policy_threads: Arc::new(PolicyThreads::default()),
        recorder: None,
        observer: None,
        metrics: GatewayMetrics::register(&mut Registry::default()),
        responses: Arc::clone(&pipeline.responses),
        in_flight: InFlightRequests::new(CancellationToken::new()),
        decisions: Decisions::for_preview(),
        drain: pipeline.drain.clone(),
    }
}

/// An advisor whose advice changes nothing.
#[derive(Debug)]
struct WithoutEffects(AdvisorHandle);

impl Advisor for WithoutEffects {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Advised {
        let Advised { merged, edited, watch: _ } =
            self.0.advise_without_effects(facts, fleet, trace);
        Advised { merged, edited, watch: None }
    }

    fn may_block(&self, _: &Facts) -> bool {
        true
    }

    fn chain(&self) -> Option<&Arc<ChainInfo>> {
        self.0.chain()
    }

    fn uses_cached_tokens(&self) -> bool {
        self.0.uses_cached_tokens()
    }
}

/// Describes what a key may do, and what its limits leave with this request.
fn rights_of(identity: &Identity, limits: Value) -> Value {
    let Rights { models, lanes, endpoints, listeners, engine_admin, priority } = &identity.rights;
    let labels = endpoints
        .as_ref()
        .map(|endpoints| endpoints.iter().map(|endpoint| endpoint.label()).collect::<Vec<_>>());
    json!({
        "key": identity.name,
        "tenant": identity.tenant,
        "group": identity.group,
        "models": models,
        "lanes": lanes,
        "endpoints": labels,
        "listeners": listeners,
        "engine_admin": engine_admin,
        "priority": priority.as_ref().map(|range| [*range.start(), *range.end()]),
        "weight": identity.weight,
        "limits": limits,
    })
}
