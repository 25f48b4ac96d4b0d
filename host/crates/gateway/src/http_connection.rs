//! Serves the requests of a connection.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::response::Response;
use futures_util::future::Either;
use http::{HeaderName, HeaderValue, Method, Request, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::{Activity, RequestGuard};
use crate::body::{GuardedBody, RequestBody, UnreadBody, discard};
use crate::connection::ClientStream;
use crate::cors::CorsHeaders;
use crate::drain::Drain;
use crate::error::RouteError;
use crate::finished::ClientAddress;
use crate::http_version::http2;
use crate::http1_connection::serve_http1;
use crate::idle::IdleConnections;
use crate::metrics::GatewayMetrics;
use crate::peer::PeerUid;
use crate::protocols::{Established, HttpVersion, Protocols};
use crate::response::{self, responding};
use crate::served::ServedSlot;
use crate::unsent::StreamTasks;

/// Announces the idle timeout, so that clients do not send a request when it is about to expire.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// What the connections of a listener share.
pub(crate) struct Listener {
    /// What requests are served with.
    pub(crate) served: ServedSlot,
    pub(crate) protocols: Protocols,
    pub(crate) drain: Drain,
    pub(crate) idle: Arc<IdleConnections>,
    /// Places of requests on connections with HTTP/2.
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) metrics: Arc<GatewayMetrics>,
    /// The connections, and the streams of those with HTTP/2.
    pub(crate) tasks: TaskTracker,
}

/// Serves a connection until it ends, has to make room for another one, or is cut by the drain.
pub(crate) async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    (client, peer): (Option<IpAddr>, Option<PeerUid>),
    listener: Arc<Listener>,
) {
    let _open = listener.metrics.open_connection();
    let activity = Activity::new(listener.drain.clone(), Arc::clone(&listener.idle));
    let stream = ClientStream::new(stream, Arc::clone(&activity), listener.served.load().timeouts);
    // A connection that is accepted after the cut only ends when the listener closes.
    let cutting = listener.drain.cutting();
    let cut = match cutting.is_cancelled() {
        true => CancellationToken::new(),
        false => cutting.clone(),
    };
    let serve = async {
        match listener.protocols.establish(stream, client).await {
            Ok(Established { stream, version, client }) => {
                serve_requests(stream, version, (client, peer), &listener, &activity).await;
            }
            Err(error) => {
                listener.metrics.refused_connection(error.reason());
                // The field `error` has the log limit the rate of these lines.
                tracing::info!(
                    event = "connection_refused",
                    reason = error.reason(),
                    %error,
                    "closing a connection before its first request"
                );
            }
        }
    };
    tokio::select! {
        () = serve => {}
        () = activity.evicted() => tracing::debug!("closing an idle connection to make room"),
        () = cut.cancelled() => {}
    }
}

