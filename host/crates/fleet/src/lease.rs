//! A lease: the right to use one slot of one lane, from dispatch to the last byte of the response.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};
use pointsman_domain::LaneId;
use pointsman_domain::dispatch::{Generation, Report};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::actor::Message;
use crate::driver::Target;
use crate::upstream::{EngineBody, EngineError, Upstream};

const VLLM_PRIORITY: HeaderName = HeaderName::from_static("x-vllm-priority");

/// A lease on one slot of one lane. The slot is released on drop.
#[derive(Debug)]
pub struct Lease {
    pub(crate) lane: LaneId,
    pub(crate) generation: Generation,
    pub(crate) lane_name: Arc<str>,
    pub(crate) engine_model: Option<Arc<str>>,
    pub(crate) target: Arc<Target>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) mailbox: UnboundedSender<Message>,
    /// Cancelled to abort the in-flight responses of this generation; `None` without a drain
    /// timeout.
    pub(crate) abort: Option<CancellationToken>,
    pub(crate) priority: i32,
    pub(crate) granted: Instant,
    pub(crate) report: Report,
}

impl Lease {
    /// Returns the name of the lane.
    pub fn lane_name(&self) -> &str {
        &self.lane_name
    }

    /// Returns the model name to send to the engine, or `None` to keep the client's.
    pub fn engine_model(&self) -> Option<&str> {
        self.engine_model.as_deref()
    }

    /// Returns the maximum time from sending a request to the first byte of the response body.
    pub fn first_byte_timeout(&self) -> Duration {
        self.upstream.timeouts.first_byte
    }

    /// Sends a request to the engine and returns the response head with its streaming body.
    /// Dropping the future or the body closes the connection.
    ///
    /// # Errors
    /// Returns an error if the connection cannot be made or breaks before the response head has
    /// arrived, or if the lane is evicted and its drain timeout expires.
    pub async fn send(
        &self,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<EngineBody>, EngineError> {
        let mut headers = headers;
        if self.target.priorities && self.priority != 0 {
            // vLLM serves lower numbers first, so the sign is flipped; i64 because -i32::MIN
            // overflows.
            headers.insert(VLLM_PRIORITY, (-i64::from(self.priority)).into());
        }
        let response = self.upstream.post(&self.target, path, headers, body);
        match &self.abort {
            None => response.await,
            Some(abort) => match abort.run_until_cancelled(response).await {
                Some(response) => Ok(response?.map(|body| body.abort_on(abort))),
                None => Err(EngineError::Evicted),
            },
        }
    }

    /// Records that the first byte of the response body has arrived.
    pub fn first_byte(&mut self) {
        self.report.first_byte = Some(self.granted.elapsed());
    }

    /// Ends the lease and reports whether the engine failed the request, and whether because its
    /// connection was severed.
    pub fn finish(mut self, failed: bool, severed: bool) {
        self.report.failed = failed;
        self.report.severed = severed;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.report.held = self.granted.elapsed();
        let Self { lane, generation, report, .. } = *self;
        // Fails only if the actor has ended, and the slots with it.
        self.mailbox.send(Message::Released { lane, generation, report }).ok();
    }
}
