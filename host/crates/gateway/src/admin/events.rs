//! `GET /events`: the status, decisions and the log as server-sent events, as they change.
//!
//! ```text
//!   event: state      the whole status, at once and then at changes, at most four times per second
//!   event: keys       the keys that are nearest to their limits, at once and at changes, at most
//!                     once per second
//!   event: decision   a decision, when its request has ended
//!   event: log        a line of the log: the last ones at once, and then each new one
//!   event: lost       how many events of a stream this client was too slow for
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures_util::stream;
use http::{HeaderName, HeaderValue, header};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::operator::SessionEnd;
use super::requests::unix_ms;
use super::{keys, snapshot};
use crate::decisions::EndedRequest;
use crate::error::RouteError;
use crate::gateway::Gateway;
use crate::pipeline::Pipeline;
use crate::response::{self, error, only};
use crate::status::StatusSources;

/// Minimum time between two states.
const STATE_INTERVAL: Duration = Duration::from_millis(250);
/// Minimum time between two events about keys.
const KEYS_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of comments while nothing changes, by which a client that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tells proxies not to hold events back.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What events are made of.
#[derive(Clone)]
struct Sources {
    host: Arc<StatusSources>,
    pipeline: Arc<Pipeline>,
}

pub(super) fn routes(gateway: &Gateway) -> Router {
    let host = Arc::clone(gateway.status());
    let sources = Sources { host, pipeline: gateway.pipeline() };
    Router::new()
        .route("/events", only("GET", get(events)))
        .route("/lane-history", only("GET, HEAD", get(history)))
        .with_state(sources)
}

async fn history(State(Sources { host, .. }): State<Sources>) -> Response {
    let changes = host.fleet.history().into_iter().map(|change| {
        json!({
            "unix_ms": unix_ms(change.time),
            "lane": &*change.lane,
            "state": change.state.label(),
        })
    });
    response::json(json!({ "changes": changes.collect::<Vec<_>>() }).to_string())
}

async fn events(
    State(Sources { host, pipeline }): State<Sources>,
    session: Option<Extension<SessionEnd>>,
    request: Request,
) -> Response {
    let Ok(permit) = Arc::clone(&host.event_streams).try_acquire_owned() else {
        return error(request, RouteError::TooManyRequests);
    };
    let mut interval = tokio::time::interval(STATE_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (lines, log) = host.log.subscribe();
    let next = lines.iter().map(|line| event("log", line)).collect();
    // The page has the earlier ones from `/decisions`.
    let decisions = pipeline.decisions.subscribe();
    let session = session.map(|Extension(session)| session);
    let events = EventStream {
        stop: host.stop.clone(),
        host,
        pipeline,
        session,
        interval,
        log,
        decisions,
        next,
        last_state: String::new(),
        last_keys: None,
        keys_compared: None,
        last_sent: Instant::now(),
        _permit: permit,
    };
    let events = stream::unfold(events, |mut events| async move {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (BUFFERING, HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

/// The events of one client.
struct EventStream {
    host: Arc<StatusSources>,
    pipeline: Arc<Pipeline>,
    /// Cancelled when the host stops.
    stop: CancellationToken,
    /// The session of the client; `None` if it has a token.
    session: Option<SessionEnd>,
    interval: Interval,
    log: broadcast::Receiver<Arc<str>>,
    decisions: broadcast::Receiver<Arc<EndedRequest>>,
    /// Events that are sent before others.
    next: VecDeque<String>,
    /// The state that was sent last.
    last_state: String,
    /// What was sent last about keys; texts that are the same are the same pointer.
    last_keys: Option<Arc<str>>,
    /// When that was compared with what is; `None` if never.
    keys_compared: Option<Instant>,
    last_sent: Instant,
    _permit: OwnedSemaphorePermit,
}

impl EventStream {
    /// Returns the next event; `None` at the end of the session, and when the host stops.
    async fn next(&mut self) -> Option<String> {
        let (stop, session) = (self.stop.clone(), self.session.clone());
        let found = tokio::select! {
            () = stop.cancelled() => None,
            () = ended(session) => None,
            event = self.find() => Some(event),
        };
        self.last_sent = Instant::now();
        found
    }

    async fn find(&mut self) -> String {
        loop {
            // The state first, so that a client that connects has all to show something.
            let has_state = !self.last_state.is_empty();
            if has_state && let Some(next) = self.next.pop_front() {
                return next;
            }
            tokio::select! {
                _ = self.interval.tick() => {
                    // Sent after the state.
                    let keys = self.changed_keys().await;
                    keys.into_iter().for_each(|event| self.next.push_front(event));
                    if let Some(event) = self.changed_state().await {
                        return event;
                    }
                }
                line = self.log.recv(), if has_state => return received("log", line).await,
                row = self.decisions.recv(), if has_state => {
                    let row = row.map(|request| request.row().to_string().into());
                    return received("decision", row).await;
                }
            }
        }
    }

    /// Returns the keys that are nearest to their limits if that has changed.
    async fn changed_keys(&mut self) -> Option<String> {
        if self.keys_compared.is_some_and(|compared| compared.elapsed() < KEYS_INTERVAL) {
            return None;
        }
        self.keys_compared = Some(Instant::now());
        let make = |pipeline: &Pipeline| keys::report(pipeline, keys::DEFAULT_KEYS).to_string();
        let keys = self.host.keys_feed.text(&self.pipeline, make).await;
        if self.last_keys.as_ref().is_some_and(|last| Arc::ptr_eq(last, &keys)) {
            return None;
        }
        let event = event("keys", &keys);
        self.last_keys = Some(keys);
        Some(event)
    }

    /// Returns the state if it is another one than before, or a comment if it is time for one.
    async fn changed_state(&mut self) -> Option<String> {
        let state = snapshot::document(&self.host, &self.pipeline.in_flight).await.to_string();
        if state == self.last_state {
            return (self.last_sent.elapsed() >= KEEP_ALIVE).then(|| ":\n\n".to_owned());
        }
        // Not a part of the document, because it changes all the time.
        let now = unix_ms(SystemTime::now());
        let event = event("state", &state.replacen('{', &format!("{{\"unix_ms\":{now},"), 1));
        self.last_state = state;
        Some(event)
    }
}

/// Waits until a session ends; pends forever without one.
async fn ended(session: Option<SessionEnd>) {
    match session {
        Some(SessionEnd { early, expires }) => tokio::select! {
            () = early.cancelled() => {}
            () = tokio::time::sleep_until(expires) => {}
        },
        None => std::future::pending().await,
    }
}

/// Returns an event. The data is JSON, which has no line breaks.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// Returns the event for what a feed has brought.
async fn received(name: &str, received: Result<Arc<str>, RecvError>) -> String {
    match received {
        Ok(text) => event(name, &text),
        Err(RecvError::Lagged(count)) => {
            event("lost", &json!({ "stream": name, "count": count }).to_string())
        }
        // The host ends.
        Err(RecvError::Closed) => std::future::pending().await,
    }
}
