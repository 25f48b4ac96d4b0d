//! What a decision was made about, put together again from its record: the fleet, the request as far as it is known, the facts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_domain::{
    Consulted, Edit, Facts, FieldValue, Figures, FleetView, LaneStat, LaneState, MessageInfo,
    PlanLimits, RequestView, Topology,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::marks;
use pointsman_record::{DecisionRecord, RequestRecord, TopologyRecord};
use serde_json::json;

/// The lanes of a file by the number of their table.
#[derive(Debug, Default)]
pub(super) struct Topologies(BTreeMap<u64, (Arc<Topology>, PlanLimits)>);

/// What is known of a request beside the answers that policies got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// Its headers.
    pub(super) headers: bool,
    /// Its body, ...
    pub(super) body: bool,
    /// ... and nothing of that was kept back.
    pub(super) unmarked: bool,
    /// Who asks.
    pub(super) tenant: bool,
}

impl Known {
    /// Every question about it can be answered.
    pub(super) fn whole(self) -> bool {
        self.body && self.unmarked
    }
}

/// One decision's inputs.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) fleet: Arc<FleetView>,
    pub(super) limits: PlanLimits,
    pub(super) known: Known,
    pub(super) facts: Facts,
}

impl Topologies {
    pub(super) fn add(&mut self, record: TopologyRecord) {
        let TopologyRecord { host: _, generation, lanes, limits } = record;
        self.0.insert(generation, (Arc::new(Topology::new(generation, lanes)), limits));
    }

    /// Another file begins: each stands for itself.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The lanes as they were.
    pub(super) fn view(&self, generation: u64, stats: &[LaneStat]) -> Option<Arc<FleetView>> {
        let (topology, _) = self.0.get(&generation)?;
        let stat = |lane: &pointsman_domain::LaneInfo| {
            let found = stats.iter().find(|stat| stat.id == lane.id).copied();
            found.unwrap_or_else(|| LaneStat::idle(lane.id, LaneState::Down, lane.slots))
        };
        let stats = topology.lanes().iter().map(stat).collect();
        Some(Arc::new(FleetView { topology: Arc::clone(topology), stats }))
    }

    fn limits(&self, generation: u64) -> Option<&PlanLimits> {
        self.0.get(&generation).map(|(_, limits)| limits)
    }
}

impl Scene {
    /// `None` if the file does not say which lanes there were.
    pub(super) fn of(record: &DecisionRecord, topologies: &Topologies) -> Option<Self> {
        let fleet = topologies.view(record.topology, &record.fleet)?;
        let limits = topologies.limits(record.topology)?.clone();
        let (request, known) = request(record);
        let &DecisionRecord { now_ms, seed, age, attempt, .. } = record;
        Some(Self { fleet, limits, known, facts: Facts { request, now_ms, seed, age, attempt } })
    }

    /// The facts of one call. A request that was not recorded takes the edits that were taken then.
    pub(super) fn facts_for(
        &self,
        request: &Arc<dyn RequestView>,
        call: Option<&Consulted>,
    ) -> Facts {
        let remembered = |call: &Consulted| -> Arc<dyn RequestView> {
            let Memory { parts, .. } = Memory::of_view(&**request);
            Arc::new(Memory { parts, call: Taken::of(call) })
        };
        let request = match call.filter(|_| !self.known.body) {
            Some(call) => remembered(call),
            None => Arc::clone(request),
        };
        Facts { request, ..self.facts.clone() }
    }
}

/// The request, and what of it is known.
fn request(record: &DecisionRecord) -> (Arc<dyn RequestView>, Known) {
    let tenant = record.tenant.as_deref().map(str::to_owned);
    let mut known = Known {
        headers: record.request.is_some(),
        body: false,
        unmarked: false,
        tenant: !tenant.as_ref().is_some_and(|tenant| marks::redacted(&json!(tenant))),
    };
    let headers = record.request.as_ref().map(headers).unwrap_or_default();
    let head = Head { id: record.request_id.to_string(), tenant, headers };
    let body = record.request.as_ref().and_then(|request| request.body.as_ref());
    if let Some(body) = body
        && let Ok(request) =
            Request::parse(record.figures.endpoint, body.clone().into(), head.clone())
    {
        known.body = true;
        known.unmarked = !marks::redacted(&json!(body));
        return (Arc::new(request), known);
    }
    let parts = Parts { head, model: record.model.to_string(), figures: record.figures };
    (Arc::new(Memory { parts, call: Taken::default() }), known)
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

/// A request of which there are figures and no text.
#[derive(Debug)]
struct Memory {
    parts: Parts,
    call: Taken,
}

#[derive(Debug, Clone)]
struct Parts {
    head: Head,
    model: String,
    figures: Figures,
}

/// What became of a call's edits then. Whether an edit can be applied follows from a body that is not there.
#[derive(Debug, Clone, Default)]
struct Taken {
    kept: Vec<Edit>,
    refused: Vec<String>,
}

impl Taken {
    fn of(call: &Consulted) -> Self {
        let kept = call.advice.as_ref().map(|advice| advice.edits.clone()).unwrap_or_default();
        Self { kept, refused: call.dropped.clone() }
    }

    /// Why this edit was refused then, if it was.
    fn refusal(&self, edit: &Edit) -> Option<String> {
        let edit_now = json!(edit);
        if self.kept.iter().any(|kept| marks::fits(&json!(kept), &edit_now)) {
            return None;
        }
        let reason = |dropped: &String| {
            dropped.strip_prefix(edit.kind())?.strip_prefix(": ").map(str::to_owned)
        };
        self.refused.iter().find_map(reason)
    }
}

impl Memory {
    /// What any view says that can be said without a body.
    fn of_view(view: &dyn RequestView) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in view.headers() {
            if let (Ok(name), Ok(value)) =
                (name.parse::<HeaderName>(), HeaderValue::from_bytes(value))
            {
                headers.append(name, value);
            }
        }
        let head =
            Head { id: view.id().to_owned(), tenant: view.tenant().map(str::to_owned), headers };
        let parts = Parts { head, model: view.model().to_owned(), figures: view.figures() };
        Self { parts, call: Taken::default() }
    }
}

impl RequestView for Memory {
    fn figures(&self) -> Figures {
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

    fn prefix_hashes(&self, _: usize, _: usize) -> Vec<u64> {
        Vec::new()
    }

    /// The edits that change what is known here; all others are as good as applied.
    fn edited(&self, edits: &[Edit]) -> (Arc<dyn RequestView>, Vec<(Edit, String)>) {
        let mut parts = self.parts.clone();
        let mut refused = Vec::new();
        for edit in edits {
            if let Some(reason) = self.call.refusal(edit) {
                refused.push((edit.clone(), reason));
                continue;
            }
            let headers = &mut parts.head.headers;
            match edit {
                Edit::SetModel(model) => parts.model.clone_from(model),
                Edit::CapOutputTokens(most) => {
                    let limit = &mut parts.figures.max_output_tokens;
                    *limit = if *limit == 0 { *most } else { (*limit).min(*most) };
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
        (Arc::new(Self { parts, call: Taken::default() }), refused)
    }
}
