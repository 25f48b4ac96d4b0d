//! Facts that a golden case sets directly, whatever its body says.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Allowance, DroppedEdit, Edit, Facts, FieldValue, MessageInfo, RequestInfo, RequestView,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Facts of a request that replace those of its body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CaseFacts {
    /// True if the client asked for a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streaming: Option<bool>,
    /// Size of the body in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_bytes: Option<u64>,
    /// Estimated prompt length in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<u32>,
    /// Maximum number of output tokens; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// Number of chat messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<u32>,
    /// True if the request offers tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_tools: Option<bool>,
    /// True if the request has parts that are not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_media: Option<bool>,
    /// True if the request constrains the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_grammar: Option<bool>,
    /// Time from the arrival of the request to the decision, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// Number of attempts before the decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Time until the host gives up on the request, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

impl CaseFacts {
    /// Returns the facts with those that the case sets.
    pub(super) fn apply(self, facts: Facts) -> Facts {
        if self == Self::default() {
            return facts;
        }
        let info = self.info(facts.request.info());
        Facts {
            request: Arc::new(RequestWithFacts { inner: facts.request, info }),
            age: self.age_ms.map_or(facts.age, Duration::from_millis),
            attempt: self.attempt.unwrap_or(facts.attempt),
            time_left: self.deadline_ms.map(Duration::from_millis).or(facts.time_left),
            ..facts
        }
    }

    fn info(self, info: RequestInfo) -> RequestInfo {
        RequestInfo {
            endpoint: info.endpoint,
            streaming: self.streaming.unwrap_or(info.streaming),
            body_bytes: self.body_bytes.unwrap_or(info.body_bytes),
            prompt_tokens: self.prompt_tokens.unwrap_or(info.prompt_tokens),
            max_output_tokens: self.max_output_tokens.unwrap_or(info.max_output_tokens),
            messages: self.messages.unwrap_or(info.messages),
            has_tools: self.has_tools.unwrap_or(info.has_tools),
            has_media: self.has_media.unwrap_or(info.has_media),
            has_grammar: self.has_grammar.unwrap_or(info.has_grammar),
        }
    }
}

/// A request with other properties than its body has.
#[derive(Debug)]
struct RequestWithFacts {
    inner: Arc<dyn RequestView>,
    info: RequestInfo,
}

impl RequestView for RequestWithFacts {
    fn info(&self) -> RequestInfo {
        self.info
    }

    fn id(&self) -> &str {
        self.inner.id()
    }

    fn model(&self) -> &str {
        self.inner.model()
    }

    fn tenant(&self) -> Option<&str> {
        self.inner.tenant()
    }

    fn key_name(&self) -> Option<&str> {
        self.inner.key_name()
    }

    fn key_group(&self) -> Option<&str> {
        self.inner.key_group()
    }

    fn allowance(&self) -> Allowance {
        self.inner.allowance()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.inner.header(name)
    }

    fn headers(&self) -> Vec<(&str, &[u8])> {
        self.inner.headers()
    }

    fn field(&self, pointer: &str, max_bytes: usize) -> FieldValue {
        self.inner.field(pointer, max_bytes)
    }

    fn messages(&self) -> Vec<MessageInfo> {
        self.inner.messages()
    }

    fn text(&self, index: u32, offset: u64, max_bytes: usize) -> Cow<'_, str> {
        self.inner.text(index, offset, max_bytes)
    }

    fn text_size(&self) -> u64 {
        self.inner.text_size()
    }

    fn bytes(&self, offset: u64, max_bytes: usize) -> &[u8] {
        self.inner.bytes(offset, max_bytes)
    }

    fn contains(&self, needle: &str, ignore_case: bool) -> bool {
        self.inner.contains(needle, ignore_case)
    }

    fn visit_texts(&self, visit: &mut dyn FnMut(u32, u64, &str) -> ControlFlow<()>) {
        self.inner.visit_texts(visit);
    }

    fn prefix_hashes(&self, block_bytes: usize, max_blocks: usize) -> Vec<u64> {
        self.inner.prefix_hashes(block_bytes, max_blocks)
    }

    /// A fact that an edit changes in the body changes; all others stay as the case sets them.
    fn edited(&self, edits: &[Edit]) -> (Arc<dyn RequestView>, Vec<DroppedEdit>) {
        let (inner, dropped) = self.inner.edited(edits);
        let (before, after) = (self.inner.info(), inner.info());
        let mut info = self.info;
        if after.max_output_tokens != before.max_output_tokens {
            info.max_output_tokens = after.max_output_tokens;
        }
        if after.messages != before.messages {
            info.messages = after.messages;
            info.prompt_tokens = after.prompt_tokens;
        }
        (Arc::new(Self { inner, info }), dropped)
    }
}
