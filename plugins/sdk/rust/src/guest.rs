//! The component boundary: implements the generated bindings for a [`Policy`].

use std::cell::OnceCell;
use std::marker::PhantomData;

use crate::generated::bindings::exports::pointsman::policy::{lifecycle, on_request};
use crate::generated::bindings::pointsman::policy::{fleet, log, metrics, request, state};
use crate::generated::hooks::on_complete::exports::pointsman::policy::on_complete;
use crate::generated::hooks::on_failure::exports::pointsman::policy::on_failure;
use crate::generated::hooks::on_outcome::exports::pointsman::policy::on_outcome;
use crate::generated::hooks::on_tick::exports::pointsman::policy::on_tick;
use crate::services::{Host, Services, Source};
use crate::{
    Advice, Allowance, Background, Call, Context, Failure, FieldValue, Finished, FleetView, LaneId,
    LaneInfo, LaneStat, LaneWish, Learn, Level, Log, MessageInfo, Metrics, Observe, Outcome,
    Policy, PolicyError, Recover, Recovery, RequestView, State, StateError, TextMatch, Tick,
};

/// The exports of a component, implemented by the policy `P`.
#[derive(Debug)]
pub struct Guest<P>(PhantomData<P>);

/// A policy with a static slot for its one instance. A static cannot be generic, so the macro
/// `export_policy!` defines it.
pub trait Installed: Policy {
    /// Passes the slot to `visit`. An instance handles one call at a time and is configured once.
    fn slot<R>(visit: impl FnOnce(&OnceCell<Self>) -> R) -> R;
}

/// Calls `hook` with the configured policy, or `unconfigured` with the error if there is none.
fn with_policy<P: Installed, R>(
    hook: impl FnOnce(&P) -> R,
    unconfigured: impl FnOnce(PolicyError) -> R,
) -> R {
    P::slot(|slot| match slot.get() {
        Some(policy) => hook(policy),
        None => unconfigured(PolicyError::Other("called before configure".into())),
    })
}

fn call(context: &Context) -> Call<'_> {
    Call {
        context,
        request: &Host,
        fleet: &Host,
        state: State(SOURCE),
        metrics: Metrics(SOURCE),
        log: Log(SOURCE),
    }
}

fn background(now_ms: u64) -> Background<'static> {
    Background {
        now_ms,
        fleet: &Host,
        state: State(SOURCE),
        metrics: Metrics(SOURCE),
        log: Log(SOURCE),
    }
}

#[cfg(target_arch = "wasm32")]
const SOURCE: Source<'static> = Source::HOST;
#[cfg(not(target_arch = "wasm32"))]
const SOURCE: Source<'static> = &Host;

impl<P: Installed> lifecycle::Guest for Guest<P> {
    fn describe() -> lifecycle::Description {
        lifecycle::Description {
            name: P::NAME.into(),
            version: P::VERSION.into(),
            hints: P::HINTS.iter().map(|hint| (*hint).into()).collect(),
        }
    }

    fn configure(config: String) -> Result<(), PolicyError> {
        #[cfg(target_arch = "wasm32")]
        crate::fault::report_panics();
        let policy = P::configure(&config)?;
        P::slot(|slot| slot.set(policy))
            .map_err(|_| PolicyError::Other("configure was called twice".into()))
    }
}

impl<P: Installed> on_request::Guest for Guest<P> {
    fn advise(context: Context) -> Result<Advice, PolicyError> {
        with_policy::<P, _>(|policy| policy.advise(&call(&context)), Err)
    }
}

impl<P: Installed + Recover> on_failure::Guest for Guest<P> {
    fn recover(context: Context, failed: Failure) -> Result<Recovery, PolicyError> {
        with_policy::<P, _>(|policy| policy.recover(&call(&context), &failed), Err)
    }
}

impl<P: Installed + Observe> on_complete::Guest for Guest<P> {
    fn observe(now_ms: u64, done: Vec<Outcome>) {
        with_policy::<P, _>(|policy| policy.observe(&background(now_ms), &done), |_| ());
    }
}

impl<P: Installed + Learn> on_outcome::Guest for Guest<P> {
    fn learn(now_ms: u64, done: Vec<Finished>) {
        with_policy::<P, _>(|policy| policy.learn(&background(now_ms), &done), |_| ());
    }
}

impl<P: Installed + Tick> on_tick::Guest for Guest<P> {
    fn tick(now_ms: u64, seed: u64) -> Vec<LaneWish> {
        with_policy::<P, _>(|policy| policy.tick(&background(now_ms), seed), |_| Vec::new())
    }
}

impl RequestView for Host {
    fn id(&self) -> String {
        request::id()
    }

    fn model(&self) -> String {
        request::model()
    }

    fn tenant(&self) -> Option<String> {
        request::tenant()
    }

    fn header(&self, name: &str) -> Option<String> {
        request::header(name)
    }

    fn field(&self, pointer: &str, max_bytes: u32) -> FieldValue {
        request::field(pointer, max_bytes)
    }

    fn messages(&self) -> Vec<MessageInfo> {
        request::messages()
    }

    fn text(&self, index: u32, offset: u64, max_bytes: u32) -> String {
        request::text(index, offset, max_bytes)
    }

    fn body(&self, offset: u64, max_bytes: u32) -> Vec<u8> {
        request::body(offset, max_bytes)
    }

    fn contains(&self, needle: &str, ignore_case: bool) -> bool {
        request::contains(needle, ignore_case)
    }

    fn prefix_hashes(&self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        request::prefix_hashes(block_bytes, max_blocks)
    }

    fn endpoint_kind(&self) -> String {
        request::endpoint_kind()
    }

    fn key_group(&self) -> Option<String> {
        request::key_group()
    }

    fn key_name(&self) -> Option<String> {
        request::key_name()
    }

    fn allowance(&self) -> Allowance {
        request::allowance()
    }

    fn deadline_ms(&self) -> Option<u32> {
        request::deadline_ms()
    }

    fn find_any(&self, patterns: &[String], ignore_case: bool) -> Vec<TextMatch> {
        request::find_any(patterns, ignore_case)
    }
}

impl FleetView for Host {
    fn stats(&self) -> Vec<LaneStat> {
        fleet::stats()
    }

    fn stat(&self, lane: LaneId) -> Option<LaneStat> {
        fleet::stat(lane)
    }

    fn candidates(&self) -> Vec<LaneId> {
        fleet::candidates()
    }

    fn info(&self, lane: LaneId) -> Option<LaneInfo> {
        fleet::info(lane)
    }

    fn find(&self, name: &str) -> Option<LaneId> {
        fleet::find(name)
    }

    fn with_label(&self, key: &str, value: &str) -> Vec<LaneId> {
        fleet::with_label(key, value)
    }

    fn lanes_left(&self) -> Vec<LaneId> {
        fleet::lanes_left()
    }
}

impl Services for Host {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        state::get(key)
    }

    fn put(&self, key: &str, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        state::put(key, value, ttl_ms)
    }

    fn delete(&self, key: &str) {
        state::delete(key);
    }

    fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        state::increment(key, by, ttl_ms)
    }

    fn add(&self, name: &str, value: u64) {
        metrics::add(name, value);
    }

    fn record(&self, name: &str, value: u64) {
        metrics::record_value(name, value);
    }

    fn write(&self, level: Level, message: &str) {
        log::write(level, message);
    }

    fn enabled(&self, level: Level) -> bool {
        log::enabled(level)
    }
}
