//! Runs routing policies, which are WebAssembly components, as an
//! [`Advisor`](pointsman_domain::Advisor). The only crate that links wasmtime.
//!
//! ```text
//!   folder ──> manifest ──> component ──> Version ──> golden cases ──> Chain ──advise──> Merged
//!                          (compiled or     │
//!                           from the cache) └─ pool of warm instances, one guarded call at a time
//! ```
//!
//! The effect of a policy on the host is bounded in `call` (time, memory, handles, size of
//! results), in `host_calls` (functions, and amount of text they return) and in `scan`, `compile`
//! and `component` (what may be loaded, and the process that compiles it). A failure of a policy
//! becomes a [`Fault`] that is counted, and the request only loses the advice of this policy.

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
mod host_call_log;
mod host_call_mode;
mod host_calls;
mod manifest;
pub mod marks;
mod metrics;
mod policies;
mod pool;
mod replay;
mod runtime;
mod scan;
mod schedule;
pub mod signature;
mod slot;
mod spec;
mod state;
mod store;
mod validation;
mod version;
mod workbench;

pub use abi::PolicyError;
pub use background::FleetLink;
pub use call::Fault;
pub use cases::{
    CaseError, CaseFleet, CaseRequest, CaseResult, CaseStateError, Difference, FactsError, FactsOf,
};
pub use compile::{CompileArgs, CompileError, CompileLimits, Compiler, OutputError, compile_main};
pub use component::{ComponentError, SizeError};
pub use dry_run::{CallStats, DryRunChain, DryRunError, DryRunSession, Hinted};
pub use manifest::ManifestError;
pub use metrics::PolicyMetrics;
pub use policies::{
    AdvisorSlot, CandidateStatus, Change, Command, CommandError, EarlierVersion, Policies,
    PolicyErrorStatus, PolicyStatus, ProbationStatus, RejectedVersion,
};
pub use replay::{Differing, Gap, Missing, Replayed, is_transient};
pub use runtime::{Allocator, FUEL_PER_MS, Metering, Runtime, RuntimeError, RuntimeSettings};
pub use slot::{RejectionCode, SlotError};
pub use spec::{CanaryBy, ChainSpec, OnError, PolicySpec, Probation, Rollout, Settings};
pub use version::{CallError, InvalidConfig, LoadError};
pub use workbench::{BenchPlan, Measurement, Workbench};
