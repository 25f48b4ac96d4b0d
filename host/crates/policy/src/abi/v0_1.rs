//! Track 0.1 of the contract: its types to the domain's and back, and nothing else.

use std::time::Duration;

use pointsman_domain as domain;
use serde_json::{Value, json};
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store};

use self::bindings::exports::pointsman::policy::on_request::{Advice, Context, PolicyError as WitError};
use self::bindings::pointsman::policy::types;
use super::{Description, PolicyError};
use crate::host_calls::HostState;

mod answers;

mod bindings {
    #![allow(
        missing_docs,
        unreachable_pub,
        missing_debug_implementations,
        clippy::all,
        reason = "generated from the WIT, which documents it"
    )]
    wasmtime::component::bindgen!({ path: "../../../wit/0.1", world: "policy" });
}

pub(crate) type Linked = bindings::PolicyPre<HostState>;
pub(crate) type Instance = bindings::Policy;

pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    bindings::Policy::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
    Ok(linker)
}

pub(crate) fn link(linker: &Linker<HostState>, component: &Component) -> wasmtime::Result<Linked> {
    bindings::PolicyPre::new(linker.instantiate_pre(component)?)
}

pub(crate) fn describe(instance: &Instance, store: &mut Store<HostState>) -> wasmtime::Result<Description> {
    let described = instance.pointsman_policy_lifecycle().call_describe(store)?;
    Ok(Description { name: described.name, version: described.version, hints: described.hints })
}

pub(crate) fn configure(
    instance: &Instance,
    store: &mut Store<HostState>,
    config: &str,
) -> wasmtime::Result<Result<(), PolicyError>> {
    let result = instance.pointsman_policy_lifecycle().call_configure(store, config)?;
    Ok(result.map_err(policy_error))
}

pub(crate) fn advise(
    instance: &Instance,
    store: &mut Store<HostState>,
    facts: &domain::Facts,
    topology: u64,
    budget_us: u32,
) -> wasmtime::Result<Result<domain::Advice, PolicyError>> {
    let context = context(facts, topology, budget_us);
    store.data_mut().note("context", || (Vec::new(), noted_context(facts, topology, budget_us)));
    let result = instance.pointsman_policy_on_request().call_advise(store, context)?;
    Ok(result.map(advice).map_err(policy_error))
}

fn context(facts: &domain::Facts, topology: u64, budget_us: u32) -> Context {
    let figures = facts.request.figures();
    Context {
        now_ms: facts.now_ms,
        seed: facts.seed,
        topology,
        age_us: u64::try_from(facts.age.as_micros()).unwrap_or(u64::MAX),
        budget_us,
        attempt: facts.attempt,
        endpoint: match figures.endpoint {
            domain::Endpoint::ChatCompletions => types::Endpoint::ChatCompletions,
            domain::Endpoint::Completions => types::Endpoint::Completions,
            domain::Endpoint::Responses => types::Endpoint::Responses,
            domain::Endpoint::Embeddings => types::Endpoint::Embeddings,
            domain::Endpoint::Other => types::Endpoint::Other,
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

/// What a policy is told without asking, under the names of the contract.
fn noted_context(facts: &domain::Facts, topology: u64, budget_us: u32) -> Value {
    let mut noted = json!({
        "now-ms": facts.now_ms,
        "seed": facts.seed,
        "topology": topology,
        "age-us": u64::try_from(facts.age.as_micros()).unwrap_or(u64::MAX),
        "budget-us": budget_us,
        "attempt": facts.attempt,
    });
    if let (Value::Object(noted), Ok(Value::Object(figures))) =
        (&mut noted, serde_json::to_value(facts.request.figures()))
    {
        noted.extend(figures);
    }
    noted
}

fn policy_error(error: WitError) -> PolicyError {
    match error {
        WitError::InvalidConfig(why) => PolicyError::InvalidConfig(why),
        WitError::Unsupported(why) => PolicyError::Unsupported(why),
        WitError::OutOfBudget => PolicyError::OutOfBudget,
        WitError::Other(why) => PolicyError::Other(why),
    }
}

fn advice(advice: Advice) -> domain::Advice {
    domain::Advice {
        reject: advice.reject.map(|rejection| domain::Rejection {
            status: rejection.status,
            code: rejection.code,
            message: rejection.message,
            retry_after_s: rejection.retry_after_s,
        }),
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

fn lanes(lanes: types::LaneAdvice) -> domain::LaneAdvice {
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

fn metric(metric: types::Metric) -> domain::Metric {
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

fn fallback(fallback: types::FallbackAdvice) -> domain::FallbackAdvice {
    use domain::Trigger;
    let triggers = [
        (types::Triggers::QUEUE_TIMEOUT, Trigger::QueueTimeout),
        (types::Triggers::CONNECT_ERROR, Trigger::ConnectError),
        (types::Triggers::OVERLOADED, Trigger::Overloaded),
        (types::Triggers::SERVER_ERROR, Trigger::ServerError),
        (types::Triggers::ENGINE_RESTART, Trigger::EngineRestart),
        (types::Triggers::FIRST_TOKEN_TIMEOUT, Trigger::FirstTokenTimeout),
    ];
    let step = |step: types::FallbackStep| domain::FallbackStep {
        lane: domain::LaneId(step.lane),
        edits: edits(step.edits),
    };
    domain::FallbackAdvice {
        on: triggers
            .into_iter()
            .filter(|(flag, _)| fallback.on.contains(*flag))
            .map(|(_, trigger)| trigger)
            .collect(),
        steps: fallback.steps.into_iter().map(step).collect(),
        first_token: fallback.first_token_ms.map(|ms| Duration::from_millis(ms.into())),
    }
}

fn edits(edits: Vec<types::Edit>) -> Vec<domain::Edit> {
    let edit = |edit| match edit {
        types::Edit::SetModel(model) => domain::Edit::SetModel(model),
        types::Edit::CapOutputTokens(most) => domain::Edit::CapOutputTokens(most),
        types::Edit::SetField((pointer, value)) => domain::Edit::SetField(pointer, value),
        types::Edit::RemoveField(pointer) => domain::Edit::RemoveField(pointer),
        types::Edit::PrependSystem(text) => domain::Edit::PrependSystem(text),
        types::Edit::KeepLastMessages(most) => domain::Edit::KeepLastMessages(most),
        types::Edit::SetHeader((name, value)) => domain::Edit::SetHeader(name, value),
        types::Edit::RemoveHeader(name) => domain::Edit::RemoveHeader(name),
    };
    edits.into_iter().map(edit).collect()
}

fn notes(notes: Vec<types::Note>) -> Vec<domain::Note> {
    let scalar = |scalar| match scalar {
        types::Scalar::Flag(flag) => domain::Scalar::Flag(flag),
        types::Scalar::Int(int) => domain::Scalar::Int(int),
        types::Scalar::Text(text) => domain::Scalar::Text(text),
    };
    notes.into_iter().map(|note| domain::Note { key: note.key, value: scalar(note.value) }).collect()
}
