//! Guards hold at every door, whatever policies advise.

use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use pointsman_access::{Identity, KeySet, Keys, Rights};
use pointsman_domain::{
    Advice, Advised, Advisor, AppliedGuard, Constraint, Edit, Endpoint, Facts, FailureReport,
    FallbackAdvice, FallbackStep, FleetView, Guard, GuardConditions, GuardRules, Guards,
    LaneAdvice, LaneId, Merge, OnConflict, PolicyRef, QueueShare, Recovered, Recovery, SlotRequest,
    Switching, Trace, Triggers,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{API_KEY, LaneSpec, TestGateway, json as reply};
use crate::error_code::ErrorCode;
use crate::failure::AttemptError;
use crate::guard::RequestGuard;

const CHAT: &str = "/v1/chat/completions";
const B: LaneId = LaneId(1);
const C: LaneId = LaneId(2);

/// Advises the opposite of what the guards demand, whatever it sees: lane `b` first, then `c`,
/// another model, no limit of the output.
#[derive(Default)]
struct Hostile {
    /// The advice about lanes.
    lanes: LaneAdvice,
    steps: Vec<FallbackStep>,
    edits: Vec<Edit>,
    retry: Option<FallbackStep>,
    /// Decides with a view of its own, in which nothing is barred.
    ignores_view: bool,
}

impl fmt::Debug for Hostile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hostile").finish_non_exhaustive()
    }
}

impl Advisor for Hostile {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, _: &mut Trace) -> Advised {
        let info = facts.request.info();
        let all = FleetView::clone(fleet);
        let all = match self.ignores_view {
            true => {
                let lanes = fleet.topology.lanes().to_vec();
                let topology = Arc::new(pointsman_domain::Topology::with_ids(1, lanes));
                FleetView::new(topology, fleet.stats().collect())
            }
            false => all,
        };
        let mut merge = Merge::new(&all, facts.request.model(), info.endpoint);
        let fallback =
            FallbackAdvice { on: Triggers::ALL, steps: self.steps.clone(), first_token: None };
        let advice = Advice {
            lanes: self.lanes.clone(),
            fallback: (!self.steps.is_empty()).then_some(fallback),
            edits: self.edits.clone(),
            ..Advice::default()
        };
        merge.add(&PolicyRef::new("hostile", "1"), 1000, advice);
        merge.finish(OnConflict::IgnoreFilters).into()
    }

    fn has_recovery(&self) -> bool {
        self.retry.is_some()
    }

    fn recover(
        &self,
        _: &Facts,
        _: &Arc<FleetView>,
        _: &FailureReport,
        _: &mut Trace,
    ) -> Recovered {
        let recovery = self.retry.clone().map_or(Recovery::Planned, Recovery::Retry);
        Recovered { recovery, by: None }
    }
}

fn guard(when: GuardConditions, rules: GuardRules) -> Guard {
    Guard { when, applied: Arc::new(AppliedGuard { name: "g".into(), rules }) }
}

/// The rules that leave lane `a` only: lanes have their name as a label.
fn only_a() -> GuardRules {
    GuardRules { only_labels: vec![("name".into(), "a".into())], ..GuardRules::default() }
}

fn at_most(max: u32) -> GuardRules {
    GuardRules { max_output_tokens: Some(max), ..GuardRules::default() }
}

async fn gateway(advisor: Hostile, guards: Vec<Guard>) -> TestGateway {
    let identity = Identity {
        tenant: Some("acme".into()),
        key: 7,
        rights: Rights { engine_admin: true, ..Rights::default() },
        ..Identity::default()
    };
    let label = |lane: &mut LaneSpec| lane.labels.push(("name".into(), lane.name.clone()));
    TestGateway::with_lanes(advisor, label, |parts| {
        let mut keys = KeySet::default();
        keys.add_digest(Sha256::digest(API_KEY.as_bytes()).into(), identity);
        parts.keys = Keys::default();
        parts.keys.replace(keys);
        parts.settings.guards = Arc::new(Guards(guards));
    })
    .await
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

async fn post(gateway: &TestGateway, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let request = Request::post(path)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {API_KEY}"));
    let request =
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let request = request.body(Body::from(body.to_string())).unwrap();
    let (head, body) = gateway.routes().serve(request).await.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    }
}

