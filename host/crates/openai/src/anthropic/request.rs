//! A request for messages as one for chat completions.

use serde_json::{Value, json};

use super::chat::{Chat, ChatTool, Function, JsonSchema, ResponseFormat};
use super::conversation;
use super::wire::{Format, Tool, ToolChoice, Wire};
use crate::bad_request::BadRequest;
use crate::json::{self, work};
use crate::request::Request;
use pointsman_domain::RequestView as _;

/// A request for chat completions.
pub(super) struct ChatRequest {
    /// Its body.
    pub(super) body: String,
    /// The client does not want thinking in the response.
    pub(super) hides_thinking: bool,
}

/// Translates a request.
///
/// # Errors
/// If it has something that chat completions cannot express.
pub(super) fn translate(request: &Request) -> Result<ChatRequest, BadRequest> {
    work::count(request.body().len());
    // Texts become strings, which cannot hold half a surrogate pair.
    let text = json::without_half_pairs(request.json());
    let wire: Wire<'_> = serde_json::from_str(&text).map_err(BadRequest::Json)?;
    if wire.mcp_servers.as_ref().is_some_and(|servers| !servers.is_empty()) {
        return Err(BadRequest::unsupported("mcp_servers", "MCP servers are not connected to"));
    }
    let hides_thinking = wire.thinking.as_ref().is_some_and(|kind| kind.kind == "disabled");
    let tools = tools(wire.tools.as_deref().unwrap_or_default())?;
    let choice = wire.tool_choice.as_ref().filter(|_| !tools.is_empty());
    let format = wire.output_config.as_ref().and_then(|config| config.format.as_ref());
    let chat = Chat {
        model: request.model(),
        messages: conversation::messages(&wire)?,
        max_tokens: wire.max_tokens,
        temperature: wire.temperature,
        top_p: wire.top_p,
        top_k: wire.top_k,
        stop: wire.stop_sequences.as_deref().filter(|sequences| !sequences.is_empty()),
        stream: request.streaming().then_some(true),
        tool_choice: choice.map(tool_choice).transpose()?,
        parallel_tool_calls: choice
            .and_then(|choice| choice.disable_parallel_tool_use)
            .and_then(|is_disabled| is_disabled.then_some(false)),
        tools,
        response_format: format.or(wire.output_format.as_ref()).map(response_format).transpose()?,
        // The name in most chat templates. Models that reason do so unless they are told not to, so
        // that nothing has to be said of `enabled` and `adaptive`.
        chat_template_kwargs: hides_thinking.then(|| json!({ "enable_thinking": false })),
        user: wire.metadata.as_ref().and_then(|metadata| metadata.user_id.as_deref()),
    };
    let body = serde_json::to_string(&chat).map_err(BadRequest::Json)?;
    Ok(ChatRequest { body, hides_thinking })
}

fn tools<'a>(tools: &'a [Tool<'a>]) -> Result<Vec<ChatTool<'a>>, BadRequest> {
    let function = |tool: &'a Tool<'a>| match tool.kind.as_deref() {
        None | Some("custom") => Ok(ChatTool {
            kind: "function",
            function: Function {
                name: &tool.name,
                description: tool.description.as_deref(),
                parameters: tool.input_schema,
                strict: tool.strict,
            },
        }),
        Some(kind) => Err(BadRequest::unsupported(
            "tools",
            &format!("the tool `{kind}` runs on Anthropic's servers or is built into its models"),
        )),
    };
    tools.iter().map(function).collect()
}

fn tool_choice(choice: &ToolChoice) -> Result<Value, BadRequest> {
    Ok(match (&*choice.kind, &choice.name) {
        ("auto", _) => "auto".into(),
        ("any", _) => "required".into(),
        ("none", _) => "none".into(),
        ("tool", Some(name)) => json!({ "type": "function", "function": { "name": name } }),
        _ => {
            return Err(BadRequest::invalid(
                "tool_choice",
                "a `type` of `auto`, `any`, `none`, or `tool` with a `name`",
            ));
        }
    })
}

fn response_format<'a>(format: &Format<'a>) -> Result<ResponseFormat<'a>, BadRequest> {
    if format.kind != "json_schema" {
        return Err(BadRequest::invalid("output_config", "a format of the type `json_schema`"));
    }
    let json_schema = JsonSchema { name: "response", schema: format.schema, strict: true };
    Ok(ResponseFormat { kind: "json_schema", json_schema })
}
