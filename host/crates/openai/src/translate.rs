//! Requests for endpoints that an engine does not have, as requests for one that it has, and the
//! responses back.
//!
//! ```text
//!   client ──request──> Request::translated ──request of another endpoint──> engine
//!   client <──bytes──── Translate::chunk, finish <──bytes of its response─────┘
//! ```
//!
//! The request is translated for one attempt: policies see and edit it as the client sent it, and
//! the next lane may have the endpoint itself.

use std::fmt;

use bytes::Bytes;

use crate::request::Request;

/// A request as an engine gets it that does not have the endpoint of the client.
#[derive(Debug)]
pub struct Translation {
    /// The request for the endpoint that the engine has.
    pub request: Request,
    /// Translates the response.
    pub response: Box<dyn Translate>,
}

/// Translates one successful response, as it arrives.
pub trait Translate: fmt::Debug + Send + Sync {
    /// Takes a chunk of the engine's body, and returns what the client gets for it: nothing, if the
    /// translation needs the rest.
    fn chunk(&mut self, chunk: &[u8]) -> Bytes;

    /// Returns what the client still gets at the end of the engine's body. `is_complete` is false
    /// for a stream that broke off, which must not look complete: an error follows.
    fn finish(&mut self, is_complete: bool) -> Bytes;

    /// Returns the content type of the client's response.
    fn content_type(&self) -> &'static str;
}