fn chat() -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": "hello" }] })
}

/// Returns the body that the last attempt sent.
fn last_body(gateway: &TestGateway) -> Value {
    gateway.engines.received.lock().unwrap().last().unwrap().1.clone()
}

fn step(lane: LaneId, edits: Vec<Edit>) -> FallbackStep {
    FallbackStep { lane, edits }
}

#[tokio::test]
async fn attempts_fallbacks_and_recoveries_stay_on_allowed_lanes() {
    let to_b = || LaneAdvice::Only(vec![B]);
    let steps = || vec![step(B, Vec::new()), step(C, Vec::new())];
    for (hostile, expected) in [
        (Hostile::default(), "a"),
        (Hostile { lanes: LaneAdvice::Ordered(vec![B, LaneId(0)]), ..Hostile::default() }, "a"),
        (Hostile { steps: steps(), ..Hostile::default() }, "a"),
        (Hostile { retry: Some(step(B, Vec::new())), ..Hostile::default() }, "a"),
        (Hostile { retry: Some(step(C, Vec::new())), ..Hostile::default() }, "a"),
        (Hostile { steps: steps(), ignores_view: true, ..Hostile::default() }, "a"),
        // Its filter excludes all lanes of the plan.
        (Hostile { lanes: to_b(), ignores_view: true, ..Hostile::default() }, ""),
    ] {
        let gateway = gateway(hostile, vec![guard(GuardConditions::default(), only_a())]).await;
        gateway.script("a", &[reply(500, "{}"), reply(500, "{}")]);
        let answer = post(&gateway, CHAT, &[], &chat()).await;
        assert!(answer.status >= 500, "{}", answer.status);
        assert_eq!(gateway.attempted_lanes(), expected);
        assert_eq!(answer.header("x-pointsman-guard"), "g");
        let applied = gateway.metric("pointsman_guarded_requests_total{guard=\"g\"");
        assert!(applied.contains("effect=\"applied\"} 1"), "{applied}");
        assert!(!applied.contains("violation"), "{applied}");
    }
}

#[tokio::test]
async fn request_for_which_no_lane_is_left_is_refused() {
    let none = GuardRules { never_external: true, ..GuardRules::default() };
    let when = GuardConditions {
        tenants: vec!["acme".into()],
        headers: vec![("x-class".into(), "secret".into())],
        endpoints: vec![Endpoint::ChatCompletions],
        ..GuardConditions::default()
    };
    let gateway = gateway(Hostile::default(), vec![guard(when, none)]).await;
    let both = [("X-Class", "public"), ("x-class", "secret")];
    let refused = post(&gateway, CHAT, &both, &chat()).await;
    assert_eq!((refused.status, refused.code()), (403, "guard_refused"));
    assert_eq!(refused.header("x-pointsman-guard"), "g");
    let counted = gateway.metric("pointsman_guarded_requests_total{guard=\"g\"");
    assert!(counted.contains("effect=\"refused\"} 1"), "{counted}");
    let served = post(&gateway, CHAT, &[("x-class", "public")], &chat()).await;
    assert_eq!((served.status, served.header("x-pointsman-guard")), (200, ""));
    assert_eq!(gateway.attempted_lanes().len(), 1);
}

#[tokio::test]
async fn output_is_limited_whatever_edits_say() {
    let set = |json: &str| vec![Edit::SetField("/max_tokens".into(), json.into())];
    for (hostile, fields, expected) in [
        (Hostile::default(), json!({}), json!([10, null])),
        (Hostile::default(), json!({ "max_tokens": 5 }), json!([5, null])),
        (Hostile::default(), json!({ "max_completion_tokens": 500 }), json!([null, 10])),
        (Hostile::default(), json!({ "max_tokens": 500, "n": 2 }), json!([5, null])),
        (Hostile { edits: set("900"), ..Hostile::default() }, json!({}), json!([10, null])),
        // The edits of a step come last.
        (
            Hostile { retry: Some(step(B, set("900"))), ..Hostile::default() },
            json!({}),
            json!([10, null]),
        ),
    ] {
        let is_retried = hostile.retry.is_some();
        let gateway = gateway(hostile, vec![guard(GuardConditions::default(), at_most(10))]).await;
        if is_retried {
            gateway.script("a", &[reply(500, "{}")]);
        }
        let mut body = chat();
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = post(&gateway, CHAT, &[], &body).await;
        assert_eq!(answer.status, 200);
        let sent = last_body(&gateway);
        assert_eq!(json!([sent["max_tokens"], sent["max_completion_tokens"]]), expected);
    }
    let gateway =
        gateway(Hostile::default(), vec![guard(GuardConditions::default(), at_most(10))]).await;
    let mut body = chat();
    body["n"] = 11.into();
    let refused = post(&gateway, CHAT, &[], &body).await;
    assert_eq!((refused.status, refused.code()), (403, "guard_refused"));
    assert_eq!(gateway.attempted_lanes(), "");
}

