//! Fixtures and strategies for tests.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Advice, AttemptResult, Decision, Edit, Endpoint, EngineKind, FallbackAdvice, FallbackStep,
    FleetView, LaneAdvice, LaneId, LaneInfo, LaneOpinion, LaneScore, LaneStat, LaneState, Merged,
    Metric, MetricWeight, NoLaneReason, Note, OnTimeout, OpinionKind, Outcome, Plan, PlanLimits,
    PolicyCall, PolicyRef, QueueAdvice, Read, Rejection, RequestInfo, Scalar, Step, Switching,
    Topology, Triggers,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{AttemptRecord, DecisionRecord, End, Ended, RequestRecord};

pub(crate) fn limits() -> PlanLimits {
    PlanLimits { max_wait: Duration::from_secs(60), max_steps: 5 }
}

pub(crate) fn lane(name: &str) -> LaneInfo {
    LaneInfo {
        id: LaneId(0),
        name: name.to_owned(),
        engine: EngineKind::Vllm,
        models: vec![name.to_owned(), "auto".to_owned()],
        names: Default::default(),
        labels: vec![("tier".to_owned(), "gpu".to_owned())],
        max_context: 32768,
        endpoints: pointsman_domain::EndpointSet::all(),
        slots: 4,
        group: 1,
        cost_milli: 0,
        is_peer: false,
    }
}

pub(crate) fn fleet(generation: u64) -> Arc<FleetView> {
    let topology = Topology::new(generation, vec![lane("coder"), lane("reader")]);
    Arc::new(FleetView::idle(Arc::new(topology), LaneState::Ready))
}

/// Returns a record without policy calls.
pub(crate) fn plain(id: &str) -> DecisionRecord {
    DecisionRecord {
        request_id: id.into(),
        tenant: None,
        model: "auto".into(),
        now_ms: 1_790_000_000_000,
        seed: u64::MAX,
        age: Duration::from_micros(90),
        attempt: 0,
        figures: RequestInfo::default(),
        topology: 1,
        guards: None,
        chain: None,
        fleet: Vec::new(),
        consulted: Vec::new(),
        merged: merged().into(),
        decision: Decision::NoLane(NoLaneReason::AllDown),
        tries: Vec::new(),
        end: End { how: Ended::Error, total: Duration::from_millis(1) },
        outcome: None,
        request: None,
    }
}

fn merged() -> Merged {
    Merged {
        by: Vec::new(),
        reject: None,
        candidates: vec![LaneId(0), LaneId(1)],
        need: pointsman_domain::ContextNeed::default(),
        lanes: vec![(LaneId(0), 1000), (LaneId(1), -5)],
        opinions: Vec::new(),
        switching: Switching::Allow,
        queue: None,
        fallback: None,
        edits: Vec::new(),
        notes: Vec::new(),
    }
}

