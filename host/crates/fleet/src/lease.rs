//! A lease: the right to use one slot of one lane, from dispatch to the last byte of the response.

use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, Response};
use pointsman_domain::dispatch::Report;
use pointsman_domain::{Endpoint, PromptHasher, PromptHashes, ServedPrompt, Serving, Trigger};

use crate::conversations::{ConversationPrompt, Placed};
use crate::message::Grant;
use crate::proxied::{self, Proxying};
use crate::request_body::RequestBody;
use crate::upstream::{EngineBody, EngineError};
use crate::upstream_api::UpstreamApi;

const VLLM_PRIORITY: HeaderName = HeaderName::from_static("x-vllm-priority");

/// A lease on one slot of one lane. The slot is released on drop.
#[derive(Debug)]
pub struct Lease {
    /// The slot of the engine that has the conversation. Dropped before the grant: the request that
    /// is granted next needs a free one.
    placed: OnceLock<Placed>,
    grant: Grant,
    /// What was known of the prompt that the engine has processed.
    served: Option<ServedPrompt>,
}

impl Lease {
    pub(crate) fn new(grant: Grant) -> Self {
        Self { placed: OnceLock::new(), grant, served: None }
    }

    /// Returns the name of the lane.
    pub fn lane_name(&self) -> &str {
        &self.grant.lane_name
    }

    /// Returns the model name to send to the engine for a request that names `model`, or `None` to
    /// keep the client's.
    pub fn engine_model(&self, model: &str) -> Option<&str> {
        let Grant { topology, slot, engine_model, .. } = &self.grant;
        let adapter = topology.adapter(slot.lane(), model);
        let of_lane = || topology.model_of(slot.lane(), model);
        adapter.or(engine_model.as_deref()).or_else(of_lane)
    }

    /// Returns how the engine serves an endpoint.
    pub fn serving(&self, endpoint: Endpoint) -> Serving {
        self.grant.topology.serving(self.grant.slot.lane(), endpoint)
    }

    /// Returns true if the host asks for the usage of streams whose clients have not.
    pub fn asks_stream_usage(&self) -> bool {
        self.grant.stream_usage
    }

    /// Returns the maximum time from sending a request to the first byte of the response body.
    pub fn first_byte_timeout(&self) -> Duration {
        self.grant.upstream.timeouts.first_byte
    }

    /// Returns true if the host does not run the engine.
    pub fn is_external(&self) -> bool {
        self.grant.target.external
    }

    /// Returns true if the engine is another host.
    pub fn is_peer(&self) -> bool {
        self.grant.target.peer
    }

    /// Returns the priority with which the slot was granted.
    pub fn priority(&self) -> i32 {
        self.grant.priority
    }

    /// Returns the host and the port of the engine.
    pub fn authority(&self) -> &str {
        &self.grant.target.authority
    }

    /// Returns the number of the load that the engine began with, as in
    /// [`FinishedSwitch`](crate::FinishedSwitch).
    pub fn switch(&self) -> Option<u64> {
        self.grant.switch
    }

    /// Returns true if requests carry a key of the host for the engine.
    pub fn sends_key(&self) -> bool {
        self.grant.target.key.is_some()
    }

    /// Returns the configured trigger for a status of the engine.
    pub fn fallback_trigger(&self, status: u16) -> Option<Trigger> {
        self.grant.fallback_statuses.get(&status).copied()
    }

    /// Returns true if a request can be placed: what its engine has cached of conversations is
    /// saved and restored.
    pub fn keeps_conversations(&self) -> bool {
        self.grant.target.conversations.is_some()
    }

    /// Chooses the slot of the engine that gets the request, and restores its conversation if it
    /// was saved. Returns the id of the slot; `None` if the engine chooses one.
    pub async fn place(&self, prompt: ConversationPrompt) -> Option<u32> {
        let Grant { target, upstream, .. } = &self.grant;
        let session = target.conversations.as_ref()?;
        let placed = session.place(&UpstreamApi { upstream, target }, prompt).await?;
        // A request is placed once; otherwise the first slot counts.
        Some(self.placed.get_or_init(|| placed).slot())
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
        body: impl Into<RequestBody>,
    ) -> Result<Response<EngineBody>, EngineError> {
        self.request(Method::POST, path, headers, body).await
    }

