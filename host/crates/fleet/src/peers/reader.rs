//! The reader of one host.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use pointsman_peers::{EventDecoder, Liveness, PeerView, StaleLimits, WireError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::PeerEndpoint;
use super::call::{self, CONNECT_TIMEOUT, InvalidRequest, PeerClient};
use super::metrics::{HostMetrics, PeerMetrics};
use crate::tls;
use crate::upstream::root_cause;

/// Pauses between attempts to connect: each is twice as long as the one before, within these.
const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Why the stream of a host ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The URL or the key cannot be sent.
    #[error(transparent)]
    Request(#[from] InvalidRequest),
    /// The host cannot be reached, or the connection broke.
    #[error("{0}")]
    Connection(String),
    /// The certificate of the host cannot be trusted. It was sent nothing.
    #[error("{0}")]
    Certificate(String),
    /// The host refused. Redirects are not followed.
    #[error("the host returned {0}")]
    Status(StatusCode),
    /// The host has sent nothing for too long.
    #[error("the host sent nothing for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The host has ended the stream.
    #[error("the host ended the stream")]
    Ended,
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl StreamError {
    /// Returns the stable code of the error.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Request(_) => "peer_invalid_request",
            Self::Connection(_) => "peer_unreachable",
            Self::Certificate(_) => "peer_certificate_refused",
            Self::Status(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => "peer_key_refused",
            Self::Status(_) => "peer_unexpected_status",
            Self::Silent(_) => "peer_silent",
            Self::Ended => "peer_ended",
            Self::Wire(error) => error.code(),
        }
    }
}

/// The reader of one host.
pub(super) struct Reader {
    client: PeerClient,
    endpoint: PeerEndpoint,
    stale: StaleLimits,
    metrics: HostMetrics,
    view: watch::Sender<PeerView>,
}

impl Reader {
    pub(super) fn new(
        endpoint: &PeerEndpoint,
        client: PeerClient,
        (stale, metrics): (StaleLimits, &PeerMetrics),
        view: watch::Sender<PeerView>,
    ) -> Self {
        let metrics = metrics.of_host(endpoint.url.to_string());
        Self { client, endpoint: endpoint.clone(), stale, metrics, view }
    }

    /// Reads the host until the task is aborted.
    pub(super) async fn run(self) {
        tokio::join!(self.connect_again(), self.watch_silence());
    }

    /// Reads the stream, and connects again whenever it has ended.
    async fn connect_again(&self) {
        let (jitter, mut attempts, mut pause) = (RandomState::new(), 0u64, MIN_PAUSE);
        loop {
            let begun = Instant::now();
            let Err(error) = self.read().await;
            let host = &self.endpoint.url;
            let code = error.code();
            self.metrics.failed(code);
            let has_changed = self.view.borrow().error != Some(code);
            self.view.send_modify(|view| view.error = Some(code));
            if has_changed {
                tracing::warn!(event = "peer_lost", %host, code, %error, "stream of a host ended");
            }
            // A stream that lasted was not one of several attempts.
            if begun.elapsed() > MAX_PAUSE {
                pause = MIN_PAUSE;
            }
            attempts += 1;
            // Between half of the pause and all of it, so that many readers of a host that has
            // restarted do not come at the same time.
            let share = jitter.hash_one(attempts) % 512;
            sleep(pause / 2 + pause / 1024 * u32::try_from(share).unwrap_or(0)).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Reads one stream to its end.
    async fn read(&self) -> Result<std::convert::Infallible, StreamError> {
        let limit = self.stale.down;
        let response =
            timeout(CONNECT_TIMEOUT + limit, self.client.request(request(&self.endpoint)?));
        let response = response.await.map_err(|_| StreamError::Silent(CONNECT_TIMEOUT + limit))?;
        let response = response.map_err(|error| broken(&error))?;
        if response.status() != StatusCode::OK {
            return Err(StreamError::Status(response.status()));
        }
        self.metrics.connected();
        tracing::info!(event = "peer_connected", host = %self.endpoint.url, "reading a host");
        let (mut body, mut decoder): (Incoming, _) =
            (response.into_body(), EventDecoder::default());
        loop {
            let frame = timeout(limit, body.frame()).await;
            let frame = frame.map_err(|_| StreamError::Silent(limit))?.ok_or(StreamError::Ended)?;
            if let Ok(bytes) = frame.map_err(|error| broken(&error))?.into_data() {
                self.take(&mut decoder, &bytes)?;
            }
        }
    }

    fn take(&self, decoder: &mut EventDecoder, bytes: &[u8]) -> Result<(), StreamError> {
        let mut events = Vec::new();
        let decoded = decoder.push(bytes, |event| events.push(event));
        if !events.is_empty() {
            self.metrics.received(events.len());
            self.metrics.set_liveness(Liveness::Live);
            let now = Instant::now().into_std();
            self.view.send_modify(|view| {
                for event in events {
                    view.apply(event, now);
                }
                view.liveness = view.liveness_at(now, &self.stale);
                view.error = None;
            });
        }
        Ok(decoded?)
    }

    /// Notes when the host has been silent for too long.
    async fn watch_silence(&self) {
        loop {
            let now = Instant::now().into_std();
            let (found, known) = {
                let view = self.view.borrow();
                (view.liveness_at(now, &self.stale), view.liveness)
            };
            if found != known {
                self.metrics.set_liveness(found);
                self.view.send_modify(|view| view.liveness = view.liveness_at(now, &self.stale));
                let (host, state) = (&self.endpoint.url, found.label());
                tracing::warn!(event = "peer_silent", %host, state, "a host is silent");
            }
            let age = self.view.borrow().age(now).unwrap_or_default();
            // When the current state can end first; it becomes live when an event arrives.
            let until = match found {
                Liveness::Live => self.stale.degraded.min(self.stale.down).saturating_sub(age),
                Liveness::Degraded => self.stale.down.saturating_sub(age),
                Liveness::Down => self.stale.degraded,
            };
            // Timers have a resolution of a millisecond.
            sleep(until + Duration::from_millis(1)).await;
        }
    }
}

/// Returns the request for the stream of a host.
pub(super) fn request(endpoint: &PeerEndpoint) -> Result<Request<Empty<Bytes>>, InvalidRequest> {
    let accept = (header::ACCEPT, HeaderValue::from_static("text/event-stream"));
    call::request(endpoint, Method::GET, "/fleet", HeaderMap::from_iter([accept]))
}

/// Returns the error of a connection that failed.
pub(super) fn broken(error: &(dyn std::error::Error + 'static)) -> StreamError {
    let cause = root_cause(error).to_string();
    match tls::is_certificate_error(error) {
        true => StreamError::Certificate(cause),
        false => StreamError::Connection(cause),
    }
}
