//! Receives the bodies of requests, within limits of size, time and memory.

mod memory;
mod multipart;
mod spool;

use std::error::Error;
use std::future::Future as _;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use pointsman_domain::Endpoint;
use pointsman_fleet::{ContentEncoding, UnsupportedEncoding, decode};
use pointsman_openai::{BodyKind, EndpointShape, ErrorForm, Form};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

pub(crate) use self::memory::{BodyMemory, Reservation};
use self::multipart::{boundary_of, receive_form};
pub(crate) use self::spool::Spool;
use crate::error::RouteError;
use crate::fair_permits::FairPermits;
use crate::pace::Pace;
use crate::settings::Settings;

/// Bytes per second that a client has to send on average while the host waits for it, before they
/// are decoded, so that a trickle does not hold memory for long: 32 MiB take nine minutes at most.
const MIN_UPLOAD_RATE: u32 = 64 << 10;
/// Encoded bodies that are decoded at a time. A decoder takes one or two megabytes for its tables,
/// and its window, which is not larger than what it has decoded.
const MAX_DECODERS: usize = 64;
/// Capacity that a body begins with, if it has no known length.
const FIRST_CAPACITY: usize = 8 << 10;

/// The limits of request bodies.
#[derive(Debug, Clone)]
pub(crate) struct Uploads {
    /// Maximum size of a body in bytes.
    pub(crate) max_body: usize,
    /// Maximum time for which a client sends nothing.
    pub(crate) timeout: Duration,
    /// Maximum time of a request before the first byte of its response, which includes its body.
    pub(crate) deadline: Duration,
    pub(crate) memory: Arc<BodyMemory>,
    /// Maximum size of a multipart form in bytes.
    pub(crate) max_upload: usize,
    /// Bytes of a form's files that are kept in memory, before they go to a spool file.
    pub(crate) form_memory: usize,
    /// Where what exceeds this goes.
    pub(crate) spool: Spool,
    /// Limits the encoded bodies that are decoded at a time.
    pub(crate) decoders: Arc<FairPermits>,
    /// Cancelled when the host stops: bodies that have not been received are rejected.
    pub(crate) stop: CancellationToken,
}

impl Uploads {
    /// Creates the limits.
    pub(crate) fn new(
        settings: &Settings,
        (body_bytes, spool_bytes): (Gauge, Gauge),
        stop: CancellationToken,
    ) -> Self {
        let memory = BodyMemory::new(settings.body_memory, settings.max_body, body_bytes);
        Self {
            max_body: settings.max_body,
            timeout: settings.body_timeout,
            deadline: settings.deadline,
            memory: Arc::new(memory),
            max_upload: settings.spool.max_upload,
            form_memory: settings.spool.memory,
            spool: Spool::new(&settings.spool, spool_bytes),
            decoders: Arc::new(FairPermits::new(MAX_DECODERS)),
            stop,
        }
    }

    /// Returns the limits of a changed configuration. What bodies use counts against them, too.
    pub(crate) fn reconfigured(&self, settings: &Settings) -> Self {
        self.memory.set_limit(settings.body_memory, settings.max_body);
        Self {
            max_body: settings.max_body,
            timeout: settings.body_timeout,
            deadline: settings.deadline,
            memory: Arc::clone(&self.memory),
            max_upload: settings.spool.max_upload,
            form_memory: settings.spool.memory,
            spool: self.spool.reconfigured(&settings.spool),
            decoders: Arc::clone(&self.decoders),
            stop: self.stop.clone(),
        }
    }
}

/// A received body, which keeps its reservation while there are references to its bytes.
struct ReceivedBytes {
    data: Vec<u8>,
    _reservation: Arc<Reservation>,
}

impl AsRef<[u8]> for ReceivedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Appends a chunk; `expected` is the length of the whole body if it is known.
fn append(data: &mut Vec<u8>, chunk: &[u8], expected: usize) {
    let length = data.len() + chunk.len();
    if data.capacity() < length {
        // Doubled, but not by what the client announces and may never send, nor beyond that.
        let capacity = (2 * length).max(FIRST_CAPACITY).min(expected.max(length));
        data.reserve_exact(capacity - data.len());
    }
    data.extend_from_slice(chunk);
}

