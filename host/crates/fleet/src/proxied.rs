//! Requests that a proxy sends to an engine in the host's place: the host says what is sent, and
//! where, and learns from the proxy what the engine responded.
//!
//! ```text
//!   unsent ──send: endpoints and request──> sent ──the proxy has a response──> arrived ──> taken
//! ```
//!
//! The proxy gets several endpoints, and goes on to the next one by itself. The request has a lease
//! of the first: if another one has served it, that attempt has failed, and the response belongs to
//! the attempt on the lane of the other one.

use http::{HeaderMap, Method, Request, Response};
use http_body_util::Either;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::activity::InFlightGuard;
use crate::driver::Target;
use crate::proxied_body::{ProxiedBody, ProxyGone};
use crate::request_body::RequestBody;
use crate::upstream::{EngineBody, EngineError, Upstream, decoded, request};

/// What the proxy sends.
#[derive(Debug)]
pub struct ProxiedRequest {
    /// The lane.
    pub lane: String,
    /// Host and port of the lane's engine.
    pub endpoint: String,
    /// Hosts and ports of the engines that the proxy may use if it cannot use the first one.
    pub fallbacks: Vec<String>,
    /// The request as the engine gets it.
    pub request: Request<RequestBody>,
}

/// What the proxy has received.
#[derive(Debug)]
pub struct ProxiedResponse {
    /// Host and port of the engine that has served the request; `None` if the proxy does not say
    /// it, which counts as the first one.
    pub served: Option<String>,
    /// The response.
    pub response: Response<ProxiedBody>,
}

/// The proxy's side of an exchange.
#[derive(Debug)]
pub struct ProxySide {
    /// Receives the request; fails if none is sent.
    pub request: oneshot::Receiver<ProxiedRequest>,
    /// Takes the response. Dropped, the attempt fails.
    pub response: oneshot::Sender<ProxiedResponse>,
}

/// How far an exchange is.
#[derive(Debug)]
enum Stage {
    Unsent(oneshot::Sender<ProxiedRequest>, oneshot::Receiver<ProxiedResponse>),
    Sent,
    Arrived(Box<ProxiedResponse>),
    Taken,
}

/// The host's side of an exchange: one request, and one response.
#[derive(Debug)]
pub struct ProxyExchange(Mutex<Stage>);

/// What an attempt on an endpoint would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyAttempt {
    /// It sends the request.
    Send,
    /// The engine of the endpoint has responded already.
    Receive,
    /// The request is with another endpoint.
    Elsewhere,
}

impl ProxyExchange {
    /// Creates both sides of an exchange.
    pub fn new() -> (Self, ProxySide) {
        let (sender, request) = oneshot::channel();
        let (response, receiver) = oneshot::channel();
        (Self(Mutex::new(Stage::Unsent(sender, receiver))), ProxySide { request, response })
    }

    /// Returns what an attempt on the engine with this host and port would do.
    pub fn attempt_on(&self, endpoint: &str) -> ProxyAttempt {
        match &*self.0.lock() {
            Stage::Unsent(..) => ProxyAttempt::Send,
            Stage::Arrived(arrived) if arrived.served.as_deref() == Some(endpoint) => {
                ProxyAttempt::Receive
            }
            Stage::Arrived(_) | Stage::Sent | Stage::Taken => ProxyAttempt::Elsewhere,
        }
    }

    /// Lets the proxy send a request, and awaits the head of the response.
    async fn exchange(
        &self,
        request: ProxiedRequest,
    ) -> Result<Response<ProxiedBody>, EngineError> {
        let endpoint = request.endpoint.clone();
        let stage = std::mem::replace(&mut *self.0.lock(), Stage::Sent);
        let arrived = match stage {
            Stage::Unsent(sender, receiver) => {
                // Fails only if the proxy has ended the exchange, as the response then does.
                sender.send(request).ok();
                let arrived = receiver.await;
                Box::new(arrived.map_err(|_| EngineError::Broken(ProxyGone.into()))?)
            }
            Stage::Arrived(arrived) => arrived,
            Stage::Sent | Stage::Taken => {
                return Err(EngineError::Broken("the proxy sends a request once".into()));
            }
        };
        match &arrived.served {
            Some(served) if *served != endpoint => {
                let cause = format!("the proxy could not use {endpoint}, and used {served}");
                *self.0.lock() = Stage::Arrived(arrived);
                Err(EngineError::Connect(cause.into()))
            }
            Some(_) | None => {
                *self.0.lock() = Stage::Taken;
                Ok(arrived.response)
            }
        }
    }
}

