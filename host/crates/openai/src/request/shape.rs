//! The fields of a body that are parsed, except for what is in the prompt.

use std::fmt;
use std::marker::PhantomData;

use pointsman_domain::Endpoint;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::bad_request::BadRequest;
use crate::endpoint::{EndpointShape, streams_by_default};
use crate::error_form::ErrorForm;
use crate::index;
use crate::limits::MAX_ITEMS;
use crate::scan::Children;

/// The fields that are parsed. All other fields are skipped and preserved.
#[derive(Deserialize)]
pub(super) struct Shape<'a> {
    #[serde(borrow, default)]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) messages: Option<Messages<'a>>,
    // The system prompt of requests with content blocks.
    #[serde(borrow, default)]
    pub(super) system: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) instructions: Option<&'a RawValue>,
    /// A conversation that Anthropic's servers keep.
    #[serde(borrow, default)]
    pub(super) thread: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_output_tokens: Option<&'a RawValue>,
    // llama.cpp's name of the limit.
    #[serde(borrow, default)]
    pub(super) n_predict: Option<&'a RawValue>,
    // vLLM's minimum.
    #[serde(borrow, default)]
    pub(super) min_tokens: Option<&'a RawValue>,
    // The number of choices; `n_cmpl` is llama.cpp's name.
    #[serde(borrow, default)]
    pub(super) n: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) n_cmpl: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) best_of: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) tools: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) functions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) response_format: Option<&'a RawValue>,
    /// Format of the output at the endpoint for responses.
    #[serde(borrow, default)]
    pub(super) text: Option<&'a RawValue>,
    // Fields by which vLLM and llama.cpp constrain the output besides `response_format`.
    #[serde(borrow, default)]
    pub(super) structured_outputs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) grammar: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) json_schema: Option<&'a RawValue>,
    // Ollama's images, options, and format of the output.
    #[serde(borrow, default)]
    pub(super) images: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) options: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) format: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct MessageShape<'a> {
    #[serde(borrow, default)]
    pub(super) role: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) tool_calls: Option<&'a RawValue>,
    // Ollama's.
    #[serde(borrow, default)]
    pub(super) images: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct PartShape<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) title: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) context: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) refusal: Option<&'a RawValue>,
    // What content blocks have instead of a text.
    #[serde(borrow, default)]
    pub(super) thinking: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) source: Option<&'a RawValue>,
}

/// Where a document is.
#[derive(Deserialize)]
pub(super) struct SourceShape<'a> {
    #[serde(borrow, default, rename = "type")]
    pub(super) kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
}

/// The fields of an item that have text: a message, reasoning, or the call of a tool or its
/// result.
#[derive(Deserialize)]
pub(super) struct ItemShape<'a> {
    #[serde(borrow, default)]
    pub(super) summary: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) arguments: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) output: Option<&'a RawValue>,
}

/// An object. Types derived from `Deserialize` alone would accept arrays too.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// The first messages of a request: all of them, and one more than allowed if there are more. The
/// others are read, but take no memory.
pub(super) struct Messages<'a>(pub(super) Vec<Object<MessageShape<'a>>>);

impl<'de: 'a, 'a> Deserialize<'de> for Messages<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Elements<'a> {
            type Value = Messages<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut messages = Vec::new();
                while messages.len() <= MAX_ITEMS {
                    let Some(message) = seq.next_element()? else { return Ok(Messages(messages)) };
                    messages.push(message);
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Messages(messages))
            }
        }

        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

/// Reads the model from the JSON text of its field. An empty name is as good as none.
pub(super) fn read_model(json: Option<&str>) -> Result<String, BadRequest> {
    let json = json.ok_or(BadRequest::Missing { name: "model" })?;
    let model: String =
        serde_json::from_str(json).map_err(|_| BadRequest::invalid("model", "a string"))?;
    if model.is_empty() { Err(BadRequest::Missing { name: "model" }) } else { Ok(model) }
}

/// Reads whether the client asks for a stream from the JSON text of the field.
pub(crate) fn read_stream(json: Option<&str>) -> Result<bool, BadRequest> {
    match json {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(BadRequest::invalid("stream", "true or false")),
    }
}

/// Reads whether the client of an endpoint asks for a stream.
pub(crate) fn is_streaming(endpoint: Endpoint, json: Option<&str>) -> Result<bool, BadRequest> {
    match json {
        None => Ok(streams_by_default(endpoint)),
        json => read_stream(json),
    }
}

/// Returns true if the array or object has a child.
pub(super) fn has_children(json: &str) -> bool {
    Children::new(json.as_bytes(), 0).is_some_and(|mut children| children.next().is_some())
}

pub(super) fn has_grammar(shape: &Shape<'_>, format: &EndpointShape) -> bool {
    if format.errors == ErrorForm::Ollama {
        return shape.format.is_some_and(|format| format.get() != "\"\"");
    }

    let of = |field: Option<&RawValue>, path: &[&str]| {
        let Some(field) = field else { return false };
        let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
        let kind = index::find(field.get(), &path);
        matches!(kind, Some("\"json_object\"" | "\"json_schema\""))
    };
    of(shape.response_format, &["type"])
        || of(shape.text, &["format", "type"])
        || [shape.structured_outputs, shape.grammar, shape.json_schema].iter().any(Option::is_some)
}
