//! Conversion between the types of the contract and those of the domain.

use std::time::Duration;

use pointsman_domain as domain;
use serde::{Deserialize, Serialize};

use crate::contract::shared::Level;
use crate::contract::types::{CallContext, PolicyError};
use crate::contract::v0_1::bindings::exports::pointsman::policy::on_request::{
    Advice, Context, PolicyError as WitError,
};
use crate::contract::v0_1::bindings::pointsman::policy::types;

/// The input of a call about a request, under the names of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct CallInput {
    now_ms: u64,
    seed: u64,
    topology: u64,
    age_us: u64,
    budget_us: u32,
    attempt: u32,
    #[serde(flatten)]
    figures: domain::RequestInfo,
}

impl From<CallContext<'_>> for CallInput {
    fn from(CallContext { facts, topology, budget_us }: CallContext<'_>) -> Self {
        Self {
            now_ms: facts.now_ms,
            seed: facts.seed,
            topology,
            // Saturates after 584,000 years.
            age_us: u64::try_from(facts.age.as_micros()).unwrap_or(u64::MAX),
            budget_us,
            attempt: facts.attempt,
            figures: facts.request.info(),
        }
    }
}

impl From<CallInput> for Context {
    fn from(input: CallInput) -> Self {
        let CallInput { now_ms, seed, topology, age_us, budget_us, attempt, figures } = input;
        Self {
            now_ms,
            seed,
            topology,
            age_us,
            budget_us,
            attempt,
            endpoint: match figures.endpoint {
                domain::Endpoint::ChatCompletions => types::Endpoint::ChatCompletions,
                domain::Endpoint::Completions => types::Endpoint::Completions,
                domain::Endpoint::Responses => types::Endpoint::Responses,
                domain::Endpoint::Embeddings => types::Endpoint::Embeddings,
                // The enum of the contract is frozen.
                domain::Endpoint::Messages
                | domain::Endpoint::CountTokens
                | domain::Endpoint::Rerank
                | domain::Endpoint::Score
                | domain::Endpoint::Classify
                | domain::Endpoint::Pooling
                | domain::Endpoint::Tokenize
                | domain::Endpoint::Detokenize
                | domain::Endpoint::Moderations
                | domain::Endpoint::ImageGenerations
                | domain::Endpoint::ImageEdits
                | domain::Endpoint::ImageVariations
                | domain::Endpoint::Transcriptions
                | domain::Endpoint::Translations
                | domain::Endpoint::Speech
                | domain::Endpoint::LlamaCompletion
                | domain::Endpoint::LlamaInfill
                | domain::Endpoint::LlamaEmbedding
                | domain::Endpoint::LlamaApplyTemplate
                | domain::Endpoint::OllamaChat
                | domain::Endpoint::OllamaGenerate
                | domain::Endpoint::OllamaEmbed
                | domain::Endpoint::OllamaEmbeddings
                | domain::Endpoint::Other => types::Endpoint::Other,
            },
            streaming: figures.streaming,
            body_bytes: figures.body_bytes,
            prompt_tokens: figures.prompt_tokens,
            max_output_tokens: figures.max_output_tokens,
            messages: figures.messages,
            has_tools: figures.has_tools,
            has_media: figures.has_media,
            has_grammar: figures.has_grammar,
        }
    }
}

pub(super) fn allowance(allowance: domain::Allowance) -> types::Allowance {
    let remaining = |remaining: domain::Remaining| types::Remaining {
        limit: remaining.limit,
        left: remaining.left,
        reset_ms: remaining.reset_ms,
    };
    types::Allowance {
        requests: allowance.requests.map(remaining),
        tokens: allowance.tokens.map(remaining),
        budget: allowance.budget.map(remaining),
    }
}

pub(super) fn policy_error(error: WitError) -> PolicyError {
    match error {
        WitError::InvalidConfig(why) => PolicyError::InvalidConfig(why),
        WitError::Unsupported(why) => PolicyError::Unsupported(why),
        WitError::OutOfBudget => PolicyError::OutOfBudget,
        WitError::Other(why) => PolicyError::Other(why),
    }
}

