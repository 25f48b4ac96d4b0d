//! Policies on made-up and recorded traffic, in virtual time: the code that serves, without sockets, engines or GPUs.
//!
//! ```text
//!   Traffic ──Ask──> World ──Facts──> Deciders (the chain of policies, or any Advisor) ──> domain::Plan
//!                      │ ▲                                                                     │
//!                      │ └─ Happenings: tokens, loads, crashes, clients that leave             ▼
//!                      │                                       domain::way, domain::dispatch::Dispatcher
//!                      └──> Observer: what is counted, shown and compared
//! ```
//!
//! Not a second implementation: advice, plans, queues, turns and fallbacks are decided by the very code of the host. What is
//! made up is what the host does not decide: when requests come, and how long engines take.
//!
//! **Promise.** The same inputs give the same output, bit for bit, on every machine: there is no clock, no thread and no
//! order that depends on addresses in here, and policies run on fuel instead of time.

mod advisor;
mod arrivals;
mod compare;
mod engine;
mod experiment;
mod fault;
mod fleet;
mod histogram;
mod metric;
mod objective;
mod observe;
mod random;
pub mod replay;
pub mod report;
mod request;
mod scenario;
mod trace;
mod traffic;
mod world;

pub use self::advisor::{Chain, Deciders, Hinted};
pub use self::arrivals::Arrivals;
pub use self::compare::{Cell, Change, Comparison, Difference, Estimate, Line};
pub use self::experiment::{Experiment, Progress, Resolve, SimulationEnv, StudyError};
pub use self::fault::{Failure, Trouble, When};
pub use self::fleet::{Decode, EngineModel, Fleet, Lane, Service};
pub use self::histogram::Histogram;
pub use self::metric::{Direction, Metric, Scope, Statistic, Unit};
pub use self::objective::{Judged, Objective, Verdict};
pub use self::observe::{Ended, How, Observer, Try};
pub use self::random::{Random, Spread, seconds};
pub use self::report::{Collector, Report, Run, Summary};
pub use self::scenario::{
    Document, Engines, FleetSource, Format, Host, HostConfig, HostLane, Models, Pace, Scenario,
    ScenarioError, Sessions, Source, Stream, Tenants, Trace, Variant,
};
pub use self::trace::TraceWriter;
pub use self::traffic::{Ask, ClassId, Traffic};
pub use self::world::{Books, Setting, run};