/// Returns a record with a value in every field.
#[expect(clippy::too_many_lines, reason = "one record, written out")]
pub(crate) fn full() -> DecisionRecord {
    let policy = PolicyRef::new("cortex", "0.1.0+1b2c3d4e");
    let edits = vec![
        Edit::CapOutputTokens(512),
        Edit::SetField("/temperature".to_owned(), "0.2".to_owned()),
        Edit::PrependSystem("Be brief.".to_owned()),
        Edit::SetHeader("x-class".to_owned(), "batch".to_owned()),
    ];
    let queue = QueueAdvice {
        priority: 3,
        flow: Some("agents".to_owned()),
        max_wait: Some(Duration::from_secs(20)),
        on_timeout: OnTimeout::FallBack,
    };
    let step = FallbackStep { lane: LaneId(1), edits: vec![Edit::SetModel("reader".to_owned())] };
    let fallback = FallbackAdvice {
        on: Triggers::ALL,
        steps: vec![step],
        first_token: Some(Duration::from_secs(9)),
    };
    let why =
        Note { key: "why".to_owned(), value: Scalar::Text("the prompt is about code".to_owned()) };
    let advice = Advice {
        lanes: LaneAdvice::Only(vec![LaneId(0)]),
        switching: Some(Switching::WhenIdle),
        queue: Some(queue.clone()),
        fallback: Some(fallback.clone()),
        edits: edits.clone(),
        notes: vec![why.clone()],
        ..Advice::default()
    };
    let read = |call: &str, with: Vec<Value>, gave| Read { call: call.to_owned(), with, gave };
    let consulted = PolicyCall {
        policy: policy.clone(),
        hook: "on-request".to_owned(),
        took: Duration::from_micros(17),
        reads: vec![
            read("request.model", vec![], json!("auto")),
            read(
                "request.text",
                vec![json!(0), json!(0), json!(4096)],
                json!("redacted:12:00112233aabbccdd"),
            ),
            read("state.get", vec![json!("quota:team-a")], json!({ "hex": "0500000000000000" })),
        ],
        advice: Some(advice),
        note: None,
        dropped: vec!["priority dropped: priority 9 is outside 0 to 3".to_owned()],
        fleet: Vec::new(),
        log: vec![],
    };
    let plan = Plan {
        steps: vec![
            Step { lane: LaneId(0), edits: vec![], context: 0 },
            Step { lane: LaneId(1), edits: vec![], context: 0 },
        ],
        on: Triggers::ALL,
        priority: 3,
        flow: Some("agents".to_owned()),
        max_wait: Duration::from_secs(20),
        on_timeout: OnTimeout::FallBack,
        first_token: Some(Duration::from_secs(9)),
        switching: Switching::WhenIdle,
    };
    let attempt = |lane, result, status, begun, took| AttemptRecord {
        lane: LaneId(lane),
        result,
        status,
        begun: Duration::from_micros(begun),
        queue: Duration::from_micros(40),
        took: Duration::from_micros(took),
    };
    let stat =
        LaneStat { running: 2, slots_free: 2, ..LaneStat::idle(LaneId(0), LaneState::Ready, 4) };
    DecisionRecord {
        tenant: Some("team-a".into()),
        topology: 3,
        guards: None,
        figures: RequestInfo {
            endpoint: Endpoint::ChatCompletions,
            streaming: true,
            body_bytes: 180,
            prompt_tokens: 11,
            max_output_tokens: 0,
            messages: 1,
            has_tools: false,
            has_media: false,
            has_grammar: false,
        },
        fleet: vec![stat, LaneStat::idle(LaneId(1), LaneState::Unloaded, 4)],
        consulted: vec![consulted],
        merged: Merged {
            by: vec![policy.clone()],
            queue: Some(queue),
            fallback: Some(fallback),
            edits,
            notes: vec![(policy, why)],
            ..merged()
        }
        .into(),
        decision: Decision::Route(plan),
        tries: vec![
            attempt(0, AttemptResult::Overloaded, 503, 200, 900),
            attempt(1, AttemptResult::Ok, 200, 1_100, 80_000),
        ],
        end: End { how: Ended::FellBack, total: Duration::from_micros(81_200) },
        outcome: Some(Outcome {
            request_id: "request-1".into(),
            tenant: Some("team-a".into()),
            model: "auto".into(),
            lane: LaneId(1),
            topology: 3,
            ended: AttemptResult::Ok,
            tries: 2,
            queue: Duration::from_micros(80),
            ttft: Duration::from_micros(30_000),
            total: Duration::from_micros(81_200),
            prompt_tokens: 14,
            cached_tokens: 0,
            output_tokens: 96,
            attempts: Vec::new(),
            notes: Vec::new(),
        }),
        request: Some(RequestRecord {
            headers: vec![("x-class".to_owned(), "interactive".to_owned())],
            body: Some(r#"{"model": "auto", "messages": []}"#.to_owned()),
        }),
        ..plain("request-1")
    }
}

fn time() -> impl Strategy<Value = Duration> {
    (0..=u64::MAX / 2).prop_map(Duration::from_micros)
}

fn lane_id() -> impl Strategy<Value = LaneId> {
    any::<u32>().prop_map(LaneId)
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            vec((any::<String>(), inner), 0..4).prop_map(|fields| fields.into_iter().collect()),
        ]
    })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        any::<String>().prop_map(Edit::SetModel),
        any::<u32>().prop_map(Edit::CapOutputTokens),
        any::<(String, String)>().prop_map(|(pointer, json)| Edit::SetField(pointer, json)),
        any::<String>().prop_map(Edit::RemoveField),
        any::<String>().prop_map(Edit::PrependSystem),
        any::<u32>().prop_map(Edit::KeepLastMessages),
        any::<(String, String)>().prop_map(|(name, value)| Edit::SetHeader(name, value)),
        any::<String>().prop_map(Edit::RemoveHeader),
        any::<String>().prop_map(Edit::ReplaceBody),
    ]
}