/// The bytes of a body as they arrive. They must arrive in time, whatever they decode to, and must
/// not be more than the body may have after decoding.
struct Wire {
    body: Body,
    pace: Pace,
    timer: Pin<Box<Sleep>>,
    /// Bytes that may still arrive.
    left: usize,
}

/// The reason why the bytes of a body end early.
#[derive(Debug, thiserror::Error)]
enum WireError {
    #[error("the request body did not arrive in time")]
    Timeout,
    #[error("the request body is too large")]
    TooLarge,
    #[error(transparent)]
    Incomplete(axum::Error),
}

impl Wire {
    fn new(uploads: &Uploads, body: Body, max: usize) -> Self {
        let pace = Pace::new(uploads.timeout, MIN_UPLOAD_RATE);
        let timer = Box::pin(tokio::time::sleep(uploads.timeout));
        Self { body, pace, timer, left: max }
    }
}

impl http_body::Body for Wire {
    type Data = Bytes;
    type Error = WireError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WireError>>> {
        let this = &mut *self;
        let deadline = this.pace.wait(Instant::now());
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            if this.timer.deadline() != deadline {
                this.timer.as_mut().reset(deadline);
            }
            ready!(this.timer.as_mut().poll(cx));
            return Poll::Ready(Some(Err(WireError::Timeout)));
        };
        let Some(frame) = frame else { return Poll::Ready(None) };
        let frame = frame.map_err(WireError::Incomplete).and_then(|frame| {
            let length = frame.data_ref().map_or(0, Bytes::len);
            this.left = this.left.checked_sub(length).ok_or(WireError::TooLarge)?;
            this.pace.progress(length, Instant::now());
            Ok(frame)
        });
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request.
#[derive(Debug)]
pub(crate) enum Received {
    /// JSON, which has not been parsed.
    Json(Bytes),
    /// A multipart form.
    Form(Form),
}

/// Receives a whole body, and decodes it if it is encoded. The request has to keep the reservation
/// until it ends, because its body may be replaced by an edited one. `tenant` is `None` without
/// keys.
pub(crate) async fn receive(
    uploads: &Uploads,
    kind: BodyKind,
    headers: &HeaderMap,
    body: Body,
    tenant: Option<&str>,
) -> Result<(Received, Arc<Reservation>), RouteError> {
    let boundary = check_content_type(kind, headers)?;
    let encoding = ContentEncoding::of_message(headers);
    let encoding = encoding.map_err(|UnsupportedEncoding| content_encoding(headers))?;
    let max = if boundary.is_some() { uploads.max_upload } else { uploads.max_body };
    // The announced length: known before any byte of the body is read.
    if body.size_hint().lower() > max as u64 {
        return Err(RouteError::BodyTooLarge { max });
    }
    let receiving = async {
        match boundary {
            None => {
                let (body, reservation) = receive_json(uploads, encoding, body, tenant).await?;
                Ok((Received::Json(body), reservation))
            }
            Some(boundary) => {
                // Boxed: few requests have a form, and its state is large.
                let form = Box::pin(receive_form(uploads, encoding, boundary, body, tenant));
                let (form, reservation) = form.await?;
                Ok((Received::Form(form), Arc::new(reservation)))
            }
        }
    };
    let receiving = pin!(tokio::time::timeout(uploads.deadline, receiving));
    match uploads.stop.run_until_cancelled(receiving).await {
        Some(received) => received.unwrap_or(Err(RouteError::BodyTimeout)),
        None => Err(RouteError::Stopping),
    }
}

/// Does the same as [`receive`] with a body of any type.
pub(crate) async fn receive_any(
    uploads: &Uploads,
    headers: &HeaderMap,
    body: Body,
    tenant: Option<&str>,
) -> Result<(Bytes, Arc<Reservation>), RouteError> {
    match receive(uploads, BodyKind::AnyJson, headers, body, tenant).await? {
        (Received::Json(body), reservation) => Ok((body, reservation)),
        // Never: only bodies of the other kinds are forms.
        (Received::Form(form), reservation) => Ok((form.json(), reservation)),
    }
}

async fn receive_json(
    uploads: &Uploads,
    encoding: Option<ContentEncoding>,
    body: Body,
    tenant: Option<&str>,
) -> Result<(Bytes, Arc<Reservation>), RouteError> {
    let exact = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let expected = exact.filter(|_| encoding.is_none()).unwrap_or(usize::MAX);
    // A decoder has memory that no byte of its body accounts for.
    let _decoder = match encoding {
        Some(_) => Some(uploads.decoders.acquire(tenant).await),
        None => None,
    };
    let mut body = decode(encoding, Wire::new(uploads, body, uploads.max_body)).await;
    let mut reservation = Reservation::new(&uploads.memory, tenant);
    let mut data = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| body_error(error, encoding, uploads.max_body))?;
        // Trailers have no meaning here.
        let Ok(chunk) = frame.into_data() else { continue };
        if data.len() + chunk.len() > uploads.max_body {
            return Err(RouteError::BodyTooLarge { max: uploads.max_body });
        }
        reservation.grow(chunk.len())?;
        append(&mut data, &chunk, expected);
    }
    let reservation = Arc::new(reservation);
    let received = ReceivedBytes { data, _reservation: Arc::clone(&reservation) };
    Ok((Bytes::from_owner(received), reservation))
}

