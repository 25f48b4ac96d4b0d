//! The host's estimate of cached tokens, from what the simulated engines serve and report.

use std::sync::Arc;

use pointsman_domain::{FleetView, RequestView as _};
use pointsman_openai::Request;

use super::World;
use super::in_flight::RequestStage;
use crate::engine::{RequestKey, TokenUsage};

impl World<'_> {
    /// Returns the fleet view for a request, with the estimates of its cached tokens.
    pub(super) fn fleet_view_for(&mut self, request: &Request) -> Arc<FleetView> {
        let view = match request.constraint() {
            Some(constraint) => Arc::new(constraint.restrict(&self.fleet_view())),
            None => self.fleet_view(),
        };
        if !self.advisor.advisor().uses_cached_tokens() {
            return view;
        }
        let prompt = request.prompt_hashes(self.prefixes.hasher());
        self.prefixes.annotate(&view, request.model(), prompt, request.info().prompt_tokens)
    }

    /// The first byte of a response shows that the engine has processed the prompt.
    pub(super) fn prompt_served(&mut self, key: RequestKey) {
        if self.advisor.advisor().uses_cached_tokens()
            && let Some(request) = self.in_flight.get(key)
            && let (RequestStage::Leased(lease), None, Some(sent)) =
                (request.stage, request.served, &request.sent)
        {
            let prompt = sent.prompt_hashes(self.prefixes.hasher());
            request.served = Some(self.prefixes.served(lease.lane, prompt));
        }
    }

    /// The engine reports the tokens of a complete response.
    pub(super) fn report_usage(&mut self, key: RequestKey, usage: TokenUsage) {
        if let Some(request) = self.in_flight.get(key)
            && let (RequestStage::Leased(lease), Some(served)) = (request.stage, request.served)
        {
            let prompt_tokens = request.sim.prompt_tokens;
            self.prefixes.report(lease.lane, &served, prompt_tokens, Some(usage.cached));
        }
    }
}
