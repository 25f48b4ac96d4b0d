//! Responses that another host keeps: requests about them are passed on to that host.

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pointsman_fleet::Peer;
use pointsman_openai::CREDENTIALS;

use crate::error::RouteError;
use crate::forwarded::{Client, Forwarded, NOTHING};
use crate::pipeline::Pipeline;
use crate::response::error;
use crate::{headers, rights};

/// Passes a request about a response on to the host that keeps it, if that is a known one that
/// accepts it.
pub(super) async fn pass_on(
    pipeline: &Pipeline,
    request: Request,
    id: String,
    host: String,
) -> Response {
    let max = pipeline.settings.responses.max_response;
    let response = match PassedOn::new(pipeline, &request, &host) {
        Ok(Some(passed_on)) => passed_on.send(&host, max).await,
        Ok(None) => Ok(None),
        Err(cause) => Err(cause),
    };
    match response {
        Ok(Some(response)) => response,
        Ok(None) => error(request, RouteError::ResponseElsewhere { id, host }),
        Err(cause) => error(request, cause),
    }
}

/// A request without a body, as another host gets it.
struct PassedOn {
    peer: Peer,
    method: Method,
    path: String,
    headers: HeaderMap,
}

impl PassedOn {
    /// Returns what the host of this name gets; `None` if it is not a known one, or the request
    /// must not be sent on.
    fn new(pipeline: &Pipeline, request: &Request, host: &str) -> Result<Option<Self>, RouteError> {
        let identity = rights::identify(&pipeline.keys, request.headers(), request.extensions())?;
        let this = pipeline.fleet.host_id();
        let forwarded = Forwarded::read(&identity, request.headers(), this);
        let forwarded = forwarded.as_ref().unwrap_or(&NOTHING);
        let Some(peer) = pipeline.fleet.peers().find(host).filter(|_| !forwarded.is_last) else {
            return Ok(None);
        };
        let mut headers = headers::for_engine(request.headers());
        for name in &CREDENTIALS {
            headers.remove(name);
        }
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        forwarded.set_client(this, Client::from(&*identity), &mut headers);
        // The body is left out here, as for every response to `HEAD`.
        let method = Some(request.method()).filter(|method| **method != Method::HEAD);
        let method = method.unwrap_or(&Method::GET).clone();
        let path = request.uri().path_and_query();
        let path = path.map(ToString::to_string).unwrap_or_default();
        Ok(Some(Self { peer, method, path, headers }))
    }

    /// Returns the response of the host, which has at most `max` bytes; `None` if it does not
    /// accept requests of this one.
    async fn send(self, host: &str, max: usize) -> Result<Option<Response>, RouteError> {
        let Self { peer, method, path, headers } = self;
        let response = peer.call(method, &path, headers, max).await.map_err(|error| {
            let event = "response_host_unreachable";
            tracing::warn!(event, host, %error, "request about a response not passed on");
            RouteError::ResponseHostUnreachable { host: host.to_owned() }
        })?;
        let (head, body) = response.into_parts();
        if matches!(head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let (event, status) = ("response_host_refused", head.status.as_u16());
            tracing::warn!(event, host, status, "request about a response not passed on");
            return Ok(None);
        }
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = headers::for_client(&head.headers);
        Ok(Some(response))
    }
}
