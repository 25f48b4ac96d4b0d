//! Track 0.1 of the contract: its types to the domain's and back, and nothing else.

use std::time::Duration;

use pointsman_domain as domain;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Engine, Store};

use self::bindings::exports::pointsman::policy::on_request::{Advice, Context, PolicyError as WitError};
use self::bindings::pointsman::policy::{fleet, log, metrics, request, state, types};
use super::{Description, PolicyError};
use crate::host_calls::{HostState, Level};
use crate::state::StateError;

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

fn lane_info(info: &domain::LaneInfo) -> types::LaneInfo {
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

fn lane_stat(stat: &domain::LaneStat) -> types::LaneStat {
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

fn level(level: types::Level) -> Level {
    match level {
        types::Level::Trace => Level::Trace,
        types::Level::Debug => Level::Debug,
        types::Level::Info => Level::Info,
        types::Level::Warn => Level::Warn,
        types::Level::Error => Level::Error,
    }
}

impl types::Host for HostState {}

impl request::Host for HostState {
    fn id(&mut self) -> String {
        HostState::request(self).map_or_else(String::new, |request| request.id().to_owned())
    }

    fn model(&mut self) -> String {
        HostState::request(self).map_or_else(String::new, |request| request.model().to_owned())
    }

    fn tenant(&mut self) -> Option<String> {
        HostState::request(self)?.tenant().map(str::to_owned)
    }

    fn header(&mut self, name: String) -> Option<String> {
        HostState::request(self)?.header(&name).map(str::to_owned)
    }

    fn field(&mut self, pointer: String, max_bytes: u32) -> types::FieldValue {
        match HostState::field(self, &pointer, max_bytes) {
            domain::FieldValue::Absent => types::FieldValue::Absent,
            domain::FieldValue::Json(json) => types::FieldValue::Json(json),
            domain::FieldValue::TooLarge(size) => types::FieldValue::TooLarge(size),
        }
    }

    fn messages(&mut self) -> Vec<types::MessageInfo> {
        let info = |info: domain::MessageInfo| types::MessageInfo {
            role: match info.role {
                domain::Role::System => types::Role::System,
                domain::Role::User => types::Role::User,
                domain::Role::Assistant => types::Role::Assistant,
                domain::Role::Tool => types::Role::Tool,
                domain::Role::Other => types::Role::Other,
            },
            text_bytes: info.text_bytes,
            parts: info.parts,
            media_parts: info.media_parts,
        };
        HostState::messages(self).into_iter().map(info).collect()
    }

    fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String {
        HostState::text(self, index, offset, max_bytes)
    }

    fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8> {
        HostState::body(self, offset, max_bytes)
    }

    fn contains(&mut self, needle: String, ignore_case: bool) -> bool {
        HostState::request(self).is_some_and(|request| request.contains(&needle, ignore_case))
    }

    fn prefix_hashes(&mut self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        HostState::prefix_hashes(self, block_bytes, max_blocks)
    }
}

impl fleet::Host for HostState {
    fn stats(&mut self) -> Vec<types::LaneStat> {
        HostState::stats(self).iter().map(lane_stat).collect()
    }

    fn stat(&mut self, lane: u32) -> Option<types::LaneStat> {
        HostState::stat(self, lane).map(lane_stat)
    }

    fn candidates(&mut self) -> Vec<u32> {
        HostState::candidates(self)
    }

    fn info(&mut self, lane: u32) -> Option<types::LaneInfo> {
        HostState::info(self, lane).map(lane_info)
    }

    fn find(&mut self, name: String) -> Option<u32> {
        HostState::fleet(self)?.topology.find(&name).map(|lane| lane.0)
    }

    fn with_label(&mut self, key: String, value: String) -> Vec<u32> {
        HostState::with_label(self, &key, &value)
    }
}

impl log::Host for HostState {
    fn write(&mut self, severity: types::Level, message: String) {
        HostState::log(self, level(severity), &message);
    }

    fn enabled(&mut self, severity: types::Level) -> bool {
        HostState::log_enabled(level(severity))
    }
}

impl metrics::Host for HostState {
    fn add(&mut self, name: String, value: u64) {
        self.shared.figures.add(&name, value);
    }

    fn record_value(&mut self, name: String, value: u64) {
        self.shared.figures.record_value(&name, value);
    }
}

fn state_error(error: StateError) -> state::StateError {
    match error {
        StateError::TooLong => state::StateError::TooLong,
        StateError::NotACounter => state::StateError::NotACounter,
    }
}

impl state::Host for HostState {
    fn get(&mut self, key: String) -> Option<Vec<u8>> {
        self.shared.state.get(&key)
    }

    fn put(&mut self, key: String, value: Vec<u8>, ttl_ms: u32) -> Result<(), state::StateError> {
        self.shared.state.put(key, &value, ttl_ms).map_err(state_error)
    }

    fn delete(&mut self, key: String) {
        self.shared.state.delete(&key);
    }

    fn increment(&mut self, key: String, by: i64, ttl_ms: u32) -> Result<i64, state::StateError> {
        self.shared.state.increment(key, by, ttl_ms).map_err(state_error)
    }
}
