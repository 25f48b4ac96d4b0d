//! Track 0.1 of the contract: conversion between its types and those of the domain.

use std::time::Duration;

use pointsman_domain as domain;
use pointsman_domain::dispatch::LaneHint;
use wasmtime::component::{
    Component, ComponentExportIndex, HasData, InstancePre, Linker, TypedFunc,
};
use wasmtime::{Engine, Store};

use self::bindings::exports::pointsman::policy::on_request::{Context, PolicyError as WitError};
use self::bindings::pointsman::policy::types;
use self::convert::{CallInput, advice, failure, finished, outcome, policy_error, recovery};
use crate::contract::guarded_api::GuardedApi;
use crate::contract::host_state::HostState;
use crate::contract::types::{CallContext, Description, Hooks, PolicyError, PolicyHint};
use crate::contract_version::{PACKAGE, VERSION};
use crate::fault::ContractMismatch;

mod bindings;
mod convert;
mod host_functions;

/// A linked component of this track, with the indices of its optional hooks.
pub(crate) struct Linked {
    pre: InstancePre<HostState>,
    indices: bindings::PolicyIndices,
    on_failure: Option<ComponentExportIndex>,
    on_complete: Option<ComponentExportIndex>,
    on_outcome: Option<ComponentExportIndex>,
    on_tick: Option<ComponentExportIndex>,
}

type Recover = TypedFunc<(Context, types::Failure), (Result<types::Recovery, WitError>,)>;
type Observe = TypedFunc<(u64, Vec<types::Outcome>), ()>;
type Learn = TypedFunc<(u64, Vec<types::Finished>), ()>;
type Tick = TypedFunc<(u64, u64), (Vec<types::LaneWish>,)>;

/// An instance of a component of this track.
pub(crate) struct Instance {
    required: bindings::Policy,
    on_failure: Option<Recover>,
    on_complete: Option<Observe>,
    on_outcome: Option<Learn>,
    on_tick: Option<Tick>,
}

/// Binds the host functions to the host calls of an instance.
struct HostCalls;

impl HasData for HostCalls {
    type Data<'a> = GuardedApi<'a>;
}

pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    bindings::Policy::add_to_linker::<_, HostCalls>(&mut linker, HostState::api)?;
    Ok(linker)
}

pub(crate) fn link(linker: &Linker<HostState>, component: &Component) -> wasmtime::Result<Linked> {
    let pre = linker.instantiate_pre(component)?;
    let hook = |interface: &str, function: &str| {
        let interface =
            component.get_export_index(None, format!("{PACKAGE}{interface}@{VERSION}").as_str())?;
        component.get_export_index(Some(&interface), function)
    };
    Ok(Linked {
        indices: bindings::PolicyIndices::new(&pre)?,
        on_failure: hook("on-failure", "recover"),
        on_complete: hook("on-complete", "observe"),
        on_outcome: hook("on-outcome", "learn"),
        on_tick: hook("on-tick", "tick"),
        pre,
    })
}

impl Linked {
    pub(crate) fn hooks(&self) -> Hooks {
        Hooks {
            on_failure: self.on_failure.is_some(),
            on_complete: self.on_complete.is_some(),
            on_outcome: self.on_outcome.is_some(),
            on_tick: self.on_tick.is_some(),
        }
    }

    pub(crate) fn instantiate(&self, store: &mut Store<HostState>) -> wasmtime::Result<Instance> {
        let instance = self.pre.instantiate(&mut *store)?;
        let function = |index: &ComponentExportIndex, store: &mut Store<HostState>| {
            instance.get_func(store, index)
        };
        // Linking checks the types of imports, but only the names of exports; their types are
        // checked here.
        let mismatch = |error: wasmtime::Error| error.context(ContractMismatch);
        macro_rules! hook {
            ($index:expr) => {
                match $index.as_ref().and_then(|index| function(index, store)) {
                    Some(function) => Some(function.typed(&mut *store).map_err(mismatch)?),
                    None => None,
                }
            };
        }
        Ok(Instance {
            on_failure: hook!(self.on_failure),
            on_complete: hook!(self.on_complete),
            on_outcome: hook!(self.on_outcome),
            on_tick: hook!(self.on_tick),
            required: self.indices.load(&mut *store, &instance).map_err(mismatch)?,
        })
    }
}

impl Instance {
    pub(crate) fn describe(&self, store: &mut Store<HostState>) -> wasmtime::Result<Description> {
        let described = self.required.pointsman_policy_lifecycle().call_describe(store)?;
        Ok(Description { name: described.name, version: described.version, hints: described.hints })
    }

    pub(crate) fn configure(
        &self,
        store: &mut Store<HostState>,
        config: &str,
    ) -> wasmtime::Result<Result<(), PolicyError>> {
        let result = self.required.pointsman_policy_lifecycle().call_configure(store, config)?;
        Ok(result.map_err(policy_error))
    }

    pub(crate) fn advise(
        &self,
        store: &mut Store<HostState>,
        context: CallContext<'_>,
    ) -> wasmtime::Result<Result<domain::Advice, PolicyError>> {
        let context: CallInput = store.data_mut().input("context", context.into());
        let result =
            self.required.pointsman_policy_on_request().call_advise(store, context.into())?;
        Ok(result.map(advice).map_err(policy_error))
    }

    pub(crate) fn recover(
        &self,
        store: &mut Store<HostState>,
        context: CallContext<'_>,
        failed: &domain::FailureReport,
    ) -> wasmtime::Result<Result<domain::Recovery, PolicyError>> {
        let Some(hook) = &self.on_failure else { return Ok(Ok(domain::Recovery::Planned)) };
        let context: CallInput = store.data_mut().input("context", context.into());
        let failed = store.data_mut().input("failure", *failed);
        let (result,) = hook.call(store, (context.into(), failure(&failed)))?;
        Ok(result.map(recovery).map_err(policy_error))
    }

    pub(crate) fn observe(
        &self,
        store: &mut Store<HostState>,
        now_ms: u64,
        done: &[domain::Outcome],
    ) -> wasmtime::Result<()> {
        match &self.on_complete {
            Some(hook) => hook.call(store, (now_ms, done.iter().map(outcome).collect())),
            None => Ok(()),
        }
    }

    /// Calls `on-outcome` with the notes of the policy `name`.
    pub(crate) fn learn(
        &self,
        store: &mut Store<HostState>,
        now_ms: u64,
        done: &[domain::Outcome],
        name: &str,
    ) -> wasmtime::Result<()> {
        let Some(hook) = &self.on_outcome else { return Ok(()) };
        let done = done.iter().map(|outcome| finished(outcome, name)).collect();
        hook.call(store, (now_ms, done))
    }

    pub(crate) fn tick(
        &self,
        store: &mut Store<HostState>,
        now_ms: u64,
        seed: u64,
    ) -> wasmtime::Result<Vec<PolicyHint>> {
        let Some(hook) = &self.on_tick else { return Ok(Vec::new()) };
        let (hints,) = hook.call(store, (now_ms, seed))?;
        let hint = |hint: types::LaneWish| PolicyHint {
            lane: domain::LaneId(hint.lane),
            hint: match hint.wish {
                types::Wish::Load => LaneHint::Load,
                types::Wish::Release => LaneHint::Release,
                types::Wish::Keep => LaneHint::Keep,
            },
            ttl: Duration::from_millis(hint.for_ms.into()),
        };
        Ok(hints.into_iter().map(hint).collect())
    }
}
