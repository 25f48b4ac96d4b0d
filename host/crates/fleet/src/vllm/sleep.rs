//! Switching lanes by letting vLLM sleep instead of ending it, with suspicion.
//!
//! ```text
//!   load ── canary: the answer to a fixed prompt, kept
//!   away ── drain ── sleep: /sleep, /is_sleeping is true, the memory is free ──> another lane may load
//!   back ── wake: /wake_up (level 2: and read the weights), /is_sleeping is false, canary: the same answer
//! ```
//!
//! Status 200 proves only that an endpoint came to its end. Known from vLLM's issues, all with 200: memory
//! that is not given back, an engine that died meanwhile (#45520), garbage after waking (#21336, #29341).
//! None of it is known to work on RDNA GPUs, and on unified memory level 1 copies the weights within the one
//! pool, so that it frees no more than the KV cache. So each step is checked, and nothing is tried twice: an
//! engine that failed once is in no known state.
//!
//! The endpoints are those of vLLM 0.32.0's `serve/dev`. They exist with `--enable-sleep-mode` and
//! `VLLM_SERVER_DEV_MODE=1` only. From [`sleep`] until [`wake`] has returned, nobody else may send the engine
//! anything: vLLM would not refuse a request but keep it.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

#[cfg(test)]
mod tests;

/// Pauses between two looks: the first one, then twice as long each time, up to the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// No limit is longer; above all so that the clock cannot overflow.
const LONGEST_LIMIT: Duration = Duration::from_hours(24);
/// Bytes of an engine's answer that an error quotes.
const LONGEST_QUOTE: usize = 200;
/// Longer than one block of the KV cache (16 tokens), so that the answer depends on reading it.
const CANARY_PROMPT: &str = "The capital of France is Paris, the capital of Italy is Rome, \
                             the capital of Spain is Madrid, and the capital of Japan is";
/// Tokens of the canary's answer.
const CANARY_TOKENS: u32 = 8;

/// Calls to one engine. Dropping the future gives the call up.
pub(crate) trait Calls: Send + Sync {
    /// Send a request with a JSON body or none; status and body of the answer, whatever they are, within
    /// `limit`.
    fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        limit: Duration,
    ) -> impl Future<Output = Result<(StatusCode, Bytes), String>> + Send;
}

/// Measures the memory that engines share.
pub(crate) trait Gauge: Send + Sync {
    /// Free bytes in the pool now; `None`: cannot be measured.
    fn free(&self) -> Option<u64>;
}

/// How deep an engine sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The weights are copied to the host's memory, the KV cache is dropped. vLLM keeps the memory of the
    /// copy after waking.
    One,
    /// Weights and KV cache are dropped; waking reads the weights from the disk again.
    Two,
}

/// What an engine says that is sane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Canary {
    text: String,
}

/// What went wrong. Every one of them means: end the process and start it anew, and let the lane use restart
/// from now on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SleepError {
    /// No answer, or not all of it.
    #[error("`{call}` got no answer: {cause}. The engine has died, or is about to")]
    NoAnswer {
        /// Method and path.
        call: String,
        /// What the connection says.
        cause: String,
    },
    /// The time is over.
    #[error(
        "`{call}` had not come to its end after {} s in all: the engine hangs, or still works on requests",
        .limit.as_secs_f32()
    )]
    TimedOut {
        /// Method and path.
        call: String,
        /// Of the whole operation, not of this call alone.
        limit: Duration,
    },
    /// A status other than 200.
    #[error("`{call}` was answered {status}, {said}: {meaning}")]
    Refused {
        /// Method and path.
        call: String,
        /// Of the answer.
        status: StatusCode,
        /// Beginning of the answer.
        said: String,
        /// What to make of it.
        meaning: &'static str,
    },
    /// Status 200 with an answer that contradicts it.
    #[error("`{call}` was answered 200, {said}: {meaning}")]
    Contradicted {
        /// Method and path.
        call: String,
        /// Beginning of the answer.
        said: String,
        /// What to make of it.
        meaning: &'static str,
    },
    /// It says that it is not what it was told to be.
    #[error(
        "`GET /is_sleeping` was answered {} for {} s after the engine had said that it {}: \
         its state is unknown",
        !.wanted, .limit.as_secs_f32(), if *.wanted { "sleeps" } else { "is awake" }
    )]
    StateUnchanged {
        /// The answer that did not come.
        wanted: bool,
        /// How long it was waited for, at most.
        limit: Duration,
    },
    /// It sleeps, and its memory is not free.
    #[error(
        "the engine says that it sleeps, but {} of the {expected} bytes expected became free within {} s: \
         another lane would not fit",
        .freed.map_or("an unknown number".to_owned(), |freed| freed.to_string()), .limit.as_secs_f32()
    )]
    NotFreed {
        /// Bytes, as measured last; `None` if they could be measured before, and no longer.
        freed: Option<u64>,
        /// Bytes.
        expected: u64,
        /// How long it was waited for, at most.
        limit: Duration,
    },
    /// It answers, and the answer is wrong.
    #[error(
        "after waking, the engine answers the fixed prompt with {got:?} and not with {expected:?} as when \
         it was loaded: its weights or its KV cache are damaged"
    )]
    Changed {
        /// What it said when it was loaded.
        expected: String,
        /// What it says now. Neither contains anything of a user's.
        got: String,
    },
}

