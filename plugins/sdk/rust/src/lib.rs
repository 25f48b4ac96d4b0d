//! Write Pointsman policies in Rust.
//!
//! A policy is a type with one function, [`Policy::advise`]. It looks at a request and at the fleet and says what it
//! thinks; the host merges the advice of all policies and picks the lane. The function is pure, so it is tested natively,
//! with requests and fleets of the module `testing`, and built for WebAssembly without a change.
//!
//! ```
//! use pointsman_sdk::{Advice, Call, Policy, PolicyError};
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
//!     fn configure(config: &str) -> Result<Self, PolicyError> {
//!         match config.trim() {
//!             "{}" => Ok(Self { tokens: 8_000 }),
//!             other => Err(PolicyError::InvalidConfig(format!("there is nothing to configure, and this is {other}"))),
//!         }
//!     }
//!
//!     fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
//!         match call.fleet.find("reader") {
//!             Some(reader) if call.context.prompt_tokens > self.tokens => {
//!                 Ok(Advice::only([reader]).because("a long prompt"))
//!             }
//!             _ => Ok(Advice::any()),
//!         }
//!     }
//! }
//!
//! // On WebAssembly this makes the exports of the component; elsewhere it does nothing.
//! pointsman_sdk::export_policy!(LongPrompts);
//!
//! # use pointsman_sdk::testing::{FakeFleet, FakeRequest, advise};
//! let fleet = FakeFleet::new(&["writer", "reader"]);
//! let request = FakeRequest::chat(r#"{"model": "auto", "messages": [{"role": "user", "content": "hi"}]}"#);
//! let policy = LongPrompts::configure("{}")?;
//! assert_eq!(advise(&policy, &request, &fleet)?, Advice::any());
//! # Ok::<(), PolicyError>(())
//! ```
//!
//! What an instance keeps in `self` beyond its configuration is a cache: the host makes, re-uses and drops instances as
//! it likes. There is no clock and no random source; use `call.context.now_ms` and `call.context.seed`.

mod advice;
pub mod config;
mod guest;
mod lanes;
mod services;
#[cfg(feature = "testing")]
pub mod testing;

pub use advice::default_triggers;
#[doc(hidden)]
pub use guest::bindings as __bindings;
#[doc(hidden)]
pub use guest::hooks as __hooks;
#[doc(hidden)]
pub use guest::{Guest as __Guest, Installed as __Installed};
pub use lanes::{PerTopology, mixed, stable_hash};
pub use services::{Log, Metrics, State};

pub use guest::bindings::pointsman::policy::state::StateError;
pub use guest::bindings::pointsman::policy::types::{
    Advice, Context, Edit, Endpoint, Engine, Failure, FallbackAdvice, FallbackStep, FieldValue,
    LaneAdvice, LaneId, LaneInfo, LaneScore, LaneStat, LaneState, LaneWish, Level, MessageInfo,
    Metric, MetricWeight, Note, OnTimeout, Outcome, Permille, PolicyError, QueueAdvice, Recovery,
    Rejection, Role, Scalar, Switching, Triggers, TryResult, Wish,
};

/// A policy: made from its configuration, asked about requests.
pub trait Policy: Sized + 'static {
    /// Name, as in its manifest.
    const NAME: &'static str;
    /// Version, as in its manifest.
    const VERSION: &'static str;
    /// Hints that it may set in [`Advice::hints`].
    const HINTS: &'static [&'static str] = &[];

    /// Make the policy from the operator's configuration: JSON text, `{}` where none is set.
    ///
    /// # Errors
    /// [`PolicyError::InvalidConfig`] with the key that is wrong and why. The policy is then not put into service.
    fn configure(config: &str) -> Result<Self, PolicyError>;

    /// Advise about one request.
    ///
    /// # Errors
    /// When there is no advice; the policy's failure mode then applies.
    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError>;
}

/// A policy that chooses what to do after a failed try: `export_policy!(Mine, on_failure)`. Without it the planned
/// fallback runs.
pub trait Recover: Policy {
    /// Choose what to do next.
    ///
    /// # Errors
    /// When there is nothing to say; the planned fallback then runs.
    fn recover(&self, call: &Call<'_>, failed: &Failure) -> Result<Recovery, PolicyError>;
}

/// A policy that learns from finished requests: `export_policy!(Mine, on_complete)`.
pub trait Learn: Policy {
    /// Take in how some requests ended. Called off the request path; batches can be lost.
    fn learn(&self, background: &Background<'_>, done: &[Outcome]);
}

/// A policy that works at intervals: `export_policy!(Mine, on_tick)`, with the interval in its manifest.
pub trait Tick: Policy {
    /// Say what lanes should be loaded, kept or released. Wishes stand for their time or until the next tick.
    fn tick(&self, background: &Background<'_>, seed: u64) -> Vec<LaneWish>;
}

/// One question of the host.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The request in numbers.
    pub context: &'a Context,
    /// The request, read lazily: every call of a function asks the host.
    pub request: &'a dyn RequestView,
    /// All lanes, as one snapshot.
    pub fleet: &'a dyn FleetView,
    /// What the policy remembers.
    pub state: State<'a>,
    /// The policy's own figures.
    pub metrics: Metrics<'a>,
    /// The host's log.
    pub log: Log<'a>,
}

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("context", &self.context).finish_non_exhaustive()
    }
}

