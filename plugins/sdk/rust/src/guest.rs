//! The border: what the contract's bindings want, made of a [`Policy`].

use std::cell::OnceCell;
use std::marker::PhantomData;

use self::bindings::exports::pointsman::policy::{lifecycle, on_request};
use self::bindings::pointsman::policy::{fleet, request};
use crate::{
    Advice, Call, Context, FieldValue, FleetView, LaneId, LaneInfo, LaneStat, MessageInfo, Policy,
    PolicyError, RequestView,
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

/// The exports of the component of a policy.
#[derive(Debug)]
pub struct Guest<P>(PhantomData<P>);

// The configured policy. An instance is used by one call at a time, and configured once.
thread_local! {
    static POLICY: OnceCell<Box<dyn Advise>> = const { OnceCell::new() };
}

/// A [`Policy`] whose type is forgotten: a static cannot be generic.
trait Advise {
    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError>;
}

impl<P: Policy> Advise for P {
    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        Policy::advise(self, call)
    }
}

impl<P: Policy> lifecycle::Guest for Guest<P> {
    fn describe() -> lifecycle::Description {
        lifecycle::Description {
            name: P::NAME.into(),
            version: P::VERSION.into(),
            hints: P::HINTS.iter().map(|hint| (*hint).into()).collect(),
        }
    }

    fn configure(config: String) -> Result<(), PolicyError> {
        let policy = P::configure(&config)?;
        POLICY.with(|slot| match slot.set(Box::new(policy)) {
            Ok(()) => Ok(()),
            Err(_) => Err(PolicyError::Other("configured twice".into())),
        })
    }
}

impl<P: Policy> on_request::Guest for Guest<P> {
    fn advise(context: Context) -> Result<Advice, PolicyError> {
        POLICY.with(|slot| match slot.get() {
            Some(policy) => policy.advise(&Call { context: &context, request: &Host, fleet: &Host }),
            None => Err(PolicyError::Other("asked before it was configured".into())),
        })
    }
}

/// The host that the component runs in.
#[derive(Debug, Clone, Copy)]
pub struct Host;

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

    fn contains(&self, needle: &str, ignore_case: bool) -> bool {
        request::contains(needle, ignore_case)
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
