//! What policies are asked after a failed try, and what they hear at the end.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http_body_util::BodyExt as _;
use pointsman_domain::{
    Advisor, AttemptResult, BuiltIn, Edit, Facts, FailureReport, FallbackStep, FleetView, LaneId,
    Merged, Outcome, Recovery, Rejection, Trace,
};

use super::{MOST_TRIES, World, json, stream};
use crate::AdvisorSlot;

const BODY: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":50}"#;
const STREAM: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true}"#;
const A: LaneId = LaneId(0);
const C: LaneId = LaneId(2);

type Opinion = dyn Fn(&Facts, &FailureReport) -> Recovery + Send + Sync;

/// Decides as the built-in rule does, and writes down what else it is told.
#[derive(Default)]
struct Fake {
    opinion: Option<Box<Opinion>>,
    learns: bool,
    /// What it was asked, with the tries so far.
    asked: Mutex<Vec<(FailureReport, u32)>>,
    outcomes: Mutex<Vec<Outcome>>,
    /// Replaced by a new one as soon as this one has decided.
    slot: OnceLock<AdvisorSlot>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake").finish_non_exhaustive()
    }
}

impl Advisor for Fake {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Merged {
        if let Some(slot) = self.slot.get() {
            slot.store(Arc::new(Box::new(BuiltIn)));
        }
        BuiltIn.advise(facts, fleet, trace)
    }

    fn recovers(&self) -> bool {
        self.opinion.is_some()
    }

    fn recover(
        &self,
        facts: &Facts,
        _: &Arc<FleetView>,
        failed: &FailureReport,
        _: &mut Trace,
    ) -> Recovery {
        self.asked.lock().unwrap().push((*failed, facts.attempt));
        self.opinion.as_ref().map_or(Recovery::Planned, |opinion| opinion(facts, failed))
    }

    fn learns(&self) -> bool {
        self.learns
    }

    fn ended(&self, outcome: &Outcome) {
        self.outcomes.lock().unwrap().push(outcome.clone());
    }
}

/// A world whose advisor has this opinion about failed tries.
async fn with(
    opinion: impl Fn(&Facts, &FailureReport) -> Recovery + Send + Sync + 'static,
) -> (World, Arc<Fake>) {
    let fake = Arc::new(Fake { opinion: Some(Box::new(opinion)), learns: true, ..Fake::default() });
    (World::new(Arc::clone(&fake)).await, fake)
}

fn retry(lane: LaneId) -> Recovery {
    Recovery::Retry(FallbackStep { lane, edits: Vec::new() })
}

fn ended(fake: &Fake) -> Outcome {
    let outcomes = fake.outcomes.lock().unwrap();
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    outcomes[0].clone()
}