/// A call outside any request.
#[derive(Clone, Copy)]
pub struct Background<'a> {
    /// Wall clock in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// All lanes, as one snapshot. No lane is a candidate, because no model is asked for.
    pub fleet: &'a dyn FleetView,
    /// What the policy remembers.
    pub state: State<'a>,
    /// The policy's own figures.
    pub metrics: Metrics<'a>,
    /// The host's log.
    pub log: Log<'a>,
}

impl std::fmt::Debug for Background<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Background").field("now_ms", &self.now_ms).finish_non_exhaustive()
    }
}

/// The request; see the interface `request` of the contract.
pub trait RequestView {
    /// Id of the request.
    fn id(&self) -> String;
    /// The model name that the client asked for.
    fn model(&self) -> String;
    /// The tenant.
    fn tenant(&self) -> Option<String>;
    /// A header: its first value, name in any case.
    fn header(&self, name: &str) -> Option<String>;
    /// A field of the body by JSON Pointer, if it is at most `max_bytes` long.
    fn field(&self, pointer: &str, max_bytes: u32) -> FieldValue;
    /// One record per chat message.
    fn messages(&self) -> Vec<MessageInfo>;
    /// Part of a message's text.
    fn text(&self, index: u32, offset: u64, max_bytes: u32) -> String;
    /// Raw bytes of the body.
    fn body(&self, offset: u64, max_bytes: u32) -> Vec<u8>;
    /// Does any message contain `needle`? Cheaper than reading the text.
    fn contains(&self, needle: &str, ignore_case: bool) -> bool;
    /// Hashes of the leading blocks of the prompt: hash `i` covers the first `(i + 1) * block_bytes` bytes.
    fn prefix_hashes(&self, block_bytes: u32, max_blocks: u32) -> Vec<u64>;
}

/// The lanes; see the interface `fleet` of the contract.
pub trait FleetView {
    /// Figures of every lane, in the order of their ids.
    fn stats(&self) -> Vec<LaneStat>;
    /// Figures of one lane.
    fn stat(&self, lane: LaneId) -> Option<LaneStat>;
    /// Lanes that answer to the request's model, in the order of their ids.
    fn candidates(&self) -> Vec<LaneId>;
    /// What rarely changes about a lane.
    fn info(&self, lane: LaneId) -> Option<LaneInfo>;
    /// The lane of that name.
    fn find(&self, name: &str) -> Option<LaneId>;
    /// Lanes with that label.
    fn with_label(&self, key: &str, value: &str) -> Vec<LaneId>;
}

/// Make the exports of a component from a [`Policy`], with those optional hooks that are named: `on_failure` for
/// [`Recover`], `on_complete` for [`Learn`], `on_tick` for [`Tick`]. A hook that is not named is not exported, and the
/// host does not call it.
///
/// When it is not built for WebAssembly, it only checks that the traits are there, so that the same crate runs its tests
/// natively.
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
/// pointsman_sdk::export_policy!(Mine, on_tick); // but there is no `impl Tick for Mine`
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
                static POLICY: ::std::cell::OnceCell<$policy> = const { ::std::cell::OnceCell::new() };
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

/// One optional hook, for `export_policy!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __hook {
    (check on_failure $policy:ty) => {
        const fn recovers<P: $crate::Recover>() {}
        recovers::<$policy>();
    };
    (check on_complete $policy:ty) => {
        const fn learns<P: $crate::Learn>() {}
        learns::<$policy>();
    };
    (check on_tick $policy:ty) => {
        const fn ticks<P: $crate::Tick>() {}
        ticks::<$policy>();
    };
    (check $other:ident $policy:ty) => {
        compile_error!(concat!(
            "there is no hook `",
            stringify!($other),
            "`; the optional ones are on_failure, on_complete and on_tick"
        ));
    };
    (export on_failure $exported:ident) => {
        $crate::__hooks::recovering::export!($exported with_types_in $crate::__hooks::recovering);
    };
    (export on_complete $exported:ident) => {
        $crate::__hooks::learning::export!($exported with_types_in $crate::__hooks::learning);
    };
    (export on_tick $exported:ident) => {
        $crate::__hooks::ticking::export!($exported with_types_in $crate::__hooks::ticking);
    };
    (export $other:ident $exported:ident) => {};
}
