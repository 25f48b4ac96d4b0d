//! Counts what each request uses: on the accounts of its key, and in the usage.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pointsman_access::{
    Accounts, Admission, Ask, Identity, KeyActivity, LimitUse, Moment, Refusal, UsageBook,
    UsageEvent,
};
use pointsman_domain::{
    Allowance, Endpoint, QueueShare, RequestFlow, RequestResult, RequestView as _, TokenCounts,
    Topology,
};
use pointsman_openai::Request;
use tokio::time::Instant;

use crate::error::RouteError;
use crate::metrics::GatewayMetrics;

/// Bytes of a token of which only the length is known.
pub(crate) const BYTES_PER_TOKEN: usize = 4;

/// Where requests are counted.
#[derive(Clone)]
pub(crate) struct Meter {
    accounts: Arc<Accounts>,
    usage: Arc<UsageBook>,
    activity: Arc<KeyActivity>,
    started: Instant,
}

/// What one request uses.
#[derive(Debug, Default)]
pub(crate) struct Metering {
    identity: Arc<Identity>,
    /// It is known who sent the request.
    is_identified: bool,
    counted: Option<Counted>,
    /// What the limits of the key leave; `None` if it has no limits.
    allowance: Option<Allowance>,
    /// The request was sent to the engine of its lane.
    is_sent: bool,
    /// Where the request was noted; `None` before.
    activity: Option<Arc<KeyActivity>>,
}

/// A request that is counted until its end.
#[derive(Debug)]
struct Counted {
    meter: Meter,
    admission: Admission,
    model: String,
    counting: Counting,
    /// The estimate, for engines that report nothing.
    prompt_tokens: u32,
    /// The endpoint of a request for a path of an engine, whose response is not read otherwise.
    path: Option<Endpoint>,
}

/// A request for a path of an engine, as it is counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PathRequest {
    /// What the path stands for.
    pub(crate) endpoint: Endpoint,
    /// The body is read by a model.
    pub(crate) generates: bool,
    pub(crate) body_bytes: usize,
    /// The context of the lane; 0 if it is not known.
    pub(crate) max_context: u32,
}

impl PathRequest {
    /// Estimates the tokens of the prompt: the body is not parsed. Most of one that is longer than
    /// the context is not text, but images.
    fn prompt_tokens(self) -> u32 {
        let tokens = u32::try_from(self.body_bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX);
        if self.max_context == 0 { tokens } else { tokens.min(self.max_context) }
    }
}

/// What a request without tokens is expected to use.
const NOTHING: Ask = Ask { prompt_tokens: 0, output_tokens: Some(0), choices: 1 };

/// Which tokens of a request count for limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counting {
    /// Those of the prompt and of the output.
    All,
    /// Those of the prompt: nothing is generated.
    Prompt,
    /// None.
    Nothing,
}

impl Counting {
    fn for_endpoint(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::ChatCompletions
            | Endpoint::Completions
            | Endpoint::Responses
            | Endpoint::Messages
            | Endpoint::LlamaCompletion
            | Endpoint::LlamaInfill
            | Endpoint::OllamaChat
            | Endpoint::OllamaGenerate
            // A path of an engine, which may be any of these.
            | Endpoint::Other => Self::All,
            Endpoint::Embeddings
            | Endpoint::Rerank
            | Endpoint::Score
            | Endpoint::Classify
            | Endpoint::Pooling
            | Endpoint::Moderations
            | Endpoint::LlamaEmbedding
            | Endpoint::OllamaEmbed
            | Endpoint::OllamaEmbeddings => Self::Prompt,
            // No model runs, or it does not read and write text.
            Endpoint::CountTokens
            | Endpoint::Tokenize
            | Endpoint::Detokenize
            | Endpoint::LlamaApplyTemplate
            | Endpoint::ImageGenerations
            | Endpoint::ImageEdits
            | Endpoint::ImageVariations
            | Endpoint::Transcriptions
            | Endpoint::Translations
            | Endpoint::Speech => Self::Nothing,
        }
    }

    /// Returns what a request is expected to use.
    fn ask(self, request: &Request) -> Ask {
        let info = request.info();
        let output = Some(info.max_output_tokens).filter(|output| *output > 0);
        match self {
            Self::All => Ask {
                prompt_tokens: info.prompt_tokens,
                output_tokens: output,
                choices: request.choices(),
            },
            Self::Prompt => Ask { prompt_tokens: info.prompt_tokens, ..NOTHING },
            Self::Nothing => NOTHING,
        }
    }

    /// Returns the tokens that count of those that were used.
    fn counted(self, tokens: TokenCounts) -> TokenCounts {
        match self {
            Self::All => tokens,
            Self::Prompt => TokenCounts { output: 0, ..tokens },
            Self::Nothing => TokenCounts::default(),
        }
    }
}

