//! Routing types and decisions of Pointsman.
//!
//! Everything in this crate is pure: no tasks, no clock, no sockets, no files. Time comes in as an
//! argument (a [`Duration`](std::time::Duration) since the host started) and decisions go out as
//! data. The queue can therefore be tested with random operations, and a simulation runs the same
//! code that serves traffic.
//!
//! ```text
//!   Facts + FleetView ──> Advisor ──> Merged ──> Plan::from_advice ──> Decision
//!                          (policies)   (merge)      (the host decides)
//!
//!   dispatch::Event ──> Dispatcher::on(event, now) ──> dispatch::Effect
//!
//!   request_flow::Event ──> RequestFlow::on(event, age) ──> request_flow::Effects
//! ```

// A new variant has to be decided in every match; a test may match what it is about.
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

mod advice;
mod advisor;
mod allowance;
mod attempts;
mod breaker;
mod chain;
mod constraint;
mod context_need;
pub mod dispatch;
mod endpoint;
mod facts;
mod fleet_view;
mod guard_check;
mod guard_input;
mod guards;
mod lane_state;
mod lifecycle;
mod merge;
mod model_names;
mod outcome;
mod permit;
mod plan;
mod policy_ref;
mod prefix_index;
pub mod request_flow;
mod tenant_breaker;
mod trace;
pub mod units;

pub use advice::{
    Advice, Edit, FallbackAdvice, FallbackStep, LaneAdvice, LaneScore, Metric, MetricWeight, Note,
    OnTimeout, QueueAdvice, Rejection, Scalar, Switching, Trigger, Triggers,
};
pub use advisor::{Advised, Advisor, BuiltIn, OutcomeWatch};
pub use allowance::{Allowance, Remaining};
pub use attempts::{AttemptCursor, FailureClass, NextAction, QueueShare, SlotRequest};
pub use breaker::{Breaker, BreakerRules};
pub use chain::{ChainInfo, ChainLink};
pub use constraint::{AppliedGuard, Constraint, GuardRules};
pub use context_need::ContextNeed;
pub use endpoint::{Endpoint, EndpointSet, Serving};
pub use facts::{
    DroppedEdit, Facts, FieldValue, MessageInfo, RequestInfo, RequestView, Role, TextMatch,
    char_slice, fnv1a_chain,
};
pub use fleet_view::{
    EngineKind, FleetView, LaneId, LaneInfo, LaneStat, LaneState, Permille, Topology,
    TopologyUsage, adapter_of_lane,
};
pub use guard_check::GuardFinding;
pub use guards::{Guard, GuardConditions, GuardInput, Guards};
pub use lifecycle::{EngineState, EngineTransition};
pub use merge::{LaneOpinion, Merge, Merged, OnConflict, OpinionKind};
pub use model_names::{LaneNames, derived_names, is_local_path, public_name};
pub use outcome::{
    Attempt, AttemptResult, FailureReport, Outcome, OutcomeSubject, Recovered, Recovery,
    RequestResult, TokenCounts,
};
pub use permit::{
    Allow, Dropped, cap_retry_after, drop_unknown_filter, enforce_allow, enforce_allow_edits,
};
pub use plan::{Decision, NoLaneReason, Plan, PlanLimits, Step};
pub use policy_ref::PolicyRef;
pub use prefix_index::{
    BLOCK_BYTES, CachedPrompts, DIGEST_BLOCKS, DigestCursor, DigestPart, FleetKey, MAX_DIGEST,
    PrefixIndex, PromptHasher, PromptHashes, ServedPrompt,
};
pub use request_flow::{Deadline, RequestFlow};
pub use tenant_breaker::{BreakerChange, BreakerScope, TenantBreaker, TenantBreakerRules};
pub use trace::{PolicyCall, Read, Trace};
