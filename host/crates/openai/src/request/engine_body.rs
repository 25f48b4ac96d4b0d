//! The body that an engine gets: with its own name of the model, and a request for the usage of a
//! stream, which engines report on request only.

use std::ops::Range;

use bytes::Bytes;
use pointsman_domain::{FieldValue, RequestView as _};

use super::Request;
use crate::endpoint::{EndpointShape, StreamKind};
use crate::form::EngineForm;
use crate::index::Index;
use crate::json;
use crate::scan::Children;

/// llama.cpp's field for the slot that serves a request.
const SLOT: &str = "id_slot";
const OPTIONS: &str = "stream_options";
const USAGE: &str = "include_usage";
/// vLLM's option that puts the usage into every chunk, if the usage is asked for at all.
const CONTINUOUS: &str = "continuous_usage_stats";

/// The body of a request as an engine gets it.
#[derive(Debug, Clone)]
pub struct EngineRequestBody {
    /// The body, unless there is a form.
    pub body: Bytes,
    /// The form, if the client sent one.
    pub form: Option<EngineForm>,
    /// The body asks for the usage of a stream, and the client does not.
    pub adds_usage: bool,
}

impl Request {
    /// Returns the body with another model name, without parsing it again.
    pub fn body_with_model(&self, model: &str) -> Bytes {
        self.body_for_engine(Some(model), false, None).body
    }

    /// Returns the body for an engine, without parsing it again: with another model name if `model`
    /// is one, and with a request for the usage of a stream if `asks_usage` and the client has not
    /// asked for it. `slot` is the slot of llama.cpp that is to serve the request; a body that has
    /// one keeps it, because a policy chose it.
    pub fn body_for_engine(
        &self,
        model: Option<&str>,
        asks_usage: bool,
        slot: Option<u32>,
    ) -> EngineRequestBody {
        if let Some(form) = &self.head.form {
            let model = model.unwrap_or(&self.parsed.model);
            let prompt = match self.field("/prompt", usize::MAX) {
                FieldValue::Json(prompt) => serde_json::from_str::<String>(&prompt).ok(),
                FieldValue::Absent | FieldValue::TooLarge(_) => None,
            };
            let form = Some(form.write(model, prompt.as_deref()));
            return EngineRequestBody { body: self.body().clone(), form, adds_usage: false };
        }
        let has_chunks = EndpointShape::for_endpoint(self.endpoint()).stream == StreamKind::Chunks;
        let usage = (asks_usage && has_chunks && self.streaming())
            .then(|| ask(self.body(), &self.parsed.index))
            .flatten();
        let adds_usage = usage.is_some();
        let model = model.filter(|model| *model != self.parsed.model);
        let literal = model.map(|model| serde_json::Value::from(model).to_string());
        let model = literal.map(|literal| (self.parsed.model_range.clone(), literal));
        let slot = slot.filter(|_| !self.names_slot()).map(|slot| {
            let start = first_member(self.body());
            (start..start, format!("\"{SLOT}\":{slot},"))
        });
        let mut parts: Vec<(Range<usize>, String)> =
            slot.into_iter().chain(usage).chain(model).collect();
        if parts.is_empty() {
            return EngineRequestBody { body: self.body().clone(), form: None, adds_usage };
        }
        parts.sort_by_key(|(range, _)| range.start);
        let body = json::splice(self.json(), &parts).into();
        EngineRequestBody { body, form: None, adds_usage }
    }

    /// Returns true if the body names a slot of llama.cpp: a policy has chosen it.
    pub fn names_slot(&self) -> bool {
        self.field(&format!("/{SLOT}"), 0) != FieldValue::Absent
    }
}

/// Returns where the first member of a body begins. A request has at least a model, so that there
/// is one.
fn first_member(body: &[u8]) -> usize {
    body.len() - body.trim_ascii_start().len() + 1
}

/// Returns the part of a body to replace, and by what, so that the engine reports the usage in the
/// stream. `None` if the client asks for it already, or for something that is the engine's to
/// judge.
fn ask(body: &[u8], index: &Index) -> Option<(Range<usize>, String)> {
    let find = |path: &[&str]| {
        let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
        index.find(body, &path)
    };
    let text = |range: &Range<usize>| body.get(range.clone());
    let all = || format!("{{\"{USAGE}\":true}}");
    let Some(options) = find(&[OPTIONS]) else {
        let start = first_member(body);
        return Some((start..start, format!("\"{OPTIONS}\":{},", all())));
    };
    if text(&options)? == b"null" {
        return Some((options, all()));
    }
    let mut members = Children::new(body, options.start).filter(|_| body[options.start] == b'{')?;
    let is_empty = members.next().is_none();
    if find(&[OPTIONS, CONTINUOUS]).is_some_and(|range| text(&range) == Some(b"true")) {
        return None;
    }
    match find(&[OPTIONS, USAGE]) {
        None => {
            let start = options.start + 1;
            let comma = if is_empty { "" } else { "," };
            Some((start..start, format!("\"{USAGE}\":true{comma}")))
        }
        Some(range) => match text(&range)? {
            b"false" | b"null" => Some((range, "true".to_owned())),
            _ => None,
        },
    }
}
