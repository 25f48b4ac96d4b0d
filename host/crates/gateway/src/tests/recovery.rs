//! Policies are consulted after a failed attempt, and receive the outcome.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http_body_util::BodyExt as _;
use pointsman_domain::{
    Advised, Advisor, AttemptResult, BuiltIn, Edit, Facts, FailureReport, FallbackStep, FleetView,
    LaneId, Outcome, PolicyRef, Recovered, Recovery, Rejection, Trace,
};

use pointsman_access::{Definitions, KeySet, Keys, SecretHash};

use super::{API_KEY, MAX_ATTEMPTS, TestGateway, json, stream};
use crate::AdvisorSlot;

const BODY: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":50}"#;
const STREAM: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true}"#;
const A: LaneId = LaneId(0);
const C: LaneId = LaneId(2);

type OnFailure = dyn Fn(&Facts, &FailureReport) -> Recovery + Send + Sync;

/// Decides like the built-in rule and keeps all other calls.
#[derive(Default)]
struct TestAdvisor {
    on_failure: Option<Box<OnFailure>>,
    observes: bool,
    /// The failures it was consulted about, with the number of attempts so far.
    failures: Mutex<Vec<(FailureReport, u32)>>,
    outcomes: Mutex<Vec<Outcome>>,
    /// If set, the advisor is replaced as soon as it has decided.
    slot: OnceLock<AdvisorSlot>,
}

impl fmt::Debug for TestAdvisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestAdvisor").finish_non_exhaustive()
    }
}

impl Advisor for TestAdvisor {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Advised {
        if let Some(slot) = self.slot.get() {
            slot.store(Arc::new(Box::new(BuiltIn)));
        }
        BuiltIn.advise(facts, fleet, trace)
    }

    fn has_recovery(&self) -> bool {
        self.on_failure.is_some()
    }

    fn recover(
        &self,
        facts: &Facts,
        _: &Arc<FleetView>,
        failed: &FailureReport,
        _: &mut Trace,
    ) -> Recovered {
        self.failures.lock().unwrap().push((*failed, facts.attempt));
        let Some(on_failure) = &self.on_failure else { return Recovered::default() };
        Recovered { recovery: on_failure(facts, failed), by: Some(PolicyRef::new("patient", "2")) }
    }

    fn observes_outcomes(&self) -> bool {
        self.observes
    }

    fn ended(&self, outcome: &Outcome) {
        self.outcomes.lock().unwrap().push(outcome.clone());
    }
}

/// Creates a gateway whose advisor handles failed attempts with this function.
async fn with(
    on_failure: impl Fn(&Facts, &FailureReport) -> Recovery + Send + Sync + 'static,
) -> (TestGateway, Arc<TestAdvisor>) {
    let advisor = Arc::new(TestAdvisor {
        on_failure: Some(Box::new(on_failure)),
        observes: true,
        ..TestAdvisor::default()
    });
    (TestGateway::new(Arc::clone(&advisor)).await, advisor)
}

fn retry(lane: LaneId) -> Recovery {
    Recovery::Retry(FallbackStep { lane, edits: Vec::new() })
}

fn outcome(advisor: &TestAdvisor) -> Outcome {
    let outcomes = advisor.outcomes.lock().unwrap();
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    outcomes[0].clone()
}

#[tokio::test]
async fn policy_cannot_retry_on_a_lane_that_the_key_may_not_use() {
    let hash = SecretHash::of_secret(API_KEY);
    let key = format!("[[keys]]\nid = \"k\"\ntenant = \"t\"\nhash = \"{hash}\"\n");
    let set = |lanes: &str| {
        let text = format!("{key}lanes = [{lanes}]\n");
        KeySet::from_definitions(&Definitions::parse(&text).unwrap())
    };
    for (lanes, expected) in [("\"a\"", "a"), ("\"a\", \"b\"", "ab")] {
        let advisor = TestAdvisor {
            on_failure: Some(Box::new(|_, _| retry(LaneId(1)))),
            ..TestAdvisor::default()
        };
        let keys = Keys::from_set(set(lanes));
        let gateway = TestGateway::with(Arc::new(advisor), |parts| parts.keys = keys).await;
        gateway.script("a", &[json(503, "{}")]);
        gateway.send(BODY).await;
        assert_eq!(gateway.attempted_lanes(), expected);
    }
}

