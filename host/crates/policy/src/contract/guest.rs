//! The contracts that this host implements. The contract of a component is determined once, when it
//! is loaded; afterwards an [`Instance`] uses the types of the domain.
//!
//! A new track is a file beside `v0_1.rs` and a variant here. `vllm_middleware.rs` is the contract
//! of another router, which this host implements too.

use pointsman_domain::{Advice, FailureReport, Outcome, Recovery, RequestView};
use wasmtime::component::Linker;
use wasmtime::{Engine, Store};

use crate::contract::host_state::HostState;
use crate::contract::track::Track;
use crate::contract::types::{CallContext, Description, Hooks, PolicyError, PolicyHint};
use crate::contract::{v0_1, vllm_middleware};
use crate::limits::MAX_OUTPUT_BYTES;
use crate::wasm::caching_compiler::Compiled;

/// The linkers of all contracts that share one.
pub(crate) struct Linkers {
    v0_1: Linker<HostState>,
}

impl std::fmt::Debug for Linkers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Linkers").finish_non_exhaustive()
    }
}

/// A component that is linked against its contract, ready to be instantiated.
pub(crate) enum Linked {
    V0_1(v0_1::Linked),
    VllmMiddleware(vllm_middleware::Linked),
}

/// An instance of a component.
pub(crate) enum Instance {
    V0_1(v0_1::Instance),
    VllmMiddleware(vllm_middleware::Instance),
}

impl Linkers {
    pub(crate) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        Ok(Self { v0_1: v0_1::linker(engine)? })
    }

    /// Links a component, which checks the types of its imports and the names of its exports.
    pub(crate) fn link(&self, track: Track, compiled: &Compiled) -> wasmtime::Result<Linked> {
        match track {
            Track::V0_1 if compiled.has_parts() => {
                let mut linker = self.v0_1.clone();
                compiled.define_parts(&mut linker)?;
                v0_1::link(&linker, compiled.component()).map(Linked::V0_1)
            }
            Track::V0_1 => v0_1::link(&self.v0_1, compiled.component()).map(Linked::V0_1),
            Track::VllmMiddleware => vllm_middleware::link(compiled).map(Linked::VllmMiddleware),
        }
    }
}

impl Linked {
    pub(crate) fn instantiate(&self, store: &mut Store<HostState>) -> wasmtime::Result<Instance> {
        match self {
            Self::V0_1(linked) => linked.instantiate(store).map(Instance::V0_1),
            Self::VllmMiddleware(linked) => linked.instantiate(store).map(Instance::VllmMiddleware),
        }
    }

    /// Returns the optional hooks that the component exports.
    pub(crate) fn hooks(&self) -> Hooks {
        match self {
            Self::V0_1(linked) => linked.hooks(),
            Self::VllmMiddleware(_) => Hooks::default(),
        }
    }
}

impl Instance {
    /// Calls `describe`. Returns `None` for a contract without that function.
    pub(crate) fn describe(
        &self,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<Option<Description>> {
        match self {
            Self::V0_1(instance) => instance.describe(store).map(Some),
            Self::VllmMiddleware(_) => Ok(None),
        }
    }

    /// Calls `configure`, or applies the rules of a contract without that function.
    pub(crate) fn configure(
        &self,
        store: &mut Store<HostState>,
        config: &str,
    ) -> wasmtime::Result<Result<(), PolicyError>> {
        match self {
            Self::V0_1(instance) => instance.configure(store, config),
            Self::VllmMiddleware(_) => Ok(vllm_middleware::configure(config)),
        }
    }

    /// Calls `on-request`.
    pub(crate) fn advise(
        &self,
        store: &mut Store<HostState>,
        context: CallContext<'_>,
    ) -> wasmtime::Result<Result<Advice, PolicyError>> {
        match self {
            Self::V0_1(instance) => instance.advise(store, context),
            Self::VllmMiddleware(instance) => {
                vllm_middleware::advise(instance, store, context.facts)
            }
        }
    }

    /// Calls `on-failure` after a failed attempt. Returns `Planned` without that hook.
    pub(crate) fn recover(
        &self,
        store: &mut Store<HostState>,
        context: CallContext<'_>,
        failure: &FailureReport,
    ) -> wasmtime::Result<Result<Recovery, PolicyError>> {
        match self {
            Self::V0_1(instance) => instance.recover(store, context, failure),
            Self::VllmMiddleware(_) => Ok(Ok(Recovery::Planned)),
        }
    }

    /// Calls `on-complete` with the outcomes of requests. Does nothing without that hook.
    pub(crate) fn observe(
        &self,
        store: &mut Store<HostState>,
        now_ms: u64,
        done: &[Outcome],
    ) -> wasmtime::Result<()> {
        match self {
            Self::V0_1(instance) => instance.observe(store, now_ms, done),
            Self::VllmMiddleware(_) => Ok(()),
        }
    }

    /// Calls `on-outcome` with the outcomes of requests, and with the notes of the policy `name`.
    /// Does nothing without that hook.
    pub(crate) fn learn(
        &self,
        store: &mut Store<HostState>,
        now_ms: u64,
        done: &[Outcome],
        name: &str,
    ) -> wasmtime::Result<()> {
        match self {
            Self::V0_1(instance) => instance.learn(store, now_ms, done, name),
            Self::VllmMiddleware(_) => Ok(()),
        }
    }

    /// Calls `on-tick`. Returns no hints without that hook.
    pub(crate) fn tick(
        &self,
        store: &mut Store<HostState>,
        now_ms: u64,
        seed: u64,
    ) -> wasmtime::Result<Vec<PolicyHint>> {
        match self {
            Self::V0_1(instance) => instance.tick(store, now_ms, seed),
            Self::VllmMiddleware(_) => Ok(Vec::new()),
        }
    }

    /// Returns the maximum bytes that the host copies out of the guest in a call, which may be
    /// about a request.
    pub(crate) fn max_output_bytes(&self, request: Option<&dyn RequestView>) -> usize {
        match self {
            Self::V0_1(_) => MAX_OUTPUT_BYTES,
            Self::VllmMiddleware(_) => vllm_middleware::max_output_bytes(request),
        }
    }

    /// Returns whether a new instance should replace this one before the next call.
    pub(crate) fn needs_recycling(&self, store: &Store<HostState>) -> bool {
        match self {
            Self::V0_1(_) => false,
            Self::VllmMiddleware(_) => vllm_middleware::needs_recycling(store.data()),
        }
    }
}
