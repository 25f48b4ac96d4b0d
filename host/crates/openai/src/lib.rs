//! The OpenAI wire: bytes to facts, typed edits, SSE frames, error bodies. No sockets.
//!
//! Two rules hold everywhere. What we do not know is kept: a request is held as the client's bytes with an index into
//! them, and an edit replaces exactly the bytes it is about. And a stream is watched, never re-encoded: what the engine
//! sent goes on unchanged, unless it would make a broken stream look complete.

mod edit;
mod error;
mod json;
pub mod models;
mod request;
mod sse;
mod text;
mod usage;

pub use error::{EngineFailure, ErrorBody, error_event};
pub use request::{BadRequest, Head, Request};
pub use sse::{StreamEnd, StreamWatch};
pub use text::tokens_of;
pub use usage::{BodyTail, Usage};
