//! Write Pointsman policies in Rust.
//!
//! A policy is a type with one required function, [`Policy::advise`]. It gets a request and a
//! snapshot of the fleet and returns advice; the host merges the advice of all policies and picks
//! the lane. The function is deterministic, so it can be tested natively with the requests and
//! fleets of the module `testing`, and is compiled to WebAssembly unchanged.
//!
//! ```
//! use pointsman_sdk::{Advice, Call, Policy, PolicyError, config};
//!
//! /// Sends long prompts to the lane `reader`.
//! struct LongPrompts {
//!     tokens: u32,
//! }
//!
//! impl Policy for LongPrompts {
//!     const NAME: &'static str = "long-prompts";
//!     const VERSION: &'static str = "1.0.0";
//!
//!     fn configure(json: &str) -> Result<Self, PolicyError> {
//!         let mut policy = Self { tokens: 8_000 };
//!         config::read(json, |key, value| match key {
//!             "tokens" => value.integer(1..=u32::MAX).map(|tokens| policy.tokens = tokens),
//!             _ => Err(value.unknown_key()),
//!         })?;
//!         Ok(policy)
//!     }
//!
//!     fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
//!         match call.fleet.find("reader") {
//!             Some(reader) if call.context.prompt_tokens > self.tokens => {
//!                 Ok(Advice::only([reader]).with_reason("a long prompt"))
//!             }
//!             _ => Ok(Advice::any()),
//!         }
//!     }
//! }
//!
//! // On WebAssembly this creates the exports of the component; elsewhere it does nothing.
//! pointsman_sdk::export_policy!(LongPrompts);
//!
//! # use pointsman_sdk::testing::{FakeFleet, FakeRequest, advise};
//! let fleet = FakeFleet::new(&["writer", "reader"]);
//! let body = r#"{"model": "auto", "messages": [{"role": "user", "content": "hi"}]}"#;
//! let policy = LongPrompts::configure("{}")?;
//! assert_eq!(advise(&policy, &FakeRequest::chat(body), &fleet)?, Advice::any());
//! # Ok::<(), PolicyError>(())
//! ```
//!
//! Data that an instance keeps in `self` beyond its configuration is a cache: the host creates,
//! reuses and drops instances at will. Policies have no clock and no random source; use
//! `call.context.now_ms` and `call.context.seed`.

mod advice;
pub mod config;
mod fault;
mod generated;
mod guest;
mod lanes;
mod services;
#[cfg(feature = "testing")]
pub mod testing;

#[doc(hidden)]
pub use generated::bindings as __bindings;
#[doc(hidden)]
pub use generated::hooks as __hooks;
#[doc(hidden)]
pub use guest::{Guest as __Guest, Installed as __Installed};
pub use lanes::{TopologyCache, mix64, stable_hash};
pub use services::{Log, Metrics, State};

pub use generated::bindings::pointsman::policy::state::StateError;
pub use generated::bindings::pointsman::policy::types::{
    Advice, Allowance, Attempt, Context, Edit, Endpoint, Engine, Failure, FallbackAdvice,
    FallbackStep, FieldValue, Finished, LaneAdvice, LaneId, LaneInfo, LaneScore, LaneStat,
    LaneState, LaneWish, Level, MessageInfo, Metric, MetricWeight, Note, OnTimeout, Outcome,
    Permille, PolicyError, QueueAdvice, Recovery, Rejection, Remaining, Role, Scalar, Switching,
    TextMatch, Triggers, TryResult, Wish,
};

/// A policy: created from its configuration, called for every request.
pub trait Policy: Sized + 'static {
    /// Name of the policy; has to match the manifest.
    const NAME: &'static str;
    /// Version of the policy; has to match the manifest.
    const VERSION: &'static str;
    /// Hints that the policy may set in [`Advice::hints`].
    const HINTS: &'static [&'static str] = &[];

    /// Creates the policy from the operator's configuration: JSON text, `{}` if none is set.
    ///
    /// # Errors
    /// Returns [`PolicyError::InvalidConfig`] with the invalid key and the reason. The host then
    /// does not activate this version.
    fn configure(config: &str) -> Result<Self, PolicyError>;

    /// Returns advice for one request.
    ///
    /// # Errors
    /// Returns an error if the policy has no advice; its failure mode (`on-error`) then applies.
    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError>;
}