/// Ask for the answer that later ones are compared with. The engine must be loaded and have nothing else to
/// do: in another batch, the same model may choose other words.
///
/// # Errors
/// When the engine gives no answer that could be compared.
pub(crate) async fn canary(
    calls: &impl Calls,
    model: &str,
    limit: Duration,
) -> Result<Canary, SleepError> {
    Session::new(calls, limit).canary(model).await
}

/// Let an engine that was drained sleep, and wait until its memory is free: 7 of 10 parts of `expected`
/// bytes, since that is an estimate, and others use the pool too. At level 1 on unified memory no more than the
/// KV cache can be expected. `limit` is for all of it. The bytes that were seen to become free; `None` if that
/// cannot be measured.
///
/// # Errors
/// When it does not sleep, or its memory does not become free.
pub(crate) async fn sleep(
    calls: &impl Calls,
    gauge: &impl Gauge,
    level: Level,
    expected: u64,
    limit: Duration,
) -> Result<Option<u64>, SleepError> {
    let session = Session::new(calls, limit);
    let before = gauge.free();
    // A body is ignored, so that a level in there would mean level 1. Without `mode` it aborts what runs.
    let (path, depth) = match level {
        Level::One => ("/sleep?level=1&mode=wait", 1),
        Level::Two => ("/sleep?level=2&mode=wait", 2),
    };
    let said = session.ask(Method::POST, path, None).await?;
    // Older versions say nothing here.
    if parse(&said)["level"].as_u64().is_some_and(|level| level != depth) {
        let meaning = "it sleeps at another level than it was told to";
        return Err(contradicted(&Method::POST, path, &said, meaning));
    }
    // True also when it is only paused: whether memory was given back is for the gauge to say.
    session.until_sleeping(true).await?;
    match before {
        Some(before) => session.until_freed(gauge, before, expected).await.map(Some),
        None => Ok(None),
    }
}

/// Wake an engine and see that it still answers as it did when it was loaded. `limit` is for all of it.
///
/// # Errors
/// When it does not wake up, or is not what it was.
pub(crate) async fn wake(
    calls: &impl Calls,
    level: Level,
    model: &str,
    expected: &Canary,
    limit: Duration,
) -> Result<(), SleepError> {
    let session = Session::new(calls, limit);
    match level {
        Level::One => session.wake_up("/wake_up").await?,
        Level::Two => {
            // In this order: the weights need their memory first, and the engine begins to work as soon as
            // the KV cache has its own.
            session.ask(Method::POST, "/wake_up?tags=weights", None).await?;
            let reload = r#"{"method":"reload_weights"}"#;
            session.ask(Method::POST, "/collective_rpc", Some(reload)).await?;
            session.wake_up("/wake_up?tags=kv_cache").await?;
            let path = "/reset_prefix_cache";
            let said = session.ask(Method::POST, path, None).await?;
            // Older versions say nothing here.
            if parse(&said)["success"] == false {
                let meaning = "requests still hold parts of a KV cache that is gone";
                return Err(contradicted(&Method::POST, path, &said, meaning));
            }
        }
    }
    session.until_sleeping(false).await?;
    let got = session.canary(model).await?;
    if got == *expected {
        Ok(())
    } else {
        Err(SleepError::Changed { expected: expected.text.clone(), got: got.text })
    }
}

/// Calls that together have one limit.
struct Session<'a, C> {
    calls: &'a C,
    limit: Duration,
    end: Instant,
}

impl<'a, C: Calls> Session<'a, C> {
    fn new(calls: &'a C, limit: Duration) -> Self {
        let limit = limit.min(LONGEST_LIMIT);
        Self { calls, limit, end: Instant::now() + limit }
    }

