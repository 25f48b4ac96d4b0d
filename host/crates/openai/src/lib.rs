//! The OpenAI wire format: request parsing, typed edits, SSE streams and error bodies. No sockets.
//!
//! Two rules hold everywhere:
//!
//! * **Unknown content is preserved.** A request is kept as the client's bytes with an index into
//!   them, and an edit replaces exactly the bytes that it concerns.
//! * **Responses are observed, never re-encoded.** The engine's bytes are forwarded unchanged,
//!   except for the name of the model, a usage that only the host has asked for, and what would
//!   make a broken stream look complete.

// A new variant has to be decided in every match; a test may match what it is about.
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

mod anthropic;
mod bad_request;
mod date;
mod document;
mod edit;
mod endpoint;
mod error;
mod error_form;
mod form;
mod index;
mod json;
mod limits;
pub mod models;
mod ollama;
mod operator_fields;
mod operator_names;
mod request;
mod responses;
mod scan;
mod splice;
mod sse;
mod text;
mod translate;
mod translations;
mod usage;

pub use bad_request::BadRequest;
pub use date::timestamp;
pub use edit::EditError;
pub use endpoint::{BodyKind, EndpointShape, SERVED, StreamKind};
pub use error::{EngineErrorBody, ErrorBody, engine_error_event, error_event};
pub use error_form::ErrorForm;
pub use form::{EngineForm, Form, FormContent, FormPart};
pub use json::PointerError;
pub use ollama::LoadRequest;
pub use request::{ANY_MODEL, CREDENTIALS, EngineRequestBody, Head, Hold, ModelNames, Request};
pub use responses::{EventBuffer, Item, TurnRequest, referenced};
pub use splice::ModelSplice;
pub use sse::{StreamEnd, StreamRewrite, StreamWatch};
pub use text::estimate_tokens;
pub use translate::{Translate, Translation};
pub use usage::{BodyTail, Usage};

#[cfg(test)]
mod fuzz;