/// A policy that chooses what to do after a failed attempt, exported by
/// `export_policy!(Mine, on_failure)`. Without this hook the planned fallback runs.
pub trait Recover: Policy {
    /// Chooses what to do next.
    ///
    /// # Errors
    /// Returns an error if the policy has no advice; the planned fallback then runs.
    fn recover(&self, call: &Call<'_>, failed: &Failure) -> Result<Recovery, PolicyError>;
}

/// A policy that observes finished requests, exported by `export_policy!(Mine, on_complete)`.
pub trait Observe: Policy {
    /// Receives the outcomes of finished requests. Called outside the request path; batches can be
    /// lost.
    fn observe(&self, background: &Background<'_>, done: &[Outcome]);
}

/// A policy that observes finished requests with all their attempts and its own notes, exported by
/// `export_policy!(Mine, on_outcome)`.
pub trait Learn: Policy {
    /// Receives finished requests. Called outside the request path; batches can be lost.
    fn learn(&self, background: &Background<'_>, done: &[Finished]);
}

/// A policy with periodic work, exported by `export_policy!(Mine, on_tick)`. The interval is in
/// the manifest.
pub trait Tick: Policy {
    /// Returns hints about which lanes should be loaded, kept or released. A hint is valid for its
    /// own duration or until the next tick.
    fn tick(&self, background: &Background<'_>, seed: u64) -> Vec<LaneWish>;
}

/// The arguments of a call about a request.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Numeric facts about the request.
    pub context: &'a Context,
    /// The request, read lazily: every method calls the host.
    pub request: &'a dyn RequestView,
    /// All lanes, as one snapshot.
    pub fleet: &'a dyn FleetView,
    /// The shared state of the policy.
    pub state: State<'a>,
    /// The metrics of the policy.
    pub metrics: Metrics<'a>,
    /// The host's log.
    pub log: Log<'a>,
}

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("context", &self.context).finish_non_exhaustive()
    }
}

/// The arguments of a call that is not about a request.
#[derive(Clone, Copy)]
pub struct Background<'a> {
    /// Wall clock in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// All lanes, as one snapshot. There are no candidates, because there is no request.
    pub fleet: &'a dyn FleetView,
    /// The shared state of the policy.
    pub state: State<'a>,
    /// The metrics of the policy.
    pub metrics: Metrics<'a>,
    /// The host's log.
    pub log: Log<'a>,
}

impl std::fmt::Debug for Background<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Background").field("now_ms", &self.now_ms).finish_non_exhaustive()
    }
}

/// Read access to a request; see the interface `request` of the contract.
pub trait RequestView {
    /// Returns the id of the request.
    fn id(&self) -> String;
    /// Returns the model name in the client's request.
    fn model(&self) -> String;
    /// Returns the tenant, if the request is authenticated.
    fn tenant(&self) -> Option<String>;
    /// Returns the first value of a header. The name is case-insensitive.
    fn header(&self, name: &str) -> Option<String>;
    /// Returns a field of the body by JSON Pointer, if its JSON is at most `max_bytes` long.
    fn field(&self, pointer: &str, max_bytes: u32) -> FieldValue;
    /// Returns one record per chat message.
    fn messages(&self) -> Vec<MessageInfo>;
    /// Returns at most `max_bytes` of a message's text, from byte `offset`.
    fn text(&self, index: u32, offset: u64, max_bytes: u32) -> String;
    /// Returns at most `max_bytes` of the raw body, from byte `offset`.
    fn body(&self, offset: u64, max_bytes: u32) -> Vec<u8>;
    /// Returns true if any message contains `needle`. Cheaper than reading the text.
    fn contains(&self, needle: &str, ignore_case: bool) -> bool;
    /// Returns hashes of the leading blocks of the prompt: hash `i` covers the first
    /// `(i + 1) * block_bytes` bytes.
    fn prefix_hashes(&self, block_bytes: u32, max_blocks: u32) -> Vec<u64>;
    /// Returns the name of the endpoint, such as `chat-completions`, `messages` or `rerank`.
    fn endpoint_kind(&self) -> String;
    /// Returns the group of the key with which the client authenticated, if it has one.
    fn key_group(&self) -> Option<String>;
    /// Returns the name of that key, which is never a part of its secret.
    fn key_name(&self) -> Option<String>;
    /// Returns what the limits of the key, its groups and its tenant leave.
    fn allowance(&self) -> Allowance;
    /// Returns the milliseconds until the host gives up on the request, if that is known.
    fn deadline_ms(&self) -> Option<u32>;
    /// Returns where each of these patterns that occurs in a message occurs first, in the order of
    /// the patterns: at most 256 with 8 KiB together. Cheaper than one search for each.
    fn find_any(&self, patterns: &[String], ignore_case: bool) -> Vec<TextMatch>;
}

