//! The HTTP side of the host: one pipeline per request, and streamed responses.
//!
//! ```text
//!   listen ──> routes ──> serve ──────────────────────────────> stream ──> client
//!                           │ decision: facts, advice, plan       ▲
//!                           └──> execute ──> attempt ──> engine ──┘
//!                                   │ events   ▲ actions
//!                                   ▼          │
//!                            request_tracker: RequestFlow ──> metrics, log, recording
//! ```
//!
//! What follows an event of a request is decided by
//! [`RequestFlow`](pointsman_domain::RequestFlow). This crate feeds it what happens on sockets, and
//! carries out its effects.
//!
//! Modules do not import each other in cycles. This crate depends on the fleet and on
//! the wire format, and knows policies only as an [`Advisor`](pointsman_domain::Advisor); it does
//! not depend on WebAssembly. The admin API ([`Admin`]) has listeners of its own, which clients
//! cannot reach. The codes of all errors are in [`ErrorCode`].

mod activity;
mod admin;
mod admin_error;
mod attempt;
mod attribution;
mod audit_log;
mod body;
mod client_listener;
mod compression;
mod connection;
mod cors;
mod count_tokens;
mod decision;
mod decisions;
mod descriptors;
mod drain;
mod early;
mod engine_status;
mod error;
mod error_code;
mod error_response;
mod execute;
mod exposition;
mod failure;
mod fair_permits;
mod feed;
mod finished;
mod fleet_stream;
mod forwarded;
mod gateway;
mod guard;
mod guard_error;
mod headers;
mod health;
mod hosts;
mod http1_connection;
mod http_connection;
mod http_version;
mod idempotency;
mod idle;
mod in_flight;
mod keys_feed;
mod label_values;
mod large_thread;
mod limit_headers;
mod listen;
mod memory_status;
mod metering;
mod metrics;
mod models;
mod native;
mod ollama;
mod once;
mod pace;
mod paths;
mod peer;
mod peer_status;
mod picking;
mod pipeline;
mod policy_threads;
mod preview;
mod protocols;
mod proxy_lanes;
mod proxy_protocol;
mod proxying;
mod queue_place;
mod recording;
mod request_id;
mod request_tracker;
mod response;
mod responses;
mod rewrite;
mod rights;
mod routes;
mod serve;
mod served;
mod settings;
mod shared_store;
mod socket;
mod status;
mod stream;
mod tenant_metrics;
mod tls;
mod trace_context;
mod unsent;
mod unwatched;
mod upload;
mod upstream_routes;
mod wait;

pub use self::admin::{Admin, PolicyAdmin, PolicyCommand, StateAdmin, preview_request};
pub use self::admin_error::AdminError;
pub use self::audit_log::AuditLog;
pub use self::client_listener::{ClientListener, ListenAddress};
pub use self::cors::{Cors, CorsHeaders};
pub use self::descriptors::raise_descriptor_limit;
pub use self::drain::{Drain, PredecessorGuard};
pub use self::early::EarlyConnection;
pub use self::error_code::ErrorCode;
pub use self::feed::Feed;
pub use self::finished::{FinishedRequest, RequestObserver};
pub use self::gateway::{Gateway, GatewayConfig, GatewayParts};
pub use self::headers::{CODE as ERROR_CODE, FromEngine};
pub use self::metrics::GatewayMetrics;
pub use self::picking::Picker;
pub use self::proxy_lanes::ProxyLanes;
pub use self::responses::{ResponseLimits, response_namespace};
pub use self::settings::{
    AdvisorSlot, ConnectionSettings, ConsoleSettings, HealthRule, IdempotencySettings,
    ListenerSettings, ResponseModel, Settings, SpoolSettings, StatusPart,
};
pub use self::shared_store::{SharedCall, SharedHosts, SharedStore, StoreAway};
pub use self::socket::{ListenerCopy, SocketError, SocketFile};
pub use self::tls::{Tls, TlsError, TlsFiles};
pub use self::trace_context::{
    EngineSpan, LoadSpan, PolicyCallSpan, RequestTrace, TraceContext, TraceIds, TraceSettings,
};

#[cfg(test)]
mod tests;
