//! What is wrong with a lane's engine, for operators and for clients.

use std::fmt;
use std::sync::Arc;

/// What is wrong with a lane's engine. Clones share the texts.
#[derive(Clone, PartialEq, Eq)]
pub struct Problem(Arc<Parts>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    code: Option<&'static str>,
    summary: String,
    log: String,
    details: String,
}

impl Problem {
    /// Creates a problem with a stable code. The summary says what happened and what to do, for
    /// operators and for clients.
    pub fn new(code: &'static str, summary: impl Into<String>) -> Self {
        Self::from_parts(Some(code), summary.into())
    }

    fn from_parts(code: Option<&'static str>, summary: String) -> Self {
        let (log, details) = (String::new(), String::new());
        Self(Arc::new(Parts { code, summary, log, details }))
    }

    /// Adds the end of the engine's log, for operators and for clients. An engine that has served
    /// may have logged requests of other clients: its log belongs into the details.
    #[must_use]
    pub fn with_log(mut self, log: String) -> Self {
        Arc::make_mut(&mut self.0).log = log;
        self
    }

    /// Adds details for operators.
    #[must_use]
    pub fn with_details(mut self, details: String) -> Self {
        Arc::make_mut(&mut self.0).details = details;
        self
    }

    /// Returns the stable code, if the problem has one.
    pub fn code(&self) -> Option<&'static str> {
        self.0.code
    }

    /// Returns what happened and what to do, with the code.
    pub fn in_short(&self) -> String {
        let Parts { code, summary, .. } = &*self.0;
        code.map_or_else(|| summary.clone(), |code| format!("{summary} [{code}]"))
    }

    /// Returns what clients see: all but the details.
    pub fn for_clients(&self) -> String {
        self.in_short() + &after_semicolon(&self.0.log)
    }
}

/// Shows all of the problem, for operators.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.for_clients())?;
        f.write_str(&after_semicolon(&self.0.details))
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<&str> for Problem {
    fn from(summary: &str) -> Self {
        Self::from_parts(None, summary.to_owned())
    }
}

fn after_semicolon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_for_operators_only() {
        let problem = Problem::new("gpu_memory_full", "the GPU's memory is full; use less")
            .with_log("log: one | two".to_owned())
            .with_details("pid 7".to_owned());
        let short = "the GPU's memory is full; use less [gpu_memory_full]";
        assert_eq!(problem.in_short(), short);
        assert_eq!(problem.for_clients(), format!("{short}; log: one | two"));
        assert_eq!(problem.to_string(), format!("{short}; log: one | two; pid 7"));
        assert_eq!(Problem::from("killed").to_string(), "killed");
    }
}
