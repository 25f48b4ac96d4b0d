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
mod guest;
#[cfg(feature = "testing")]
pub mod testing;

pub use advice::default_triggers;
#[doc(hidden)]
pub use guest::bindings as __bindings;
#[doc(hidden)]
pub use guest::{Guest as __Guest, Host as __Host};

pub use guest::bindings::pointsman::policy::types::{
    Advice, Context, Edit, Endpoint, Engine, FallbackAdvice, FallbackStep, FieldValue, LaneAdvice, LaneId,
    LaneInfo, LaneScore, LaneStat, LaneState, Level, MessageInfo, Metric, MetricWeight, Note, OnTimeout,
    Permille, PolicyError, QueueAdvice, Rejection, Role, Scalar, Switching, Triggers,
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

/// One question of the host.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The request in numbers.
    pub context: &'a Context,
    /// The request, read lazily: every call of a function asks the host.
    pub request: &'a dyn RequestView,
    /// All lanes, as one snapshot.
    pub fleet: &'a dyn FleetView,
}

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("context", &self.context).finish_non_exhaustive()
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
    /// Does any message contain `needle`? Cheaper than reading the text.
    fn contains(&self, needle: &str, ignore_case: bool) -> bool;
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

/// Make the exports of a component from a [`Policy`]. Does nothing when it is not built for WebAssembly, so that the same
/// crate runs its tests natively.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::__Guest<$policy>;
    $crate::__bindings::export!(Exported with_types_in $crate::__bindings);
        };
    };
}
