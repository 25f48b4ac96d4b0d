//! A lease: the right to use one slot of one lane, from dispatch to the last byte of the answer.

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

/// One slot of one lane. Given back when dropped, however that comes about.
#[derive(Debug)]
pub struct Lease {
    pub(crate) lane: LaneId,
    pub(crate) generation: Generation,
    pub(crate) lane_name: Arc<str>,
    pub(crate) engine_model: Option<Arc<str>>,
    pub(crate) target: Arc<Target>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) mailbox: UnboundedSender<Message>,
    /// Ends what is left of this life's answers, where the rules allow that.
    pub(crate) cut: Option<CancellationToken>,
    pub(crate) priority: i32,
    pub(crate) granted: Instant,
    pub(crate) report: Report,
}

impl Lease {
    /// Name of the lane.
    pub fn lane_name(&self) -> &str {
        &self.lane_name
    }

    /// Model name that the engine knows; the client's where `None`.
    pub fn engine_model(&self) -> Option<&str> {
        self.engine_model.as_deref()
    }

    /// Longest time to the first byte of an answer.
    pub fn first_byte_timeout(&self) -> Duration {
        self.upstream.timeouts.first_byte
    }

    /// Send a request to the engine. Dropping the future, or the body of the answer, closes the connection.
    ///
    /// # Errors
    /// When there is no connection, or it breaks before the answer's head.
    pub async fn send(
        &self,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<EngineBody>, EngineError> {
        let mut headers = headers;
        if self.target.priorities && self.priority != 0 {
            // vLLM serves lower numbers first.
            headers.insert(VLLM_PRIORITY, (-i64::from(self.priority)).into());
        }
        let answer = self.upstream.post(&self.target, path, headers, body);
        match &self.cut {
            None => answer.await,
            Some(cut) => match cut.run_until_cancelled(answer).await {
                Some(answer) => Ok(answer?.map(|body| body.cut_by(cut))),
                None => Err(EngineError::Evicted),
            },
        }
    }

    /// The first byte of the answer is there.
    pub fn first_byte(&mut self) {
        self.report.first_byte = Some(self.granted.elapsed());
    }

    /// The request is over; did the engine fail it, and is its connection to blame?
    pub fn finish(mut self, failed: bool, severed: bool) {
        self.report.failed = failed;
        self.report.severed = severed;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.report.held = self.granted.elapsed();
        let Self { lane, generation, report, .. } = *self;
        // Without an actor there is nobody left to count slots.
        let _gone = self.mailbox.send(Message::Released { lane, generation, report });
    }
}
