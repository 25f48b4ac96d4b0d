//! One call from the side of the guest's questions: whether they are noted, or answered from what was noted before.
//!
//! ```text
//!   guest ──question──> HostState ──live answer──> Interview ──> guest
//!                                                   │ plain     as it is
//!                                                   │ noted     as it is, and kept for the record
//!                                                   └ replayed  what the record says, where it says something
//! ```
//!
//! Every function of the contract that is an input goes through `HostState::question` and `HostState::answer`
//! (`crate::host_calls`), and what a guest is told without asking does too. So whatever is recorded can be replayed.

use std::time::Duration;

use pointsman_domain::{Read, Trace};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::reads::HostCallLog;
use crate::replay::Script;

/// A question whose answer is of interest: the function, as in the contract, and its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    pub(crate) call: &'static str,
    pub(crate) with: Vec<Value>,
}

/// What is done with the questions of one call, and what came of that.
#[derive(Debug, Default)]
pub(crate) struct HostCallMode {
    pub(crate) asking: Asking,
    /// How long the call took, by the clock or in fuel.
    pub(crate) took: Duration,
}

/// What is done with questions.
#[derive(Debug, Default)]
pub(crate) enum Asking {
    /// They are answered.
    #[default]
    Plain,
    /// They are answered and noted.
    Noted(HostCallLog),
    /// They are answered from a record.
    Replayed(Box<Script>),
}

impl HostCallMode {
    /// One that is noted if the decision is recorded.
    pub(crate) fn of(trace: &Trace) -> Self {
        let asking =
            if trace.is_on() { Asking::Noted(HostCallLog::default()) } else { Asking::Plain };
        Self { asking, took: Duration::ZERO }
    }

    /// One that is answered from a record.
    pub(crate) fn replayed(record: &[Read]) -> Self {
        Self { asking: Asking::Replayed(Box::new(Script::new(record))), took: Duration::ZERO }
    }

    /// What was noted.
    pub(crate) fn into_reads(self) -> Vec<Read> {
        match self.asking {
            Asking::Noted(reads) => reads.into_list(),
            Asking::Plain | Asking::Replayed(_) => Vec::new(),
        }
    }
}

impl Asking {
    /// Is anything done with them but to answer them?
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    /// The answer to a question whose answer is `live` now.
    pub(crate) fn settle<T>(&mut self, question: Question, live: T) -> T
    where
        T: Serialize + DeserializeOwned,
    {
        match self {
            Self::Plain => live,
            Self::Noted(reads) => {
                reads.push(question.call, question.with, json!(live));
                live
            }
            Self::Replayed(script) => script.settle(question, live),
        }
    }
}

/// Bytes as a record shows them: as text where that is what they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Shown {
    Text(String),
    Hex(String),
}

/// Bytes that are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Shown", try_from = "Shown")]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl From<Bytes> for Shown {
    fn from(Bytes(bytes): Bytes) -> Self {
        let is_text =
            |text: &str| !text.contains(|c: char| c.is_control() && !c.is_ascii_whitespace());
        match String::from_utf8(bytes) {
            Ok(text) if is_text(&text) => Self::Text(text),
            Ok(text) => Self::Hex(crate::component::hex(text.as_bytes())),
            Err(other) => Self::Hex(crate::component::hex(other.as_bytes())),
        }
    }
}

impl TryFrom<Shown> for Bytes {
    type Error = &'static str;

    fn try_from(shown: Shown) -> Result<Self, Self::Error> {
        let hex = match shown {
            Shown::Text(text) => return Ok(Self(text.into_bytes())),
            Shown::Hex(hex) => hex,
        };
        let wrong = "bytes are pairs of hexadecimal digits";
        let byte = |pair: &[u8]| {
            let digits =
                str::from_utf8(pair).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit))?;
            if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
        };
        hex.as_bytes().chunks(2).map(byte).collect::<Option<_>>().map(Self).ok_or(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_without_loss() {
        for (bytes, shown) in [
            ("two\nlines ä".as_bytes(), json!({ "text": "two\nlines ä" })),
            (&5i64.to_le_bytes(), json!({ "hex": "0500000000000000" })),
            (&[0xff, 0x00], json!({ "hex": "ff00" })),
            (b"", json!({ "text": "" })),
        ] {
            let bytes = Bytes(bytes.to_vec());
            assert_eq!(json!(bytes), shown);
            assert_eq!(serde_json::from_value::<Bytes>(shown).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_no_bytes_is_not_taken_for_some() {
        for wrong in [
            json!({ "hex": "f" }),
            json!({ "hex": "+f" }),
            json!({ "hex": "redacted:4" }),
            json!("x"),
        ] {
            assert!(serde_json::from_value::<Bytes>(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
