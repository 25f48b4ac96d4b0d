//! The connection by which slots of an engine are saved and restored.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use crate::conversations::EngineCalls;
use crate::driver::Target;
use crate::upstream::Upstream;

/// The connection to an engine, for saving and restoring its slots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotApi<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) target: &'a Target,
}

impl EngineCalls for SlotApi<'_> {
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
