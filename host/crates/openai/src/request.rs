//! A request: the client's bytes, an index into them, and the reads that policies may make.

mod check;
mod engine_body;
mod hashes;
mod head;
mod names;
mod output;
mod prompt;
mod shape;

use std::any::Any;
use std::borrow::Cow;
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use bytestring::ByteString;
use http::{HeaderMap, HeaderName, header};
use pointsman_domain::{
    Allowance, Constraint, DroppedEdit, Edit, Endpoint, FieldValue, MessageInfo, PromptHashes,
    RequestInfo, RequestView, fnv1a_chain,
};
use serde_json::value::RawValue;

pub(crate) use self::check::check_field;
pub use self::engine_body::EngineRequestBody;
pub use self::head::{Head, Hold};
use self::names::Renamed;
pub use self::names::{ANY_MODEL, ModelNames};
pub(crate) use self::output::{Limit, lowest_limit};
use self::output::{choices, generated, output_limit};
use self::prompt::{Message, Prompt, saturating_u32};
pub(crate) use self::shape::is_streaming;
use self::shape::{Messages, Shape, has_children, has_grammar, read_model};
use crate::bad_request::BadRequest;
use crate::endpoint::{EndpointShape, PromptShape};
use crate::index::Index;
use crate::text::{append_slice, contains, estimate_tokens};
use crate::{json, limits};

/// Headers that carry credentials of clients. They are removed on parsing: policies do not see them
/// and engines do not get them.
pub const CREDENTIALS: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
];

/// A parsed request. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Request {
    head: Arc<Head>,
    parsed: Arc<Parsed>,
}

#[derive(Debug)]
struct Parsed {
    endpoint: Endpoint,
    /// Is known to be UTF-8, so that no read has to check that of a large body again.
    body: ByteString,
    model: String,
    /// Byte range of the model's JSON literal in the body.
    model_range: Range<usize>,
    prompt: Prompt,
    /// The definitions of tools and the system prompt, which chat templates put before the
    /// messages.
    preamble: [Option<Range<usize>>; 2],
    figures: RequestInfo,
    choices: u32,
    outputs: u32,
    prompt_hashes: OnceLock<PromptHashes>,
    /// Where fields are, for policies that read many of them.
    index: Index,
}

impl Request {
    /// Parses a body.
    ///
    /// # Errors
    /// If the body is not JSON or lacks a field that routing needs. All other fields are left for
    /// the engine to validate.
    pub fn parse(endpoint: Endpoint, body: Bytes, mut head: Head) -> Result<Self, BadRequest> {
        json::work::count(3 * body.len()); // as UTF-8, for its structure, and as JSON
        let body = ByteString::try_from(body)
            .map_err(|error| BadRequest::Encoding(error.valid_up_to()))?;
        let text: &str = &body;
        if !matches!(text.trim_ascii_start().as_bytes().first(), None | Some(b'{')) {
            return Err(BadRequest::NotAnObject);
        }
        limits::check(text.as_bytes())?;
        let mut shape: Shape<'_> = serde_json::from_str(text).map_err(BadRequest::Json)?;
        if endpoint == Endpoint::OllamaChat {
            // Clients load a model by a request without messages.
            shape.messages.get_or_insert_with(|| Messages(Vec::new()));
        }
        let model_json = shape.model.map(RawValue::get);
        let model = read_model(model_json)?;
        let model_range = json::range_in(text, model_json.unwrap_or_default());
        let streaming = is_streaming(endpoint, shape.stream.map(RawValue::get))?;
        let format = EndpointShape::for_endpoint(endpoint);
        let prompt = Prompt::read(text, format.prompt, &shape)?;
        let messages = prompt.messages();
        let is_chat = format.prompt.is_chat();
        let figures = RequestInfo {
            endpoint,
            streaming,
            body_bytes: head.form.as_ref().map_or(body.len() as u64, |form| form.size()),
            prompt_tokens: prompt.tokens(text),
            max_output_tokens: output_limit(&shape, format)
                .saturating_mul(saturating_u32(prompt.prompts())),
            messages: if is_chat { saturating_u32(messages.len()) } else { 0 },
            has_tools: [shape.tools, shape.functions]
                .iter()
                .flatten()
                .any(|list| has_children(list.get())),
            has_media: head.form.is_some()
                || messages.iter().any(|message| message.media_parts > 0),
            has_grammar: has_grammar(&shape, format),
        };
        let choices = choices(&shape).saturating_mul(prompt.prompts() as u64);
        let choices = u32::try_from(choices).unwrap_or(u32::MAX);
        let outputs = generated(&shape).saturating_mul(prompt.prompts() as u64);
        let outputs = u32::try_from(outputs).unwrap_or(u32::MAX);
        let system = shape.system.filter(|_| format.prompt == PromptShape::Blocks);
        let preamble = [shape.tools, system].map(|json| Some(json::range_in(text, json?.get())));
        let (prompt_hashes, index) = (OnceLock::new(), Index::default());
        drop(shape);
        head.response_model.get_or_insert_with(|| model.clone());
        let parsed = Parsed {
            endpoint,
            body,
            model,
            model_range,
            prompt,
            preamble,
            figures,
            choices,
            outputs,
            prompt_hashes,
            index,
        };
        Ok(Self { head: without_credentials(head), parsed: Arc::new(parsed) })
    }

