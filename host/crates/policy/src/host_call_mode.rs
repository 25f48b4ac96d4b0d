//! The treatment of a guest's host calls: answered live, answered and logged, or answered from a
//! record.
//!
//! ```text
//!  guest ──host call──> HostState ──live result──> HostCallMode ──> guest
//!                                                   │ Live    the live result
//!                                                   │ Record  the live result, also logged
//!                                                   └ Replay  the recorded result, if any
//! ```
//!
//! Every function of the contract that is an input goes through `HostState::host_call` and
//! `HostState::result` (`crate::host_calls`), and so do the arguments of a call. So every input
//! that is recorded can be replayed.

use std::time::Duration;

use pointsman_domain::{Read, Trace};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::host_call_log::HostCallLog;
use crate::replay::ReplayLog;

/// A host call: the function, as named in the contract, and its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostCall {
    pub(crate) function: &'static str,
    pub(crate) args: Vec<Value>,
}

/// The trace of one policy call: the mode of its host calls with what it logged, and the duration.
#[derive(Debug, Default)]
pub(crate) struct CallTrace {
    pub(crate) host_calls: HostCallMode,
    /// Wall clock time, or the time that the consumed fuel stands for.
    pub(crate) duration: Duration,
}

/// The treatment of host calls.
#[derive(Debug, Default)]
pub(crate) enum HostCallMode {
    /// Host calls are answered.
    #[default]
    Live,
    /// Host calls are answered and logged.
    Record(HostCallLog),
    /// Host calls are answered from a record.
    Replay(Box<ReplayLog>),
}

impl CallTrace {
    /// Creates a trace that logs host calls if the decision is recorded.
    pub(crate) fn for_decision(trace: &Trace) -> Self {
        let host_calls = if trace.is_on() {
            HostCallMode::Record(HostCallLog::default())
        } else {
            HostCallMode::Live
        };
        Self { host_calls, duration: Duration::ZERO }
    }

    /// Creates a trace that answers host calls from a record.
    pub(crate) fn replaying(record: &[Read]) -> Self {
        let host_calls = HostCallMode::Replay(Box::new(ReplayLog::new(record)));
        Self { host_calls, duration: Duration::ZERO }
    }

    /// Returns the logged host calls.
    pub(crate) fn into_reads(self) -> Vec<Read> {
        match self.host_calls {
            HostCallMode::Record(log) => log.into_calls(),
            HostCallMode::Live | HostCallMode::Replay(_) => Vec::new(),
        }
    }
}

impl HostCallMode {
    /// Returns whether host calls are only answered.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self, Self::Live)
    }

    /// Returns the result of a host call whose live result is `live`.
    pub(crate) fn resolve<T>(&mut self, host_call: HostCall, live: T) -> T
    where
        T: Serialize + DeserializeOwned,
    {
        match self {
            Self::Live => live,
            Self::Record(log) => {
                log.push(host_call.function, host_call.args, json!(live));
                live
            }
            Self::Replay(log) => log.resolve(host_call, live),
        }
    }
}

/// The encoding of bytes in records: as text if they are printable UTF-8, otherwise in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EncodedBytes {
    Text(String),
    Hex(String),
}

/// Bytes that a host call returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "EncodedBytes", try_from = "EncodedBytes")]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl From<Bytes> for EncodedBytes {
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

/// An error of decoding [`EncodedBytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid bytes: expected pairs of hexadecimal digits")]
pub(crate) struct InvalidBytes;

impl TryFrom<EncodedBytes> for Bytes {
    type Error = InvalidBytes;

    fn try_from(encoded: EncodedBytes) -> Result<Self, Self::Error> {
        let hex = match encoded {
            EncodedBytes::Text(text) => return Ok(Self(text.into_bytes())),
            EncodedBytes::Hex(hex) => hex,
        };
        let byte = |pair: &[u8]| {
            // `from_str_radix` would accept a sign.
            let digits =
                str::from_utf8(pair).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit))?;
            if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
        };
        hex.as_bytes().chunks(2).map(byte).collect::<Option<_>>().map(Self).ok_or(InvalidBytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_encoded_without_loss() {
        for (bytes, encoded) in [
            ("two\nlines ä".as_bytes(), json!({ "text": "two\nlines ä" })),
            (&5i64.to_le_bytes(), json!({ "hex": "0500000000000000" })),
            (&[0xff, 0x00], json!({ "hex": "ff00" })),
            (b"", json!({ "text": "" })),
        ] {
            let bytes = Bytes(bytes.to_vec());
            assert_eq!(json!(bytes), encoded);
            assert_eq!(serde_json::from_value::<Bytes>(encoded).unwrap(), bytes);
        }
    }

    #[test]
    fn invalid_encodings_are_rejected() {
        for invalid in [
            json!({ "hex": "f" }),
            json!({ "hex": "+f" }),
            json!({ "hex": "redacted:4" }),
            json!("x"),
        ] {
            assert!(serde_json::from_value::<Bytes>(invalid.clone()).is_err(), "{invalid}");
        }
    }
}
