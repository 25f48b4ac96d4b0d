//! Fake requests.

use std::cell::Cell;

use serde_json::Value;

use crate::{Allowance, Context, Endpoint, FieldValue, MessageInfo, RequestView, Role, TextMatch};

/// A fake request.
#[derive(Debug, Clone)]
pub struct FakeRequest {
    /// Numeric facts about the request. Tests may change them at any time.
    pub context: Context,
    text: String,
    id: String,
    body: Value,
    endpoint_kind: String,
    headers: Vec<(String, String)>,
    tenant: Option<String>,
    key_group: Option<String>,
    key_name: Option<String>,
    allowance: Allowance,
    deadline_ms: Option<u32>,
    /// Maximum number of bytes that one call may read in total.
    read_limit: usize,
    /// Bytes of the limit that the current call has left.
    unread: Cell<usize>,
}

impl FakeRequest {
    /// Creates a chat request with this body.
    ///
    /// # Panics
    /// Panics if the body is not JSON.
    #[must_use]
    pub fn chat(body: &str) -> Self {
        Self::for_endpoint(Endpoint::ChatCompletions, body)
    }

    /// Creates a request to an endpoint with this body.
    ///
    /// # Panics
    /// Panics if the body is not JSON.
    #[must_use]
    pub fn for_endpoint(endpoint: Endpoint, body: &str) -> Self {
        #[expect(clippy::expect_used, reason = "a test with a wrong body has to fail")]
        let value: Value = serde_json::from_str(body).expect("body should be JSON");
        let mut request = Self {
            context: Context {
                now_ms: 0,
                seed: 0,
                topology: 1,
                age_us: 0,
                budget_us: 5_000,
                attempt: 0,
                endpoint,
                streaming: value["stream"].as_bool().unwrap_or(false),
                body_bytes: body.len() as u64,
                prompt_tokens: 0,
                max_output_tokens: max_output_tokens(&value),
                messages: 0,
                has_tools: ["tools", "functions"]
                    .iter()
                    .any(|key| value[key].as_array().is_some_and(|tools| !tools.is_empty())),
                has_media: false,
                has_grammar: has_grammar(&value),
            },
            text: body.to_owned(),
            id: "test".to_owned(),
            body: value,
            endpoint_kind: kind_of(endpoint).to_owned(),
            headers: Vec::new(),
            tenant: None,
            key_group: None,
            key_name: None,
            allowance: Allowance { requests: None, tokens: None, budget: None },
            deadline_ms: None,
            read_limit: usize::MAX,
            unread: Cell::new(usize::MAX),
        };
        let messages = request.messages();
        let bytes: usize = request.texts().iter().map(String::len).sum();
        request.context.has_media = messages.iter().any(|message| message.media_parts > 0);
        request.context.messages = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        request.context.prompt_tokens = u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX);
        request
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the request id.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.context.seed = seed;
        self
    }

    /// Sets the name of the endpoint, and `context.endpoint` to what hosts report for it.
    #[must_use]
    pub fn with_endpoint_kind(mut self, kind: &str) -> Self {
        let named = [
            Endpoint::ChatCompletions,
            Endpoint::Completions,
            Endpoint::Responses,
            Endpoint::Embeddings,
        ];
        let endpoint = named.into_iter().find(|endpoint| kind_of(*endpoint) == kind);
        self.context.endpoint = endpoint.unwrap_or(Endpoint::Other);
        kind.clone_into(&mut self.endpoint_kind);
        self
    }

    /// Limits the number of bytes that one call may read in total, as hosts do.
    #[must_use]
    pub fn with_read_limit(mut self, bytes: usize) -> Self {
        self.read_limit = bytes;
        self
    }

    /// Restores the read limit at the start of a call.
    pub(super) fn reset_read_limit(&self) {
        self.unread.set(self.read_limit);
    }

    /// Returns how many of `max_bytes` may still be read.
    fn readable(&self, max_bytes: u32) -> usize {
        self.unread.get().min(max_bytes as usize)
    }

    fn count_read(&self, bytes: usize) {
        self.unread.set(self.unread.get() - bytes);
    }

    /// Sets the name and the group of the key.
    #[must_use]
    pub fn with_key(mut self, name: &str, group: Option<&str>) -> Self {
        self.key_name = Some(name.to_owned());
        self.key_group = group.map(str::to_owned);
        self
    }

    /// Sets what the limits of the key leave.
    #[must_use]
    pub fn with_allowance(mut self, allowance: Allowance) -> Self {
        self.allowance = allowance;
        self
    }

    /// Sets the time until the host gives up on the request.
    #[must_use]
    pub fn with_deadline_ms(mut self, ms: u32) -> Self {
        self.deadline_ms = Some(ms);
        self
    }

    /// Sets the tenant.
    #[must_use]
    pub fn with_tenant(mut self, tenant: &str) -> Self {
        self.tenant = Some(tenant.to_owned());
        self
    }

    fn texts(&self) -> Vec<String> {
        let Some(messages) = self.body["messages"].as_array() else {
            return self.body["prompt"].as_str().map(str::to_owned).into_iter().collect();
        };
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
        self.id.clone()
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
        let limit = self.readable(max_bytes);
        match self.body.pointer(pointer).filter(|_| !pointer.is_empty()).map(Value::to_string) {
            None => FieldValue::Absent,
            Some(json) if json.len() > limit => FieldValue::TooLarge(json.len() as u64),
            Some(json) => {
                self.count_read(json.len());
                FieldValue::Json(json)
            }
        }
    }

    fn messages(&self) -> Vec<MessageInfo> {
        let Some(messages) = self.body["messages"].as_array() else { return Vec::new() };
        let info = |(message, text): (&Value, String)| {
            let parts = message["content"].as_array();
            let media =
                parts.map_or(0, |parts| parts.iter().filter(|part| part["text"].is_null()).count());
            MessageInfo {
                role: match message["role"].as_str() {
                    Some("system" | "developer") => Role::System,
                    Some("user") => Role::User,
                    Some("assistant") => Role::Assistant,
                    Some("tool") => Role::Tool,
                    _ => Role::Other,
                },
                text_bytes: text.len() as u64,
                parts: parts
                    .map_or(u32::from(!message["content"].is_null()), |parts| parts.len() as u32),
                media_parts: media as u32,
            }
        };
        messages.iter().zip(self.texts()).map(info).collect()
    }

    fn text(&self, index: u32, offset: u64, max_bytes: u32) -> String {
        let texts = self.texts();
        let text = texts.get(index as usize).map_or("", String::as_str);
        let start = text.ceil_char_boundary((offset as usize).min(text.len()));
        let end = (offset as usize).saturating_add(self.readable(max_bytes)).min(text.len());
        let part = text.get(start..text.floor_char_boundary(end)).unwrap_or("").to_owned();
        self.count_read(part.len());
        part
    }

    fn body(&self, offset: u64, max_bytes: u32) -> Vec<u8> {
        let bytes: Vec<u8> =
            self.text.bytes().skip(offset as usize).take(self.readable(max_bytes)).collect();
        self.count_read(bytes.len());
        bytes
    }

    fn contains(&self, needle: &str, ignore_case: bool) -> bool {
        let fold =
            |text: &str| if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
        self.texts().iter().any(|text| fold(text).contains(&fold(needle)))
    }

    fn deadline_ms(&self) -> Option<u32> {
        self.deadline_ms
    }

    fn find_any(&self, patterns: &[String], ignore_case: bool) -> Vec<TextMatch> {
        let fold =
            |text: &str| if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
        let texts: Vec<String> = self.texts().iter().map(|text| fold(text)).collect();
        let first = |(pattern, text): (u32, &String)| {
            let found = |(message, searched): (u32, &String)| {
                let offset = searched.find(&fold(text))? as u64;
                Some(TextMatch { pattern, message, offset })
            };
            (0..).zip(&texts).find_map(found)
        };
        (0..).zip(patterns).filter_map(first).collect()
    }

    fn prefix_hashes(&self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        let text = self.texts().concat();
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let blocks = text.as_bytes().chunks_exact((block_bytes as usize).max(1));
        let next = |block: &[u8]| {
            hash = block
                .iter()
                .fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
            hash
        };
        blocks.take(if block_bytes == 0 { 0 } else { max_blocks as usize }).map(next).collect()
    }

    fn endpoint_kind(&self) -> String {
        self.endpoint_kind.clone()
    }

    fn key_group(&self) -> Option<String> {
        self.key_group.clone()
    }

    fn key_name(&self) -> Option<String> {
        self.key_name.clone()
    }

    fn allowance(&self) -> Allowance {
        self.allowance
    }
}

/// Returns the limit of generated tokens in a body; 0 if it has none.
fn max_output_tokens(body: &Value) -> u32 {
    let limits = ["max_completion_tokens", "max_tokens", "max_output_tokens"];
    let limit = limits.iter().find_map(|key| body[key].as_u64()).unwrap_or(0);
    u32::try_from(limit).unwrap_or(u32::MAX)
}

/// Returns whether a body restricts the output to a grammar.
fn has_grammar(body: &Value) -> bool {
    let kind = body["response_format"]["type"].as_str().or(body["text"]["format"]["type"].as_str());
    matches!(kind, Some("json_object" | "json_schema"))
        || ["structured_outputs", "grammar", "json_schema"].iter().any(|key| !body[key].is_null())
}

/// Returns the name of an endpoint.
fn kind_of(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::ChatCompletions => "chat-completions",
        Endpoint::Completions => "completions",
        Endpoint::Responses => "responses",
        Endpoint::Embeddings => "embeddings",
        Endpoint::Other => "other",
    }
}
