//! `GET /fleet`: what other hosts learn of the lanes of this one, as server-sent events.
//!
//! ```text
//!   event: topology    the host and its lanes: first, and when they change
//!   event: lanes       states and metrics of the lanes that have changed: at most each 100 ms
//!   event: heartbeat   each 400 ms in which nothing has changed
//! ```
//!
//! The events are made once for all readers, by the first one that asks in an interval; without
//! readers, nothing is made. A reader that is behind gets everything anew; one that does not read
//! at all ends with the limits of its connection.

mod publisher;
mod readers;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use http::{HeaderName, HeaderValue, header};
use parking_lot::Mutex;
use pointsman_access::{Identity, Keys};
use pointsman_fleet::Fleet;
use pointsman_peers::{Event, Heartbeat};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::publisher::Publisher;
pub(crate) use self::readers::FleetReader;
use self::readers::{Readers, Registered};
use crate::error::RouteError;
use crate::metrics::GatewayMetrics;
use crate::response::error;
use crate::rights;

/// Minimum time between two events about lanes.
const INTERVAL: Duration = Duration::from_millis(100);
/// Time without an event after which a heartbeat is sent: two of them may be late before a reader
/// takes the host for silent.
const HEARTBEAT: Duration = Duration::from_millis(400);
/// How often the key of a reader is checked again.
const KEY_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Readers at a time.
const MAX_READERS: usize = 512;
/// Tells proxies not to hold events back.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What the readers share.
pub(crate) struct FleetStream {
    publisher: Mutex<Publisher>,
    permits: Arc<Semaphore>,
    /// The intervals of all readers begin at multiples of [`INTERVAL`] after this time, so that one
    /// look at the lanes is for all of them.
    begun: Instant,
    keys: Keys,
    /// Cancelled when the host stops.
    stop: CancellationToken,
    metrics: Arc<GatewayMetrics>,
    readers: Arc<Readers>,
}

impl FleetStream {
    /// Creates the stream of a host with this name. `stop` ends all of its readers.
    pub(crate) fn new(
        (fleet, name): (Fleet, String),
        keys: Keys,
        stop: CancellationToken,
        metrics: Arc<GatewayMetrics>,
    ) -> Self {
        Self {
            publisher: Mutex::new(Publisher::new(fleet, name)),
            permits: Arc::new(Semaphore::new(MAX_READERS)),
            begun: Instant::now(),
            keys,
            stop,
            metrics,
            readers: Arc::default(),
        }
    }

    /// Returns who reads what this host tells, in the order of their connections.
    pub(crate) fn readers(&self) -> Vec<FleetReader> {
        self.readers.list()
    }

    /// Returns the interval of a reader.
    fn interval(&self) -> Interval {
        let since = self.begun.elapsed().as_millis();
        // The remainder is less than the interval.
        let rest = INTERVAL.as_millis() - since % INTERVAL.as_millis();
        let first = Instant::now() + Duration::from_millis(u64::try_from(rest).unwrap_or(0));
        let mut interval = tokio::time::interval_at(first, INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
        interval
    }
}

/// `GET /fleet` on a listener for clients: for other hosts.
pub(crate) async fn for_peers(
    State(shared): State<Arc<FleetStream>>,
    request: Request,
) -> Response {
    match rights::identify(&shared.keys, request.headers(), request.extensions()) {
        Ok(identity) if identity.is_peer => serve(&shared, Some(&identity), request),
        // An open host accepts all clients, but tells only other hosts.
        Ok(identity) if identity.tenant.is_none() => error(request, RouteError::Unauthorized),
        Ok(_) => error(request, RouteError::PeerKeyRequired),
        Err(refused) => error(request, refused),
    }
}

/// `GET /fleet` on a listener of the admin API: for operators.
pub(crate) async fn for_operators(
    State(shared): State<Arc<FleetStream>>,
    request: Request,
) -> Response {
    serve(&shared, None, request)
}

fn serve(shared: &Arc<FleetStream>, peer: Option<&Identity>, request: Request) -> Response {
    if shared.stop.is_cancelled() {
        return error(request, RouteError::Stopping);
    }
    let Ok(permit) = Arc::clone(&shared.permits).try_acquire_owned() else {
        return error(request, RouteError::TooManyRequests);
    };
    shared.metrics.fleet_readers.inc();
    let reader = Reader {
        shared: Arc::clone(shared),
        key: peer.map(|peer| peer.key),
        _registered: shared.readers.register(peer.and_then(Identity::peer_name)),
        interval: shared.interval(),
        position: None,
        next: VecDeque::new(),
        last_sent: Instant::now(),
        key_checked: Instant::now(),
        _permit: permit,
    };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (BUFFERING, HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

/// The events of one reader.
struct Reader {
    shared: Arc<FleetStream>,
    /// The number of the reader's key; `None` for an operator.
    key: Option<u64>,
    interval: Interval,
    /// The number of the next event; `None` for a reader that has nothing.
    position: Option<u64>,
    next: VecDeque<Bytes>,
    last_sent: Instant,
    key_checked: Instant,
    _registered: Registered,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    /// Returns the next event; `None` when the host stops, and when the key is revoked.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(next) = self.next.pop_front() {
                self.last_sent = Instant::now();
                return Some(next);
            }
            // The first events at once.
            if self.position.is_some() {
                tokio::select! {
                    () = self.shared.stop.cancelled() => return None,
                    _ = self.interval.tick() => {}
                }
            }
            if self.is_revoked() {
                return None;
            }
            let mut publisher = self.shared.publisher.lock();
            publisher.refresh(Instant::now(), INTERVAL);
            self.position = Some(publisher.since(self.position, &mut self.next));
            if self.next.is_empty() && self.last_sent.elapsed() >= HEARTBEAT {
                let heartbeat = Heartbeat { generation: publisher.generation() };
                self.next.push_back(Event::Heartbeat(heartbeat).to_sse().into());
            }
        }
    }

    fn is_revoked(&mut self) -> bool {
        if self.key_checked.elapsed() < KEY_CHECK_INTERVAL {
            return false;
        }
        self.key_checked = Instant::now();
        self.key.is_some_and(|key| !self.shared.keys.has_peer(key))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.metrics.fleet_readers.dec();
    }
}
