//! Requests, fleets and a host for tests that run natively. They answer as the contract says that a host does.
//!
//! ```
//! # use pointsman_sdk::{Advice, Call, Policy, PolicyError};
//! use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};
//!
//! /// Refuses every second request.
//! struct EveryOther;
//!
//! impl Policy for EveryOther {
//! #     const NAME: &'static str = "every-other";
//! #     const VERSION: &'static str = "1.0.0";
//! #     fn configure(_: &str) -> Result<Self, PolicyError> { Ok(Self) }
//!     fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
//!         match call.state.increment("requests", 1, 60_000) {
//!             Ok(count) if count % 2 == 0 => Ok(Advice::refuse(429, "even", "Odd requests only.")),
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
use self::fleet::ForModel;
pub use self::request::FakeRequest;
use crate::services::Services;
use crate::{
    Advice, Background, Call, Context, Failure, LaneId, LaneWish, Learn, Level, Log, Metrics,
    Outcome, Policy, PolicyError, Recover, Recovery, RequestView, State, StateError, Tick,
    TryResult,
};

/// Ask a policy about a request, at the time that the request's context says, on a host that remembers nothing.
///
/// # Errors
/// When the policy has no advice.
pub fn advise(
    policy: &impl Policy,
    request: &FakeRequest,
    fleet: &FakeFleet,
) -> Result<Advice, PolicyError> {
    FakeHost::new(fleet.clone()).at(request.context.now_ms).advise(policy, request)
}

/// A finished request: served by `lane` at the first try, without delay and without a token.
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

/// A host: a fleet, a clock that stands still until it is moved, and what the policy has left behind.
#[derive(Debug)]
pub struct FakeHost {
    /// The fleet. Change it as the test needs.
    pub fleet: FakeFleet,
    services: FakeServices,
}

impl FakeHost {
    /// A host with this fleet; its clock begins at 0.
    #[must_use]
    pub fn new(fleet: FakeFleet) -> Self {
        Self { fleet, services: FakeServices::default() }
    }

    /// With the clock at this time, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn at(self, now_ms: u64) -> Self {
        self.services.now_ms.set(now_ms);
        self
    }

    /// Let time pass.
    pub fn advance(&self, ms: u64) {
        self.services.now_ms.set(self.services.now_ms.get() + ms);
    }

    /// From now on the policy's state has no room for anything new.
    pub fn fill_state(&self) {
        self.services.full.set(true);
    }

    /// The value of an entry, as bytes.
    #[must_use]
    pub fn state(&self, key: &str) -> Option<Vec<u8>> {
        self.services.get(key)
    }

    /// How often, or how much, the policy counted under this name.
    #[must_use]
    pub fn counted(&self, name: &str) -> u64 {
        self.services.counters.borrow().get(name).copied().unwrap_or(0)
    }

    /// The values that the policy recorded under this name.
    #[must_use]
    pub fn recorded(&self, name: &str) -> Vec<u64> {
        self.services.values.borrow().get(name).cloned().unwrap_or_default()
    }

    /// The lines that the policy wrote.
    #[must_use]
    pub fn lines(&self) -> Vec<(Level, String)> {
        self.services.lines.borrow().clone()
    }

    /// Ask about a request.
    ///
    /// # Errors
    /// When the policy has no advice.
    pub fn advise(
        &self,
        policy: &impl Policy,
        request: &FakeRequest,
    ) -> Result<Advice, PolicyError> {
        self.call(request, |call| policy.advise(call))
    }

    /// Ask what to do after a failed try.
    ///
    /// # Errors
    /// When the policy has nothing to say.
    pub fn recover(
        &self,
        policy: &impl Recover,
        request: &FakeRequest,
        failed: &Failure,
    ) -> Result<Recovery, PolicyError> {
        self.call(request, |call| policy.recover(call, failed))
    }

    /// Tell of finished requests.
    pub fn learn(&self, policy: &impl Learn, done: &[Outcome]) {
        self.background(|background| policy.learn(background, done));
    }

    /// Let it work at its interval.
    #[must_use]
    pub fn tick(&self, policy: &impl Tick, seed: u64) -> Vec<LaneWish> {
        self.background(|background| policy.tick(background, seed))
    }

    fn call<R>(&self, request: &FakeRequest, ask: impl FnOnce(&Call<'_>) -> R) -> R {
        request.begin();
        let context = Context { now_ms: self.services.now_ms.get(), ..request.context };
        let fleet = ForModel { fleet: &self.fleet, model: Some(request.model()) };
        let services: &dyn Services = &self.services;
        ask(&Call {
            context: &context,
            request,
            fleet: &fleet,
            state: State(services),
            metrics: Metrics(services),
            log: Log(services),
        })
    }

    fn background<R>(&self, ask: impl FnOnce(&Background<'_>) -> R) -> R {
        let services: &dyn Services = &self.services;
        ask(&Background {
            now_ms: self.services.now_ms.get(),
            fleet: &ForModel { fleet: &self.fleet, model: None },
            state: State(services),
            metrics: Metrics(services),
            log: Log(services),
        })
    }
}

/// What the policy has left behind.
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
    /// Time at which it expires; 0 for never.
    until_ms: u64,
}

#[derive(Debug)]
enum Stored {
    Bytes(Vec<u8>),
    Counter(i64),
}

impl FakeServices {
    const LONGEST_KEY: usize = 128;
    const LONGEST_VALUE: usize = 4096;

    fn expire(&self) {
        let now = self.now_ms.get();
        self.entries.borrow_mut().retain(|_, entry| entry.until_ms == 0 || entry.until_ms > now);
    }

    fn until(&self, ttl_ms: u32) -> u64 {
        if ttl_ms == 0 { 0 } else { self.now_ms.get() + u64::from(ttl_ms) }
    }

    fn room_for(&self, key: &str, value: usize) -> Result<(), StateError> {
        if key.len() > Self::LONGEST_KEY || value > Self::LONGEST_VALUE {
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
        self.room_for(key, value.len())?;
        let entry = Entry { value: Stored::Bytes(value.to_vec()), until_ms: self.until(ttl_ms) };
        self.entries.borrow_mut().insert(key.to_owned(), entry);
        Ok(())
    }

    fn delete(&self, key: &str) {
        self.entries.borrow_mut().remove(key);
    }

    fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        self.expire();
        self.room_for(key, 0)?;
        let new = Entry { value: Stored::Counter(0), until_ms: self.until(ttl_ms) };
        match &mut self.entries.borrow_mut().entry(key.to_owned()).or_insert(new).value {
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