/// An attempt that a proxy makes.
#[derive(Debug)]
pub struct Proxying<'a> {
    /// The exchange of the request.
    pub exchange: &'a ProxyExchange,
    /// The lane.
    pub lane: &'a str,
    /// Hosts and ports of the engines that the proxy may use if it cannot use that of the lane.
    pub fallbacks: Vec<String>,
}

/// Lets a proxy send a request, and returns as soon as it has the head of the response.
pub(crate) async fn forward(
    upstream: &Upstream,
    target: &Target,
    proxying: Proxying<'_>,
    path: &str,
    (headers, body): (HeaderMap, RequestBody),
) -> Result<Response<EngineBody>, EngineError> {
    let mut request = request(target, Method::POST, path, body)?;
    let key = request.headers_mut().remove(http::header::AUTHORIZATION);
    *request.headers_mut() = headers;
    request.headers_mut().extend(key.map(|key| (http::header::AUTHORIZATION, key)));
    let in_flight = InFlightGuard::new(&target.activity);
    let Proxying { exchange, lane, fallbacks } = proxying;
    let endpoint = target.authority.clone();
    let request = ProxiedRequest { lane: lane.to_owned(), endpoint, fallbacks, request };
    let response = exchange.exchange(request).await?;
    let response = decoded(response.map(Either::Right)).await;
    Ok(response.map(|body| EngineBody::new(body, upstream.timeouts.idle, in_flight, None)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxied_body::proxied_body;

    fn request(endpoint: &str) -> ProxiedRequest {
        ProxiedRequest {
            lane: "a".to_owned(),
            endpoint: endpoint.to_owned(),
            fallbacks: vec!["b:1".to_owned()],
            request: Request::new(bytes::Bytes::new().into()),
        }
    }

    fn response(served: Option<&str>) -> ProxiedResponse {
        let (sender, body) = proxied_body();
        sender.end();
        ProxiedResponse { served: served.map(str::to_owned), response: Response::new(body) }
    }

    #[tokio::test]
    async fn response_belongs_to_the_endpoint_that_served() {
        let (exchange, side) = ProxyExchange::new();
        assert_eq!(exchange.attempt_on("a:1"), ProxyAttempt::Send);
        side.response.send(response(Some("b:1"))).unwrap();
        let error = exchange.exchange(request("a:1")).await.unwrap_err();
        assert!(matches!(error, EngineError::Connect(_)), "{error}");
        assert_eq!(side.request.await.unwrap().endpoint, "a:1");
        assert_eq!(exchange.attempt_on("c:1"), ProxyAttempt::Elsewhere);
        assert_eq!(exchange.attempt_on("b:1"), ProxyAttempt::Receive);
        exchange.exchange(request("b:1")).await.unwrap();
        assert_eq!(exchange.attempt_on("b:1"), ProxyAttempt::Elsewhere);
    }

    #[tokio::test]
    async fn attempt_fails_if_the_proxy_is_gone() {
        let (exchange, side) = ProxyExchange::new();
        drop(side);
        let error = exchange.exchange(request("a:1")).await.unwrap_err();
        assert!(matches!(error, EngineError::Broken(_)), "{error}");
    }

    #[tokio::test]
    async fn endpoint_that_is_not_named_is_the_first() {
        let (exchange, side) = ProxyExchange::new();
        side.response.send(response(None)).unwrap();
        exchange.exchange(request("a:1")).await.unwrap();
    }
}
