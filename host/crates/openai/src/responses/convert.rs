//! A request for a response as a chat request.

use pointsman_domain::Endpoint;
use serde_json::{Map, Value, json};

use super::builder::Builder;
use super::{items, tools};
use crate::bad_request::BadRequest;
use crate::request::Request;
use crate::responses::events::ResponseTranslation;
use crate::translate::Translation;

/// Fields of the responses API that chat requests do not have, or have in another form. All other
/// fields are passed on: engines have many of their own.
const OWN_FIELDS: [&str; 34] = [
    "input",
    "instructions",
    "metadata",
    "store",
    "previous_response_id",
    "conversation",
    "include",
    "background",
    "truncation",
    "text",
    "reasoning",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "safety_identifier",
    "service_tier",
    "max_tool_calls",
    "max_output_tokens",
    "context_management",
    "stream_options",
    "top_logprobs",
    "tools",
    "tool_choice",
    "messages",
    "response_format",
    "moderation",
    // Those of chat requests that would count beside the others, or make several responses.
    "max_tokens",
    "max_completion_tokens",
    "n",
    "n_cmpl",
    "best_of",
    "functions",
    "function_call",
];

/// Returns the chat request for a request for a response, and what translates the response.
///
/// # Errors
/// If the request has something that a chat request cannot express.
pub(crate) fn translate(request: &Request) -> Result<Translation, BadRequest> {
    let body: Value = serde_json::from_str(request.json()).map_err(BadRequest::Json)?;
    let chat = Value::Object(chat_body(&body)?);
    let mut head = request.head().clone();
    let id = head.response_id.clone().unwrap_or_else(|| format!("resp_{}", head.id));
    head.response_model = Some(request.response_model().to_owned());
    let builder = Builder::new(&body, &id, request.response_model());
    let response = Box::new(ResponseTranslation::new(builder, request.streaming()));
    let request = Request::parse(Endpoint::ChatCompletions, chat.to_string().into(), head)?;
    Ok(Translation { request, response })
}

/// Returns the body of the chat request.
pub(super) fn chat_body(body: &Value) -> Result<Map<String, Value>, BadRequest> {
    let given = |name: &str| body.get(name).filter(|value| !value.is_null());
    if given("prompt").is_some() {
        return Err(BadRequest::unsupported("prompt", "stored prompts"));
    }
    let mut chat = Map::new();
    let passed = body.as_object().into_iter().flatten();
    for (name, value) in passed.filter(|(name, _)| !OWN_FIELDS.contains(&name.as_str())) {
        chat.insert(name.clone(), value.clone());
    }
    let messages = items::messages(given("instructions"), given("input").unwrap_or(&Value::Null))?;
    chat.insert("messages".to_owned(), messages.into());
    if let Some(limit) = given("max_output_tokens") {
        chat.insert("max_completion_tokens".to_owned(), limit.clone());
    }
    if let Some(effort) = body.pointer("/reasoning/effort").filter(|effort| !effort.is_null()) {
        chat.insert("reasoning_effort".to_owned(), effort.clone());
    }
    let wants_logprobs = given("include")
        .and_then(Value::as_array)
        .is_some_and(|include| include.iter().any(|what| what == "message.output_text.logprobs"));
    let top_logprobs = given("top_logprobs").and_then(Value::as_u64).unwrap_or(0);
    if wants_logprobs || top_logprobs > 0 {
        chat.insert("logprobs".to_owned(), json!(true));
        chat.insert("top_logprobs".to_owned(), json!(top_logprobs));
    }
    if let Some(format) = body.pointer("/text/format").filter(|format| !format.is_null())
        && let Some(format) = tools::response_format(format)?
    {
        chat.insert("response_format".to_owned(), format);
    }
    tools::add(&mut chat, given("tools"), given("tool_choice"))?;
    if !chat.contains_key("tools") {
        // Engines refuse it without tools.
        chat.remove("parallel_tool_calls");
    }
    Ok(chat)
}