#[tokio::test]
async fn another_model_is_never_sent() {
    let keep = || GuardRules { keep_model: true, ..GuardRules::default() };
    let other = || Edit::SetModel("other".into());
    // For all steps: the request is refused, because this advisor did not drop the edit.
    let hostile = Hostile { edits: vec![other()], ..Hostile::default() };
    let refusing = gateway(hostile, vec![guard(GuardConditions::default(), keep())]).await;
    let refused = post(&refusing, CHAT, &[], &chat()).await;
    assert_eq!((refused.status, refused.code()), (403, "guard_refused"));
    assert_eq!(refusing.attempted_lanes(), "");
    // For one step: its attempt is refused.
    let hostile = Hostile { retry: Some(step(B, vec![other()])), ..Hostile::default() };
    let failing = gateway(hostile, vec![guard(GuardConditions::default(), keep())]).await;
    failing.script("a", &[reply(500, "{}")]);
    let failed = post(&failing, CHAT, &[], &chat()).await;
    assert_eq!((failed.status, failed.code()), (500, "guard_violation"));
    assert_eq!(failing.attempted_lanes(), "a");
    let counted = failing.metric("pointsman_guarded_requests_total{guard=\"g\"");
    assert!(counted.contains("effect=\"violation\"} "), "{counted}");
    // Lanes of another model.
    let hostile = Hostile { steps: vec![step(C, Vec::new())], ..Hostile::default() };
    let kept = gateway(hostile, vec![guard(GuardConditions::default(), keep())]).await;
    kept.script("a", &[reply(500, "{}")]);
    assert!(post(&kept, CHAT, &[], &chat()).await.status >= 500);
    assert_eq!(kept.attempted_lanes(), "a");
}

#[tokio::test]
async fn paths_of_engines_are_guarded() {
    let all = GuardConditions::default;
    let only_chat = || GuardConditions {
        endpoints: vec![Endpoint::ChatCompletions],
        ..GuardConditions::default()
    };
    for (when, rules, path, expected) in [
        (all(), only_a(), "/upstream/a/v1/chat/completions", (200, "")),
        (all(), only_a(), "/upstream/b/v1/chat/completions", (403, "guard_refused")),
        (only_chat(), only_a(), "/upstream/b/v1/embeddings", (200, "")),
        // It may be any endpoint.
        (only_chat(), only_a(), "/upstream/b/generate", (403, "guard_refused")),
        (all(), at_most(10), "/upstream/b/v1/chat/completions", (200, "")),
        (all(), at_most(10), "/upstream/b/v1/embeddings", (200, "")),
        (all(), at_most(10), "/upstream/b/generate", (403, "guard_refused")),
    ] {
        let limits = rules.max_output_tokens.is_some() && path.ends_with("/completions");
        let gateway = gateway(Hostile::default(), vec![guard(when, rules)]).await;
        let mut body = chat();
        body["max_tokens"] = 500.into();
        let answer = post(&gateway, path, &[], &body).await;
        assert_eq!((answer.status, answer.code()), expected, "{path}");
        if answer.status == 200 {
            let sent = last_body(&gateway)["max_tokens"].clone();
            assert_eq!(sent, if limits { 10 } else { 500 }, "{path}");
        } else {
            assert_eq!(answer.header("x-pointsman-guard"), "g");
            assert_eq!(gateway.attempted_lanes(), "");
        }
    }
}

