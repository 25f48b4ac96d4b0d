//! The inputs of a decision, reconstructed from its record: the fleet, the request as far as it was
//! recorded, and the facts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_domain::{
    Allowance, Constraint, DroppedEdit, Edit, Facts, FieldValue, FleetView, LaneStat, MessageInfo,
    PlanLimits, PolicyCall, RequestInfo, RequestView, Topology,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::marks;
use pointsman_record::{DecisionRecord, RequestRecord, TopologyRecord};
use serde_json::json;

/// The hook that decides requests, as it is named in records.
pub(crate) const ON_REQUEST: &str = "on-request";
/// The hook that handles failed attempts, as it is named in records.
pub(crate) const ON_FAILURE: &str = "on-failure";

/// The topologies of a file by generation.
#[derive(Debug, Default)]
pub(crate) struct Topologies(BTreeMap<u64, (Arc<Topology>, PlanLimits)>);

/// Which parts of a request are known beyond the recorded host calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KnownInputs {
    /// The headers.
    pub(crate) headers: bool,
    /// The body, possibly with redactions.
    pub(crate) body: bool,
    /// Whether nothing in the body is redacted.
    pub(crate) unredacted: bool,
    /// The tenant.
    pub(crate) tenant: bool,
}

impl KnownInputs {
    /// Returns true if every question about the request can be answered.
    pub(crate) fn is_complete(self) -> bool {
        self.body && self.unredacted
    }
}

/// The inputs of a decision.
#[derive(Debug)]
pub(crate) struct ReplayContext {
    pub(crate) fleet: Arc<FleetView>,
    pub(crate) limits: PlanLimits,
    pub(crate) known: KnownInputs,
    pub(crate) facts: Facts,
}

impl Topologies {
    pub(crate) fn add(&mut self, record: TopologyRecord) {
        let TopologyRecord { host: _, generation, lanes, limits } = record;
        self.0.insert(generation, (Arc::new(Topology::with_ids(generation, lanes)), limits));
    }

    /// Removes all topologies; those of one file do not apply to another.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the view of a recorded request, with recorded metrics: the lanes that guards forbid
    /// cannot serve it. `None` if the generation is unknown.
    pub(crate) fn view_for(
        &self,
        record: &DecisionRecord,
        generation: u64,
        stats: &[LaneStat],
    ) -> Option<Arc<FleetView>> {
        let (topology, _) = self.0.get(&generation)?;
        Some(Arc::new(record.view_of(topology, stats)))
    }

    fn limits(&self, generation: u64) -> Option<&PlanLimits> {
        self.0.get(&generation).map(|(_, limits)| limits)
    }
}

impl ReplayContext {
    /// Reconstructs the inputs of a record; `None` if its topology is unknown.
    pub(crate) fn new(record: &DecisionRecord, topologies: &Topologies) -> Option<Self> {
        let fleet = topologies.view_for(record, record.topology, &record.fleet)?;
        let limits = topologies.limits(record.topology)?.clone();
        let (request, known) = request(record);
        let &DecisionRecord { now_ms, seed, age, attempt, .. } = record;
        // Records have both only as results of host calls.
        let (time_left, lanes_left) = (None, None);
        let facts = Facts { request, now_ms, seed, age, attempt, time_left, lanes_left };
        Some(Self { fleet, limits, known, facts })
    }

    /// Returns the facts of a call. If the body is not recorded, whether an edit can be applied is
    /// taken from the record.
    pub(crate) fn facts_for(
        &self,
        request: &Arc<dyn RequestView>,
        call: Option<&PolicyCall>,
    ) -> Facts {
        let partial = |call: &PolicyCall| -> Arc<dyn RequestView> {
            let PartialRequest { parts, .. } = PartialRequest::from_view(&**request);
            Arc::new(PartialRequest { parts, recorded: RecordedEdits::new(call) })
        };
        let request = match call.filter(|_| !self.known.body) {
            Some(call) => partial(call),
            None => Arc::clone(request),
        };
        Facts { request, ..self.facts.clone() }
    }
}

/// Returns the request, and which parts of it are known.
fn request(record: &DecisionRecord) -> (Arc<dyn RequestView>, KnownInputs) {
    let tenant = record.tenant.as_deref().map(str::to_owned);
    let mut known = KnownInputs {
        headers: record.request.is_some(),
        body: false,
        unredacted: false,
        tenant: !tenant.as_ref().is_some_and(|tenant| marks::redacted(&json!(tenant))),
    };
    let headers = record.request.as_ref().map(headers).unwrap_or_default();
    let id = record.request_id.to_string();
    let constraint = record.guards.clone();
    let head = Head { id, tenant, headers, constraint, ..Head::default() };
    let body = record.request.as_ref().and_then(|request| request.body.as_ref());
    if let Some(body) = body
        && let Ok(request) =
            Request::parse(record.figures.endpoint, body.clone().into(), head.clone())
    {
        known.body = true;
        known.unredacted = !marks::redacted(&json!(body));
        return (Arc::new(request), known);
    }
    let parts = RequestParts { head, model: record.model.to_string(), figures: record.figures };
    (Arc::new(PartialRequest { parts, recorded: RecordedEdits::default() }), known)
}

