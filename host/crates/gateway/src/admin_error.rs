//! Why a command of an operator was not executed.

use std::fmt;

use crate::error_code::ErrorCode;

/// The reason why a command was not executed, with its stable code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminError {
    code: ErrorCode,
    message: String,
}

impl AdminError {
    /// Creates an error. The code determines the HTTP status.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Creates the error for an unknown policy, which lists the known ones.
    pub fn policy_not_found(name: &str, known: &[String]) -> Self {
        let known = match known {
            [] => "no policies are configured".to_owned(),
            known => format!("expected `{}`", known.join("` or `")),
        };
        Self::new(ErrorCode::PolicyNotFound, format!("unknown policy `{name}`: {known}"))
    }

    /// Returns the stable code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AdminError {}
