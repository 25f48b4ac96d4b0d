//! Turns WebAssembly components into an [`Advisor`](pointsman_domain::Advisor). The only crate that links wasmtime.
//!
//! ```text
//!   folder ──> manifest ──> component ──> Policy ──> golden cases ──> Chain ──advise──> Merged
//!   on disk                 (compiled or     │
//!                            from the cache) └─ pool of warm instances, one guarded call at a time
//! ```
//!
//! What a policy can do to the host is bounded in `call` (time, memory, handles, size of results), in `host_calls` (what
//! it may ask, and how much text that may yield) and in `scan`, `compile` and `component` (what may be loaded at all, and
//! where it is compiled). Whatever goes wrong in a policy becomes a `Fault`, is counted, and costs the request nothing but
//! this policy's advice.

mod abi;
mod background;
mod breaker;
mod bundle;
mod cache;
mod call;
mod cases;
mod chain;
mod clock;
mod compile;
mod component;
mod contract;
mod dry_run;
mod host_calls;
mod interview;
mod manifest;
pub mod marks;
mod metrics;
mod place;
mod policies;
mod pool;
mod proof;
mod reads;
mod replay;
mod runtime;
mod scan;
mod schedule;
pub mod signature;
mod spec;
mod state;
mod store;
mod version;
mod workbench;

pub use background::FleetLink;
pub use cases::{CaseError, CaseFleet, CaseRequest, CaseResult, Difference, FactsOf};
pub use compile::{CompileError, CompileLimits, CompileOrders, Compiler, compile_main};
pub use component::ComponentError;
pub use dry_run::{CallStats, DryRunChain, DryRunSession, Hinted, RehearsalError};
pub use manifest::ManifestError;
pub use metrics::PolicyMetrics;
pub use policies::{
    AdvisorSlot, Aside, Change, Command, CommandError, Earlier, Policies, PolicyStatus, Problem,
    Trial, WatchStatus,
};
pub use replay::{Differing, Gap, Missing, Replayed, is_passing};
pub use runtime::{Allocator, FUEL_PER_MS, Metering, Runtime, RuntimeError, RuntimeSettings};
pub use spec::{CanaryBy, ChainSpec, OnError, PolicySpec, Probation, Rollout, Settings};
pub use version::LoadError;
pub use workbench::{BenchPlan, Measured, Workbench};