    /// Does the same as [`Lease::send`] with any method.
    ///
    /// # Errors
    /// As [`Lease::send`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: impl Into<RequestBody>,
    ) -> Result<Response<EngineBody>, EngineError> {
        let headers = self.with_priority(headers);
        let Grant { target, upstream, .. } = &self.grant;
        let response = pin!(upstream.forward(target, method, path, headers, body.into()));
        self.unless_evicted(response).await
    }

    /// Lets a proxy send a request in the host's place, and returns the response that it receives.
    ///
    /// # Errors
    /// As [`Lease::send`]; also if the proxy has used another endpoint, or ends the exchange.
    pub async fn send_by_proxy(
        &self,
        proxying: Proxying<'_>,
        path: &str,
        headers: HeaderMap,
        body: impl Into<RequestBody>,
    ) -> Result<Response<EngineBody>, EngineError> {
        let sent = (self.with_priority(headers), body.into());
        let Grant { target, upstream, .. } = &self.grant;
        let response = pin!(proxied::forward(upstream, target, proxying, path, sent));
        self.unless_evicted(response).await
    }

    /// Adds the priority for an engine that orders its own queue.
    fn with_priority(&self, mut headers: HeaderMap) -> HeaderMap {
        let Grant { target, priority, .. } = &self.grant;
        if target.priorities && *priority != 0 {
            // vLLM serves lower numbers first, so the sign is flipped; i64 because -i32::MIN
            // overflows.
            headers.insert(VLLM_PRIORITY, (-i64::from(*priority)).into());
        }
        headers
    }

    /// Awaits a response, unless the lane is evicted and its drain timeout expires. The response
    /// is pinned by the caller: passed by value, its state of kilobytes would be copied.
    async fn unless_evicted(
        &self,
        response: Pin<&mut impl Future<Output = Result<Response<EngineBody>, EngineError>>>,
    ) -> Result<Response<EngineBody>, EngineError> {
        match &self.grant.abort {
            None => response.await,
            Some(abort) => match abort.run_until_cancelled(response).await {
                Some(response) => Ok(response?.map(|body| body.abort_on(abort))),
                None => Err(EngineError::Evicted),
            },
        }
    }

    /// Records that the first byte of the response body has arrived.
    pub fn first_byte(&mut self) {
        self.grant.slot.report.first_byte = Some(self.grant.slot.held());
    }

    /// Returns the hasher for [`Lease::prompt_served`].
    pub fn prompt_hasher(&self) -> &PromptHasher {
        self.grant.prefixes.hasher()
    }

    /// Records that the engine has processed the prompt, which is in its prefix cache now.
    pub fn prompt_served(&mut self, prompt: &PromptHashes) {
        let Grant { prefixes, slot, .. } = &self.grant;
        self.served = (!prompt.is_empty()).then(|| prefixes.served(slot.lane(), prompt));
    }

    /// Returns true if the engine's usage of tokens is worth knowing: it improves the estimates of
    /// cached tokens, and tells what a slot of the engine has.
    pub fn needs_usage(&self) -> bool {
        self.served.is_some() || self.placed.get().is_some()
    }

    /// Records the prompt tokens that the engine reported, how many of them were cached, if it
    /// reports that, and the tokens of the response.
    pub fn report_usage(&mut self, prompt_tokens: u32, cached: Option<u32>, completion: u32) {
        if let Some(placed) = self.placed.get_mut() {
            placed.report_usage(prompt_tokens, cached, completion);
        }
        let Grant { prefixes, slot, .. } = &self.grant;
        if let Some(served) = self.served.take() {
            prefixes.report(slot.lane(), &served, prompt_tokens, cached);
        }
    }

    /// Ends the lease and reports whether the engine failed the request, and whether because its
    /// connection was severed.
    pub fn finish(mut self, failed: bool, severed: bool) {
        self.grant.slot.report.failed = failed;
        self.grant.slot.report.severed = severed;
    }

    /// Ends the lease of a request that another host has served.
    pub(crate) fn end(mut self, report: Report) {
        self.grant.slot.report = report;
    }

    /// Returns the port of the engine; `None` if the host does not run it.
    pub(crate) fn port(&self) -> Option<u16> {
        self.grant.target.port()
    }

    /// Returns the traffic of the engine's current start.
    #[cfg(test)]
    pub(crate) fn activity(&self) -> &crate::activity::Activity {
        &self.grant.target.activity
    }

    #[cfg(test)]
    pub(crate) fn generation(&self) -> pointsman_domain::dispatch::Generation {
        self.grant.slot.generation()
    }
}