#[tokio::test]
async fn policy_can_retry_same_lane() {
    let (gateway, advisor) = with(|_, failed| retry(failed.lane)).await;
    gateway.script("a", &[json(503, "{}"), json(200, r#"{"from":"a"}"#)]);
    let (status, headers, body) = gateway.send(BODY).await;
    assert_eq!((status, body.as_str()), (200, r#"{"from":"a"}"#));
    assert_eq!(headers["x-pointsman-attempts"], "2");
    assert_eq!(gateway.attempted_lanes(), "aa");
    let failures = advisor.failures.lock().unwrap();
    let (failure, attempts) = failures[0];
    assert_eq!((failures.len(), attempts), (1, 1));
    let expected = FailureReport {
        lane: A,
        what: AttemptResult::Overloaded,
        status: 503,
        sent_bytes: 0,
        elapsed: failure.elapsed,
        attempts_left: 2,
    };
    assert_eq!(failure, expected);
    // The same lane is not a fallback.
    assert_eq!(gateway.metric("pointsman_answered_total"), "pointsman_answered_total 1");
}

#[tokio::test]
async fn plan_continues_after_policy_retry() {
    let on_failure = |_: &Facts, failed: &FailureReport| match failed.lane {
        A => Recovery::Retry(FallbackStep { lane: C, edits: vec![Edit::CapOutputTokens(7)] }),
        _ => Recovery::Planned,
    };
    let (gateway, advisor) = with(on_failure).await;
    gateway.script("a", &[json(500, "{}")]);
    gateway.script("c", &[json(500, "{}")]);
    let (status, headers, _) = gateway.send(BODY).await;
    assert_eq!((status, &headers["x-pointsman-lane"]), (200, &"b".parse().unwrap()));
    assert_eq!(gateway.attempted_lanes(), "acb");
    let limits: Vec<u64> = gateway
        .engines
        .received
        .lock()
        .unwrap()
        .iter()
        .map(|(_, body)| body["max_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(limits, [50, 7, 50], "an edit applies to its step only");
    assert_eq!(gateway.metric("pointsman_fell_back_total"), "pointsman_fell_back_total 1");
    assert_eq!(
        (outcome(&advisor).tries, outcome(&advisor).lane, outcome(&advisor).ended),
        (3, LaneId(1), AttemptResult::Ok)
    );
}

#[tokio::test]
async fn policy_can_reject_after_failure() {
    for (requested, sent) in [(429, 429), (200, 403)] {
        let rejection = Rejection {
            status: requested,
            code: "come_later".into(),
            message: "Not now.".into(),
            retry_after_s: Some(9),
        };
        let (gateway, advisor) = with(move |_, _| Recovery::GiveUp(rejection.clone())).await;
        gateway.script("a", &[json(500, "{}")]);
        let (status, headers, body) = gateway.send(BODY).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (status, &body["error"]["code"], &body["error"]["message"]),
            (sent, &"come_later".into(), &"Not now.".into())
        );
        assert_eq!(headers["retry-after"], "9");
        assert_eq!(headers["x-pointsman-policy"], "patient@2");
        assert_eq!(gateway.attempted_lanes(), "a", "the plan's fallback is not attempted");
        assert_eq!(gateway.metric("pointsman_errors_total"), "pointsman_errors_total 1");
        assert_eq!(outcome(&advisor).ended, AttemptResult::Other);
    }
}

#[tokio::test]
async fn policy_retries_are_limited() {
    let (gateway, advisor) = with(|_, _| retry(A)).await;
    gateway.script("a", &[json(500, "{}"); 10]);
    let (status, ..) = gateway.send(BODY).await;
    assert_eq!((status, gateway.attempted_lanes().as_str()), (502, "aaa"));
    assert_eq!(gateway.attempted_lanes().len(), MAX_ATTEMPTS);
    let left: Vec<u32> =
        advisor.failures.lock().unwrap().iter().map(|(failed, _)| failed.attempts_left).collect();
    assert_eq!(left, [2, 1, 0]);
    assert_eq!((outcome(&advisor).tries, outcome(&advisor).ended), (3, AttemptResult::ServerError));
}

#[tokio::test]
async fn retry_on_unknown_lane_is_ignored() {
    let (gateway, _) = with(|_, _| retry(LaneId(77))).await;
    gateway.script("a", &[json(500, "{}")]);
    assert_eq!(gateway.send(BODY).await.0, 200);
    assert_eq!(gateway.attempted_lanes(), "ab");
}

#[tokio::test]
async fn client_error_is_not_a_failed_attempt() {
    let (gateway, advisor) = with(|_, _| retry(A)).await;
    gateway.script("a", &[json(400, r#"{"error":{"message":"no"}}"#)]);
    assert_eq!(gateway.send(BODY).await.0, 400);
    assert!(advisor.failures.lock().unwrap().is_empty());
    assert_eq!(outcome(&advisor).ended, AttemptResult::Other);
}

#[tokio::test]
async fn deciding_advisor_handles_failure_and_outcome() {
    let (gateway, advisor) = with(|_, failed| retry(failed.lane)).await;
    advisor.slot.set(Arc::clone(&gateway.gateway.pipeline().advisor)).unwrap();
    gateway.script("a", &[json(500, "{}")]);
    assert_eq!(gateway.send(BODY).await.0, 200);
    assert_eq!(gateway.attempted_lanes(), "aa");
    assert_eq!(outcome(&advisor).tries, 2);
    // The next request is decided by the new advisor.
    gateway.script("a", &[json(500, "{}")]);
    assert_eq!(gateway.send(BODY).await.0, 200);
    assert_eq!(gateway.attempted_lanes(), "aaab");
    assert_eq!(outcome(&advisor).tries, 2);
}

#[tokio::test]
async fn advisor_without_hooks_is_not_called() {
    let advisor = Arc::new(TestAdvisor::default());
    let gateway = TestGateway::new(Arc::clone(&advisor)).await;
    gateway.script("a", &[json(500, "{}")]);
    assert_eq!(gateway.send(BODY).await.0, 200);
    assert_eq!(gateway.attempted_lanes(), "ab");
    assert!(
        advisor.failures.lock().unwrap().is_empty() && advisor.outcomes.lock().unwrap().is_empty()
    );
}

#[tokio::test]
async fn outcome_has_result_times_and_tokens() {
    const USAGE: &str = concat!(
        r#""usage":{"prompt_tokens":70,"completion_tokens":5,"#,
        r#""prompt_tokens_details":{"cached_tokens":64}}"#
    );
    let plain = format!(r#"{{"choices":[],{USAGE},"prompt_logprobs":null}}"#);
    let event = format!("data: {{\"choices\":[{{\"finish_reason\":\"stop\"}}],{USAGE}}}\n\n");
    let whole = format!("{event}data: [DONE]\n\n");
    let leak = |text: String| -> &'static str { text.leak() };
    let (plain, event, whole) = (leak(plain), leak(event), leak(whole));
    for (body, reply, end, tokens) in [
        (BODY, json(200, plain), AttemptResult::Ok, Some((70, 64, 5))),
        (BODY, json(200, "{}"), AttemptResult::Ok, None),
        (STREAM, stream(whole, false), AttemptResult::Ok, Some((70, 64, 5))),
        (STREAM, stream("data: {}\n\ndata: [DONE]\n\n", false), AttemptResult::Ok, None),
        (STREAM, stream("data: {}\n\n", false), AttemptResult::ServerError, None),
        (
            STREAM,
            stream("data: {}\n\ndata: {\"error\":{}}\n\n", false),
            AttemptResult::ServerError,
            None,
        ),
        // The client has read the last event and disconnects before the end.
        (STREAM, stream(event, true), AttemptResult::ClientGone, Some((70, 64, 5))),
    ] {
        let (gateway, advisor) = with(|_, _| Recovery::Planned).await;
        gateway.script("a", &[reply]);
        let mut response = gateway.begin(body).await.into_body();
        assert!(response.frame().await.is_some());
        assert!(
            advisor.outcomes.lock().unwrap().is_empty() || !reply.hangs,
            "outcome before the end"
        );
        if !reply.hangs {
            while let Some(Ok(_)) = response.frame().await {}
        }
        drop(response);
        let outcome = outcome(&advisor);
        let Outcome { prompt_tokens, cached_tokens, output_tokens, .. } = outcome;
        // The host estimates a few tokens for "hello" and its chat template.
        let estimated =
            (1..20).contains(&prompt_tokens) && (cached_tokens, output_tokens) == (0, 0);
        let counted = Some((prompt_tokens, cached_tokens, output_tokens));
        assert!(
            if tokens.is_some() { counted == tokens } else { estimated },
            "{reply:?}: {outcome:?}"
        );
        assert_eq!(outcome.ended, end, "{reply:?}");
        assert_eq!(
            (&*outcome.request_id, &*outcome.model, &outcome.tenant),
            ("the-id", "m", &None)
        );
        assert_eq!((outcome.lane, outcome.tries, outcome.topology), (A, 1, 1));
        assert!(
            outcome.ttft > Duration::ZERO
                && outcome.ttft <= outcome.total
                && outcome.queue <= outcome.ttft
        );
    }
}

#[tokio::test]
async fn client_gone_outcome_includes_queue_time() {
    let (gateway, advisor) = with(|_, _| Recovery::Planned).await;
    gateway.script("a", &[stream("data: {}\n\n", true); 3]);
    gateway.script("b", &[stream("data: {}\n\n", true); 2]);
    let mut responses = Vec::new();
    for _ in 0..5 {
        responses.push(gateway.begin(STREAM).await);
    }
    let waits = tokio::time::timeout(Duration::from_millis(100), gateway.begin(STREAM));
    assert!(waits.await.is_err(), "all slots are taken");
    let outcome = outcome(&advisor);
    assert_eq!(
        (outcome.ended, outcome.tries, outcome.ttft),
        (AttemptResult::ClientGone, 1, Duration::ZERO)
    );
    assert!(
        outcome.queue >= Duration::from_millis(50) && outcome.queue <= outcome.total,
        "{outcome:?}"
    );
}

#[tokio::test]
async fn request_without_attempt_has_no_outcome() {
    let (gateway, advisor) = with(|_, _| Recovery::Planned).await;
    assert_eq!(gateway.send(r#"{"model":"unknown","messages":[]}"#).await.0, 404);
    assert!(advisor.outcomes.lock().unwrap().is_empty());
}
