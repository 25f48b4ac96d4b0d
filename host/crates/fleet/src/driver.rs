//! What differs between kinds of engines.

use pointsman_domain::EngineKind;

use crate::spec::{EngineSpec, ExternalSpec, ProcessSpec, Secret};

/// The address we give to engines that we start: they are for us alone.
pub(crate) const HOST: &str = "127.0.0.1";

/// Where an engine listens.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Host and port.
    pub(crate) authority: String,
    /// Comes before every path.
    pub(crate) base_path: String,
    /// Sent as a bearer token.
    pub(crate) key: Option<Secret>,
}

/// One kind of engine.
pub(crate) trait Driver: Send + Sync {
    /// What policies see.
    fn kind(&self) -> EngineKind;
    /// How it is started; `None` for one that is not ours to start.
    fn process(&self) -> Option<&ProcessSpec>;
    /// Where it listens, once started on `port`.
    fn target(&self, port: u16) -> Target;
    /// Paths that answer 200 when it can serve, the first one that exists counting.
    fn ready_paths(&self) -> &'static [&'static str];
}

/// The driver for an engine.
pub(crate) fn driver(spec: &EngineSpec) -> Box<dyn Driver> {
    match spec {
        EngineSpec::LlamaCpp(process) => Box::new(LlamaCpp(process.clone())),
        EngineSpec::External(external) => Box::new(External(external.clone())),
    }
}

/// A llama.cpp server: 503 on every path while it loads, then 200 on `/health`.
struct LlamaCpp(ProcessSpec);

impl Driver for LlamaCpp {
    fn kind(&self) -> EngineKind {
        EngineKind::LlamaCpp
    }

    fn process(&self) -> Option<&ProcessSpec> {
        Some(&self.0)
    }

    fn target(&self, port: u16) -> Target {
        Target { authority: format!("{HOST}:{port}"), base_path: String::new(), key: None }
    }

    fn ready_paths(&self) -> &'static [&'static str] {
        &["/health"]
    }
}

/// Any server with the OpenAI API. Not all of them have `/health`.
struct External(ExternalSpec);

impl Driver for External {
    fn kind(&self) -> EngineKind {
        EngineKind::External
    }

    fn process(&self) -> Option<&ProcessSpec> {
        None
    }

    fn target(&self, _port: u16) -> Target {
        let ExternalSpec { authority, base_path, key, .. } = self.0.clone();
        Target { authority, base_path, key }
    }

    fn ready_paths(&self) -> &'static [&'static str] {
        &["/health", "/v1/models"]
    }
}