#[tokio::test]
async fn a_policy_can_have_the_same_lane_tried_again() {
    let (world, fake) = with(|_, failed| retry(failed.lane)).await;
    world.script("a", &[json(503, "{}"), json(200, r#"{"from":"a"}"#)]);
    let (status, headers, body) = world.ask(BODY).await;
    assert_eq!((status, body.as_str()), (200, r#"{"from":"a"}"#));
    assert_eq!(headers["x-pointsman-attempts"], "2");
    assert_eq!(world.asked(), "aa");
    let asked = fake.asked.lock().unwrap();
    let (failure, tries) = asked[0];
    assert_eq!((asked.len(), tries), (1, 1));
    let expected = FailureReport {
        lane: A,
        what: AttemptResult::Overloaded,
        status: 503,
        sent_bytes: 0,
        elapsed: failure.elapsed,
        attempts_left: 2,
    };
    assert_eq!(failure, expected);
    // The same lane: it did not fall back.
    assert_eq!(world.metric("pointsman_answered_total"), "pointsman_answered_total 1");
}

#[tokio::test]
async fn after_a_try_of_its_own_the_plan_goes_on() {
    let opinion = |_: &Facts, failed: &FailureReport| match failed.lane {
        A => Recovery::Retry(FallbackStep { lane: C, edits: vec![Edit::CapOutputTokens(7)] }),
        _ => Recovery::Planned,
    };
    let (world, fake) = with(opinion).await;
    world.script("a", &[json(500, "{}")]);
    world.script("c", &[json(500, "{}")]);
    let (status, headers, _) = world.ask(BODY).await;
    assert_eq!((status, &headers["x-pointsman-lane"]), (200, &"b".parse().unwrap()));
    assert_eq!(world.asked(), "acb");
    let limits: Vec<u64> = world
        .engines
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|(_, body)| body["max_tokens"].as_u64().unwrap())
        .collect();
    assert_eq!(limits, [50, 7, 50], "an edit is for its step only");
    assert_eq!(world.metric("pointsman_fell_back_total"), "pointsman_fell_back_total 1");
    assert_eq!(
        (ended(&fake).tries, ended(&fake).lane, ended(&fake).ended),
        (3, LaneId(1), AttemptResult::Ok)
    );
}

#[tokio::test]
async fn a_policy_can_give_up_with_words_of_its_own() {
    for (wanted, given) in [(429, 429), (200, 403)] {
        let rejection = Rejection {
            status: wanted,
            code: "come_later".into(),
            message: "Not now.".into(),
            retry_after_s: Some(9),
        };
        let (world, fake) = with(move |_, _| Recovery::GiveUp(rejection.clone())).await;
        world.script("a", &[json(500, "{}")]);
        let (status, headers, body) = world.ask(BODY).await;
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (status, &body["error"]["code"], &body["error"]["message"]),
            (given, &"come_later".into(), &"Not now.".into())
        );
        assert_eq!(headers["retry-after"], "9");
        assert_eq!(world.asked(), "a", "a plan that has a fallback is not carried on");
        assert_eq!(world.metric("pointsman_errors_total"), "pointsman_errors_total 1");
        assert_eq!(ended(&fake).ended, AttemptResult::Other);
    }
}

#[tokio::test]
async fn no_policy_gets_more_tries_than_there_are() {
    let (world, fake) = with(|_, _| retry(A)).await;
    world.script("a", &[json(500, "{}"); 10]);
    let (status, ..) = world.ask(BODY).await;
    assert_eq!((status, world.asked().as_str()), (502, "aaa"));
    assert_eq!(world.asked().len(), MOST_TRIES);
    let left: Vec<u32> =
        fake.asked.lock().unwrap().iter().map(|(failed, _)| failed.attempts_left).collect();
    assert_eq!(left, [2, 1, 0]);
    assert_eq!((ended(&fake).tries, ended(&fake).ended), (3, AttemptResult::ServerError));
}

#[tokio::test]
async fn a_lane_that_there_is_not_is_not_tried() {
    let (world, _) = with(|_, _| retry(LaneId(77))).await;
    world.script("a", &[json(500, "{}")]);
    assert_eq!(world.ask(BODY).await.0, 200);
    assert_eq!(world.asked(), "ab");
}

#[tokio::test]
async fn a_client_s_mistake_is_no_failed_try() {
    let (world, fake) = with(|_, _| retry(A)).await;
    world.script("a", &[json(400, r#"{"error":{"message":"no"}}"#)]);
    assert_eq!(world.ask(BODY).await.0, 400);
    assert!(fake.asked.lock().unwrap().is_empty());
    assert_eq!(ended(&fake).ended, AttemptResult::Other);
}

#[tokio::test]
async fn the_advisor_that_decided_is_the_one_that_is_asked_and_told() {
    let (world, fake) = with(|_, failed| retry(failed.lane)).await;
    fake.slot.set(Arc::clone(&world.gateway.advisor)).unwrap();
    world.script("a", &[json(500, "{}")]);
    assert_eq!(world.ask(BODY).await.0, 200);
    assert_eq!(world.asked(), "aa");
    assert_eq!(ended(&fake).tries, 2);
    // The next request belongs to its successor.
    world.script("a", &[json(500, "{}")]);
    assert_eq!(world.ask(BODY).await.0, 200);
    assert_eq!(world.asked(), "aaab");
    assert_eq!(ended(&fake).tries, 2);
}

#[tokio::test]
async fn who_has_no_opinion_is_not_asked_and_who_does_not_learn_is_not_told() {
    let fake = Arc::new(Fake::default());
    let world = World::new(Arc::clone(&fake)).await;
    world.script("a", &[json(500, "{}")]);
    assert_eq!(world.ask(BODY).await.0, 200);
    assert_eq!(world.asked(), "ab");
    assert!(fake.asked.lock().unwrap().is_empty() && fake.outcomes.lock().unwrap().is_empty());
}

#[tokio::test]
async fn outcomes_say_what_a_request_took() {
    const USAGE: &str = r#""usage":{"prompt_tokens":70,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":64}}"#;
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
        (STREAM, stream("data: {\"error\":{}}\n\n", false), AttemptResult::ServerError, None),
        // The client has read the last event, and does not wait for the end.
        (STREAM, stream(event, true), AttemptResult::ClientGone, Some((70, 64, 5))),
    ] {
        let (world, fake) = with(|_, _| Recovery::Planned).await;
        world.script("a", &[reply]);
        let mut answer = world.begin(body).await.into_body();
        assert!(answer.frame().await.is_some());
        assert!(fake.outcomes.lock().unwrap().is_empty() || !reply.hangs, "told before the end");
        if !reply.hangs {
            while let Some(Ok(_)) = answer.frame().await {}
        }
        drop(answer);
        let outcome = ended(&fake);
        let Outcome { prompt_tokens, cached_tokens, output_tokens, .. } = outcome;
        // "hello" with its frame is a handful of tokens, by the host's estimate.
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
async fn a_client_that_leaves_the_queue_is_heard_of_with_its_wait() {
    let (world, fake) = with(|_, _| Recovery::Planned).await;
    world.script("a", &[stream("data: {}\n\n", true); 3]);
    world.script("b", &[stream("data: {}\n\n", true); 2]);
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(world.begin(STREAM).await);
    }
    let waits = tokio::time::timeout(Duration::from_millis(100), world.begin(STREAM));
    assert!(waits.await.is_err(), "all slots are taken");
    let outcome = ended(&fake);
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
async fn a_request_that_no_lane_was_tried_for_teaches_nothing() {
    let (world, fake) = with(|_, _| Recovery::Planned).await;
    assert_eq!(world.ask(r#"{"model":"nobody","messages":[]}"#).await.0, 404);
    assert!(fake.outcomes.lock().unwrap().is_empty());
}
