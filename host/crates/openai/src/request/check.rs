//! What a change of one field may break. A valid request with a valid change is valid, so that
//! several edits need only one parse.

use serde_json::value::RawValue;

use super::prompt::{MAX_FIELD_DEPTH, Prompt, missing_role};
use super::shape::{MessageShape, Messages, Object, read_model, read_stream};
use crate::bad_request::BadRequest;
use crate::endpoint::PromptShape;

/// Checks that a request with such a prompt stays valid if the field at `tokens` is set to the JSON
/// text `value`, or removed.
///
/// # Errors
/// The reason why the request would be invalid.
pub(crate) fn check_field(
    prompt: PromptShape,
    tokens: &[String],
    value: Option<&str>,
) -> Result<(), BadRequest> {
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    match (tokens.as_slice(), prompt) {
        (["model"], _) => read_model(not_null(value)).map(drop),
        (["stream"], _) => read_stream(not_null(value)).map(drop),
        (["messages", deeper @ ..], _) => check_messages(deeper, value, prompt.is_chat()),
        (["system", deeper @ ..], PromptShape::Blocks) => check_system(deeper, value),
        (["prompt", deeper @ ..], PromptShape::Prompt) => check_texts("prompt", deeper, value),
        ([field, ..], PromptShape::Fields(fields)) if fields.contains(field) => match value {
            Some(value) => Prompt::default().read_field(value, value, MAX_FIELD_DEPTH),
            None => Ok(()),
        },
        (["input"], PromptShape::Items) => match not_null(value) {
            Some(value) => Prompt::default().read_items(value, value),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// A field that is null counts as missing; an element of an array does not.
fn not_null(value: Option<&str>) -> Option<&str> {
    value.filter(|value| *value != "null")
}

/// Checks a change of `messages`, which is an array of objects at all endpoints, and of valid chat
/// messages if `is_chat`.
fn check_messages(tokens: &[&str], value: Option<&str>, is_chat: bool) -> Result<(), BadRequest> {
    let check = |value: &str, message: &MessageShape<'_>| {
        if is_chat { Prompt::default().read_message(value, message) } else { Ok(()) }
    };
    match (tokens, value) {
        ([], value) => match not_null(value) {
            Some(value) => {
                let messages: Messages<'_> =
                    serde_json::from_str(value).map_err(BadRequest::Json)?;
                messages.0.iter().try_for_each(|Object(message)| check(value, message))
            }
            None if is_chat => Err(BadRequest::Missing { name: "messages" }),
            None => Ok(()),
        },
        ([_], Some(value)) => {
            let Object(message) = serde_json::from_str(value).map_err(BadRequest::Json)?;
            check(value, &message)
        }
        ([_, "role"], value) if is_chat && not_null(value).is_none() => Err(missing_role()),
        ([_, "content"], value) if is_chat => match not_null(value) {
            Some(value) => Prompt::default().read_content(value, value),
            None => Ok(()),
        },
        ([_, "content", _], Some(value)) if is_chat => Prompt::default().read_part(value, value),
        _ => Ok(()),
    }
}

/// Checks a change of the system prompt of a request with content blocks.
fn check_system(tokens: &[&str], value: Option<&str>) -> Result<(), BadRequest> {
    let check = |system: &str| {
        let system = serde_json::from_str(system).map_err(BadRequest::Json)?;
        Prompt::default().read_system(RawValue::get(system), Some(system))
    };
    match (tokens, value) {
        ([], Some(value)) => check(value),
        ([_], Some(value)) => check(&format!("[{value}]")),
        _ => Ok(()),
    }
}

/// Checks a change of a prompt that is a text, or an array of texts, token ids or arrays of these.
fn check_texts(name: &'static str, tokens: &[&str], value: Option<&str>) -> Result<(), BadRequest> {
    let check = |value: &str| Prompt::default().read_texts(value, name, value);
    match (tokens, value) {
        ([], value) => match not_null(value) {
            Some(value) => check(value),
            None => Err(BadRequest::Missing { name }),
        },
        ([_], Some(value)) => check(&format!("[{value}]")),
        _ => Ok(()),
    }
}