/// Returns why a body could not be received: an error that is not one of the connection is one of
/// the decoder.
fn body_error(
    error: Box<dyn Error + Send + Sync>,
    encoding: Option<ContentEncoding>,
    max: usize,
) -> RouteError {
    match error.downcast::<WireError>().map(|error| *error) {
        Ok(WireError::Timeout) => RouteError::BodyTimeout,
        Ok(WireError::TooLarge) => RouteError::BodyTooLarge { max },
        Ok(WireError::Incomplete(error)) => RouteError::IncompleteBody(error.into()),
        Err(cause) => match encoding {
            Some(encoding) => RouteError::InvalidEncoding { encoding: encoding.name(), cause },
            None => RouteError::IncompleteBody(cause),
        },
    }
}

/// Returns the error for an encoding that the host cannot decode.
fn content_encoding(headers: &HeaderMap) -> RouteError {
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    let names: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    RouteError::ContentEncoding(names.join(", "))
}

/// Returns what the body of a request for an endpoint has to be.
pub(crate) fn body_kind(endpoint: Endpoint, headers: &HeaderMap) -> BodyKind {
    // Ollama does not look at the type, and `curl -d` sends that of forms. Browsers send that type
    // for any page without asking, but never without an origin.
    let is_ollama = EndpointShape::for_endpoint(endpoint).errors == ErrorForm::Ollama;
    match is_ollama && !headers.contains_key(header::ORIGIN) {
        true => BodyKind::AnyJson,
        false => BodyKind::for_endpoint(endpoint),
    }
}

/// Checks that a body is of this kind. Returns the boundary of a form; `None` for JSON.
fn check_content_type(kind: BodyKind, headers: &HeaderMap) -> Result<Option<String>, RouteError> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let essence = given.unwrap_or("").split(';').next().unwrap_or("").trim();
    let is_form = essence.eq_ignore_ascii_case("multipart/form-data");
    let is_json = essence.eq_ignore_ascii_case("application/json");
    match (kind, given) {
        (BodyKind::Form | BodyKind::Either, Some(given)) if is_form => boundary_of(given).map(Some),
        (BodyKind::Json | BodyKind::Either, Some(_)) if is_json => Ok(None),
        (BodyKind::AnyJson, _) => Ok(None),
        (BodyKind::Json | BodyKind::Form | BodyKind::Either, given) => {
            let expected = match kind {
                BodyKind::Json | BodyKind::AnyJson | BodyKind::Either => "application/json",
                BodyKind::Form => "multipart/form-data",
            };
            Err(RouteError::ContentType { expected, given: given.map(str::to_owned) })
        }
    }
}

#[cfg(test)]
mod tests;
