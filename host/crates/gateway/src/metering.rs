//! Counts what each request uses: on the accounts of its key, and in the usage.

use std::fmt;
use std::sync::Arc;

use pointsman_access::{
    Accounts, Admission, Ask, Identity, Moment, Refusal, UsageBook, UsageEvent,
};
use pointsman_domain::{Allowance, RequestFlow, RequestResult, RequestView as _, Topology};
use pointsman_openai::Request;
use tokio::time::Instant;

/// Where requests are counted.
#[derive(Clone)]
pub(crate) struct Meter {
    accounts: Arc<Accounts>,
    usage: Arc<UsageBook>,
    started: Instant,
}

/// What one request uses.
#[derive(Debug, Default)]
pub(crate) struct Metering {
    identity: Arc<Identity>,
    counted: Option<Counted>,
}

/// A request that is counted until its end.
#[derive(Debug)]
struct Counted {
    meter: Meter,
    admission: Admission,
    model: String,
}

impl Meter {
    pub(crate) fn new(accounts: Arc<Accounts>, usage: Arc<UsageBook>) -> Self {
        Self { accounts, usage, started: Instant::now() }
    }

    fn now(&self) -> Moment {
        Moment::now(self.started.elapsed())
    }
}

impl Metering {
    /// Notes who sent the request.
    pub(crate) fn identify(&mut self, identity: &Arc<Identity>) {
        self.identity = Arc::clone(identity);
    }

    /// Returns who sent the request.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Counts the request on the accounts of its key, and returns what their limits leave.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub(crate) fn admit(&mut self, meter: &Meter, request: &Request) -> Result<Allowance, Refusal> {
        let info = request.info();
        let ask = Ask { prompt_tokens: info.prompt_tokens, output_tokens: info.max_output_tokens };
        let admission = meter.accounts.admit(&self.identity, ask, meter.now())?;
        let allowance = *admission.allowance();
        let model = request.model().to_owned();
        self.counted = Some(Counted { meter: meter.clone(), admission, model });
        Ok(allowance)
    }

    /// Settles the request with what it has used.
    pub(crate) fn end(
        &mut self,
        flow: &RequestFlow,
        topology: Option<&Topology>,
        result: RequestResult,
    ) {
        let Some(Counted { meter, admission, model }) = self.counted.take() else { return };
        let now = meter.now();
        let tokens = flow.usage().unwrap_or_default();
        let lane = flow.lane().and_then(|lane| Some(topology?.name(lane))).unwrap_or_default();
        let waiting = flow.attempts().map(|attempt| attempt.queue).sum();
        let engine = flow.total().unwrap_or_default().saturating_sub(waiting);
        let failed = matches!(result, RequestResult::Error | RequestResult::Rejected);
        meter.usage.record(&UsageEvent {
            unix_ms: now.unix_ms,
            identity: &self.identity,
            model: &model,
            lane,
            requests: 1,
            failed,
            tokens,
            waiting,
            engine,
        });
        admission.settle(tokens, engine, now);
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}
