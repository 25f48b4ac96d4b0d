//! A deterministic simulator of the host: policies with synthetic and recorded traffic, in virtual
//! time, without sockets, engines or GPUs.
//!
//! ```text
//!   Traffic ──SimRequest──> World ──Facts──> SimAdvisor (the policy chain, or any Advisor)
//!                            │ ▲                └─Advice─> domain: Plan, Dispatcher, ...
//!                            │ └─ events: tokens, loads, crashes, clients that disconnect
//!                            └──> Observer: traces, and statistics of pointsman-report
//! ```
//!
//! The simulator is not a second implementation: advice, plans, queues, switching and fallbacks are
//! the code of the host. Only what the host does not decide is modelled: when requests arrive, and
//! how long engines take.
//!
//! # Determinism
//!
//! The same inputs yield the same output, bit for bit, on every machine. The simulation reads no
//! clock, starts no threads within a run, and does not depend on addresses. Policies are limited by
//! fuel instead of time.

mod advisor;
mod arrivals;
mod engine;
mod experiment;
mod fault;
mod fleet;
mod observe;
mod random;
mod request;
mod scenario;
mod timestamp;
mod trace;
mod traffic;
mod world;

pub use self::advisor::{ChainAdvisor, SimAdvisor, TimedHint};
pub use self::arrivals::{
    ArrivalProcess, Arrivals, HeaderValue, Headers, Media, Models, Sessions, Tenants, TraceError,
    TraceFile, TraceFormat, TraceLineError, TrafficSource, TrafficStream,
};
pub use self::experiment::{Experiment, ExperimentError, Progress, SimulationEnv};
pub use self::fault::{FaultKind, InjectedFault, Schedule};
pub use self::fleet::{DecodeRates, EngineModel, Fleet, Lane, ServiceModel};
pub use self::observe::{Attempt, FinishedRequest, Observer, RequestResult};
pub use self::random::{Distribution, Random, seconds};
pub use self::scenario::{
    Document, Engines, FleetSource, Host, HostConfig, HostLane, Scenario, ScenarioError, Variant,
    schema,
};
pub use self::trace::TraceWriter;
pub use self::traffic::{ClassId, SimRequest, Traffic};
pub use self::world::{RunConfig, Totals, run};

#[cfg(test)]
mod fuzz;