impl Meter {
    pub(crate) fn new(accounts: Arc<Accounts>, usage: Arc<UsageBook>) -> Self {
        Self { accounts, usage, activity: Arc::default(), started: Instant::now() }
    }

    /// Returns a meter whose accounts have used the same, and that counts nothing for this one.
    pub(crate) fn copy(&self) -> Self {
        let (accounts, usage) = (self.accounts.copy(), Arc::default());
        Self { accounts, usage, activity: Arc::default(), started: self.started }
    }

    /// Returns what was used.
    pub(crate) fn usage(&self) -> &Arc<UsageBook> {
        &self.usage
    }

    /// Returns what keys have done since the start of the host.
    pub(crate) fn activity(&self) -> &KeyActivity {
        &self.activity
    }

    /// Returns what is used of each limit of a key.
    pub(crate) fn limit_uses(&self, identity: &Identity) -> Vec<LimitUse> {
        self.accounts.limit_uses(identity, self.now())
    }

    /// Returns numbers that change with everything that is counted; `None` if other hosts count,
    /// too.
    pub(crate) fn changes(&self) -> Option<(u64, u64)> {
        Some((self.accounts.changes()?, self.activity.changes()))
    }

    fn now(&self) -> Moment {
        Moment::now(self.started.elapsed())
    }
}

impl Metering {
    /// Notes who sent the request.
    pub(crate) fn identify(&mut self, identity: &Arc<Identity>) {
        self.identity = Arc::clone(identity);
        self.is_identified = true;
    }

    /// Returns who sent the request.
    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Returns what the key may have in the queues.
    pub(crate) fn queue_share(&self) -> QueueShare {
        self.identity.queue_share()
    }

