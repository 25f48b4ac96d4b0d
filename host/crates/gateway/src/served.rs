//! What a listener serves requests with: a snapshot of the configuration. A request uses the one
//! that is in force when it arrives until its end, so that it has one configuration.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;

use crate::connection::Timeouts;
use crate::cors::Cors;
use crate::hosts::AllowedHosts;
use crate::routes::Routes;

/// The snapshot of a listener, which a reload replaces.
pub(crate) type ServedSlot = Arc<ArcSwap<Served>>;

/// What a listener serves requests with.
pub(crate) struct Served {
    pub(crate) routes: Routes,
    /// Of the connections that are accepted from now on.
    pub(crate) timeouts: Timeouts,
    /// Host names of the listener; `None` for a Unix socket.
    pub(crate) hosts: Option<AllowedHosts>,
    /// Which pages of other origins may use the listener; `None` for none.
    pub(crate) cors: Option<Arc<Cors>>,
    /// The value of the header `Keep-Alive`.
    pub(crate) keep_alive: Option<HeaderValue>,
}

impl Served {
    /// Creates the snapshot of a listener that pages of other origins may not use.
    pub(crate) fn new(routes: Routes, timeouts: Timeouts, hosts: Option<AllowedHosts>) -> Self {
        let keep_alive = HeaderValue::from_str(&format!("timeout={}", timeouts.idle.as_secs()));
        Self { routes, timeouts, hosts, cors: None, keep_alive: keep_alive.ok() }
    }
}