pub(super) fn advice(advice: Advice) -> domain::Advice {
    domain::Advice {
        reject: advice.reject.map(rejection),
        lanes: lanes(advice.lanes),
        switching: advice.switching.map(|switching| match switching {
            types::Switching::Never => domain::Switching::Never,
            types::Switching::WhenIdle => domain::Switching::WhenIdle,
            types::Switching::Allow => domain::Switching::Allow,
        }),
        queue: advice.queue.map(|queue| domain::QueueAdvice {
            priority: queue.priority,
            flow: queue.flow,
            max_wait: queue.max_wait_ms.map(|ms| Duration::from_millis(ms.into())),
            on_timeout: match queue.on_timeout {
                types::OnTimeout::Reject => domain::OnTimeout::Reject,
                types::OnTimeout::FallBack => domain::OnTimeout::FallBack,
            },
        }),
        fallback: advice.fallback.map(fallback),
        edits: edits(advice.edits),
        notes: notes(advice.notes),
        hints: notes(advice.hints),
    }
}

pub(super) fn lanes(lanes: types::LaneAdvice) -> domain::LaneAdvice {
    let ids = |ids: Vec<u32>| ids.into_iter().map(domain::LaneId).collect();
    match lanes {
        types::LaneAdvice::Any => domain::LaneAdvice::Any,
        types::LaneAdvice::Only(only) => domain::LaneAdvice::Only(ids(only)),
        types::LaneAdvice::Avoid(avoid) => domain::LaneAdvice::Avoid(ids(avoid)),
        types::LaneAdvice::Ordered(ordered) => domain::LaneAdvice::Ordered(ids(ordered)),
        types::LaneAdvice::Scores(scores) => {
            let score = |score: types::LaneScore| domain::LaneScore {
                lane: domain::LaneId(score.lane),
                score: score.score,
            };
            domain::LaneAdvice::Scores(scores.into_iter().map(score).collect())
        }
        types::LaneAdvice::Blend(weights) => {
            let weight = |weight: types::MetricWeight| domain::MetricWeight {
                metric: metric(weight.metric),
                weight: weight.weight,
            };
            domain::LaneAdvice::Blend(weights.into_iter().map(weight).collect())
        }
    }
}

pub(super) fn metric(metric: types::Metric) -> domain::Metric {
    match metric {
        types::Metric::SlotsFree => domain::Metric::SlotsFree,
        types::Metric::Queue => domain::Metric::Queue,
        types::Metric::KvFree => domain::Metric::KvFree,
        types::Metric::EstWait => domain::Metric::EstWait,
        types::Metric::ReadyIn => domain::Metric::ReadyIn,
        types::Metric::Ttft => domain::Metric::Ttft,
        types::Metric::DecodeSpeed => domain::Metric::DecodeSpeed,
        types::Metric::CachedTokens => domain::Metric::CachedTokens,
        types::Metric::ErrorRate => domain::Metric::ErrorRate,
        types::Metric::Cost => domain::Metric::Cost,
    }
}

pub(super) fn fallback(fallback: types::FallbackAdvice) -> domain::FallbackAdvice {
    use domain::Trigger;
    let triggers = [
        (types::Triggers::QUEUE_TIMEOUT, Trigger::QueueTimeout),
        (types::Triggers::CONNECT_ERROR, Trigger::ConnectError),
        (types::Triggers::OVERLOADED, Trigger::Overloaded),
        (types::Triggers::SERVER_ERROR, Trigger::ServerError),
        (types::Triggers::ENGINE_RESTART, Trigger::EngineRestart),
        (types::Triggers::FIRST_TOKEN_TIMEOUT, Trigger::FirstTokenTimeout),
    ];
    domain::FallbackAdvice {
        on: triggers
            .into_iter()
            .filter(|(flag, _)| fallback.on.contains(*flag))
            .map(|(_, trigger)| trigger)
            .collect(),
        steps: fallback.steps.into_iter().map(fallback_step).collect(),
        first_token: fallback.first_token_ms.map(|ms| Duration::from_millis(ms.into())),
    }
}

