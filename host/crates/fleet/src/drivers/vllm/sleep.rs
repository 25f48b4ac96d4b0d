//! Switching lanes by putting vLLM to sleep instead of stopping it, with every step verified.
//!
//! ```text
//!   load   ── canary: the output for a fixed prompt is recorded
//!   unload ── drain ── sleep: /sleep, /is_sleeping is true, the memory is free ──> next lane loads
//!   reload ── wake: /wake_up (level 2: and read the weights), /is_sleeping is false, same canary
//! ```
//!
//! Status 200 only proves that an endpoint returned. Known from vLLM's issues, all with 200: memory
//! that is not freed, an engine that has died meanwhile (#45520), garbage after waking up (#21336,
//! #29341). Nothing is known about RDNA GPUs, and on unified memory level 1 copies the weights
//! within the one pool, so that it frees no more than the KV cache. Therefore each step is verified
//! and never retried: an engine that failed once is in an unknown state.
//!
//! The endpoints are those of vLLM 0.32.0's `serve/dev`, which exist only with
//! `--enable-sleep-mode` and `VLLM_SERVER_DEV_MODE=1`. From the call of [`sleep`] until [`wake`]
//! has returned, the engine must not get any other request: vLLM would queue it instead of
//! rejecting it.

mod error;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

pub(crate) use self::error::SleepError;
use self::error::{contradiction, meaning, quote};
use crate::upstream::EngineError;

#[cfg(test)]
mod tests;

/// The interval between checks, which doubles from the first to the maximum.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Upper bound of all timeouts, so that adding one to the current time cannot overflow.
const MAX_TIMEOUT: Duration = Duration::from_hours(24);
/// Longer than one block of the KV cache (16 tokens), so that the output depends on reading the
/// cache.
const CANARY_PROMPT: &str = "The capital of France is Paris, the capital of Italy is Rome, \
                             the capital of Spain is Madrid, and the capital of Japan is";
/// Number of tokens to generate for the canary.
const CANARY_TOKENS: u32 = 8;

/// The HTTP API of one engine.
pub(crate) trait EngineApi: Send + Sync {
    /// Sends a request with an optional JSON body, and returns the status and the body of the
    /// response, whatever the status is. Dropping the future aborts the request.
    ///
    /// # Errors
    /// Returns an error if there is no complete response within `timeout`.
    fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        timeout: Duration,
    ) -> impl Future<Output = Result<(StatusCode, Bytes), EngineError>> + Send;
}

/// A gauge of the memory that engines share.
pub(crate) trait MemoryGauge: Send + Sync {
    /// Returns the free bytes of the pool, or `None` if they cannot be measured.
    fn free(&self) -> Option<u64>;
}

/// The level of sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The weights are copied to the host's memory, and the KV cache is dropped. vLLM keeps the
    /// memory of the copy after waking up.
    One,
    /// Weights and KV cache are dropped; waking up reads the weights from the disk again.
    Two,
}

/// The output of a healthy engine for a fixed prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Canary {
    text: String,
}

/// Records the canary with which later ones are compared. The engine must be loaded and idle: in
/// another batch, the same model may generate other tokens.
///
/// # Errors
/// Returns an error if the engine generates no text that can be compared.
pub(crate) async fn canary(
    api: &impl EngineApi,
    model: &str,
    timeout: Duration,
) -> Result<Canary, SleepError> {
    Session::new(api, timeout).canary(model).await
}

/// Puts a drained engine to sleep, and waits until its memory is free. 70 % of `expected` bytes are
/// sufficient, because that is an estimate and other processes use the pool too. At level 1 on
/// unified memory, no more than the KV cache can be expected. `timeout` is for all steps together.
/// Returns the bytes that became free, or `None` if they cannot be measured.
///
/// # Errors
/// Returns an error if the engine does not sleep, or its memory does not become free.
pub(crate) async fn sleep(
    api: &impl EngineApi,
    gauge: &impl MemoryGauge,
    level: Level,
    expected: u64,
    timeout: Duration,
) -> Result<Option<u64>, SleepError> {
    let session = Session::new(api, timeout);
    let before = gauge.free();
    // The level has to be in the query: a body is ignored, which would mean level 1. Without
    // `mode`, running requests are aborted.
    let (path, number) = match level {
        Level::One => ("/sleep?level=1&mode=wait", 1),
        Level::Two => ("/sleep?level=2&mode=wait", 2),
    };
    let response = session.request(Method::POST, path, None).await?;
    // Older versions return no level.
    if parse(&response)["level"].as_u64().is_some_and(|level| level != number) {
        let meaning = "the engine sleeps at another level than requested";
        return Err(contradiction(&Method::POST, path, &response, meaning));
    }
    // Also true if the engine is only paused: the gauge decides whether memory was freed.
    session.until_sleeping(true).await?;
    match before {
        Some(before) => session.until_freed(gauge, before, expected).await.map(Some),
        None => Ok(None),
    }
}

/// Wakes an engine up, and verifies that its canary output is the same as when it was loaded.
/// `timeout` is for all steps together.
///
/// # Errors
/// Returns an error if the engine does not wake up, or its output has changed.
pub(crate) async fn wake(
    api: &impl EngineApi,
    level: Level,
    model: &str,
    expected: &Canary,
    timeout: Duration,
) -> Result<(), SleepError> {
    let session = Session::new(api, timeout);
    match level {
        Level::One => session.wake_up("/wake_up").await?,
        Level::Two => {
            // The order matters: the weights need their memory first, and the engine starts to work
            // as soon as the KV cache has been allocated.
            session.request(Method::POST, "/wake_up?tags=weights", None).await?;
            let reload = r#"{"method":"reload_weights"}"#;
            session.request(Method::POST, "/collective_rpc", Some(reload)).await?;
            session.wake_up("/wake_up?tags=kv_cache").await?;
            let path = "/reset_prefix_cache";
            let response = session.request(Method::POST, path, None).await?;
            // Older versions return no result.
            if parse(&response)["success"] == false {
                let meaning = "requests still hold parts of a KV cache that no longer exists";
                return Err(contradiction(&Method::POST, path, &response, meaning));
            }
        }
    }
    session.until_sleeping(false).await?;
    let found = session.canary(model).await?;
    if found == *expected {
        Ok(())
    } else {
        Err(SleepError::CanaryChanged { expected: expected.text.clone(), found: found.text })
    }
}

