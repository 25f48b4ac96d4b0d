//! What is told of each request that has ended: to the access log, and to traces.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use pointsman_domain::{Endpoint, RequestFlow, Topology};

use crate::trace_context::RequestTrace;

/// Receives each request that has ended.
pub trait RequestObserver: fmt::Debug + Send + Sync {
    /// Notes the end of a request. Called once for each request, on its worker: must not block.
    fn ended(&self, request: &FinishedRequest<'_>);
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct FinishedRequest<'a> {
    /// The id, which may be chosen by the client.
    pub id: &'a str,
    /// The endpoint; [`Endpoint::Other`] for a path of an engine.
    pub endpoint: Endpoint,
    /// The address of the client, as far as it is known.
    pub client: Option<IpAddr>,
    /// The tenant of the key.
    pub tenant: Option<&'a str>,
    /// The name of the key; never a part of its secret.
    pub key: Option<&'a str>,
    /// The model that was asked for, if a lane serves it.
    pub model: Option<&'a str>,
    /// The lane of the last attempt.
    pub lane: Option<&'a str>,
    /// The policies that took part in the decision.
    pub policies: Option<&'a str>,
    /// The status that the client got; `None` if the client had gone before.
    pub status: Option<u16>,
    /// How the request ended, as in the metrics.
    pub outcome: &'static str,
    /// How the last attempt ended.
    pub result: &'static str,
    /// The code of the error, if there was one.
    pub code: Option<&'a str>,
    /// The client asked for a stream.
    pub is_streaming: bool,
    /// Size of the request's body; 0 if it was not accepted.
    pub request_bytes: u64,
    /// Size of what was passed on of the response's body; errors of the host do not count.
    pub response_bytes: u64,
    /// The flow, which has the attempts, the times and the token counts.
    pub flow: &'a RequestFlow,
    /// The names of the lanes; `None` if there was no attempt.
    pub topology: Option<&'a Arc<Topology>>,
    /// The trace of the request; `None` if traces are off.
    pub trace: Option<&'a RequestTrace>,
}

/// The address of a client: an extension of its requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientAddress(pub(crate) IpAddr);