pub(super) fn fallback_step(step: types::FallbackStep) -> domain::FallbackStep {
    domain::FallbackStep { lane: domain::LaneId(step.lane), edits: edits(step.edits) }
}

pub(super) fn rejection(rejection: types::Rejection) -> domain::Rejection {
    domain::Rejection {
        status: rejection.status,
        code: rejection.code,
        message: rejection.message,
        retry_after_s: rejection.retry_after_s,
    }
}

pub(super) fn edits(edits: Vec<types::Edit>) -> Vec<domain::Edit> {
    let edit = |edit| match edit {
        types::Edit::SetModel(model) => domain::Edit::SetModel(model),
        types::Edit::CapOutputTokens(max) => domain::Edit::CapOutputTokens(max),
        types::Edit::SetField((pointer, value)) => domain::Edit::SetField(pointer, value),
        types::Edit::RemoveField(pointer) => domain::Edit::RemoveField(pointer),
        types::Edit::PrependSystem(text) => domain::Edit::PrependSystem(text),
        types::Edit::KeepLastMessages(max) => domain::Edit::KeepLastMessages(max),
        types::Edit::SetHeader((name, value)) => domain::Edit::SetHeader(name, value),
        types::Edit::RemoveHeader(name) => domain::Edit::RemoveHeader(name),
    };
    edits.into_iter().map(edit).collect()
}

pub(super) fn failure(failed: &domain::FailureReport) -> types::Failure {
    types::Failure {
        lane: failed.lane.0,
        what: try_result(failed.what),
        status: failed.status,
        sent_bytes: failed.sent_bytes,
        elapsed_ms: ms(failed.elapsed),
        tries_left: failed.attempts_left,
    }
}

pub(super) fn recovery(recovery: types::Recovery) -> domain::Recovery {
    match recovery {
        types::Recovery::Planned => domain::Recovery::Planned,
        types::Recovery::Retry(step) => domain::Recovery::Retry(fallback_step(step)),
        types::Recovery::GiveUp(reject) => domain::Recovery::GiveUp(rejection(reject)),
    }
}

pub(super) fn outcome(outcome: &domain::Outcome) -> types::Outcome {
    types::Outcome {
        request_id: outcome.request_id.to_string(),
        tenant: outcome.tenant.as_deref().map(str::to_owned),
        model: outcome.model.to_string(),
        lane: outcome.lane.0,
        topology: outcome.topology,
        ended: try_result(outcome.ended),
        tries: outcome.tries,
        queue_ms: ms(outcome.queue),
        ttft_ms: ms(outcome.ttft),
        total_ms: ms(outcome.total),
        prompt_tokens: outcome.prompt_tokens,
        cached_tokens: outcome.cached_tokens,
        output_tokens: outcome.output_tokens,
    }
}

/// Converts the outcome with the attempts, and with the notes that the policy `name` gave.
pub(super) fn finished(ended: &domain::Outcome, name: &str) -> types::Finished {
    let attempt = |attempt: &domain::Attempt| types::Attempt {
        lane: attempt.lane.0,
        ended: try_result(attempt.result),
        status: attempt.status,
        queue_ms: ms(attempt.queue),
        took_ms: ms(attempt.took),
    };
    let notes = ended.notes.iter().filter(|(policy, _)| *policy.name == *name);
    types::Finished {
        outcome: outcome(ended),
        attempts: ended.attempts.iter().map(attempt).collect(),
        notes: notes.map(|(_, note)| wit_note(note)).collect(),
    }
}

