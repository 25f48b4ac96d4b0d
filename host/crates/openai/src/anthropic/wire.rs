//! The fields of a request for messages that are translated.

use serde::Deserialize;
use serde_json::value::RawValue;

/// A request. All other fields are left out.
#[derive(Deserialize)]
pub(super) struct Wire<'a> {
    #[serde(borrow)]
    pub(super) messages: Vec<Message<'a>>,
    #[serde(borrow, default)]
    pub(super) system: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) temperature: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) top_p: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) top_k: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) tools: Option<Vec<Tool<'a>>>,
    #[serde(default)]
    pub(super) tool_choice: Option<ToolChoice>,
    #[serde(default)]
    pub(super) thinking: Option<Kind>,
    #[serde(default)]
    pub(super) stop_sequences: Option<Vec<String>>,
    #[serde(default)]
    pub(super) metadata: Option<Metadata>,
    #[serde(borrow, default)]
    pub(super) output_config: Option<OutputConfig<'a>>,
    #[serde(borrow, default)]
    pub(super) output_format: Option<Format<'a>>,
    #[serde(default)]
    pub(super) mcp_servers: Option<Vec<serde::de::IgnoredAny>>,
}

/// A message.
#[derive(Deserialize)]
pub(super) struct Message<'a> {
    pub(super) role: String,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
}

/// A block of a message's content, with the fields of all kinds.
#[derive(Deserialize, Default)]
pub(super) struct Block<'a> {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) thinking: Option<String>,
    #[serde(borrow, default)]
    pub(super) source: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(borrow, default)]
    pub(super) input: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) tool_use_id: Option<String>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) is_error: Option<bool>,
    #[serde(default)]
    pub(super) title: Option<String>,
    #[serde(default)]
    pub(super) context: Option<String>,
}

/// Where an image or a document is.
#[derive(Deserialize, Default)]
pub(super) struct Source<'a> {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) media_type: Option<String>,
    #[serde(default)]
    pub(super) data: Option<String>,
    #[serde(default)]
    pub(super) url: Option<String>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
}

/// A tool. Only those that the client defines have no type, or the type `custom`.
#[derive(Deserialize)]
pub(super) struct Tool<'a> {
    #[serde(rename = "type", default)]
    pub(super) kind: Option<String>,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: Option<String>,
    #[serde(borrow, default)]
    pub(super) input_schema: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) strict: Option<bool>,
}

#[derive(Deserialize)]
pub(super) struct ToolChoice {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) disable_parallel_tool_use: Option<bool>,
}

/// An object of which only the kind is read.
#[derive(Deserialize)]
pub(super) struct Kind {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
}

#[derive(Deserialize)]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) user_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct OutputConfig<'a> {
    #[serde(borrow, default)]
    pub(super) format: Option<Format<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Format<'a> {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    #[serde(borrow, default)]
    pub(super) schema: Option<&'a RawValue>,
}
