//! One request: the client's bytes, an index into them, and what policies may ask about them.

mod shape;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use pointsman_domain::{
    Edit, Endpoint, FieldValue, Figures, MessageInfo, RequestView, char_slice, fnv1a_chain,
};
use serde_json::value::RawValue;

use self::shape::{
    Message, Shape, count_tokens, has_grammar, output_limit, read_message, read_prompt, small,
};
use crate::error::ErrorBody;
use crate::json;
use crate::text::contains;

/// Headers that carry credentials. They end here: policies do not see them and engines do not get them.
const CREDENTIALS: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
];

/// What comes with a body.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Id of the request.
    pub id: String,
    /// Tenant that authentication found.
    pub tenant: Option<String>,
    /// Headers of the request. Those with credentials are dropped.
    pub headers: HeaderMap,
}

/// A parsed request. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Request(Arc<Parsed>);

#[derive(Debug)]
struct Parsed {
    endpoint: Endpoint,
    head: Head,
    body: Bytes,
    model: String,
    /// Place of the model's JSON literal in the body.
    model_place: Range<usize>,
    messages: Vec<Message>,
    figures: Figures,
}

/// Why a body is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Not UTF-8.
    #[error("the request body is not valid UTF-8 (byte {0})")]
    Encoding(usize),
    /// Not JSON, or of the wrong shape; serde's sentence names line and column.
    #[error("the request body is not valid: {0}")]
    Json(String),
    /// A field is missing or of the wrong type.
    #[error("{what}")]
    Field {
        /// Name of the field.
        name: &'static str,
        /// Sentence for people.
        what: String,
    },
}

impl BadRequest {
    /// HTTP status of the answer.
    pub fn status(&self) -> u16 {
        400
    }

    /// Body of the answer.
    pub fn body(&self) -> ErrorBody {
        let mut body = ErrorBody::invalid_request(&self.to_string());
        if let Self::Field { name, .. } = self {
            body.param = Some((*name).to_owned());
        }
        body
    }

    fn field(name: &'static str, what: impl Into<String>) -> Self {
        Self::Field { name, what: what.into() }
    }
}

impl Request {
    /// Parse a body.
    ///
    /// # Errors
    /// When it is not JSON, or lacks what routing needs. What only the engine needs is the engine's to judge.
    pub fn parse(endpoint: Endpoint, body: Bytes, mut head: Head) -> Result<Self, BadRequest> {
        for name in &CREDENTIALS {
            head.headers.remove(name);
        }
        let text = std::str::from_utf8(&body)
            .map_err(|error| BadRequest::Encoding(error.valid_up_to()))?;
        if !matches!(text.trim_ascii_start().as_bytes().first(), None | Some(b'{')) {
            return Err(BadRequest::Json("it must be a JSON object".into()));
        }
        let shape: Shape<'_> =
            serde_json::from_str(text).map_err(|error| BadRequest::Json(error.to_string()))?;
        let model_json = shape.model.map(RawValue::get);
        let missing = || BadRequest::field("model", "you must provide a model parameter");
        let model: String = serde_json::from_str(model_json.ok_or_else(missing)?)
            .map_err(|_| BadRequest::field("model", "`model` must be a string"))?;
        let model_place = json::range_in(text, model_json.unwrap_or_default());
        let streaming = match shape.stream.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(BadRequest::field("stream", "`stream` must be true or false")),
        };
        let mut token_ids = 0;
        let messages = match endpoint {
            Endpoint::ChatCompletions => {
                let messages = shape.messages.as_ref();
                let messages = messages
                    .ok_or_else(|| BadRequest::field("messages", "`messages` is required"))?;
                messages
                    .iter()
                    .map(|message| read_message(text, message))
                    .collect::<Result<_, _>>()?
            }
            Endpoint::Completions => {
                let prompt = shape
                    .prompt
                    .ok_or_else(|| BadRequest::field("prompt", "`prompt` is required"))?;
                vec![read_prompt(text, prompt.get(), &mut token_ids)?]
            }
            _ => Vec::new(),
        };
        let figures = Figures {
            endpoint,
            streaming,
            body_bytes: body.len() as u64,
            prompt_tokens: count_tokens(text, &messages, token_ids),
            max_output_tokens: output_limit(&shape),
            messages: if endpoint == Endpoint::ChatCompletions { small(messages.len()) } else { 0 },
            has_tools: [shape.tools, shape.functions]
                .iter()
                .flatten()
                .any(|list| !json::is_empty(list.get())),
            has_media: messages.iter().any(|message| message.media_parts > 0),
            has_grammar: has_grammar(&shape),
        };
        Ok(Self(Arc::new(Parsed { endpoint, head, body, model, model_place, messages, figures })))
    }

    /// Which endpoint it came in on.
    pub fn endpoint(&self) -> Endpoint {
        self.0.endpoint
    }

    /// The client asked for a stream.
    pub fn streaming(&self) -> bool {
        self.0.figures.streaming
    }

    /// The body as it goes to the engine: the client's bytes, where nothing was edited.
    pub fn body(&self) -> &Bytes {
        &self.0.body
    }

    /// The body with another model name, without parsing it again.
    pub fn body_with_model(&self, model: &str) -> Bytes {
        let literal = serde_json::Value::from(model).to_string();
        json::splice(self.json(), self.0.model_place.clone(), &literal).into()
    }

    /// The headers, without credentials.
    pub fn headers(&self) -> &HeaderMap {
        &self.0.head.headers
    }

    /// What came with the body.
    pub(crate) fn head(&self) -> &Head {
        &self.0.head
    }

    /// The body as text.
    pub(crate) fn json(&self) -> &str {
        // Parsing has checked it.
        std::str::from_utf8(&self.0.body).unwrap_or("{}")
    }

    /// The request with these edits, and those that could not be applied, each with the reason. An edit is applied whole
    /// or not at all, and a refused one leaves the others in force.
    #[must_use]
    pub fn apply(&self, edits: &[Edit]) -> (Self, Vec<(Edit, String)>) {
        let mut request = self.clone();
        let mut refused = Vec::new();
        for edit in edits {
            match crate::edit::apply(&request, edit) {
                Ok(edited) => request = edited,
                Err(reason) => refused.push((edit.clone(), reason)),
            }
        }
        (request, refused)
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let body = self.json();
        self.0.messages.iter().flat_map(|message| &message.texts).map(move |text| text.read(body))
    }
}

