//! Requests.

use std::cell::Cell;

use serde_json::Value;

use crate::{Context, Endpoint, FieldValue, MessageInfo, RequestView, Role};

/// A request.
#[derive(Debug, Clone)]
pub struct FakeRequest {
    /// Its figures. Change them as the test needs.
    pub context: Context,
    text: String,
    id: String,
    body: Value,
    headers: Vec<(String, String)>,
    tenant: Option<String>,
    /// Bytes that a call may be handed in all, and how many of them are left.
    most: usize,
    left: Cell<usize>,
}

impl FakeRequest {
    /// A chat request with this body.
    ///
    /// # Panics
    /// If the body is not JSON.
    #[must_use]
    pub fn chat(body: &str) -> Self {
        Self::to(Endpoint::ChatCompletions, body)
    }

    /// A request to an endpoint with this body.
    ///
    /// # Panics
    /// If the body is not JSON.
    #[must_use]
    pub fn to(endpoint: Endpoint, body: &str) -> Self {
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
                endpoint,
                streaming: value["stream"].as_bool().unwrap_or(false),
                body_bytes: body.len() as u64,
                prompt_tokens: 0,
                max_output_tokens: 0,
                messages: 0,
                has_tools: value["tools"].as_array().is_some_and(|tools| !tools.is_empty()),
                has_media: false,
                has_grammar: false,
            },
            text: body.to_owned(),
            id: "test".to_owned(),
            body: value,
            headers: Vec::new(),
            tenant: None,
            most: usize::MAX,
            left: Cell::new(usize::MAX),
        };
        let messages = request.messages();
        let bytes: usize = request.texts().iter().map(String::len).sum();
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

    /// With an id.
    #[must_use]
    pub fn with_id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self
    }

    /// With a seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.context.seed = seed;
        self
    }

    /// Of which a call is handed at most so many bytes in all, as hosts limit that.
    #[must_use]
    pub fn handing_out(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// Another call begins.
    pub(super) fn begin(&self) {
        self.left.set(self.most);
    }

    /// What a question may yield, of what it asks for.
    fn allowed(&self, max_bytes: u32) -> usize {
        self.left.get().min(max_bytes as usize)
    }

    fn hand_out(&self, bytes: usize) {
        self.left.set(self.left.get() - bytes);
    }

    /// Of a tenant.
    #[must_use]
    pub fn of_tenant(mut self, tenant: &str) -> Self {
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
        let most = self.allowed(max_bytes);
        match self.body.pointer(pointer).filter(|_| !pointer.is_empty()).map(Value::to_string) {
            None => FieldValue::Absent,
            Some(json) if json.len() > most => FieldValue::TooLarge(json.len() as u64),
            Some(json) => {
                self.hand_out(json.len());
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
        let end = (offset as usize).saturating_add(self.allowed(max_bytes)).min(text.len());
        let part = text.get(start..text.floor_char_boundary(end)).unwrap_or("").to_owned();
        self.hand_out(part.len());
        part
    }

    fn body(&self, offset: u64, max_bytes: u32) -> Vec<u8> {
        let bytes: Vec<u8> =
            self.text.bytes().skip(offset as usize).take(self.allowed(max_bytes)).collect();
        self.hand_out(bytes.len());
        bytes
    }

    fn contains(&self, needle: &str, ignore_case: bool) -> bool {
        let fold =
            |text: &str| if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
        self.texts().iter().any(|text| fold(text).contains(&fold(needle)))
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
}
