//! Requests as clients would have written them: the words are filler, and what policies look at is there: the length, what a
//! prompt begins with, and what prompts have in common.
//!
//! ```text
//!   ask.text │ the same for all of a class │ the same for all of a session … to the length of the prompt
//! ```
//!
//! So a later prompt of a session begins with the earlier one. All of it is copied from one text that is made once.

use std::collections::BTreeMap;
use std::io::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_domain::Endpoint;
use pointsman_openai::{BadRequest, Head, Request, tokens_of};

use crate::random::Random;
use crate::traffic::{Ask, ClassId};

/// Tokens that a chat message is estimated to have beside its text.
const AROUND_A_MESSAGE: usize = 4;
/// Characters of a token by the estimate.
const OF_A_TOKEN: usize = 4;
/// Length of the filler, which begins again at its end.
const FILLER: usize = 1 << 16;
const SYLLABLES: [&str; 32] = [
    "ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "qui", "ro", "su",
    "ta", "ve", "wi", "xo", "yu", "za", "bre", "cli", "dro", "fru", "gla", "ple", "sti", "tro",
    "an", "en", "or",
];

/// Writes requests.
#[derive(Debug)]
pub(crate) struct Writer {
    filler: Vec<u8>,
    /// The first so many tokens are the same for all of a class.
    common: BTreeMap<ClassId, u32>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        let mut random = Random::new(0, "filler");
        let mut filler = Vec::with_capacity(FILLER + 16);
        while filler.len() < FILLER {
            for _ in 0..=random.below(3) {
                let syllable = SYLLABLES[random.below(SYLLABLES.len() as u64) as usize];
                filler.extend_from_slice(syllable.as_bytes());
            }
            filler.push(b' ');
        }
        filler.truncate(FILLER);
        Self { filler, common: BTreeMap::new() }
    }

    /// How many tokens all prompts of its class begin with: what a request has in common with others that is the first of its
    /// session.
    pub(crate) fn common(&mut self, ask: &Ask) -> u32 {
        let common = self.common.entry(ask.class).or_default();
        if ask.turn == 0 {
            *common = ask.shared_tokens.max(*common);
        }
        *common
    }

    /// The request that was asked for, with this id.
    ///
    /// # Errors
    /// If the recorded body is none that the host would take.
    pub(crate) fn write(&mut self, ask: &Ask, id: String) -> Result<Request, BadRequest> {
        let mut headers = HeaderMap::with_capacity(ask.headers.len());
        for (name, value) in ask.headers.iter() {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
            {
                headers.append(name, value);
            }
        }
        let head = Head { id, tenant: ask.tenant.as_deref().map(str::to_owned), headers };
        let body = match &ask.body {
            Some(body) => body.clone(),
            None => self.body(ask),
        };
        Request::parse(ask.endpoint, body, head)
    }

    fn body(&mut self, ask: &Ask) -> Bytes {
        let common = self.common(ask) as usize * OF_A_TOKEN;
        let model = literal(&ask.model);
        let mut body =
            Vec::with_capacity(ask.prompt_tokens as usize * OF_A_TOKEN + model.len() + 128);
        body.extend_from_slice(br#"{"model":"#);
        body.extend_from_slice(model.as_bytes());
        body.extend_from_slice(match ask.endpoint {
            Endpoint::ChatCompletions | Endpoint::Other => {
                br#","messages":[{"role":"user","content":"#
            }
            Endpoint::Completions => br#","prompt":"#,
            Endpoint::Responses | Endpoint::Embeddings => br#","input":"#.as_slice(),
        });
        self.text(ask, common, &mut body);
        if matches!(ask.endpoint, Endpoint::ChatCompletions | Endpoint::Other) {
            body.extend_from_slice(b"}]");
        }
        if ask.stream {
            body.extend_from_slice(br#","stream":true"#);
        }
        if let Some(most) = ask.max_tokens {
            let name = if ask.endpoint == Endpoint::Responses {
                "max_output_tokens"
            } else {
                "max_tokens"
            };
            // Writing to memory does not fail.
            let _written = write!(body, r#","{name}":{most}"#);
        }
        body.push(b'}');
        body.into()
    }

    /// The prompt as a JSON literal. One whose beginning alone is longer than the prompt is to be is that beginning.
    fn text(&self, ask: &Ask, common: usize, body: &mut Vec<u8>) {
        let begins = literal(&ask.text);
        let begins = begins.get(1..begins.len() - 1).unwrap_or_default();
        body.push(b'"');
        body.extend_from_slice(begins.as_bytes());
        let begun = tokens_of(begins) + AROUND_A_MESSAGE;
        let missing = (ask.prompt_tokens as usize).saturating_sub(begun) * OF_A_TOKEN;
        let common = common.saturating_sub(begun * OF_A_TOKEN).min(missing);
        self.fill(mix(u64::from(ask.class.0)), common, body);
        // Sessions differ from their first words on.
        let rest = missing - common;
        let of = mix(ask.session);
        let mark = format!("{of:016x} ");
        let mark = &mark.as_bytes()[..mark.len().min(rest)];
        body.extend_from_slice(mark);
        self.fill(of, rest - mark.len(), body);
        body.push(b'"');
    }

    /// So many characters of the filler, from a place that belongs to whom they are for.
    fn fill(&self, of: u64, mut length: usize, body: &mut Vec<u8>) {
        let mut at = (of % FILLER as u64) as usize;
        while length > 0 {
            let piece = &self.filler[at..FILLER.min(at + length)];
            body.extend_from_slice(piece);
            length -= piece.len();
            at = 0;
        }
    }
}

fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A number that looks like any other (the finalizer of SplitMix64, by Steele, Lea and Flood).
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
