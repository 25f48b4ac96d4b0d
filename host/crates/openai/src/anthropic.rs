//! Anthropic's messages API on engines that have chat completions only.
//!
//! ```text
//!   system, messages, tools ──request──> chat messages, functions
//!   message, or its events  <──message, stream── completion, or its chunks
//! ```
//!
//! What chat completions cannot express fails the request, if the response would not be what the
//! client asked for; hints are left out: `cache_control`, `service_tier`, and the budget of
//! `thinking`, because models that reason do so without it.

mod blocks;
mod chat;
mod conversation;
mod event_reader;
mod events;
mod message;
mod reply;
mod request;
mod stream;
mod wire;

use pointsman_domain::Endpoint;

use self::message::MessageBody;
use self::reply::Reply;
use self::stream::MessageStream;
use crate::bad_request::BadRequest;
use crate::request::Request;
use crate::translate::Translation;

/// Returns a request for messages as one for chat completions.
///
/// # Errors
/// If the request has something that chat completions cannot express.
pub(crate) fn translate(request: &Request) -> Result<Translation, BadRequest> {
    let chat = request::translate(request)?;
    let reply = Reply {
        id: format!("msg_{}", request.head().id),
        model: request.response_model().to_owned(),
        hides_thinking: chat.hides_thinking,
    };
    let head = request.head().clone();
    let sent = Request::parse(Endpoint::ChatCompletions, chat.body.into(), head)?;
    Ok(match request.streaming() {
        true => Translation { request: sent, response: Box::new(MessageStream::new(reply)) },
        false => Translation { request: sent, response: Box::new(MessageBody::new(reply)) },
    })
}

#[cfg(test)]
mod tests;
