//! The OpenTelemetry protocol (OTLP 1.x): what is exported, as protobuf.
//!
//! ```text
//!   spans ──> trace_request ──┐
//!                             ├──> bytes, for HTTP or, with grpc_frame, for gRPC
//!   metrics ─> metrics_request┘
//! ```
//!
//! The messages are a subset of those of `opentelemetry-proto`, with its field numbers: what the
//! host does not export is left out. This crate has no sockets and no clock.

mod frame;
mod messages;
mod metrics;
mod open_metrics;
mod span;

pub use self::frame::{FrameError, check_frame, grpc_frame};
pub use self::messages::{Attribute, Resource};
pub use self::metrics::metrics_request;
pub use self::span::{EncodedSpans, Span, SpanKind, SpanStatus, SpanValue, Spans, trace_request};
