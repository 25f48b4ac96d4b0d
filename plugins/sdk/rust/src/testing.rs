//! Requests and fleets for tests that run natively. They answer as the contract says that a host does.

use serde_json::Value;

use crate::{
    Advice, Call, Context, Endpoint, Engine, FieldValue, FleetView, LaneId, LaneInfo, LaneStat, LaneState,
    MessageInfo, Policy, PolicyError, RequestView, Role,
};

/// Ask a policy about a request.
///
/// # Errors
/// When the policy has no advice.
pub fn advise(policy: &impl Policy, request: &FakeRequest, fleet: &FakeFleet) -> Result<Advice, PolicyError> {
    let fleet = ForModel { fleet, model: request.model() };
    policy.advise(&Call { context: &request.context, request, fleet: &fleet })
}

/// A request.
#[derive(Debug, Clone)]
pub struct FakeRequest {
    /// Its figures. Change them as the test needs.
    pub context: Context,
    body: Value,
    headers: Vec<(String, String)>,
    tenant: Option<String>,
}

impl FakeRequest {
    /// A chat request with this body.
    ///
    /// # Panics
    /// If the body is not JSON.
    #[must_use]
    pub fn chat(body: &str) -> Self {
        #[expect(clippy::expect_used, reason = "a test with a wrong body has to fail")]
        let value: Value = serde_json::from_str(body).expect("the body is JSON");
        let mut request = Self {
            context: Context {
                now_ms: 0,
                seed: 0,
                topology: 1,
                age_us: 0,
                budget_us: 5_000,
                attempt: 0,
                endpoint: Endpoint::ChatCompletions,
                streaming: value["stream"].as_bool().unwrap_or(false),
                body_bytes: body.len() as u64,
                prompt_tokens: 0,
                max_output_tokens: 0,
                messages: 0,
                has_tools: value["tools"].as_array().is_some_and(|tools| !tools.is_empty()),
                has_media: false,
                has_grammar: false,
            },
            body: value,
            headers: Vec::new(),
            tenant: None,
        };
        let messages = request.messages();
        let bytes: u64 = messages.iter().map(|message| message.text_bytes).sum();
        request.context.messages = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        request.context.prompt_tokens = u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX);
        request
    }

    /// With a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Of a tenant.
    #[must_use]
    pub fn of_tenant(mut self, tenant: &str) -> Self {
        self.tenant = Some(tenant.to_owned());
        self
    }

    fn texts(&self) -> Vec<String> {
        let Some(messages) = self.body["messages"].as_array() else { return Vec::new() };
        let text = |message: &Value| match &message["content"] {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
            _ => String::new(),
        };
        messages.iter().map(text).collect()
    }
}

impl RequestView for FakeRequest {
    fn id(&self) -> String {
        "test".into()
    }

    fn model(&self) -> String {
        self.body["model"].as_str().unwrap_or_default().to_owned()
    }

    fn tenant(&self) -> Option<String> {
        self.tenant.clone()
    }

    fn header(&self, name: &str) -> Option<String> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.clone())
    }

    fn field(&self, pointer: &str, max_bytes: u32) -> FieldValue {
        match self.body.pointer(pointer).filter(|_| !pointer.is_empty()).map(Value::to_string) {
            None => FieldValue::Absent,
            Some(json) if json.len() > max_bytes as usize => FieldValue::TooLarge(json.len() as u64),
            Some(json) => FieldValue::Json(json),
        }
    }

    fn messages(&self) -> Vec<MessageInfo> {
        let Some(messages) = self.body["messages"].as_array() else { return Vec::new() };
        let info = |(message, text): (&Value, String)| {
            let parts = message["content"].as_array();
            let media = parts.map_or(0, |parts| parts.iter().filter(|part| part["text"].is_null()).count());
            MessageInfo {
                role: match message["role"].as_str() {
                    Some("system" | "developer") => Role::System,
                    Some("user") => Role::User,
                    Some("assistant") => Role::Assistant,
                    Some("tool") => Role::Tool,
                    _ => Role::Other,
                },
                text_bytes: text.len() as u64,
                parts: parts.map_or(u32::from(!message["content"].is_null()), |parts| parts.len() as u32),
                media_parts: media as u32,
            }
        };
        messages.iter().zip(self.texts()).map(info).collect()
    }

    fn text(&self, index: u32, offset: u64, max_bytes: u32) -> String {
        let texts = self.texts();
        let text = texts.get(index as usize).map_or("", String::as_str);
        let start = text.ceil_char_boundary((offset as usize).min(text.len()));
        let end =
            text.floor_char_boundary((offset as usize).saturating_add(max_bytes as usize).min(text.len()));
        text.get(start..end).unwrap_or("").to_owned()
    }

    fn contains(&self, needle: &str, ignore_case: bool) -> bool {
        let fold = |text: &str| if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
        self.texts().iter().any(|text| fold(text).contains(&fold(needle)))
    }
}