async fn serve_requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    version: HttpVersion,
    (client, peer): (Option<IpAddr>, Option<PeerUid>),
    listener: &Arc<Listener>,
    activity: &Arc<Activity>,
) {
    let service = {
        let (listener, activity) = (Arc::clone(listener), Arc::clone(activity));
        service_fn(move |mut request: Request<Incoming>| {
            if let Some(client) = client {
                request.extensions_mut().insert(ClientAddress(client));
            }
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            match activity.begin() {
                Some(guard) => Either::Left(serve(&listener, request, guard)),
                // The connection is about to be closed, see above.
                None => Either::Right(std::future::pending()),
            }
        })
    };
    let result = match version {
        HttpVersion::Http1 => serve_http1(stream, service, activity).await,
        HttpVersion::Http2 => {
            // The streams are tasks of their own, which end with the connection.
            let ended = CancellationToken::new();
            let _ended_on_drop = ended.clone().drop_guard();
            let write_timeout = listener.served.load().timeouts.write;
            let tasks = StreamTasks::new(listener.tasks.clone(), ended, write_timeout);
            // Boxed, so that a connection with HTTP/1 has no space for it.
            let stream = TokioIo::new(stream);
            let mut connection = Box::pin(http2(tasks).serve_connection(stream, service));
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = activity.retired() => {
                    // Tells the client, and ends the connection after its requests.
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            result.map_err(Into::into)
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended with an error");
    }
}

/// Returns true if a request uploads a file, at once: libraries for Node.js report a connection
/// error, and not the response, if one arrives while they are still sending.
fn is_upload(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind = b"multipart/form-data";
    let is_form = content_type
        .and_then(|given| given.get(..kind.len()))
        .is_some_and(|given| given.eq_ignore_ascii_case(kind));
    // A client that waits for `100 Continue` sends nothing, and HTTP/2 ends each stream by itself.
    is_form && !headers.contains_key(header::EXPECT) && request.version() < Version::HTTP_2
}

/// Serves a request if its host name is one of the listener's. The state of the future is small,
/// because each connection keeps space for one.
fn serve(
    listener: &Arc<Listener>,
    request: Request<Incoming>,
    mut guard: RequestGuard,
) -> impl Future<Output = Result<Response<GuardedBody>, Infallible>> + Send + use<> {
    let (listener, served) = (Arc::clone(listener), listener.served.load_full());
    let has_place = request.version() < Version::HTTP_2 || guard.take_place(&listener.requests);
    let unread = Arc::new(AtomicBool::new(!request.body().is_end_stream()));
    let rest = is_upload(&request).then(UnreadBody::default);
    let request =
        request.map(|body| Body::new(RequestBody::new(body, Arc::clone(&unread), rest.clone())));
    let (version, is_head) = (request.version(), request.method() == Method::HEAD);
    // Only then a client does not expect to keep the connection.
    let is_last = version < Version::HTTP_11 || request.headers().contains_key(header::CONNECTION);
    let cors = served.cors.as_ref();
    let cors = cors.map(|cors| cors.headers_for(request.method(), request.headers()));
    let checked = match &served.hosts {
        Some(hosts) => hosts.check(version, request.uri(), request.headers()),
        None => Ok(()),
    };
    let serving = match checked {
        // Without a key, which browsers do not send with it.
        Ok(()) if cors.as_ref().is_some_and(CorsHeaders::is_preflight) => {
            responding(response::no_content())
        }
        Ok(()) if !has_place => responding(response::error(request, RouteError::TooManyRequests)),
        Ok(()) => served.routes.serve(request),
        Err(error) => {
            let mut response = response::error(request, error);
            response.headers_mut().insert(header::CONNECTION, CLOSE);
            responding(response)
        }
    };
    async move {
        let mut response = serving.await;
        if let Some(cors) = cors {
            cors.apply(response.headers_mut());
        }
        if version >= Version::HTTP_2 {
            // These concern a connection, which has other requests as well.
            response.headers_mut().remove(header::CONNECTION);
            response.headers_mut().remove(KEEP_ALIVE);
            // hyper only drops the body itself with HTTP/1.
            let body = |body| if is_head { Body::empty() } else { body };
            return Ok(response.map(|given| GuardedBody::new(body(given), guard)));
        }
        let rest = rest.and_then(|rest| rest.lock().take());
        if let Some(rest) = rest
            && Box::pin(discard(rest)).await
        {
            unread.store(false, Ordering::Relaxed);
        }
        // hyper closes the connection then, unless the rest has arrived by chance.
        let leaves_body_unread = unread.load(Ordering::Relaxed);
        let headers = response.headers_mut();
        if listener.drain.closes_connections() || leaves_body_unread {
            headers.insert(header::CONNECTION, CLOSE);
        } else if let Some(keep_alive) = &served.keep_alive
            && !is_last
            && !headers.contains_key(header::CONNECTION)
        {
            headers.insert(KEEP_ALIVE, keep_alive.clone());
        }
        Ok(response.map(|body| GuardedBody::new(body, guard)))
    }
}
