//! The versions of the contract that this host serves. Which one a component was built for is found out once, when it is
//! loaded; from then on an [`Instance`] speaks the domain's own types.
//!
//! A new track is a file beside `v0_1.rs` and a variant here. `vllm_middleware.rs` is the contract of another router, of
//! which we serve what it has.

mod v0_1;
pub(crate) mod vllm_middleware;
mod wasi;

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{Advice, Facts, FailureReport, LaneId, Outcome, Recovery, RequestView};
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Store};

use crate::contract::{self, Contract};
use crate::host_calls::HostState;

pub(crate) use self::wasi::Wasi;

/// Package whose interfaces a policy may import and must export.
pub(crate) const PACKAGE: &str = "pointsman:policy/";
/// The version of the contract that this host implements; policies for an older 0.1.x are served too.
pub(crate) const VERSION: &str = "0.1.0";
/// What a component has to export.
pub(crate) const REQUIRED_EXPORTS: [&str; 2] = ["lifecycle", "on-request"];

/// Bytes that the host takes out of a policy in one call, results and arguments of imports alike.
pub(crate) const MOST_RESULT: usize = 256 << 10;

/// A contract that manifests may name as their `api`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Track {
    V0_1,
    VllmMiddleware,
}

impl Track {
    /// Their names, for sentences.
    pub(crate) const NAMES: &str = "`0.1` and `vllm-router-middleware-0.1`";

    /// What components for it may import and have to export.
    pub(crate) fn contract(self) -> &'static Contract {
        match self {
            Self::V0_1 => &contract::POLICY,
            Self::VllmMiddleware => &contract::MIDDLEWARE,
        }
    }

    /// The track of that name.
    pub(crate) fn named(api: &str) -> Option<Self> {
        match api {
            "0.1" => Some(Self::V0_1),
            "vllm-router-middleware-0.1" => Some(Self::VllmMiddleware),
            _ => None,
        }
    }
}

/// The linkers of all versions.
pub(crate) struct Abi {
    v0_1: Linker<HostState>,
}

impl std::fmt::Debug for Abi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Abi").finish_non_exhaustive()
    }
}

/// A component that is linked and checked against the contract, ready to be instantiated.
pub(crate) enum Linked {
    V0_1(v0_1::Linked),
    VllmMiddleware(vllm_middleware::Linked),
}

/// One instance.
pub(crate) enum Instance {
    V0_1(v0_1::Instance),
    VllmMiddleware(vllm_middleware::Instance),
}

/// What a call about a request gets beside the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) topology: u64,
    pub(crate) budget_us: u32,
}

/// A wish of a policy about a lane, and how long it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LaneWish {
    pub(crate) lane: LaneId,
    pub(crate) hint: LaneHint,
    pub(crate) lasts: std::time::Duration,
}

/// The optional hooks that a component exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hooks {
    pub(crate) on_failure: bool,
    pub(crate) on_complete: bool,
    pub(crate) on_tick: bool,
}

/// What a policy says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) hints: Vec<String>,
}

/// Why a policy gave no advice of its own accord.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("its configuration does not fit: {0}")]
    InvalidConfig(String),
    #[error("it does not know this kind of request: {0}")]
    Unsupported(String),
    #[error("it would run out of time")]
    OutOfBudget,
    #[error("{0}")]
    Other(String),
}

impl Abi {
    pub(crate) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        Ok(Self { v0_1: v0_1::linker(engine)? })
    }

    /// Link a component; all names and types are checked here.
    pub(crate) fn link(&self, track: Track, component: &Component) -> wasmtime::Result<Linked> {
        match track {
            Track::V0_1 => v0_1::link(&self.v0_1, component).map(Linked::V0_1),
            Track::VllmMiddleware => vllm_middleware::link(component).map(Linked::VllmMiddleware),
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

    /// Which optional hooks there are.
    pub(crate) fn hooks(&self) -> Hooks {
        match self {
            Self::V0_1(linked) => linked.hooks(),
            Self::VllmMiddleware(_) => Hooks::default(),
        }
    }
}

impl Instance {
    /// What the component says of itself; `None` where its contract has no words for that.
    pub(crate) fn describe(
        &self,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<Option<Description>> {
        match self {
            Self::V0_1(instance) => instance.describe(store).map(Some),
            Self::VllmMiddleware(_) => Ok(None),
        }
    }

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

    pub(crate) fn advise(
        &self,
        store: &mut Store<HostState>,
        asked: Asked<'_>,
    ) -> wasmtime::Result<Result<Advice, PolicyError>> {
        match self {
            Self::V0_1(instance) => instance.advise(store, asked),
            Self::VllmMiddleware(instance) => vllm_middleware::advise(instance, store, asked.facts),
        }
    }

    /// Ask what to do after a failed try. `Planned` without that hook.
    pub(crate) fn recover(
        &self,
        store: &mut Store<HostState>,
        asked: Asked<'_>,
        failure: &FailureReport,
    ) -> wasmtime::Result<Result<Recovery, PolicyError>> {
        match self {
            Self::V0_1(instance) => instance.recover(store, asked, failure),
            Self::VllmMiddleware(_) => Ok(Ok(Recovery::Planned)),
        }
    }

    /// Show how requests ended. Nothing without that hook.
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

    /// Ask for wishes about lanes. None without that hook.
    pub(crate) fn tick(
        &self,
        store: &mut Store<HostState>,
        now_ms: u64,
        seed: u64,
    ) -> wasmtime::Result<Vec<LaneWish>> {
        match self {
            Self::V0_1(instance) => instance.tick(store, now_ms, seed),
            Self::VllmMiddleware(_) => Ok(Vec::new()),
        }
    }

    /// Bytes that the host takes out of the guest in a call, which may be about a request.
    pub(crate) fn most_result(&self, request: Option<&dyn RequestView>) -> usize {
        match self {
            Self::V0_1(_) => MOST_RESULT,
            Self::VllmMiddleware(_) => vllm_middleware::most_result(request),
        }
    }

    /// Is it better to make a new instance than to ask this one again?
    pub(crate) fn needs_recycling(&self, store: &Store<HostState>) -> bool {
        match self {
            Self::V0_1(_) => false,
            Self::VllmMiddleware(_) => vllm_middleware::needs_recycling(store.data()),
        }
    }
}