    /// Whether the time is over.
    fn over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// The body of an answer with status 200.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<Bytes, SleepError> {
        let left = self.end.saturating_duration_since(Instant::now());
        let call = || format!("{method} {path}");
        // The limit is the call's to keep; that it does is not taken for granted.
        match timeout_at(self.end, self.calls.call(method.clone(), path, body, left)).await {
            Ok(Ok((StatusCode::OK, said))) => Ok(said),
            Ok(Ok((status, said))) => Err(SleepError::Refused {
                call: call(),
                status,
                said: quote(&said),
                meaning: meaning(status, path),
            }),
            // What it says when it is over depends on who looked at the clock first.
            Ok(Err(_)) if self.over() => {
                Err(SleepError::TimedOut { call: call(), limit: self.limit })
            }
            Ok(Err(cause)) => Err(SleepError::NoAnswer { call: call(), cause }),
            Err(_) => Err(SleepError::TimedOut { call: call(), limit: self.limit }),
        }
    }

    /// The call that wakes up what still sleeps.
    async fn wake_up(&self, path: &str) -> Result<(), SleepError> {
        let said = self.ask(Method::POST, path, None).await?;
        // Older versions say nothing here.
        if parse(&said)["status"] == "sleeping" {
            return Err(contradicted(&Method::POST, path, &said, "a part of it still sleeps"));
        }
        Ok(())
    }

    /// Wait until the engine says that it sleeps, or that it does not.
    async fn until_sleeping(&self, wanted: bool) -> Result<(), SleepError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let said = self.ask(Method::GET, "/is_sleeping", None).await?;
            let sleeping = parse(&said)["is_sleeping"].as_bool().ok_or_else(|| {
                contradicted(&Method::GET, "/is_sleeping", &said, "this says neither yes nor no")
            })?;
            if sleeping == wanted {
                return Ok(());
            }
            // At the very end there is no time left for an answer.
            if !self.pause(&mut pause).await || self.over() {
                return Err(SleepError::StateUnchanged { wanted, limit: self.limit });
            }
        }
    }

    /// Wait until there is more free memory than `before`; the bytes. ROCm's driver gives it back late.
    async fn until_freed(
        &self,
        gauge: &impl Gauge,
        before: u64,
        expected: u64,
    ) -> Result<u64, SleepError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let freed = gauge.free().map(|free| free.saturating_sub(before));
            if let Some(freed) = freed
                && u128::from(freed) * 10 >= u128::from(expected) * 7
            {
                return Ok(freed);
            }
            if !self.pause(&mut pause).await {
                return Err(SleepError::NotFreed { freed, expected, limit: self.limit });
            }
        }
    }

    /// Pause before the next look, and longer the next time; whether there is time for one.
    async fn pause(&self, pause: &mut Duration) -> bool {
        if self.over() {
            return false;
        }
        // The last look is at the very end.
        sleep_until((Instant::now() + *pause).min(self.end)).await;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        true
    }

    async fn canary(&self, model: &str) -> Result<Canary, SleepError> {
        let path = "/v1/completions";
        // Special tokens count as any other, so that a model whose answer begins with its end says something
        // too.
        let body = json!({
            "model": model, "prompt": CANARY_PROMPT, "max_tokens": CANARY_TOKENS, "temperature": 0, "seed": 0,
            "ignore_eos": true, "skip_special_tokens": false,
        });
        let said = self.ask(Method::POST, path, Some(&body.to_string())).await?;
        let answer = parse(&said);
        let choice = &answer["choices"][0];
        if matches!(choice["finish_reason"].as_str(), Some("abort" | "error")) {
            return Err(contradicted(&Method::POST, path, &said, "the answer was cut off"));
        }
        match choice["text"].as_str() {
            Some(text) if !text.is_empty() => Ok(Canary { text: text.to_owned() }),
            _ => Err(contradicted(&Method::POST, path, &said, "there is no text in it to compare")),
        }
    }
}

/// `Null` if it is none.
fn parse(said: &[u8]) -> Value {
    serde_json::from_slice(said).unwrap_or_default()
}

fn contradicted(method: &Method, path: &str, said: &[u8], meaning: &'static str) -> SleepError {
    SleepError::Contradicted { call: format!("{method} {path}"), said: quote(said), meaning }
}

fn meaning(status: StatusCode, path: &str) -> &'static str {
    match status {
        StatusCode::NOT_FOUND if path.starts_with("/v1/") => {
            "it does not know the model by this name"
        }
        StatusCode::NOT_FOUND => {
            "it was started without `--enable-sleep-mode` or `VLLM_SERVER_DEV_MODE=1`, or is no vLLM"
        }
        status if status.is_server_error() => "it is broken, and may end at any moment",
        _ => "it does not understand the call; its version may be another one",
    }
}

/// The beginning of an answer, on one line.
fn quote(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said.get(..LONGEST_QUOTE).unwrap_or(said));
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.trim().is_empty() {
        "without a word".to_owned()
    } else {
        format!("\"{}\"", text.trim())
    }
}
