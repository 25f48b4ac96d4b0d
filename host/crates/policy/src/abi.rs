//! The versions of the contract that this host serves. Which one a component was built for is found out once, when it is
//! loaded; from then on an [`Instance`] speaks the domain's own types.
//!
//! A new track is a file beside `v0_1.rs` and a variant here.

mod v0_1;

use pointsman_domain::dispatch::Wish;
use pointsman_domain::{Advice, Facts, Failure, LaneId, Outcome, Recovery};
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Store};

use crate::host_calls::HostState;

/// Package whose interfaces a policy may import and must export.
pub(crate) const PACKAGE: &str = "pointsman:policy/";
/// The version of the contract that this host implements; policies for an older 0.1.x are served too.
pub(crate) const VERSION: &str = "0.1.0";
/// What a component has to export.
pub(crate) const REQUIRED_EXPORTS: [&str; 2] = ["lifecycle", "on-request"];

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
}

/// One instance.
pub(crate) enum Instance {
    V0_1(v0_1::Instance),
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
    pub(crate) wish: Wish,
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
    pub(crate) fn link(&self, component: &Component) -> wasmtime::Result<Linked> {
        v0_1::link(&self.v0_1, component).map(Linked::V0_1)
    }
}

impl Linked {
    pub(crate) fn instantiate(&self, store: &mut Store<HostState>) -> wasmtime::Result<Instance> {
        match self {
            Self::V0_1(linked) => linked.instantiate(store).map(Instance::V0_1),
        }
    }

    /// Which optional hooks there are.
    pub(crate) fn hooks(&self) -> Hooks {
        match self {
            Self::V0_1(linked) => linked.hooks(),
        }
    }
}

impl Instance {
    pub(crate) fn describe(&self, store: &mut Store<HostState>) -> wasmtime::Result<Description> {
        match self {
            Self::V0_1(instance) => instance.describe(store),
        }
    }

    pub(crate) fn configure(
        &self,
        store: &mut Store<HostState>,
        config: &str,
    ) -> wasmtime::Result<Result<(), PolicyError>> {
        match self {
            Self::V0_1(instance) => instance.configure(store, config),
        }
    }

    pub(crate) fn advise(
        &self,
        store: &mut Store<HostState>,
        asked: Asked<'_>,
    ) -> wasmtime::Result<Result<Advice, PolicyError>> {
        match self {
            Self::V0_1(instance) => instance.advise(store, asked),
        }
    }

    /// Ask what to do after a failed try. `Planned` without that hook.
    pub(crate) fn recover(
        &self,
        store: &mut Store<HostState>,
        asked: Asked<'_>,
        failure: &Failure,
    ) -> wasmtime::Result<Result<Recovery, PolicyError>> {
        match self {
            Self::V0_1(instance) => instance.recover(store, asked, failure),
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
        }
    }
}
