//! Fake requests, fleets and hosts for native tests. They behave as the contract specifies.
//!
//! ```
//! # use pointsman_sdk::{Advice, Call, Policy, PolicyError};
//! use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};
//!
//! /// Rejects every second request.
//! struct EveryOther;
//!
//! impl Policy for EveryOther {
//! #     const NAME: &'static str = "every-other";
//! #     const VERSION: &'static str = "1.0.0";
//! #     fn configure(_: &str) -> Result<Self, PolicyError> { Ok(Self) }
//!     fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
//!         match call.state.increment("requests", 1, 60_000) {
//!             Ok(count) if count % 2 == 0 => Ok(Advice::reject(429, "even", "odd requests only")),
//!             _ => Ok(Advice::any()),
//!         }
//!     }
//! }
//!
//! let host = FakeHost::new(FakeFleet::new(&["a"]));
//! let request = FakeRequest::chat(r#"{"model": "a", "messages": []}"#);
//! assert!(host.advise(&EveryOther, &request)?.reject.is_none());
//! assert!(host.advise(&EveryOther, &request)?.reject.is_some());
//! host.advance(60_000); // the counter has expired
//! assert!(host.advise(&EveryOther, &request)?.reject.is_none());
//! # Ok::<(), PolicyError>(())
//! ```

mod fleet;
mod request;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

pub use self::fleet::FakeFleet;
use self::fleet::ModelView;
pub use self::request::FakeRequest;
use crate::services::Services;
use crate::{
    Advice, Attempt, Background, Call, Context, Failure, Finished, LaneId, LaneWish, Learn, Level,
    Log, Metrics, Observe, Outcome, Policy, PolicyError, Recover, Recovery, RequestView, State,
    StateError, Tick, TryResult,
};

/// Returns a policy's advice for a request, at the time in the request's context, from a host with
/// empty state.
///
/// # Errors
/// Returns the error of the policy.
pub fn advise(
    policy: &impl Policy,
    request: &FakeRequest,
    fleet: &FakeFleet,
) -> Result<Advice, PolicyError> {
    FakeHost::new(fleet.clone()).at(request.context.now_ms).advise(policy, request)
}

/// Returns the outcome of a request that `lane` served at the first attempt, with all times and
/// token counts 0.
#[must_use]
pub fn outcome(lane: LaneId) -> Outcome {
    Outcome {
        request_id: "test".to_owned(),
        tenant: None,
        model: "auto".to_owned(),
        lane,
        topology: 1,
        ended: TryResult::Ok,
        tries: 1,
        queue_ms: 0,
        ttft_ms: 0,
        total_ms: 0,
        prompt_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
    }
}

/// Returns a finished request with this outcome and one attempt, and with the notes of `advice`.
#[must_use]
pub fn finished(outcome: Outcome, advice: &Advice) -> Finished {
    let attempt = Attempt {
        lane: outcome.lane,
        ended: outcome.ended,
        status: if outcome.ended == TryResult::Ok { 200 } else { 0 },
        queue_ms: outcome.queue_ms,
        took_ms: outcome.total_ms,
    };
    Finished { outcome, attempts: vec![attempt], notes: advice.notes.clone() }
}

/// A fake host with a fleet, a manual clock, and the state, metrics and log of the policy.
#[derive(Debug)]
pub struct FakeHost {
    /// The fleet. Tests may change it at any time.
    pub fleet: FakeFleet,
    services: FakeServices,
}

impl FakeHost {
    /// Creates a host with this fleet and its clock at 0.
    #[must_use]
    pub fn new(fleet: FakeFleet) -> Self {
        Self { fleet, services: FakeServices::default() }
    }