fn lanes() -> impl Strategy<Value = LaneAdvice> {
    let ids = || vec(lane_id(), 0..4);
    let score = (lane_id(), any::<u16>()).prop_map(|(lane, score)| LaneScore { lane, score });
    let weight = any::<i32>().prop_map(|weight| MetricWeight { metric: Metric::EstWait, weight });
    prop_oneof![
        Just(LaneAdvice::Any),
        ids().prop_map(LaneAdvice::Only),
        ids().prop_map(LaneAdvice::Avoid),
        ids().prop_map(LaneAdvice::Ordered),
        vec(score, 0..4).prop_map(LaneAdvice::Scores),
        vec(weight, 0..4).prop_map(LaneAdvice::Blend),
    ]
}

fn note() -> impl Strategy<Value = Note> {
    let value = prop_oneof![
        any::<bool>().prop_map(Scalar::Flag),
        any::<i64>().prop_map(Scalar::Int),
        any::<String>().prop_map(Scalar::Text),
    ];
    (any::<String>(), value).prop_map(|(key, value)| Note { key, value })
}

fn rejection() -> impl Strategy<Value = Rejection> {
    any::<(u16, String, String, Option<u32>)>().prop_map(
        |(status, code, message, retry_after_s)| Rejection { status, code, message, retry_after_s },
    )
}

fn queue() -> impl Strategy<Value = QueueAdvice> {
    let parts = (any::<i32>(), any::<Option<String>>(), option::of(time()), any::<bool>());
    parts.prop_map(|(priority, flow, max_wait, reject)| QueueAdvice {
        priority,
        flow,
        max_wait,
        on_timeout: if reject { OnTimeout::Reject } else { OnTimeout::FallBack },
    })
}

fn fallback() -> impl Strategy<Value = FallbackAdvice> {
    let step =
        (lane_id(), vec(edit(), 0..3)).prop_map(|(lane, edits)| FallbackStep { lane, edits });
    (0usize..64, vec(step, 0..3), option::of(time())).prop_map(|(on, steps, first_token)| {
        FallbackAdvice {
            on: Triggers::EVERY
                .into_iter()
                .enumerate()
                .filter(|(bit, _)| on >> bit & 1 == 1)
                .map(|(_, on)| on)
                .collect(),
            steps,
            first_token,
        }
    })
}

pub(crate) fn advice() -> impl Strategy<Value = Advice> {
    let parts = (
        option::of(rejection()),
        lanes(),
        option::of(queue()),
        option::of(fallback()),
        vec(edit(), 0..4),
        vec(note(), 0..3),
        vec(note(), 0..2),
    );
    parts.prop_map(|(reject, lanes, queue, fallback, edits, notes, hints)| Advice {
        reject,
        lanes,
        switching: Some(Switching::Never),
        queue,
        fallback,
        edits,
        notes,
        hints,
    })
}

