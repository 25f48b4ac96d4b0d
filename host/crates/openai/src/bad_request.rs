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
    #[error("invalid request body: {0}")]
    Json(#[source] serde_json::Error),
    /// The body is JSON, but not an object.
    #[error("request body must be a JSON object")]
    NotAnObject,
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
}

impl BadRequest {
    /// Returns the HTTP status of the response.
    pub fn status(&self) -> u16 {
        400
    }

    /// Returns the body of the response.
    pub fn body(&self) -> ErrorBody {
        let param = match self {
            Self::Missing { name } | Self::Invalid { name, .. } => Some((*name).to_owned()),
            Self::Encoding(_) | Self::Json(_) | Self::NotAnObject => None,
        };
        ErrorBody { param, ..ErrorBody::invalid_request(&self.to_string()) }
    }

    pub(crate) fn invalid(name: &'static str, expected: &'static str) -> Self {
        Self::Invalid { name, expected }
    }
}