/// A fleet. Its lanes are ready and idle, answer to their own names and to `auto`, and have four slots, until changed.
#[derive(Debug, Clone)]
pub struct FakeFleet {
    /// What rarely changes.
    pub lanes: Vec<LaneInfo>,
    /// Their figures.
    pub stats: Vec<LaneStat>,
}

impl FakeFleet {
    /// Lanes with these names.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        let ids = || (0u32..).zip(names);
        Self {
            lanes: ids().map(|(id, name)| fake_lane(id, name)).collect(),
            stats: ids().map(|(id, _)| fake_stat(id)).collect(),
        }
    }

    /// Figures of the lane of that name, to be changed.
    ///
    /// # Panics
    /// If there is no such lane.
    pub fn stat_mut(&mut self, name: &str) -> &mut LaneStat {
        #[expect(clippy::expect_used, reason = "a test with a wrong name has to fail")]
        let index = self.lanes.iter().position(|lane| lane.name == name).expect("the lane is there");
        &mut self.stats[index]
    }
}

fn fake_lane(id: LaneId, name: &str) -> LaneInfo {
    LaneInfo {
        id,
        name: name.to_owned(),
        engine: Engine::Other,
        models: vec![name.to_owned(), "auto".to_owned()],
        labels: Vec::new(),
        max_context: 0,
        slots: 4,
        group: 0,
        cost_milli: 0,
    }
}

fn fake_stat(id: LaneId) -> LaneStat {
    LaneStat {
        id,
        state: LaneState::Ready,
        running: 0,
        waiting: 0,
        queued: 0,
        slots_free: 4,
        kv_used: 0,
        errors: 0,
        ttft_p50_ms: 0,
        ttft_p99_ms: 0,
        decode_tps: 0,
        est_wait_ms: 0,
        ready_in_ms: 0,
        displaces: 0,
        cached_tokens: 0,
        stale_ms: 0,
    }
}

/// A fleet as a request for one model sees it.
struct ForModel<'a> {
    fleet: &'a FakeFleet,
    model: String,
}

impl FleetView for ForModel<'_> {
    fn stats(&self) -> Vec<LaneStat> {
        self.fleet.stats.clone()
    }

    fn stat(&self, lane: LaneId) -> Option<LaneStat> {
        self.fleet.stats.get(lane as usize).copied()
    }

    fn candidates(&self) -> Vec<LaneId> {
        let answers = |lane: &&LaneInfo| lane.models.contains(&self.model);
        self.fleet.lanes.iter().filter(answers).map(|lane| lane.id).collect()
    }

    fn info(&self, lane: LaneId) -> Option<LaneInfo> {
        self.fleet.lanes.get(lane as usize).cloned()
    }

    fn find(&self, name: &str) -> Option<LaneId> {
        self.fleet.lanes.iter().find(|lane| lane.name == name).map(|lane| lane.id)
    }

    fn with_label(&self, key: &str, value: &str) -> Vec<LaneId> {
        let has = |lane: &&LaneInfo| lane.labels.iter().any(|(k, v)| k == key && v == value);
        self.fleet.lanes.iter().filter(has).map(|lane| lane.id).collect()
    }
}