/// A sequence of requests with one timeout.
struct Session<'a, A> {
    api: &'a A,
    timeout: Duration,
    deadline: Instant,
}

impl<'a, A: EngineApi> Session<'a, A> {
    fn new(api: &'a A, timeout: Duration) -> Self {
        let timeout = timeout.min(MAX_TIMEOUT);
        Self { api, timeout, deadline: Instant::now() + timeout }
    }

    /// Returns true if the timeout has expired.
    fn is_expired(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Sends a request, and returns the body of a response with status 200.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<Bytes, SleepError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let call = || format!("{method} {path}");
        // The implementation should keep the timeout itself; this does not rely on it.
        match timeout_at(self.deadline, self.api.call(method.clone(), path, body, left)).await {
            Ok(Ok((StatusCode::OK, response))) => Ok(response),
            Ok(Ok((status, response))) => Err(SleepError::Status {
                call: call(),
                status,
                response: quote(&response),
                meaning: meaning(status, path),
            }),
            // Which of the two timers fires first is undefined, so both give the same error.
            Ok(Err(_)) if self.is_expired() => {
                Err(SleepError::TimedOut { call: call(), timeout: self.timeout })
            }
            Ok(Err(source)) => Err(SleepError::NoResponse { call: call(), source }),
            Err(_) => Err(SleepError::TimedOut { call: call(), timeout: self.timeout }),
        }
    }

    /// Wakes up the rest of the engine.
    async fn wake_up(&self, path: &str) -> Result<(), SleepError> {
        let response = self.request(Method::POST, path, None).await?;
        // Older versions return no status.
        if parse(&response)["status"] == "sleeping" {
            let meaning = "a part of the engine is still asleep";
            return Err(contradiction(&Method::POST, path, &response, meaning));
        }
        Ok(())
    }

    /// Waits until the engine reports the expected state: true for asleep.
    async fn until_sleeping(&self, expected: bool) -> Result<(), SleepError> {
        let path = "/is_sleeping";
        let mut interval = MIN_POLL_INTERVAL;
        loop {
            let response = self.request(Method::GET, path, None).await?;
            let sleeping = parse(&response)["is_sleeping"].as_bool().ok_or_else(|| {
                contradiction(&Method::GET, path, &response, "the response is not a boolean")
            })?;
            if sleeping == expected {
                return Ok(());
            }
            // At the deadline itself there is no time left for another response.
            if !self.pause(&mut interval).await || self.is_expired() {
                return Err(SleepError::StateUnchanged { expected, timeout: self.timeout });
            }
        }
    }

    /// Waits until the free memory has grown beyond `before`, and returns by how many bytes. ROCm's
    /// driver frees memory late.
    async fn until_freed(
        &self,
        gauge: &impl MemoryGauge,
        before: u64,
        expected: u64,
    ) -> Result<u64, SleepError> {
        let mut interval = MIN_POLL_INTERVAL;
        loop {
            // Other processes may have allocated more than the engine freed.
            let freed = gauge.free().map(|free| free.saturating_sub(before));
            if let Some(freed) = freed
                && u128::from(freed) * 10 >= u128::from(expected) * 7
            {
                return Ok(freed);
            }
            if !self.pause(&mut interval).await {
                return Err(SleepError::NotFreed { freed, expected, timeout: self.timeout });
            }
        }
    }

    /// Waits until the next check, and doubles the interval. Returns false if the timeout had
    /// already expired.
    async fn pause(&self, interval: &mut Duration) -> bool {
        if self.is_expired() {
            return false;
        }
        // The last check is at the deadline.
        sleep_until((Instant::now() + *interval).min(self.deadline)).await;
        *interval = (*interval * 2).min(MAX_POLL_INTERVAL);
        true
    }

    async fn canary(&self, model: &str) -> Result<Canary, SleepError> {
        let path = "/v1/completions";
        // Special tokens are kept, so that a model that starts with an end token generates a text
        // too.
        let body = json!({
            "model": model, "prompt": CANARY_PROMPT, "max_tokens": CANARY_TOKENS,
            "temperature": 0, "seed": 0, "ignore_eos": true, "skip_special_tokens": false,
        });
        let response = self.request(Method::POST, path, Some(&body.to_string())).await?;
        let completion = parse(&response);
        let choice = &completion["choices"][0];
        if matches!(choice["finish_reason"].as_str(), Some("abort" | "error")) {
            let meaning = "the completion was aborted";
            return Err(contradiction(&Method::POST, path, &response, meaning));
        }
        match choice["text"].as_str() {
            Some(text) if !text.is_empty() => Ok(Canary { text: text.to_owned() }),
            Some(_) | None => {
                let meaning = "the completion has no text to compare";
                Err(contradiction(&Method::POST, path, &response, meaning))
            }
        }
    }
}

/// Parses JSON; anything else becomes `Null`.
fn parse(response: &[u8]) -> Value {
    serde_json::from_slice(response).unwrap_or_default()
}
