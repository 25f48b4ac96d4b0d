//! The component boundary: implements the generated bindings for a [`Policy`].

use std::cell::OnceCell;
use std::marker::PhantomData;

use self::bindings::exports::pointsman::policy::{lifecycle, on_request};
use self::bindings::pointsman::policy::{fleet, log, metrics, request, state};
use self::hooks::on_complete::exports::pointsman::policy::on_complete;
use self::hooks::on_failure::exports::pointsman::policy::on_failure;
use self::hooks::on_tick::exports::pointsman::policy::on_tick;
use crate::services::{Host, Services, Source};
use crate::{
    Advice, Background, Call, Context, Failure, FieldValue, FleetView, LaneId, LaneInfo, LaneStat,
    LaneWish, Level, Log, MessageInfo, Metrics, Observe, Outcome, Policy, PolicyError, Recover,
    Recovery, RequestView, State, StateError, Tick,
};

#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the WIT, which documents it, and different for each target"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/0.1",
        world: "policy",
        pub_export_macro: true,
        default_bindings_module: "pointsman_sdk::__bindings",
        additional_derives: [PartialEq],
    });
}

/// One world per optional hook, with the types of [`bindings`]. The exports of a component are the
/// union of the worlds it was built from, so any combination of hooks works without a world for
/// each combination.
#[allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    missing_debug_implementations,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the WIT, which documents it, and different for each target"
)]
pub mod hooks {
    macro_rules! hook {
        ($module:ident, $world:literal, $inline:literal) => {
            pub mod $module {
                wit_bindgen::generate!({
                    inline: $inline,
                    path: "../../../wit/0.1",
                    world: $world,
                    pub_export_macro: true,
                    with: {
                "pointsman:policy/types@0.1.0":
                    crate::guest::bindings::pointsman::policy::types,
            },
                });
            }
        };
    }

    hook!(
        on_failure,
        "pointsman:sdk/on-failure-hook",
        "package pointsman:sdk; world on-failure-hook { export pointsman:policy/on-failure@0.1.0; }"
    );
    hook!(
        on_complete,
        "pointsman:sdk/on-complete-hook",
        "package pointsman:sdk; world on-complete-hook { export \
         pointsman:policy/on-complete@0.1.0; }"
    );
    hook!(
        on_tick,
        "pointsman:sdk/on-tick-hook",
        "package pointsman:sdk; world on-tick-hook { export pointsman:policy/on-tick@0.1.0; }"
    );
}

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
