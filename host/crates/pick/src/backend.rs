//! What serves the requests of a proxy.

use std::error::Error;
use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use pointsman_fleet::{ProxiedBody, ProxySide};

/// Why the body of a response has broken off.
#[derive(Debug)]
pub struct BodyError(Box<dyn Error + Send + Sync>);

impl BodyError {
    /// Wraps the cause.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// The body of a response for the client.
pub type ResponseBody = UnsyncBoxBody<Bytes, BodyError>;

/// A response for the client.
#[derive(Debug)]
pub struct ServedResponse {
    /// The response.
    pub response: Response<ResponseBody>,
    /// It is the engine's, which the proxy has; otherwise it is the host's own.
    pub is_from_engine: bool,
    /// The stable code of the host's own error, one of a small number; `none` for a response that
    /// is not an error of the host.
    pub code: &'static str,
}

/// A request that has begun. Dropping it ends the request as a client does that hangs up.
pub struct Exchange {
    /// Makes the response for the client.
    pub serving: Pin<Box<dyn Future<Output = ServedResponse> + Send>>,
    /// What the proxy is asked to send, and what it has received.
    pub side: ProxySide,
    /// Held until the last byte of the response.
    pub guard: Option<Box<dyn Send + Sync>>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("side", &self.side).finish_non_exhaustive()
    }
}

/// Serves the requests of a proxy.
pub trait Backend: Send + Sync + 'static {
    /// Begins a request. `subset` has the hosts and ports of the only engines that the proxy can
    /// use; `None` for all.
    fn begin(&self, request: Request<ProxiedBody>, subset: Option<Vec<String>>) -> Exchange;
}
