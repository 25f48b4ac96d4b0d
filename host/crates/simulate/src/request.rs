//! The generation of request bodies.
//!
//! The words are filler. The properties that policies look at are right: the length, the start of
//! the prompt, and the prefixes that prompts share.
//!
//! ```text
//!   text of the stream │ prefix of the class │ prefix of the session ... up to the prompt's length
//! ```
//!
//! So each prompt of a session starts with the previous one. All filler is copied from one text
//! that is generated once.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_domain::Endpoint;
use pointsman_openai::{BadRequest, Head, Request, estimate_tokens};

use crate::random::Random;
use crate::traffic::{ClassId, SimRequest};

/// Tokens that the estimate adds to the text of a chat message.
const TOKENS_PER_MESSAGE: usize = 4;
/// Characters per token of the estimate.
const CHARS_PER_TOKEN: usize = 4;
/// The length of the filler, which is repeated as needed.
const FILLER_LENGTH: usize = 1 << 16;
/// A part of a message with an image, whose content does not matter.
const IMAGE: &[u8] = br#",{"type":"image_url","image_url":{"url":"data:image/png;base64,"}}"#;
const SYLLABLES: [&str; 32] = [
    "ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "qui", "ro", "su",
    "ta", "ve", "wi", "xo", "yu", "za", "bre", "cli", "dro", "fru", "gla", "ple", "sti", "tro",
    "an", "en", "or",
];

/// Generates the HTTP requests of simulated requests.
#[derive(Debug)]
pub(crate) struct RequestWriter {
    filler: Vec<u8>,
    /// The length of the prefix that the prompts of a class share.
    class_prefixes: BTreeMap<ClassId, u32>,
}

impl RequestWriter {
    pub(crate) fn new() -> Self {
        let mut random = Random::new(0, "filler");
        let mut filler = Vec::with_capacity(FILLER_LENGTH + 16);
        while filler.len() < FILLER_LENGTH {
            for _ in 0..=random.below(3) {
                let syllable = SYLLABLES[random.below(SYLLABLES.len() as u64) as usize];
                filler.extend_from_slice(syllable.as_bytes());
            }
            filler.push(b' ');
        }
        filler.truncate(FILLER_LENGTH);
        Self { filler, class_prefixes: BTreeMap::new() }
    }

    /// Returns the length in tokens of the prefix that all prompts of the request's class share.
    pub(crate) fn class_prefix(&mut self, request: &SimRequest) -> u32 {
        let prefix = self.class_prefixes.entry(request.class).or_default();
        // Later turns share the history of their session instead.
        if request.turn == 0 {
            *prefix = request.shared_tokens.max(*prefix);
        }
        *prefix
    }

    /// Generates the HTTP request with this id.
    ///
    /// # Errors
    /// If the recorded body is not one that the host accepts.
    pub(crate) fn write(
        &mut self,
        request: &SimRequest,
        id: String,
    ) -> Result<Request, BadRequest> {
        let mut headers = HeaderMap::with_capacity(request.headers.len());
        for (name, value) in request.headers.iter() {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
            {
                headers.append(name, value);
            }
        }
        let tenant = request.tenant.as_deref().map(str::to_owned);
        let head = Head { id, tenant, headers, ..Head::default() };
        let body = match &request.body {
            Some(body) => body.clone(),
            None => self.body(request),
        };
        Request::parse(request.endpoint, body, head)
    }

    fn body(&mut self, request: &SimRequest) -> Bytes {
        let prefix = self.class_prefix(request) as usize * CHARS_PER_TOKEN;
        let model = json_string(&request.model);
        let mut body = Vec::with_capacity(
            request.prompt_tokens as usize * CHARS_PER_TOKEN + model.len() + 128,
        );
        body.extend_from_slice(br#"{"model":"#);
        body.extend_from_slice(model.as_bytes());
        let has_messages = has_messages(request.endpoint);
        let images = if request.endpoint == Endpoint::ChatCompletions { request.media } else { 0 };
        body.extend_from_slice(match request.endpoint {
            _ if images > 0 => {
                br#","messages":[{"role":"user","content":[{"type":"text","text":"#.as_slice()
            }
            _ if has_messages => br#","messages":[{"role":"user","content":"#,
            Endpoint::Responses | Endpoint::Embeddings => br#","input":"#,
            _ => br#","prompt":"#,
        });
        self.prompt(request, prefix, &mut body);
        if images > 0 {
            body.push(b'}');
            (0..images).for_each(|_| body.extend_from_slice(IMAGE));
            body.push(b']');
        }
        if has_messages {
            body.extend_from_slice(b"}]");
        }
        if request.stream {
            body.extend_from_slice(br#","stream":true"#);
        }
        if let Some(max_tokens) = request.max_tokens {
            let name = if request.endpoint == Endpoint::Responses {
                "max_output_tokens"
            } else {
                "max_tokens"
            };
            body.extend_from_slice(format!(r#","{name}":{max_tokens}"#).as_bytes());
        }
        body.push(b'}');
        body.into()
    }

    /// Appends the prompt as a JSON string. If the text of the stream alone is longer than the
    /// prompt, the prompt is that text.
    fn prompt(&self, request: &SimRequest, class_prefix: usize, body: &mut Vec<u8>) {
        let text = json_string(&request.text);
        let text = text.get(1..text.len() - 1).unwrap_or_default();
        body.push(b'"');
        body.extend_from_slice(text.as_bytes());
        let written = estimate_tokens(text) + TOKENS_PER_MESSAGE;
        // A text that is longer than the prompt leaves nothing to fill.
        let missing = (request.prompt_tokens as usize).saturating_sub(written) * CHARS_PER_TOKEN;
        let common = class_prefix.saturating_sub(written * CHARS_PER_TOKEN).min(missing);
        self.fill(mix(u64::from(request.class.0)), common, body);
        let rest = missing - common;
        let session = mix(request.session);
        // The hash makes sessions differ from their first word on, and not only in their offset
        // into the filler.
        let mark = format!("{session:016x} ");
        let mark = &mark.as_bytes()[..mark.len().min(rest)];
        body.extend_from_slice(mark);
        self.fill(session, rest - mark.len(), body);
        body.push(b'"');
    }

    /// Appends filler, starting at an offset that depends on `hash`.
    fn fill(&self, hash: u64, mut length: usize, body: &mut Vec<u8>) {
        let mut at = (hash % FILLER_LENGTH as u64) as usize;
        while length > 0 {
            let piece = &self.filler[at..FILLER_LENGTH.min(at + length)];
            body.extend_from_slice(piece);
            length -= piece.len();
            at = 0;
        }
    }
}

/// Returns true if the prompt of an endpoint is a list of messages, or not known.
fn has_messages(endpoint: Endpoint) -> bool {
    matches!(
        endpoint,
        Endpoint::ChatCompletions | Endpoint::Messages | Endpoint::OllamaChat | Endpoint::Other
    )
}

fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Hashes a number (the finalizer of SplitMix64, by Steele, Lea and Flood).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
