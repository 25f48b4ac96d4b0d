//! `pointsman pick`: what differs from `serve`. The requests are those of a proxy, which sends them
//! to the engines itself; everything else is the same.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use pointsman_config::{Config, Listener};
use pointsman_gateway::{Drain, Gateway, ListenAddress, ListenerCopy, ListenerSettings};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::cli::Serve;
use crate::gateway_settings;
use crate::listeners::bind_tcp;
use crate::sockets::{ListenerId, Sockets};

/// What the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It serves clients.
    Host,
    /// It chooses engines for a proxy.
    Picker,
}

/// Why this program or configuration cannot be a picker.
#[derive(Debug)]
pub(crate) struct NotPicker(String);

impl fmt::Display for NotPicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotPicker {}

impl Role {
    /// Checks that a configuration is one for this role.
    ///
    /// # Errors
    /// If a picker has no `[pick]`, or the program was built without the feature.
    pub(crate) fn check(self, file: &Path, config: &Config) -> Result<(), NotPicker> {
        if self == Self::Host {
            return Ok(());
        }
        if !cfg!(feature = "pick") {
            let message = "`pointsman pick` is not part of this build; build it with `cargo build \
                           --release --features pointsman/pick` [feature_missing]";
            return Err(NotPicker(message.to_owned()));
        }
        match config.pick {
            Some(_) => Ok(()),
            None => Err(NotPicker(format!(
                "{}:1: pick: a picker needs the table `[pick]`; add it, or use `pointsman serve` \
                 [missing_key]",
                file.display()
            ))),
        }
    }

    /// Returns the listeners for clients. A picker has none.
    pub(crate) fn listeners(self, config: &Config) -> &[Listener] {
        match self {
            Self::Host => &config.server.listeners,
            Self::Picker => &[],
        }
    }
}

/// The address on which a proxy is served, and its limits.
#[derive(Debug)]
#[cfg_attr(not(feature = "pick"), expect(dead_code, reason = "only read by the feature"))]
pub(crate) struct PickListener {
    /// The name by which the next process finds the socket.
    id: ListenerId,
    listener: TcpListener,
    address: ListenAddress,
    settings: ListenerSettings,
    max_streams: u32,
    max_body: usize,
    #[cfg(feature = "pick")]
    metrics: pointsman_pick::PickMetrics,
}

impl PickListener {
    pub(crate) fn address(&self) -> ListenAddress {
        self.address.clone()
    }

    /// Copies the socket for the next process.
    pub(crate) fn copy(&self) -> std::io::Result<(ListenerId, ListenerCopy)> {
        Ok((self.id.clone(), ListenerCopy::tcp(&self.listener)?))
    }
}

/// Listens for a proxy, with the socket of another process if it has one; `None` for a host.
#[cfg_attr(not(feature = "pick"), expect(unused_variables, reason = "the metrics of the feature"))]
pub(crate) async fn open(
    role: Role,
    options: &Serve,
    config: &Config,
    sockets: &mut Sockets,
    registry: &mut Registry,
) -> Result<Option<PickListener>> {
    let Some(pick) = config.pick.as_ref().filter(|_| role == Role::Picker) else {
        return Ok(None);
    };
    let address = options.listen.unwrap_or(pick.listen);
    let id = ListenerId::Picks(address.to_string());
    let listener = bind_tcp(address, sockets.take(&id)).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr().context("failed to read the address of the listener")?;
    // The names of models are those of the first listener.
    let settings = config.server.listeners.first().map(gateway_settings::of_listener);
    Ok(Some(PickListener {
        id,
        listener,
        address: ListenAddress::Tcp(address),
        settings: settings.unwrap_or_default(),
        max_streams: pick.max_streams,
        max_body: config.server.max_body.max(config.server.max_upload),
        #[cfg(feature = "pick")]
        metrics: pointsman_pick::PickMetrics::register(registry),
    }))
}

#[cfg(not(feature = "pick"))]
pub(crate) async fn serve(_picks: Option<PickListener>, _gateway: &Gateway, _drain: Drain) {}

#[cfg(feature = "pick")]
pub(crate) use self::service::serve;

/// The service for the proxy.
#[cfg(feature = "pick")]
mod service {
    use std::sync::Arc;

    use axum::body::Body;
    use http::{Request, Response};
    use http_body_util::BodyExt as _;
    use pointsman_fleet::ProxiedBody;
    use pointsman_gateway::{ERROR_CODE, ErrorCode, FromEngine, Picker};
    use pointsman_pick::{Backend, BodyError, Exchange, Limits, ServedResponse, Shutdown};

    use super::{Drain, Gateway, PickListener};

    /// Serves a proxy until the drain is closed, or until another process serves it and all streams
    /// have ended.
    pub(crate) async fn serve(picks: Option<PickListener>, gateway: &Gateway, drain: Drain) {
        let Some(picks) = picks else { return };
        let PickListener { listener, settings, max_streams, max_body, metrics, .. } = picks;
        let served = (Arc::new(GatewayBackend(Picker::new(gateway, settings))), metrics);
        let limits = Limits { max_streams, max_body };
        let shutdown = Shutdown {
            retiring: drain.retiring().clone(),
            stopping: drain.stopping().clone(),
            closing: drain.closing().clone(),
        };
        if let Err(error) = pointsman_pick::serve(listener, served, limits, shutdown).await {
            tracing::error!(%error, "the service for the proxy failed");
        }
    }

    struct GatewayBackend(Picker);

    impl Backend for GatewayBackend {
        fn begin(&self, request: Request<ProxiedBody>, subset: Option<Vec<String>>) -> Exchange {
            let guard = self.0.register();
            let (serving, side) = self.0.begin(request.map(Body::new), subset);
            let serving = async move {
                let response = serving.await;
                let is_from_engine = response.extensions().get::<FromEngine>().is_some();
                let code = error_code(&response);
                let response = response.map(|body| body.map_err(BodyError::new).boxed_unsync());
                ServedResponse { response, is_from_engine, code }
            };
            Exchange { serving: Box::pin(serving), side, guard }
        }
    }

    /// Returns the code of an error of the host for metrics: those of policies, which are of any
    /// number, are `other`.
    fn error_code(response: &Response<Body>) -> &'static str {
        let Some(code) = response.headers().get(ERROR_CODE) else { return "none" };
        let known = ErrorCode::ALL.iter().map(|known| known.as_str());
        known.into_iter().find(|known| code == known).unwrap_or("other")
    }
}
