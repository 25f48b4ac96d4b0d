//! Runs routing policies, which are WebAssembly components, as an
//! [`Advisor`](pointsman_domain::Advisor). The only crate that links wasmtime.
//!
//! ```text
//!   folder ──> manifest ──> component ──> Version ──> golden cases ──> Chain ──advise──> Merged
//!                          (compiled or     │
//!                           from the cache) └─ pool of warm instances, one guarded call at a time
//! ```
//!
//! The effect of a policy on the host is bounded in `version::call` (time, memory, handles, size of
//! results), in `contract::live_api` (functions, and amount of text they return) and in
//! `wasm::scan`, `wasm::validate` and `wasm::compile` (what may be loaded, and the process that
//! compiles it). A failure of a policy becomes a [`Fault`] that is counted, and the request only
//! loses the advice of this policy.
//!
//! # Layers
//!
//! A module imports from its own layer and from those above it in this list only:
//!
//! 1. the modules beside this file, except the following
//! 2. `wasm`: the engine, and from bytes to compiled code; knows no policy
//! 3. `contract`: what host and guests call of each other; knows no version
//! 4. `version`: one version of a policy, from its folder to its calls
//! 5. `chain`: several versions that decide together, and golden cases
//! 6. `registry`: the policies of a running host
//! 7. `tools`: chains and policies outside a running host

mod chain;
mod clock;
mod contract;
mod contract_version;
mod digest;
mod fault;
mod limits;
pub mod marks;
mod metrics;
mod registry;
mod tools;
mod trial;
mod version;
mod wasm;

pub use chain::cases::facts::CaseFacts;
pub use chain::cases::fleet::CaseFleet;
pub use chain::cases::{CaseRequest, CaseResult, CaseTrace, FactsOf, case_schema};
pub use contract::captured_log::LogLine;
pub use contract::replay_log::{Differing, Gap, Missing};
pub use contract::shared_state::{SharedState, StateSharing};
pub use contract::state_backing::{
    StateBacking, StateBackingError, StateChanges, StateEntry, StateValue,
};
#[doc(hidden)]
pub use contract::state_store::StateBench;
pub use contract::state_store::StateSummary;
pub use contract::types::PolicyError;
pub use fault::Fault;
pub use fault::report::FaultReport;
pub use limits::{MAX_COMPONENT_BYTES, MAX_MANIFEST_BYTES};
pub use metrics::PolicyMetrics;
pub use pointsman_spec::{
    CanaryBy, ChainSpec, JudgedOutcome, JudgedOutcomes, OciDigest, OciReference, OnError,
    PolicySource, PolicySpec, Probation, RegistrySettings, Rollout, Settings, SourceProblem,
};
pub use registry::events::{PolicyEvent, PolicyEventKind};
pub use registry::fleet_link::FleetLink;
pub use registry::in_service::StoredVersion;
pub use registry::policies::command::{Command, CommandError};
pub use registry::policies::{AdvisorSlot, Change, Policies};
pub use registry::slot::{RejectionCode, SlotError};
pub use registry::status::{
    CandidateStatus, EarlierVersion, PolicyErrorStatus, PolicyStatus, ProbationStatus,
    RejectedVersion,
};
pub use registry::store::StoreError;
pub use tools::dry_run::{CallStats, DryRunChain, DryRunError, DryRunSession, Hinted};
pub use tools::interfaces::Interfaces;
pub use tools::replay::{Replayed, is_transient};
pub use tools::workbench::{BenchPlan, Measurement, Workbench};
pub use trial::{ArmCounts, TrialStatus};
pub use version::bundle::PolicyFiles;
pub use version::call_error::CallError;
pub use version::case_error::{CaseError, CaseInputError, CaseStateError, Difference, FactsError};
pub use version::error::{InvalidConfig, LoadError};
pub use version::last_faults::FaultRecord;
pub use version::manifest::{ManifestError, check_manifest, manifest_schema};
pub use version::runtime::{Runtime, RuntimeSettings};
pub use version::signature;
pub use wasm::compile::child::{CompileArgs, compile_main};
pub use wasm::compile::error::{CompileError, OutputError};
pub use wasm::compile::{CompileLimits, Compiler};
pub use wasm::engine::{AddressSpace, Allocator, RuntimeError};
pub use wasm::error::{ComponentError, SizeError};
pub use wasm::metering::{FUEL_PER_MS, Metering};

#[cfg(test)]
mod fuzz;