impl RequestView for Request {
    fn figures(&self) -> Figures {
        self.0.figures
    }

    fn id(&self) -> &str {
        &self.0.head.id
    }

    fn model(&self) -> &str {
        &self.0.model
    }

    fn tenant(&self) -> Option<&str> {
        self.0.head.tenant.as_deref()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.0.head.headers.get(name)?.to_str().ok()
    }

    fn headers(&self) -> Vec<(&str, &[u8])> {
        self.0.head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }

    fn field(&self, pointer: &str, max_bytes: usize) -> FieldValue {
        let found = json::tokens(pointer)
            .ok()
            .and_then(|tokens| json::find(self.json().trim_ascii(), &tokens));
        match found {
            None => FieldValue::Absent,
            Some(json) if json.len() > max_bytes => FieldValue::TooLarge(json.len() as u64),
            Some(json) => FieldValue::Json(json.to_owned()),
        }
    }

    fn messages(&self) -> Vec<MessageInfo> {
        if self.0.endpoint != Endpoint::ChatCompletions {
            return Vec::new();
        }
        let body = self.json();
        let info = |message: &Message| MessageInfo {
            role: message.role,
            text_bytes: message.texts.iter().map(|text| text.read(body).len() as u64).sum(),
            parts: message.parts,
            media_parts: message.media_parts,
        };
        self.0.messages.iter().map(info).collect()
    }

    fn text(&self, index: u32, offset: u64, max_bytes: usize) -> Cow<'_, str> {
        let body = self.json();
        match self.0.messages.get(index as usize).map(|message| message.texts.as_slice()) {
            None | Some([]) => Cow::Borrowed(""),
            Some([text]) => Cow::Borrowed(char_slice(text.read(body), offset, max_bytes)),
            Some(texts) => {
                let whole: String = texts.iter().map(|text| text.read(body)).collect();
                Cow::Owned(char_slice(&whole, offset, max_bytes).to_owned())
            }
        }
    }

    fn bytes(&self, offset: u64, max_bytes: usize) -> &[u8] {
        let body: &[u8] = &self.0.body;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(body.len());
        &body[start..start.saturating_add(max_bytes).min(body.len())]
    }

    fn contains(&self, needle: &str, ignore_case: bool) -> bool {
        self.texts().any(|text| contains(text, needle, ignore_case))
    }

    fn prefix_hashes(&self, block_bytes: usize, max_blocks: usize) -> Vec<u64> {
        fnv1a_chain(self.texts().map(str::as_bytes), block_bytes, max_blocks)
    }

    fn edited(&self, edits: &[Edit]) -> (Arc<dyn RequestView>, Vec<(Edit, String)>) {
        let (request, refused) = self.apply(edits);
        (Arc::new(request), refused)
    }
}

#[cfg(test)]
mod tests;