fn headers(request: &RequestRecord) -> HeaderMap {
    let header = |(name, value): &(String, String)| {
        Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers.iter().filter_map(header) {
        headers.append(name, value);
    }
    headers
}

/// A request of which only the head, the model and the metrics are known.
#[derive(Debug)]
struct PartialRequest {
    parts: RequestParts,
    recorded: RecordedEdits,
}

#[derive(Debug, Clone)]
struct RequestParts {
    head: Head,
    model: String,
    figures: RequestInfo,
}

/// The recorded fate of a call's edits. Whether an edit can be applied depends on the body, which
/// is not recorded.
#[derive(Debug, Clone, Default)]
struct RecordedEdits {
    applied: Vec<Edit>,
    rejected: Vec<String>,
}

impl RecordedEdits {
    fn new(call: &PolicyCall) -> Self {
        let applied = call.advice.as_ref().map(|advice| advice.edits.clone()).unwrap_or_default();
        Self { applied, rejected: call.dropped.clone() }
    }

    /// Returns why this edit was rejected at the time of the record, if it was.
    fn rejection(&self, edit: &Edit) -> Option<String> {
        let edit_now = json!(edit);
        if self.applied.iter().any(|applied| marks::fits(&json!(applied), &edit_now)) {
            return None;
        }
        let reason = |dropped: &String| {
            dropped.strip_prefix(edit.kind())?.strip_prefix(": ").map(str::to_owned)
        };
        self.rejected.iter().find_map(reason)
    }
}

impl PartialRequest {
    /// Copies the parts of a request that do not need a body.
    fn from_view(view: &dyn RequestView) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in view.headers() {
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), HeaderValue::from_bytes(value))
            {
                headers.append(name, value);
            }
        }
        let (id, tenant) = (view.id().to_owned(), view.tenant().map(str::to_owned));
        let head = Head {
            id,
            tenant,
            key_name: view.key_name().map(str::to_owned),
            key_group: view.key_group().map(str::to_owned),
            allowance: view.allowance(),
            constraint: view.constraint().cloned(),
            headers,
            ..Head::default()
        };
        let parts = RequestParts { head, model: view.model().to_owned(), figures: view.info() };
        Self { parts, recorded: RecordedEdits::default() }
    }
}

impl RequestView for PartialRequest {
    fn constraint(&self) -> Option<&Arc<Constraint>> {
        self.parts.head.constraint.as_ref()
    }

    fn info(&self) -> RequestInfo {
        self.parts.figures
    }

    fn id(&self) -> &str {
        &self.parts.head.id
    }

    fn model(&self) -> &str {
        &self.parts.model
    }

    fn tenant(&self) -> Option<&str> {
        self.parts.head.tenant.as_deref()
    }

    fn key_name(&self) -> Option<&str> {
        self.parts.head.key_name.as_deref()
    }

    fn key_group(&self) -> Option<&str> {
        self.parts.head.key_group.as_deref()
    }

    fn allowance(&self) -> Allowance {
        self.parts.head.allowance
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.parts.head.headers.get(name)?.to_str().ok()
    }

    fn headers(&self) -> Vec<(&str, &[u8])> {
        self.parts
            .head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect()
    }

    fn field(&self, _: &str, _: usize) -> FieldValue {
        FieldValue::Absent
    }

    fn messages(&self) -> Vec<MessageInfo> {
        Vec::new()
    }

    fn text(&self, _: u32, _: u64, _: usize) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn bytes(&self, _: u64, _: usize) -> &[u8] {
        &[]
    }

    fn contains(&self, _: &str, _: bool) -> bool {
        false
    }

    fn visit_texts(&self, _: &mut dyn FnMut(u32, u64, &str) -> ControlFlow<()>) {}

    fn prefix_hashes(&self, _: usize, _: usize) -> Vec<u64> {
        Vec::new()
    }

    /// Applies the edits of known parts; all others are assumed to succeed.
    fn edited(&self, edits: &[Edit]) -> (Arc<dyn RequestView>, Vec<DroppedEdit>) {
        let mut parts = self.parts.clone();
        let mut rejected = Vec::new();
        for (index, edit) in edits.iter().enumerate() {
            if let Some(reason) = self.recorded.rejection(edit) {
                rejected.push(DroppedEdit { index, reason });
                continue;
            }
            let headers = &mut parts.head.headers;
            match edit {
                Edit::SetModel(model) => parts.model.clone_from(model),
                Edit::CapOutputTokens(max) => {
                    let limit = &mut parts.figures.max_output_tokens;
                    *limit = if *limit == 0 { *max } else { (*limit).min(*max) };
                }
                Edit::SetHeader(name, value) => {
                    if let (Ok(name), Ok(value)) =
                        (name.parse::<HeaderName>(), HeaderValue::from_str(value))
                    {
                        headers.insert(name, value);
                    }
                }
                Edit::RemoveHeader(name) => {
                    headers.remove(name.as_str());
                }
                Edit::SetField(..)
                | Edit::RemoveField(_)
                | Edit::PrependSystem(_)
                | Edit::KeepLastMessages(_)
                | Edit::ReplaceBody(_) => {}
            }
        }
        (Arc::new(Self { parts, recorded: RecordedEdits::default() }), rejected)
    }
}