fn wit_note(note: &domain::Note) -> types::Note {
    let value = match &note.value {
        domain::Scalar::Flag(flag) => types::Scalar::Flag(*flag),
        domain::Scalar::Int(int) => types::Scalar::Int(*int),
        domain::Scalar::Text(text) => types::Scalar::Text(text.clone()),
    };
    types::Note { key: note.key.clone(), value }
}

pub(super) fn text_match(found: domain::TextMatch) -> types::TextMatch {
    types::TextMatch { pattern: found.pattern, message: found.message, offset: found.offset }
}

pub(super) fn try_result(result: domain::AttemptResult) -> types::TryResult {
    match result {
        domain::AttemptResult::Ok => types::TryResult::Ok,
        domain::AttemptResult::QueueTimeout => types::TryResult::QueueTimeout,
        domain::AttemptResult::ConnectError => types::TryResult::ConnectError,
        domain::AttemptResult::Overloaded => types::TryResult::Overloaded,
        domain::AttemptResult::ServerError => types::TryResult::ServerError,
        domain::AttemptResult::EngineRestart => types::TryResult::EngineRestart,
        domain::AttemptResult::FirstTokenTimeout => types::TryResult::FirstTokenTimeout,
        domain::AttemptResult::ClientGone => types::TryResult::ClientGone,
        domain::AttemptResult::Other => types::TryResult::Other,
    }
}

/// Converts a duration to milliseconds, saturating at 49 days.
pub(super) fn ms(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn notes(notes: Vec<types::Note>) -> Vec<domain::Note> {
    let scalar = |scalar| match scalar {
        types::Scalar::Flag(flag) => domain::Scalar::Flag(flag),
        types::Scalar::Int(int) => domain::Scalar::Int(int),
        types::Scalar::Text(text) => domain::Scalar::Text(text),
    };
    notes
        .into_iter()
        .map(|note| domain::Note { key: note.key, value: scalar(note.value) })
        .collect()
}

pub(super) fn lane_info(info: &domain::LaneInfo) -> types::LaneInfo {
    types::LaneInfo {
        id: info.id.0,
        name: info.name.clone(),
        engine: match info.engine {
            domain::EngineKind::Vllm => types::Engine::Vllm,
            domain::EngineKind::LlamaCpp => types::Engine::LlamaCpp,
            domain::EngineKind::External => types::Engine::External,
            domain::EngineKind::Other => types::Engine::Other,
        },
        models: info.models.clone(),
        labels: info.labels.clone(),
        max_context: info.max_context,
        slots: info.slots,
        group: info.group,
        cost_milli: info.cost_milli,
    }
}

pub(super) fn lane_stat(stat: domain::LaneStat) -> types::LaneStat {
    types::LaneStat {
        id: stat.id.0,
        state: match stat.state {
            domain::LaneState::Unloaded => types::LaneState::Unloaded,
            domain::LaneState::Starting => types::LaneState::Starting,
            domain::LaneState::Ready => types::LaneState::Ready,
            domain::LaneState::Degraded => types::LaneState::Degraded,
            domain::LaneState::Draining => types::LaneState::Draining,
            domain::LaneState::Down => types::LaneState::Down,
        },
        running: stat.running,
        waiting: stat.waiting,
        queued: stat.queued,
        slots_free: stat.slots_free,
        kv_used: stat.kv_used,
        errors: stat.errors,
        ttft_p50_ms: stat.ttft_p50_ms,
        ttft_p99_ms: stat.ttft_p99_ms,
        decode_tps: stat.decode_tps,
        est_wait_ms: stat.est_wait_ms,
        ready_in_ms: stat.ready_in_ms,
        displaces: stat.displaces,
        cached_tokens: stat.cached_tokens,
        stale_ms: stat.stale_ms,
    }
}

pub(super) fn level(level: types::Level) -> Level {
    match level {
        types::Level::Trace => Level::Trace,
        types::Level::Debug => Level::Debug,
        types::Level::Info => Level::Info,
        types::Level::Warn => Level::Warn,
        types::Level::Error => Level::Error,
    }
}
