use std::sync::Mutex;

use super::error::MAX_QUOTE;
use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);
const GIB: u64 = 1 << 30;
const ASLEEP: (&str, Reply) = ("GET /is_sleeping", Ok200(r#"{"is_sleeping":true}"#));
const AWAKE: (&str, Reply) = ("GET /is_sleeping", Ok200(r#"{"is_sleeping":false}"#));
const SLEEP_1: (&str, Reply) =
    ("POST /sleep?level=1&mode=wait", Ok200(r#"{"status":"sleeping","level":1}"#));
const SLEEP_2: (&str, Reply) =
    ("POST /sleep?level=2&mode=wait", Ok200(r#"{"status":"sleeping","level":2}"#));
const WAKE: (&str, Reply) = ("POST /wake_up", Ok200(r#"{"status":"awake","tags":null}"#));
const CANARY_OUTPUT: (&str, Reply) = ("POST /v1/completions", Ok200(TOKYO));
/// A response of vLLM 0.32.0.
const TOKYO: &str = r#"{
    "id": "cmpl-a10848fea3e0bfe2", "object": "text_completion", "created": 1795231981, "model": "m",
    "choices": [{
        "index": 0, "text": " Tokyo.", "logprobs": null, "finish_reason": "length",
        "stop_reason": null
    }],
    "usage": {"prompt_tokens": 27, "total_tokens": 35, "completion_tokens": 8}
}"#;
/// The response of vLLM when its engine process has died.
const DEAD: &str = r#"{"error": {
    "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    "type": "InternalServerError", "param": null, "code": 500
}}"#;
/// The calls of waking up from level 2, in their order.
const WAKE_2: [(&str, Reply); 6] = [
    ("POST /wake_up?tags=weights", Ok200(r#"{"status":"sleeping","tags":["weights"]}"#)),
    ("POST /collective_rpc {\"method\":\"reload_weights\"}", Ok200(r#"{"results":[null]}"#)),
    ("POST /wake_up?tags=kv_cache", Ok200(r#"{"status":"awake","tags":["kv_cache"]}"#)),
    ("POST /reset_prefix_cache", Ok200(r#"{"success":true}"#)),
    AWAKE,
    CANARY_OUTPUT,
];

use Reply::*;

#[derive(Debug, Clone, Copy)]
enum Reply {
    Ok200(&'static str),
    /// For this call and all that follow.
    Always(&'static str),
    Status(u16, &'static str),
    Disconnects(&'static str),
    Hangs,
}

/// An engine that responds to the expected calls in their order, and panics at any other call.
struct ScriptedEngine {
    steps: Vec<(&'static str, Reply)>,
    made: Mutex<Vec<(String, String)>>,
}

fn scripted(steps: &[(&'static str, Reply)]) -> ScriptedEngine {
    ScriptedEngine { steps: steps.to_vec(), made: Mutex::default() }
}

impl ScriptedEngine {
    fn count(&self) -> usize {
        self.made.lock().unwrap().len()
    }

    fn all_made(&self) -> bool {
        self.count() == self.steps.len()
    }
}

impl EngineApi for ScriptedEngine {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), EngineError> {
        let call = format!("{method} {path}");
        let (expected, reply) = {
            let mut made = self.made.lock().unwrap();
            let step = self.steps.get(made.len()).or(self.steps.last()).copied().unwrap();
            assert!(
                made.len() < self.steps.len() || matches!(step.1, Always(_)),
                "unexpected {call}"
            );
            made.push((call.clone(), body.unwrap_or("").to_owned()));
            step
        };
        let (path, rest) = expected.split_once(" {").unwrap_or((expected, ""));
        assert_eq!(call, path);
        assert!(rest.is_empty() || body == Some(&*format!("{{{rest}")), "{body:?}");
        assert!(timeout <= TIMEOUT || timeout > TIMEOUT * 100);
        match reply {
            Ok200(body) | Always(body) => Ok((StatusCode::OK, body.into())),
            Status(status, body) => Ok((StatusCode::from_u16(status).unwrap(), body.into())),
            Disconnects(cause) => Err(EngineError::Broken(cause.into())),
            Hangs => std::future::pending().await,
        }
    }
}

/// Free memory over time: milliseconds since the creation, and bytes from then on.
struct FakeGauge(Instant, Vec<(u64, Option<u64>)>);

impl MemoryGauge for FakeGauge {
    fn free(&self) -> Option<u64> {
        let now = self.0.elapsed().as_millis() as u64;
        self.1.iter().rev().find(|(since, _)| *since <= now).and_then(|(_, free)| *free)
    }
}

fn gauge(values: &[(u64, Option<u64>)]) -> FakeGauge {
    FakeGauge(Instant::now(), values.to_vec())
}

fn unmeasured() -> FakeGauge {
    gauge(&[])
}

fn tokyo() -> Canary {
    Canary { text: " Tokyo.".into() }
}

/// Returns the method and path of the call that failed.
fn failed_call(error: &SleepError) -> &str {
    match error {
        SleepError::NoResponse { call, .. }
        | SleepError::TimedOut { call, .. }
        | SleepError::Status { call, .. }
        | SleepError::Contradiction { call, .. } => call,
        SleepError::StateUnchanged { .. }
        | SleepError::NotFreed { .. }
        | SleepError::CanaryChanged { .. } => panic!("not the error of a call: {error:?}"),
    }
}

/// Wakes an engine with this script up; returns the error, and the milliseconds until then.
async fn failing_wake(level: Level, steps: &[(&'static str, Reply)]) -> (SleepError, u128) {
    let (engine, from) = (scripted(steps), Instant::now());
    let error = wake(&engine, level, "m", &tokyo(), TIMEOUT).await.unwrap_err();
    assert!(engine.count() >= steps.len(), "gave up early: {error}");
    (error, from.elapsed().as_millis())
}

/// Puts an engine with this script to sleep at level 2; returns the error, and the milliseconds
/// until then.
async fn failing_sleep(gauge: FakeGauge, steps: &[(&'static str, Reply)]) -> (SleepError, u128) {
    let (engine, from) = (scripted(steps), Instant::now());
    let error = sleep(&engine, &gauge, Level::Two, 10 * GIB, TIMEOUT).await.unwrap_err();
    assert!(engine.count() >= steps.len(), "gave up early: {error}");
    (error, from.elapsed().as_millis())
}

#[tokio::test]
async fn canary_request_is_deterministic() {
    let engine = scripted(&[CANARY_OUTPUT]);
    assert_eq!(canary(&engine, "the \"model\"", TIMEOUT).await.unwrap(), tokyo());
    let body: Value = serde_json::from_str(&engine.made.lock().unwrap()[0].1).unwrap();
    assert_eq!(body["model"], "the \"model\"");
    assert_eq!(
        (&body["temperature"], &body["seed"], &body["max_tokens"]),
        (&json!(0), &json!(0), &json!(8))
    );
    assert!(body["prompt"].as_str().is_some_and(|prompt| prompt.split(' ').count() > 16), "{body}");
}

#[tokio::test]
async fn canary_rejects_completions_without_text() {
    for body in [
        "",
        "null",
        "[]",
        r#"{"choices":[]}"#,
        r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#,
        r#"{"choices":[{"text":7,"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"text":" Tok","finish_reason":"abort"}]}"#,
        r#"{"choices":[{"text":" Tok","finish_reason":"error"}]}"#,
    ] {
        let error = canary(&scripted(&[("POST /v1/completions", Ok200(body))]), "m", TIMEOUT).await;
        assert!(matches!(error, Err(SleepError::Contradiction { .. })), "{body}: {error:?}");
    }
    let unknown = scripted(&[("POST /v1/completions", Status(404, "no such model"))]);
    let error = canary(&unknown, "m", TIMEOUT).await.unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("does not serve a model"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn sleep_waits_until_memory_is_free() {
    let engine =
        scripted(&[SLEEP_2, ("GET /is_sleeping", Ok200(r#"{"is_sleeping":false}"#)), ASLEEP]);
    // The driver frees the memory late, and in pieces.
    let gauge =
        gauge(&[(0, Some(3 * GIB)), (1000, Some(9 * GIB)), (3000, Some(11 * GIB)), (9000, None)]);
    let from = Instant::now();
    let freed = sleep(&engine, &gauge, Level::Two, 10 * GIB, TIMEOUT).await.unwrap();
    assert_eq!(freed, Some(8 * GIB));
    assert!(engine.all_made());
    assert!((3000..3500).contains(&from.elapsed().as_millis()), "{:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn sleep_accepts_70_percent_of_the_expected_memory() {
    for (freed, enough) in [(70, true), (69, false), (71, true)] {
        let gauge = gauge(&[(0, Some(1000)), (1, Some(1000 + freed))]);
        let got = sleep(&scripted(&[SLEEP_1, ASLEEP]), &gauge, Level::One, 100, TIMEOUT).await;
        assert_eq!(got.is_ok(), enough, "{freed}: {got:?}");
    }
    let gauge = gauge(&[(0, Some(1000))]);
    let got = sleep(&scripted(&[SLEEP_1, ASLEEP]), &gauge, Level::One, u64::MAX, TIMEOUT).await;
    assert!(
        matches!(got, Err(SleepError::NotFreed { freed: Some(0), expected: u64::MAX, .. })),
        "{got:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn sleep_trusts_the_engine_if_memory_cannot_be_measured() {
    for level in [Level::One, Level::Two] {
        let engine = scripted(&[if level == Level::One { SLEEP_1 } else { SLEEP_2 }, ASLEEP]);
        assert_eq!(sleep(&engine, &unmeasured(), level, 10 * GIB, TIMEOUT).await.unwrap(), None);
        assert!(engine.all_made());
    }
    // Older versions return an empty response.
    let engine = scripted(&[("POST /sleep?level=2&mode=wait", Ok200("")), ASLEEP]);
    assert_eq!(sleep(&engine, &unmeasured(), Level::Two, 10 * GIB, TIMEOUT).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn sleep_fails_if_memory_does_not_become_free() {
    for (values, freed) in [
        (&[(0, Some(3 * GIB))][..], Some(0)),
        (&[(0, Some(3 * GIB)), (500, Some(4 * GIB))], Some(GIB)),
        // Level 1 on unified memory: the copy takes more than the original freed.
        (&[(0, Some(3 * GIB)), (1, Some(GIB))], Some(0)),
        // Memory that can no longer be measured does not count as free.
        (&[(0, Some(3 * GIB)), (1, None)], None),
    ] {
        let (error, after) = failing_sleep(gauge(values), &[SLEEP_2, ASLEEP]).await;
        let SleepError::NotFreed { freed: found, expected, timeout } = error else {
            panic!("{error:?}")
        };
        assert_eq!((found, expected, timeout), (freed, 10 * GIB, TIMEOUT));
        assert_eq!(after, TIMEOUT.as_millis());
    }
}

#[tokio::test(start_paused = true)]
async fn sleep_times_out() {
    // As with `mode=wait` if a request in the engine never ends.
    let hangs = [("POST /sleep?level=2&mode=wait", Hangs)];
    let (error, after) = failing_sleep(unmeasured(), &hangs).await;
    let SleepError::TimedOut { call, timeout } = error else { panic!("{error:?}") };
    assert_eq!((call.as_str(), timeout), ("POST /sleep?level=2&mode=wait", TIMEOUT));
    assert_eq!(after, TIMEOUT.as_millis());

    let (error, after) = failing_sleep(unmeasured(), &[SLEEP_2, ("GET /is_sleeping", Hangs)]).await;
    assert!(
        matches!(error, SleepError::TimedOut { .. }) && after == TIMEOUT.as_millis(),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn sleep_polls_with_a_growing_interval() {
    let engine = scripted(&[SLEEP_2, ("GET /is_sleeping", Always(r#"{"is_sleeping":false}"#))]);
    let from = Instant::now();
    let error = sleep(&engine, &unmeasured(), Level::Two, GIB, TIMEOUT).await.unwrap_err();
    let SleepError::StateUnchanged { expected, timeout } = error else { panic!("{error:?}") };
    assert_eq!((expected, timeout), (true, TIMEOUT));
    assert_eq!(from.elapsed(), TIMEOUT);
    // At 0, 20, 60, 140, 300, 620 ms, and from then on every 500 ms.
    assert_eq!(engine.count(), 1 + 6 + 18);
}

#[tokio::test(start_paused = true)]
async fn sleep_fails_if_the_engine_died_after_status_200() {
    for reply in [Status(500, DEAD), Status(503, ""), Disconnects("connection refused")] {
        let (error, after) =
            failing_sleep(unmeasured(), &[SLEEP_2, ("GET /is_sleeping", reply)]).await;
        assert_eq!((failed_call(&error), after), ("GET /is_sleeping", 0));
        match (reply, &error) {
            (Status(sent, _), SleepError::Status { status, .. }) => assert_eq!(*status, sent),
            (Disconnects(_), SleepError::NoResponse { .. }) => {}
            _ => panic!("{error:?}"),
        }
    }
    for body in ["", "{}", "true", r#"{"is_sleeping":"yes"}"#, "<html>"] {
        let (error, _) =
            failing_sleep(unmeasured(), &[SLEEP_2, ("GET /is_sleeping", Ok200(body))]).await;
        assert!(matches!(error, SleepError::Contradiction { .. }), "{body}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn sleep_fails_if_the_engine_does_not_support_it() {
    let call = "POST /sleep?level=2&mode=wait";
    for (reply, part) in [
        (Status(404, r#"{"error":{"message":"Not Found"}}"#), "VLLM_SERVER_DEV_MODE"),
        (Status(400, "what"), "does not support the call"),
        (Status(500, DEAD), "broken"),
        (Status(202, ""), "empty response"),
        (Disconnects("connection refused"), "connection refused"),
        // The engine ignored the query: the weights are in the host's memory now.
        (Ok200(r#"{"status":"sleeping","level":1}"#), "another level"),
    ] {
        let (error, _) = failing_sleep(unmeasured(), &[(call, reply)]).await;
        assert_eq!(failed_call(&error), call);
        let message = error.to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn wake_makes_calls_in_order() {
    let engine = scripted(&[WAKE, AWAKE, CANARY_OUTPUT]);
    wake(&engine, Level::One, "m", &tokyo(), TIMEOUT).await.unwrap();
    assert!(engine.all_made());

    let engine = scripted(&WAKE_2);
    wake(&engine, Level::Two, "m", &tokyo(), TIMEOUT).await.unwrap();
    assert!(engine.all_made());

    let engine = scripted(&[("POST /wake_up", Ok200("")), ASLEEP, ASLEEP, AWAKE, CANARY_OUTPUT]);
    wake(&engine, Level::One, "m", &tokyo(), TIMEOUT).await.unwrap();
    assert!(engine.all_made());
}

#[tokio::test(start_paused = true)]
async fn wake_never_retries_and_stops_at_the_first_failure() {
    for broken in 0..WAKE_2.len() {
        for reply in [Status(500, DEAD), Disconnects("connection closed"), Hangs] {
            let mut steps = WAKE_2[..=broken].to_vec();
            steps[broken].1 = reply;
            let (error, after) = failing_wake(Level::Two, &steps).await;
            let call = steps[broken].0.split(" {").next().unwrap();
            assert_eq!(failed_call(&error), call);
            assert_eq!(after, if matches!(reply, Hangs) { TIMEOUT.as_millis() } else { 0 });
        }
    }
    // 500, after which the process ends: the call must not be repeated.
    let (error, _) = failing_wake(Level::One, &[("POST /wake_up", Status(500, DEAD))]).await;
    let SleepError::Status { status, response, .. } = error else { panic!("{error:?}") };
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(response.contains("EngineCore encountered"), "{response}");
}

#[tokio::test(start_paused = true)]
async fn wake_fails_if_a_part_stays_asleep() {
    let half = Ok200(r#"{"status":"sleeping","tags":null}"#);
    let (error, _) = failing_wake(Level::One, &[("POST /wake_up", half)]).await;
    let SleepError::Contradiction { call, meaning, .. } = error else { panic!("{error:?}") };
    assert_eq!(call, "POST /wake_up");
    assert!(meaning.contains("still asleep"), "{meaning}");

    let asleep = ("GET /is_sleeping", Always(r#"{"is_sleeping":true}"#));
    let (error, after) = failing_wake(Level::One, &[WAKE, asleep]).await;
    assert!(matches!(error, SleepError::StateUnchanged { expected: false, .. }), "{error:?}");
    assert_eq!(after, TIMEOUT.as_millis());

    let mut steps = WAKE_2[..4].to_vec();
    steps[3].1 = Ok200(r#"{"success":false}"#);
    let (error, _) = failing_wake(Level::Two, &steps).await;
    let SleepError::Contradiction { call, .. } = error else { panic!("{error:?}") };
    assert_eq!(call, "POST /reset_prefix_cache");
}

#[tokio::test(start_paused = true)]
async fn wake_fails_if_the_canary_changed() {
    for (body, level) in [
        (r#"{"choices":[{"text":"!!!!!!!!","finish_reason":"length"}]}"#, Level::One),
        (r#"{"choices":[{"text":" Tokyo","finish_reason":"length"}]}"#, Level::Two),
        (r#"{"choices":[{"text":" tokyo.","finish_reason":"length"}]}"#, Level::Two),
    ] {
        let mut steps = if level == Level::One { vec![WAKE, AWAKE] } else { WAKE_2[..5].to_vec() };
        steps.push(("POST /v1/completions", Ok200(body)));
        let (error, _) = failing_wake(level, &steps).await;
        let text = &parse(body.as_bytes())["choices"][0]["text"];
        let SleepError::CanaryChanged { expected, found } = &error else { panic!("{error:?}") };
        assert!(expected == " Tokyo." && text == found, "{error:?}");
    }
    // Aborted, although no other request was sent.
    let aborted = Ok200(r#"{"choices":[{"text":" Tokyo.","finish_reason":"abort"}]}"#);
    let (error, _) =
        failing_wake(Level::One, &[WAKE, AWAKE, ("POST /v1/completions", aborted)]).await;
    let SleepError::Contradiction { call, meaning, .. } = error else { panic!("{error:?}") };
    assert_eq!(call, "POST /v1/completions");
    assert!(meaning.contains("aborted"), "{meaning}");
}

#[tokio::test(start_paused = true)]
async fn all_steps_share_one_timeout() {
    struct Slow(ScriptedEngine);
    impl EngineApi for Slow {
        async fn call(
            &self,
            method: Method,
            path: &str,
            body: Option<&str>,
            timeout: Duration,
        ) -> Result<(StatusCode, Bytes), EngineError> {
            if timeout < Duration::from_secs(4) {
                tokio::time::sleep(timeout).await;
                return Err(EngineError::IdleTimeout(timeout));
            }
            tokio::time::sleep(Duration::from_secs(4)).await;
            self.0.call(method, path, body, timeout).await
        }
    }
    let (engine, from) = (Slow(scripted(&WAKE_2)), Instant::now());
    let error = wake(&engine, Level::Two, "m", &tokyo(), TIMEOUT).await.unwrap_err();
    assert!(
        matches!(&error, SleepError::TimedOut { call, .. } if call.ends_with("kv_cache")),
        "{error:?}"
    );
    assert_eq!((from.elapsed(), engine.0.count()), (TIMEOUT, 2));
}

#[tokio::test]
async fn wake_accepts_the_maximum_duration() {
    wake(&scripted(&[WAKE, AWAKE, CANARY_OUTPUT]), Level::One, "m", &tokyo(), Duration::MAX)
        .await
        .unwrap();
}

#[test]
fn quote_is_one_line_and_truncated() {
    assert_eq!(quote(b" a\r\nb\x1b[31m\t"), "\"a  b [31m\"");
    assert_eq!(quote(b"\n"), "empty response");
    assert_eq!(quote(&[0xff; 1000]).chars().count(), MAX_QUOTE + 2);
    assert_eq!(quote("é".repeat(1000).as_bytes()).chars().count(), MAX_QUOTE / 2 + 2);
}

#[test]
fn futures_are_send() {
    fn check<T: Send>(_: T) {}
    // The clock is only read when the future is polled.
    let engine = scripted(&[]);
    check(canary(&engine, "m", TIMEOUT));
    check(sleep(&engine, &unmeasured(), Level::One, 0, TIMEOUT));
    check(wake(&engine, Level::Two, "m", &tokyo(), TIMEOUT));
}