    /// Sets the clock, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn at(self, now_ms: u64) -> Self {
        self.services.now_ms.set(now_ms);
        self
    }

    /// Advances the clock.
    pub fn advance(&self, ms: u64) {
        self.services.now_ms.set(self.services.now_ms.get() + ms);
    }

    /// Makes the policy's state full: new entries are rejected from now on.
    pub fn fill_state(&self) {
        self.services.full.set(true);
    }

    /// Returns the value of a state entry, as bytes.
    #[must_use]
    pub fn state(&self, key: &str) -> Option<Vec<u8>> {
        self.services.get(key)
    }

    /// Returns the value of a counter, 0 if the policy never used it.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        self.services.counters.borrow().get(name).copied().unwrap_or(0)
    }

    /// Returns the values that the policy recorded in a histogram.
    #[must_use]
    pub fn recorded_values(&self, name: &str) -> Vec<u64> {
        self.services.values.borrow().get(name).cloned().unwrap_or_default()
    }

    /// Returns the log lines of the policy.
    #[must_use]
    pub fn log_lines(&self) -> Vec<(Level, String)> {
        self.services.lines.borrow().clone()
    }

    /// Calls [`Policy::advise`].
    ///
    /// # Errors
    /// Returns the error of the policy.
    pub fn advise(
        &self,
        policy: &impl Policy,
        request: &FakeRequest,
    ) -> Result<Advice, PolicyError> {
        self.call(request, |call| policy.advise(call))
    }

    /// Calls [`Recover::recover`].
    ///
    /// # Errors
    /// Returns the error of the policy.
    pub fn recover(
        &self,
        policy: &impl Recover,
        request: &FakeRequest,
        failed: &Failure,
    ) -> Result<Recovery, PolicyError> {
        self.call(request, |call| policy.recover(call, failed))
    }

    /// Calls [`Observe::observe`].
    pub fn observe(&self, policy: &impl Observe, done: &[Outcome]) {
        self.background(|background| policy.observe(background, done));
    }

    /// Calls [`Learn::learn`].
    pub fn learn(&self, policy: &impl Learn, done: &[Finished]) {
        self.background(|background| policy.learn(background, done));
    }

    /// Calls [`Tick::tick`].
    #[must_use]
    pub fn tick(&self, policy: &impl Tick, seed: u64) -> Vec<LaneWish> {
        self.background(|background| policy.tick(background, seed))
    }

    fn call<R>(&self, request: &FakeRequest, hook: impl FnOnce(&Call<'_>) -> R) -> R {
        request.reset_read_limit();
        let context = Context { now_ms: self.services.now_ms.get(), ..request.context };
        let fleet = ModelView { fleet: &self.fleet, model: Some(request.model()) };
        let services: &dyn Services = &self.services;
        hook(&Call {
            context: &context,
            request,
            fleet: &fleet,
            state: State(services),
            metrics: Metrics(services),
            log: Log(services),
        })
    }

    fn background<R>(&self, hook: impl FnOnce(&Background<'_>) -> R) -> R {
        let services: &dyn Services = &self.services;
        hook(&Background {
            now_ms: self.services.now_ms.get(),
            fleet: &ModelView { fleet: &self.fleet, model: None },
            state: State(services),
            metrics: Metrics(services),
            log: Log(services),
        })
    }
}

/// The state, metrics and log of the policy, and the clock.
#[derive(Debug, Default)]
struct FakeServices {
    now_ms: Cell<u64>,
    full: Cell<bool>,
    entries: RefCell<BTreeMap<String, Entry>>,
    counters: RefCell<BTreeMap<String, u64>>,
    values: RefCell<BTreeMap<String, Vec<u64>>>,
    lines: RefCell<Vec<(Level, String)>>,
}

#[derive(Debug)]
struct Entry {
    value: Stored,
    /// Expiry time in milliseconds since the Unix epoch; 0 for never.
    expires_at_ms: u64,
}

#[derive(Debug)]
enum Stored {
    Bytes(Vec<u8>),
    Counter(i64),
}

impl FakeServices {
    const MAX_KEY_BYTES: usize = 128;
    const MAX_VALUE_BYTES: usize = 4096;

    fn expire(&self) {
        let now = self.now_ms.get();
        self.entries
            .borrow_mut()
            .retain(|_, entry| entry.expires_at_ms == 0 || entry.expires_at_ms > now);
    }

    fn expires_at_ms(&self, ttl_ms: u32) -> u64 {
        if ttl_ms == 0 { 0 } else { self.now_ms.get() + u64::from(ttl_ms) }
    }

    fn check_limits(&self, key: &str, value: usize) -> Result<(), StateError> {
        if key.len() > Self::MAX_KEY_BYTES || value > Self::MAX_VALUE_BYTES {
            return Err(StateError::TooLong);
        }
        match self.full.get() && !self.entries.borrow().contains_key(key) {
            true => Err(StateError::Full),
            false => Ok(()),
        }
    }
}

impl Services for FakeServices {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.expire();
        self.entries.borrow().get(key).map(|entry| match &entry.value {
            Stored::Bytes(bytes) => bytes.clone(),
            Stored::Counter(count) => count.to_le_bytes().to_vec(),
        })
    }

    fn put(&self, key: &str, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        self.expire();
        self.check_limits(key, value.len())?;
        let entry = Entry {
            value: Stored::Bytes(value.to_vec()),
            expires_at_ms: self.expires_at_ms(ttl_ms),
        };
        self.entries.borrow_mut().insert(key.to_owned(), entry);
        Ok(())
    }

    fn delete(&self, key: &str) {
        self.entries.borrow_mut().remove(key);
    }

    fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        self.expire();
        self.check_limits(key, 0)?;
        let initial =
            Entry { value: Stored::Counter(0), expires_at_ms: self.expires_at_ms(ttl_ms) };
        match &mut self.entries.borrow_mut().entry(key.to_owned()).or_insert(initial).value {
            Stored::Counter(count) => {
                *count = count.wrapping_add(by);
                Ok(*count)
            }
            Stored::Bytes(_) => Err(StateError::NotACounter),
        }
    }

    fn add(&self, name: &str, value: u64) {
        *self.counters.borrow_mut().entry(name.to_owned()).or_default() += value;
    }

    fn record(&self, name: &str, value: u64) {
        self.values.borrow_mut().entry(name.to_owned()).or_default().push(value);
    }

    fn write(&self, level: Level, message: &str) {
        self.lines.borrow_mut().push((level, message.to_owned()));
    }

    fn enabled(&self, level: Level) -> bool {
        level != Level::Trace
    }
}

#[cfg(test)]
mod tests;
