//! Calls of an engine's own API over the connection of its lane: for sleep and wake-up, and for
//! saving and restoring slots.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::conversations::EngineCalls;
use crate::driver::Target;
use crate::drivers::vllm::sleep::EngineApi;
use crate::upstream::{EngineError, Upstream};

/// The connection of a lane to its engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UpstreamApi<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) target: &'a Target,
}

impl EngineApi for UpstreamApi<'_> {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), EngineError> {
        self.upstream.call(self.target, method, path, body, timeout).await
    }
}

impl EngineCalls for UpstreamApi<'_> {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        timeout: Duration,
    ) -> Option<(StatusCode, Bytes)> {
        self.upstream.call(self.target, method, path, body, timeout).await.ok()
    }
}
