//! Why a body is not a valid request.

use crate::error::ErrorBody;

/// The reason why a body is not a valid request.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    /// The body is not UTF-8; the byte offset of the first error.
    #[error("request body is not valid UTF-8 at byte {0}")]
    Encoding(usize),
    /// The body is not valid JSON, or a field has the wrong type. The message of the source names
    /// line and column.
    #[error("invalid request body: {}", excerpt(.0))]
    Json(#[source] serde_json::Error),
    /// The body is JSON, but not an object.
    #[error("request body must be a JSON object")]
    NotAnObject,
    /// The body has more parts than the host keeps track of.
    #[error("request body has too many {what}: at most {max} are allowed")]
    TooMany {
        /// Description of the parts.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// Arrays and objects of the body are nested too deeply.
    #[error("arrays and objects of the request body are nested more than {max} levels deep")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// A required field is missing.
    #[error("`{name}` is required")]
    Missing {
        /// Name of the field.
        name: &'static str,
    },
    /// A field has an invalid value.
    #[error("invalid `{name}`: expected {expected}")]
    Invalid {
        /// Name of the field.
        name: &'static str,
        /// Description of valid values.
        expected: &'static str,
    },
    /// The engine lacks the endpoint, and the one that it has cannot express a part of the request.
    #[error("unsupported `{name}`: {what}")]
    Unsupported {
        /// Name of the field.
        name: &'static str,
        /// Description of the part.
        what: String,
    },
    /// The request wants the server to keep the conversation.
    #[error("`thread` is not supported; send the whole conversation")]
    Thread,
}

/// Returns the message of a parser, without most of a client's text that it quotes.
fn excerpt(error: &serde_json::Error) -> String {
    const MAX_BYTES: usize = 300;
    let message = error.to_string();
    match message.get(..message.floor_char_boundary(MAX_BYTES)) {
        Some(begin) if begin.len() < message.len() => {
            format!("{begin}… at line {} column {}", error.line(), error.column())
        }
        Some(_) | None => message,
    }
}

impl BadRequest {
    /// Returns the HTTP status of the response.
    pub fn status(&self) -> u16 {
        400
    }

    /// Returns the body of the response.
    pub fn body(&self) -> ErrorBody {
        let param = match self {
            Self::Missing { name }
            | Self::Invalid { name, .. }
            | Self::Unsupported { name, .. } => Some((*name).to_owned()),
            Self::Thread => Some("thread".to_owned()),
            Self::Encoding(_)
            | Self::Json(_)
            | Self::NotAnObject
            | Self::TooMany { .. }
            | Self::TooDeep { .. } => None,
        };
        ErrorBody { param, ..ErrorBody::invalid_request(&self.to_string()) }
    }

    /// Returns the error for an invalid field.
    pub fn invalid(name: &'static str, expected: &'static str) -> Self {
        Self::Invalid { name, expected }
    }

    /// Returns the error for something that the host does not support, in the plural.
    pub fn unsupported(name: &'static str, what: &str) -> Self {
        Self::Unsupported { name, what: what.to_owned() }
    }
}
