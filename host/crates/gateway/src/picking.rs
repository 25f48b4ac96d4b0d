//! Requests that a proxy sends to the engines: the proxy asks for the endpoint, and passes on the
//! response. They are served as all others, so that everything that follows from a request is the
//! same: advice, queues, limits, metrics, records.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::Request;
use pointsman_fleet::{ProxyExchange, ProxySide};

use crate::gateway::Gateway;
use crate::proxying::ProxyContext;
use crate::routes::{ClientRoutes, Routes};
use crate::served::{Served, ServedSlot};
use crate::settings::ListenerSettings;

/// Serves the requests of a proxy.
#[derive(Clone)]
pub struct Picker {
    gateway: Gateway,
    served: ServedSlot,
}

impl fmt::Debug for Picker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picker").finish_non_exhaustive()
    }
}

impl Picker {
    /// Creates what serves the requests of a proxy. Its default model and names are those of
    /// `settings`, and of the listener with the same first address after a reload.
    pub fn new(gateway: &Gateway, settings: ListenerSettings) -> Self {
        let mut settings = Arc::new(settings);
        let make = move |gateway: &Gateway, all: &[ListenerSettings]| {
            let is_same =
                |new: &&ListenerSettings| new.addresses.first() == settings.addresses.first();
            if let Some(changed) = all.iter().find(is_same) {
                settings = Arc::new(changed.clone());
            }
            let status = gateway.status();
            let routes = ClientRoutes::for_proxy(gateway.pipeline(), status, Arc::clone(&settings));
            Served::new(Routes::Clients(Box::new(routes)), gateway.timeouts(), None)
        };
        Self { gateway: gateway.clone(), served: gateway.add_listener(Box::new(make)) }
    }

    /// Begins a request that the proxy has received. `subset` has the hosts and ports of the only
    /// engines that the proxy can use; `None` for all. Returns the future of the response for the
    /// client, and what the proxy is asked to send for it, if it gets that far. Dropping the future
    /// or the body of the response ends the request as a client does that hangs up.
    pub fn begin(
        &self,
        mut request: Request<Body>,
        subset: Option<Vec<String>>,
    ) -> (impl Future<Output = Response> + Send + use<>, ProxySide) {
        let lanes = self.gateway.pipeline().settings.proxy_lanes.clone().unwrap_or_default();
        let (exchange, side) = ProxyExchange::new();
        request.extensions_mut().insert(Arc::new(ProxyContext { exchange, subset, lanes }));
        let served = self.served.load_full();
        (served.routes.serve(request), side)
    }

    /// Registers a request for which the drain waits until the guard is dropped. `None` once the
    /// drain has begun.
    pub fn register(&self) -> Option<Box<dyn Send + Sync>> {
        let token = self.gateway.drain().register()?;
        Some(Box::new(token))
    }
}
