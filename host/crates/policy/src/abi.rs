//! The versions of the contract that this host serves. Which one a component was built for is found out once, when it is
//! loaded; from then on an [`Instance`] speaks the domain's own types.
//!
//! A new track is a file beside `v0_1.rs` and a variant here.

mod v0_1;

use pointsman_domain::{Advice, Facts};
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
}

impl Instance {
    pub(crate) fn describe(&self, store: &mut Store<HostState>) -> wasmtime::Result<Description> {
        match self {
            Self::V0_1(instance) => v0_1::describe(instance, store),
        }
    }

    pub(crate) fn configure(
        &self,
        store: &mut Store<HostState>,
        config: &str,
    ) -> wasmtime::Result<Result<(), PolicyError>> {
        match self {
            Self::V0_1(instance) => v0_1::configure(instance, store, config),
        }
    }

    pub(crate) fn advise(
        &self,
        store: &mut Store<HostState>,
        facts: &Facts,
        topology: u64,
        budget_us: u32,
    ) -> wasmtime::Result<Result<Advice, PolicyError>> {
        match self {
            Self::V0_1(instance) => v0_1::advise(instance, store, facts, topology, budget_us),
        }
    }
}
