//! Turns WebAssembly components into an [`Advisor`](pointsman_domain::Advisor). The only crate that links wasmtime.
//!
//! ```text
//!   folder ──> manifest ──> component ──> Policy ──> golden cases ──> Chain ──advise──> Merged
//!   on disk                 (compiled or     │
//!                            from the cache) └─ pool of warm instances, one guarded call at a time
//! ```
//!
//! What a policy can do to the host is bounded in `call` (time, memory, handles, size of results), in `host_calls` (what
//! it may ask, and how much text that may yield) and in `component` (what may be loaded at all). Whatever goes wrong in a
//! policy becomes a `Fault`, is counted, and costs the request nothing but this policy's advice.

mod abi;
mod breaker;
mod cache;
mod call;
mod cases;
mod chain;
mod component;
mod host_calls;
mod manifest;
mod metrics;
mod policy;
mod pool;
mod reads;
mod runtime;
mod state;

pub use cases::{CaseError, CaseRequest, FactsOf};
pub use chain::{Chain, PolicyStatus};
pub use manifest::ManifestError;
pub use metrics::PolicyMetrics;
pub use policy::{LoadError, OnError, Policy, PolicySpec};
pub use runtime::{Allocator, Runtime, RuntimeError, RuntimeSettings};