/// Read access to the lanes; see the interface `fleet` of the contract.
pub trait FleetView {
    /// Returns the metrics of every lane, ordered by lane id.
    fn stats(&self) -> Vec<LaneStat>;
    /// Returns the metrics of one lane.
    fn stat(&self, lane: LaneId) -> Option<LaneStat>;
    /// Returns the lanes that serve the request's model, ordered by lane id.
    fn candidates(&self) -> Vec<LaneId>;
    /// Returns the properties of a lane that rarely change.
    fn info(&self, lane: LaneId) -> Option<LaneInfo>;
    /// Returns the lane with this name.
    fn find(&self, name: &str) -> Option<LaneId>;
    /// Returns the lanes with this label.
    fn with_label(&self, key: &str, value: &str) -> Vec<LaneId>;
    /// Returns the candidates that the filters of earlier policies leave, ordered by lane id; after
    /// a failed attempt, those that all filters left.
    fn lanes_left(&self) -> Vec<LaneId>;
}

/// Exports a [`Policy`] from the component, with the listed optional hooks: `on_failure` for
/// [`Recover`], `on_complete` for [`Observe`], `on_outcome` for [`Learn`], `on_tick` for [`Tick`].
/// A hook that is not listed is not exported, and the host does not call it.
///
/// On other targets than WebAssembly the macro only checks that the traits are implemented, so that
/// the same crate can be tested natively.
///
/// ```
/// # use pointsman_sdk::{Advice, Background, Call, LaneWish, Policy, PolicyError, Tick};
/// # struct Mine;
/// # impl Policy for Mine {
/// #     const NAME: &'static str = "mine";
/// #     const VERSION: &'static str = "1.0.0";
/// #     fn configure(_: &str) -> Result<Self, PolicyError> { Ok(Self) }
/// #     fn advise(&self, _: &Call<'_>) -> Result<Advice, PolicyError> { Ok(Advice::any()) }
/// # }
/// impl Tick for Mine {
///     fn tick(&self, _background: &Background<'_>, _seed: u64) -> Vec<LaneWish> {
///         Vec::new()
///     }
/// }
///
/// pointsman_sdk::export_policy!(Mine, on_tick);
/// ```
///
/// ```compile_fail
/// # use pointsman_sdk::{Advice, Call, Policy, PolicyError};
/// # struct Mine;
/// # impl Policy for Mine {
/// #     const NAME: &'static str = "mine";
/// #     const VERSION: &'static str = "1.0.0";
/// #     fn configure(_: &str) -> Result<Self, PolicyError> { Ok(Self) }
/// #     fn advise(&self, _: &Call<'_>) -> Result<Advice, PolicyError> { Ok(Advice::any()) }
/// # }
/// pointsman_sdk::export_policy!(Mine, on_tick); // error: `Mine` does not implement `Tick`
/// ```
#[macro_export]
macro_rules! export_policy {
    ($policy:ty $(, $hook:ident)* $(,)?) => {
        const _: () = {
            $($crate::__hook!(check $hook $policy);)*
        };
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::__Guest<$policy>;
            ::std::thread_local! {
                static POLICY: ::std::cell::OnceCell<$policy> =
                const { ::std::cell::OnceCell::new() };
            }
            impl $crate::__Installed for $policy {
                fn slot<R>(visit: impl FnOnce(&::std::cell::OnceCell<Self>) -> R) -> R {
                    POLICY.with(visit)
                }
            }
            $crate::__bindings::export!(Exported with_types_in $crate::__bindings);
            $($crate::__hook!(export $hook Exported);)*
        };
    };
}

/// Checks or exports one optional hook, for `export_policy!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __hook {
    (check on_failure $policy:ty) => {
        const fn assert_recover<P: $crate::Recover>() {}
        assert_recover::<$policy>();
    };
    (check on_complete $policy:ty) => {
        const fn assert_observe<P: $crate::Observe>() {}
        assert_observe::<$policy>();
    };
    (check on_outcome $policy:ty) => {
        const fn assert_learn<P: $crate::Learn>() {}
        assert_learn::<$policy>();
    };
    (check on_tick $policy:ty) => {
        const fn assert_tick<P: $crate::Tick>() {}
        assert_tick::<$policy>();
    };
    (check $other:ident $policy:ty) => {
        compile_error!(concat!(
            "unknown hook `",
            stringify!($other),
            "`; expected on_failure, on_complete, on_outcome or on_tick"
        ));
    };
    (export on_failure $exported:ident) => {
        $crate::__hooks::on_failure::export!($exported with_types_in $crate::__hooks::on_failure);
    };
    (export on_complete $exported:ident) => {
        $crate::__hooks::on_complete::export!($exported with_types_in $crate::__hooks::on_complete);
    };
    (export on_outcome $exported:ident) => {
        $crate::__hooks::on_outcome::export!($exported with_types_in $crate::__hooks::on_outcome);
    };
    (export on_tick $exported:ident) => {
        $crate::__hooks::on_tick::export!($exported with_types_in $crate::__hooks::on_tick);
    };
    (export $other:ident $exported:ident) => {};
}