    /// Parses a body that may have a model name of the listener on which it arrived, or none.
    ///
    /// # Errors
    /// As [`Request::parse`].
    pub fn parse_with_names(
        endpoint: Endpoint,
        body: Bytes,
        mut head: Head,
        names: ModelNames<'_>,
    ) -> Result<Self, BadRequest> {
        match names.rename(&body) {
            None => Self::parse(endpoint, body, head),
            Some(Renamed { body, response_model }) => {
                head.response_model = Some(response_model);
                Self::parse(endpoint, body, head)
            }
        }
    }

    /// Returns the request with other metadata, without parsing the body again.
    pub(crate) fn with_head(&self, head: Head) -> Self {
        Self { head: without_credentials(head), parsed: Arc::clone(&self.parsed) }
    }

    /// Returns the endpoint that received the request.
    pub fn endpoint(&self) -> Endpoint {
        self.parsed.endpoint
    }

    /// Returns true if the client asked for a stream.
    pub fn streaming(&self) -> bool {
        self.parsed.figures.streaming
    }

    /// Returns the number of choices that the client asked for: of a response that is a stream,
    /// each of them has an end of its own.
    pub fn choices(&self) -> u32 {
        self.parsed.choices
    }

    /// Returns the number of outputs that an engine generates for the request: at least that of the
    /// choices, of which it may return only the best.
    pub fn outputs(&self) -> u32 {
        self.parsed.outputs
    }

    /// Returns the body to send to the engine: the client's bytes, unless the request was edited.
    pub fn body(&self) -> &Bytes {
        self.parsed.body.as_bytes()
    }

    /// Returns the model name for the `model` field of responses: the one that the client asked
    /// for, whatever it stands for and whatever policies made of it; if the client named none, that
    /// of the model that was chosen for it.
    pub fn response_model(&self) -> &str {
        self.head.response_model.as_deref().unwrap_or(&self.parsed.model)
    }

    /// Returns the path of the endpoint, with the query of the request if `with_query`.
    pub fn path(&self, with_query: bool) -> Cow<'_, str> {
        let path = self.endpoint().path().unwrap_or("/");
        match self.head.query.as_str() {
            query if with_query && !query.is_empty() => Cow::Owned(format!("{path}?{query}")),
            _ => Cow::Borrowed(path),
        }
    }

    /// Returns the headers, without credentials.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Returns the metadata of the request.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// Returns the body as text.
    pub(crate) fn json(&self) -> &str {
        &self.parsed.body
    }

    /// Returns the request behind a view; `None` if the view is of another type.
    pub fn from_view(view: Arc<dyn RequestView>) -> Option<Self> {
        let any: Arc<dyn Any + Send + Sync> = view;
        any.downcast::<Self>().ok().map(|request| (*request).clone())
    }

    /// Returns the estimated number of tokens of the prompt with its tools, which the estimate for
    /// policies does not count.
    pub fn estimated_input_tokens(&self) -> u32 {
        let [tools, _] = &self.parsed.preamble;
        let tools = tools.as_ref().and_then(|range| self.json().get(range.clone()));
        let tools = saturating_u32(tools.map_or(0, estimate_tokens));
        self.parsed.figures.prompt_tokens.saturating_add(tools)
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.parsed.prompt.texts().iter().map(|text| text.read(self.body()))
    }
}

fn without_credentials(mut head: Head) -> Arc<Head> {
    for name in &CREDENTIALS {
        head.headers.remove(name);
    }
    Arc::new(head)
}

