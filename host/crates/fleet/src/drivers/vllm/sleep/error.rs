//! Why sleeping or waking up failed, with the response of the engine.

use std::time::Duration;

use http::{Method, StatusCode};

use crate::upstream::EngineError;

/// Maximum number of bytes of a response that an error quotes.
pub(super) const MAX_QUOTE: usize = 200;

/// The reason why sleeping or waking up failed. In every case the process has to be restarted, and
/// the lane should not use sleep mode any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SleepError {
    /// The engine sent no response, or an incomplete one.
    #[error("`{call}` failed, the engine has died or is about to: {source}")]
    NoResponse {
        /// Method and path.
        call: String,
        /// The cause.
        source: EngineError,
    },
    /// The timeout expired.
    #[error(
        "`{call}` did not return within {} s in total: the engine hangs, or still has requests",
        .timeout.as_secs_f32()
    )]
    TimedOut {
        /// Method and path.
        call: String,
        /// Timeout of the whole operation.
        timeout: Duration,
    },
    /// The status is not 200.
    #[error("`{call}` returned {status}, {response}: {meaning}")]
    Status {
        /// Method and path.
        call: String,
        /// The status.
        status: StatusCode,
        /// The start of the response.
        response: String,
        /// What the status means.
        meaning: &'static str,
    },
    /// The status is 200, but the response contradicts it.
    #[error("`{call}` returned 200, {response}: {meaning}")]
    Contradiction {
        /// Method and path.
        call: String,
        /// The start of the response.
        response: String,
        /// The contradiction.
        meaning: &'static str,
    },
    /// The engine did not report the expected state.
    #[error(
        "`GET /is_sleeping` returned {} for {} s although the engine had reported to be {}",
        !.expected, .timeout.as_secs_f32(), if *.expected { "asleep" } else { "awake" }
    )]
    StateUnchanged {
        /// The state that was expected: true for asleep.
        expected: bool,
        /// Timeout of the whole operation.
        timeout: Duration,
    },
    /// The engine sleeps, but its memory is not free.
    #[error(
        "the engine is asleep, but has not freed its memory within {} s: \
         expected {expected} bytes, found {}",
        .timeout.as_secs_f32(),
        .freed.map_or("an unknown number".to_owned(), |freed| freed.to_string())
    )]
    NotFreed {
        /// The last measurement in bytes; `None` if the memory can no longer be measured.
        freed: Option<u64>,
        /// The expected number of bytes.
        expected: u64,
        /// Timeout of the whole operation.
        timeout: Duration,
    },
    /// The output for the fixed prompt has changed.
    #[error(
        "the canary output changed after waking up, so weights or KV cache are damaged: \
         expected {expected:?}, found {found:?}"
    )]
    CanaryChanged {
        /// The output when the engine was loaded.
        expected: String,
        /// The output now. Neither text contains user data.
        found: String,
    },
}

pub(super) fn contradiction(
    method: &Method,
    path: &str,
    response: &[u8],
    meaning: &'static str,
) -> SleepError {
    SleepError::Contradiction {
        call: format!("{method} {path}"),
        response: quote(response),
        meaning,
    }
}

pub(super) fn meaning(status: StatusCode, path: &str) -> &'static str {
    match status {
        StatusCode::NOT_FOUND if path.starts_with("/v1/") => {
            "the engine does not serve a model with this name"
        }
        StatusCode::NOT_FOUND => {
            "the engine is not vLLM, or runs without `--enable-sleep-mode` or \
             `VLLM_SERVER_DEV_MODE=1`"
        }
        status if status.is_server_error() => "the engine is broken, and may end at any moment",
        _ => "the engine does not support the call; it may have another version",
    }
}

/// Returns the start of a response as one line in quotes.
pub(super) fn quote(response: &[u8]) -> String {
    let text = String::from_utf8_lossy(response.get(..MAX_QUOTE).unwrap_or(response));
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().is_empty() {
        "empty response".to_owned()
    } else {
        format!("\"{}\"", text.trim())
    }
}