#[tokio::test]
async fn retry_joins_its_original_only_with_the_same_constraint() {
    let secret = ("x-class", "secret");
    let when = GuardConditions {
        headers: vec![(secret.0.into(), secret.1.into())],
        ..GuardConditions::default()
    };
    let gateway = gateway(Hostile::default(), vec![guard(when, only_a())]).await;
    let key = ("idempotency-key", "k");
    let mut attempts = Vec::new();
    for headers in [&[key][..], &[key], &[key, secret]] {
        assert_eq!(post(&gateway, CHAT, headers, &chat()).await.status, 200);
        attempts.push(gateway.attempted_lanes().len());
    }
    assert_eq!(attempts, [1, 1, 2]);
}

#[tokio::test]
async fn stored_conversation_does_not_bind_to_a_forbidden_lane() {
    let secret = ("x-class", "secret");
    let when = GuardConditions {
        headers: vec![(secret.0.into(), secret.1.into())],
        ..GuardConditions::default()
    };
    let first_b = Hostile { lanes: LaneAdvice::Ordered(vec![B, LaneId(0)]), ..Hostile::default() };
    let gateway = gateway(first_b, vec![guard(when, only_a())]).await;
    const HI: &str = r#"{"id":"c","created":5,"choices":[{"index":0,"finish_reason":"stop",
        "message":{"role":"assistant","content":"hi"}}],
        "usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#;
    let endpoints = "/v1/responses";
    for lane in ["a", "b"] {
        gateway.script(lane, &[reply(200, HI), reply(200, HI)]);
    }
    let first = post(&gateway, endpoints, &[], &json!({ "model": "m", "input": "hello" })).await;
    assert_eq!((first.status, first.header("x-pointsman-lane")), (200, "b"), "{}", first.body);
    let next = json!({ "model": "m", "input": "more", "previous_response_id": first.body["id"] });
    let unguarded = post(&gateway, endpoints, &[], &next).await;
    assert_eq!(unguarded.header("x-pointsman-lane"), "b");
    let guarded = post(&gateway, endpoints, &[secret], &next).await;
    assert_eq!((guarded.status, guarded.header("x-pointsman-lane")), (200, "a"));
}

/// A reload adds its guards before it changes lanes.
#[tokio::test]
async fn added_guards_are_in_force_beside_the_earlier_ones() {
    let never = GuardRules { never_external: true, ..GuardRules::default() };
    let earlier = guard(GuardConditions::default(), at_most(10));
    let gateway = gateway(Hostile::default(), vec![earlier.clone()]).await;
    let added = |guards: Vec<Guard>| gateway.gateway.add_guards(&Guards(guards));
    added(vec![earlier]);
    let served = post(&gateway, CHAT, &[], &chat()).await;
    assert_eq!((served.status, served.header("x-pointsman-guard")), (200, "g"));
    added(vec![guard(GuardConditions::default(), never)]);
    let refused = post(&gateway, CHAT, &[], &chat()).await;
    assert_eq!((refused.status, refused.code()), (403, "guard_refused"));
}

/// The check of decisions is bypassed: a slot of a forbidden lane is asked for directly.
#[tokio::test]
async fn attempt_on_a_forbidden_lane_is_refused_by_its_own_check() {
    let gateway = gateway(Hostile::default(), Vec::new()).await;
    let pipeline = gateway.gateway.pipeline();
    let mut guard = RequestGuard::new(Arc::clone(&pipeline.metrics));
    let applied = Arc::new(AppliedGuard { name: "g".into(), rules: only_a() });
    let constraint = Constraint { model: "m".into(), guards: vec![applied] };
    guard.set(Some(Arc::new(constraint)));
    let slot_request = |lane| SlotRequest {
        lane,
        priority: 0,
        flow: Default::default(),
        weight: QueueShare::default().weight,
        max_wait: std::time::Duration::from_secs(1),
        switching: Switching::Allow,
        has_fallback: false,
        has_begun: false,
    };
    let acquire = |lane| {
        let ticketed = (pipeline.fleet.ticket(), slot_request(lane));
        guard.acquire(&pipeline.fleet, ticketed, None)
    };
    assert!(acquire(LaneId(0)).await.is_ok());
    for lane in [B, C] {
        let error = acquire(lane).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::GuardViolation);
        assert!(matches!(error, AttemptError::Guard(_)), "{error}");
    }
    let counted = gateway.metric("pointsman_guarded_requests_total{guard=\"g\"");
    assert!(counted.contains("effect=\"violation\"} 2"), "{counted}");
}