impl RequestView for Request {
    fn info(&self) -> RequestInfo {
        self.parsed.figures
    }

    fn id(&self) -> &str {
        &self.head.id
    }

    fn model(&self) -> &str {
        &self.parsed.model
    }

    fn tenant(&self) -> Option<&str> {
        self.head.tenant.as_deref()
    }

    fn key_name(&self) -> Option<&str> {
        self.head.key_name.as_deref()
    }

    fn key_group(&self) -> Option<&str> {
        self.head.key_group.as_deref()
    }

    fn draw(&self) -> u64 {
        self.head.draw
    }

    fn allowance(&self) -> Allowance {
        self.head.allowance
    }

    fn constraint(&self) -> Option<&Arc<Constraint>> {
        self.head.constraint.as_ref()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    fn headers(&self) -> Vec<(&str, &[u8])> {
        self.head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }

    fn field(&self, pointer: &str, max_bytes: usize) -> FieldValue {
        let body: &[u8] = self.body();
        let found =
            json::tokens(pointer).ok().and_then(|tokens| self.parsed.index.find(body, &tokens));
        match found.and_then(|range| body.get(range)) {
            None => FieldValue::Absent,
            Some(json) if json.len() > max_bytes => FieldValue::TooLarge(json.len() as u64),
            // As the texts are read: few parsers of policies accept half a surrogate pair.
            Some(json) => FieldValue::Json(
                json::without_half_pairs(&String::from_utf8_lossy(json)).into_owned(),
            ),
        }
    }

    fn messages(&self) -> Vec<MessageInfo> {
        if !EndpointShape::for_endpoint(self.parsed.endpoint).prompt.is_chat() {
            return Vec::new();
        }
        let (body, prompt): (&[u8], &Prompt) = (self.body(), &self.parsed.prompt);
        let info = |(index, message): (usize, &Message)| MessageInfo {
            role: message.role,
            text_bytes: prompt.text_bytes(body, index) as u64,
            parts: message.parts,
            media_parts: message.media_parts,
        };
        prompt.messages().iter().enumerate().map(info).collect()
    }

    fn text(&self, index: u32, offset: u64, max_bytes: usize) -> Cow<'_, str> {
        let body: &[u8] = self.body();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let (texts, mut offset) = self.parsed.prompt.texts_from(body, index as usize, offset);
        let mut slice = String::new();
        let mut rest = max_bytes;
        for text in texts {
            if rest == 0 {
                break;
            }
            let text = text.bytes(body);
            append_slice(&mut slice, text, offset, rest);
            // What is left out at the end of this text is not filled by the next one.
            rest = rest.saturating_sub(text.len().saturating_sub(offset));
            offset = 0;
        }
        Cow::Owned(slice)
    }

    fn text_size(&self) -> u64 {
        self.parsed.prompt.text_size() as u64
    }

    fn bytes(&self, offset: u64, max_bytes: usize) -> &[u8] {
        let body: &[u8] = self.body();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(body.len());
        &body[start..start.saturating_add(max_bytes).min(body.len())]
    }

    fn contains(&self, needle: &str, ignore_case: bool) -> bool {
        self.texts().any(|text| contains(text, needle, ignore_case))
    }

    fn visit_texts(&self, visit: &mut dyn FnMut(u32, u64, &str) -> ControlFlow<()>) {
        let body: &[u8] = self.body();
        let mut begin = (0, 0);
        for (message, text) in self.parsed.prompt.texts_with_messages() {
            if begin.0 != message {
                begin = (message, 0);
            }
            let (index, offset) = (saturating_u32(message), begin.1 as u64);
            let text = text.read(body);
            begin.1 += text.len();
            if visit(index, offset, text).is_break() {
                return;
            }
        }
    }

    fn prefix_hashes(&self, block_bytes: usize, max_blocks: usize) -> Vec<u64> {
        // Not as `str`, which would validate texts that are not hashed to their end.
        let texts = self.parsed.prompt.texts().iter().map(|text| text.bytes(self.body()));
        fnv1a_chain(texts, block_bytes, max_blocks)
    }

    fn edited(&self, edits: &[Edit]) -> (Arc<dyn RequestView>, Vec<DroppedEdit>) {
        let (request, dropped) = self.apply(edits);
        (Arc::new(request), dropped)
    }
}

#[cfg(test)]
mod conversation_tests;
#[cfg(test)]
mod tests;