    /// Counts the request on the accounts of its key, once. One that is refused before its tokens
    /// are known (`None`) counts as a request; one of a client that is not known does not count.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub(crate) fn admit(
        &mut self,
        meter: &Meter,
        request: Option<&Request>,
    ) -> Result<Allowance, Refusal> {
        let endpoint = request.map_or(Endpoint::Other, |request| request.endpoint());
        let counting = Counting::for_endpoint(endpoint);
        let ask = request.map_or(NOTHING, |request| counting.ask(request));
        let model = request.map(|request| request.model().to_owned()).unwrap_or_default();
        self.count(meter, ask, |admission| {
            let (meter, prompt_tokens) = (meter.clone(), ask.prompt_tokens);
            Counted { meter, admission, model, counting, prompt_tokens, path: None }
        })
    }

    /// Counts a request for a path of an engine.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub(crate) fn admit_path(
        &mut self,
        meter: &Meter,
        request: PathRequest,
    ) -> Result<Allowance, Refusal> {
        let counting = match request.generates {
            true => Counting::for_endpoint(request.endpoint),
            false => Counting::Nothing,
        };
        let prompt_tokens = request.prompt_tokens();
        let ask = match counting {
            Counting::All => Ask { prompt_tokens, output_tokens: None, choices: 1 },
            Counting::Prompt => Ask { prompt_tokens, ..NOTHING },
            Counting::Nothing => NOTHING,
        };
        let path = Some(request.endpoint);
        self.count(meter, ask, |admission| {
            let (meter, model, prompt_tokens) = (meter.clone(), String::new(), ask.prompt_tokens);
            Counted { meter, admission, model, counting, prompt_tokens, path }
        })
    }

    fn count(
        &mut self,
        meter: &Meter,
        ask: Ask,
        counted: impl FnOnce(Admission) -> Counted,
    ) -> Result<Allowance, Refusal> {
        if !self.is_identified || self.counted.is_some() {
            return Ok(self.allowance.unwrap_or_default());
        }
        let identity = &self.identity;
        let (now, is_limited) = (meter.now(), !identity.accounts.is_empty());
        meter.activity.note_request(identity, now.unix_ms);
        self.activity = Some(Arc::clone(&meter.activity));
        let admitted = meter.accounts.admit(identity, ask, now);
        self.allowance = is_limited.then(|| match &admitted {
            Ok(admission) => *admission.allowance(),
            Err(_) => meter.accounts.allowance(identity, now),
        });
        self.counted = Some(counted(admitted?));
        Ok(self.allowance.unwrap_or_default())
    }

    /// Returns what the limits of the key leave; `None` if it has no limits, or the request has not
    /// been counted.
    pub(crate) fn allowance(&self) -> Option<Allowance> {
        self.allowance
    }

    /// Notes whether the request was sent to the engine of the current attempt.
    pub(crate) fn set_sent(&mut self, is_sent: bool) {
        self.is_sent = is_sent;
    }

    /// Returns the admission of a request that is counted.
    pub(crate) fn admission(&mut self) -> Option<&mut Admission> {
        self.counted.as_mut().map(|counted| &mut counted.admission)
    }

    /// Settles the request with what it has used.
    pub(crate) fn end(
        &mut self,
        metrics: &GatewayMetrics,
        flow: &RequestFlow,
        topology: Option<&Topology>,
        result: RequestResult,
    ) {
        if let Some(tenant) = &self.identity.tenant {
            let tokens = flow.usage().unwrap_or_default();
            metrics.tenants.ended(tenant, result, tokens);
        }
        let Some(counted) = self.counted.take() else { return };
        let Counted { meter, admission, model, counting, prompt_tokens, .. } = counted;
        let now = meter.now();
        let mut tokens = flow.usage().unwrap_or_default();
        if tokens.prompt == 0 && has_read_prompt(flow, result, self.is_sent) {
            tokens.prompt = prompt_tokens;
        }
        let event = |lane, waiting, engine| UsageEvent {
            unix_ms: now.unix_ms,
            identity: &self.identity,
            model: &model,
            lane,
            requests: 1,
            failed: matches!(result, RequestResult::Error | RequestResult::Rejected),
            tokens,
            waiting,
            engine,
        };
        let last = flow.attempt_count();
        let mut total = Duration::ZERO;
        for (number, attempt) in (1..).zip(flow.attempts()) {
            let engine = attempt.took.saturating_sub(attempt.queue);
            total += engine;
            let lane = topology.map_or("", |topology| topology.name(attempt.lane));
            let event = event(lane, attempt.queue, engine);
            meter.usage.record(&match number == last {
                true => event,
                // The request and its tokens are counted on the lane that has ended it.
                false => UsageEvent { requests: 0, tokens: TokenCounts::default(), ..event },
            });
        }
        if last == 0 {
            // The name may be any text of a client, and not one of a model.
            let event = event("", Duration::ZERO, Duration::ZERO);
            meter.usage.record(&UsageEvent { model: "", ..event });
        }
        admission.settle(counting.counted(tokens), total, now);
    }

    /// Counts the request if a limit has refused it.
    pub(crate) fn note_error(&self, metrics: &GatewayMetrics, error: &RouteError) {
        let (refusal, Some(tenant)) = (error.refusal(), &self.identity.tenant) else { return };
        if let Some(refusal) = refusal {
            metrics.tenants.limited(tenant, refusal);
            if let Some(activity) = &self.activity {
                activity.note_refusal(&self.identity, refusal, Moment::now(Duration::ZERO).unix_ms);
            }
        }
    }

    /// Returns true if what the request uses is counted.
    pub(crate) fn is_counted(&self) -> bool {
        self.counted.is_some()
    }

    /// Returns the endpoint of a counted request for a path of an engine, if its response has
    /// tokens: these are counted also if the engine does not report them.
    pub(crate) fn counted_path(&self) -> Option<Endpoint> {
        let counted = self.counted.as_ref().filter(|counted| counted.counting == Counting::All)?;
        counted.path
    }
}

/// Returns true if an engine has read the prompt of a request, or most of it, so that it counts
/// even if the engine has reported nothing. What an engine has done before it failed is not known.
fn has_read_prompt(flow: &RequestFlow, result: RequestResult, is_sent: bool) -> bool {
    let status = flow.attempts().last().map_or(0, |attempt| attempt.status);
    match flow.ttft() {
        Some(_) => (200..300).contains(&status),
        None => is_sent && result == RequestResult::ClientGone,
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}