fn read() -> impl Strategy<Value = Read> {
    let calls = [
        "context",
        "request.text",
        "request.field",
        "request.body",
        "request.header",
        "request.tenant",
        "request.prefix-hashes",
        "request.endpoint-kind",
        "request.key-group",
        "request.key-name",
        "request.allowance",
        "state.get",
        "state.put",
        "a.later-one",
    ];
    (prop::sample::select(calls.to_vec()), vec(json_value(), 0..3), json_value())
        .prop_map(|(call, with, gave)| Read { call: call.to_owned(), with, gave })
}

fn consulted() -> impl Strategy<Value = PolicyCall> {
    let parts = (
        any::<(String, String, String)>(),
        time(),
        vec(read(), 0..4),
        option::of(advice()),
        any::<Option<String>>(),
        any::<std::vec::Vec<String>>(),
        any::<bool>(),
    );
    parts.prop_map(|((name, version, hook), took, reads, advice, note, dropped, fleet)| {
        PolicyCall {
            policy: PolicyRef::new(&name, &version),
            hook,
            took,
            reads,
            advice,
            note,
            dropped,
            fleet: fleet
                .then(|| LaneStat::idle(LaneId(0), LaneState::Ready, 4))
                .into_iter()
                .collect(),
            log: vec![],
        }
    })
}

pub(crate) fn topology() -> impl Strategy<Value = Topology> {
    let lane = any::<(String, std::vec::Vec<String>, String, u32)>().prop_map(
        |(name, models, label, slots)| LaneInfo {
            models,
            labels: vec![(label, String::new())],
            slots,
            ..lane(&name)
        },
    );
    (any::<u64>(), vec(lane, 0..4)).prop_map(|(generation, lanes)| Topology::new(generation, lanes))
}

pub(crate) fn decision() -> impl Strategy<Value = DecisionRecord> {
    let attempt = (lane_id(), any::<u16>(), time(), time(), time()).prop_map(
        |(lane, status, begun, queue, took)| AttemptRecord {
            lane,
            result: AttemptResult::EngineRestart,
            status,
            begun,
            queue,
            took,
        },
    );
    let request = any::<(std::vec::Vec<(String, String)>, Option<String>)>()
        .prop_map(|(headers, body)| RequestRecord { headers, body });
    let outer = (any::<(String, Option<String>, u64, u64)>(), time(), option::of(request));
    let parts = (vec(consulted(), 0..3), advice(), vec(attempt, 0..3), any::<bool>(), any::<u32>());
    (outer, parts).prop_map(
        |(
            ((id, tenant, now_ms, seed), age, request),
            (consulted, advice, tries, routed, queued),
        )| {
            let base = full();
            let Advice { reject, queue, fallback, edits, .. } = advice;
            let by = PolicyRef::new("p", "1");
            let decision = match reject.clone() {
                Some(rejection) => Decision::Reject(by.clone(), rejection),
                None if routed => base.decision,
                None => Decision::NoLane(NoLaneReason::FilteredOut),
            };
            let stat = LaneStat { queued, ..LaneStat::idle(LaneId(0), LaneState::Draining, 0) };
            DecisionRecord {
                request_id: id.as_str().into(),
                tenant: tenant.as_deref().map(Arc::from),
                now_ms,
                seed,
                age,
                request,
                fleet: vec![stat],
                consulted,
                merged: Merged {
                    opinions: vec![LaneOpinion {
                        policy: by.clone(),
                        kind: OpinionKind::IgnoredFilter,
                        lanes: vec![LaneId(1)],
                    }],
                    reject: reject.map(|reject| (by, reject)),
                    queue,
                    fallback,
                    edits,
                    ..Merged::clone(&base.merged)
                }
                .into(),
                decision,
                outcome: (!tries.is_empty()).then_some(base.outcome).flatten(),
                tries,
                ..plain("")
            }
        },
    )
}
