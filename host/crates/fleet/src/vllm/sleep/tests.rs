use std::sync::Mutex;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);
const GIB: u64 = 1 << 30;
const ASLEEP: (&str, Reply) = ("GET /is_sleeping", Ok200(r#"{"is_sleeping":true}"#));
const AWAKE: (&str, Reply) = ("GET /is_sleeping", Ok200(r#"{"is_sleeping":false}"#));
const SLEEP_1: (&str, Reply) =
    ("POST /sleep?level=1&mode=wait", Ok200(r#"{"status":"sleeping","level":1}"#));
const SLEEP_2: (&str, Reply) =
    ("POST /sleep?level=2&mode=wait", Ok200(r#"{"status":"sleeping","level":2}"#));
const WAKE: (&str, Reply) = ("POST /wake_up", Ok200(r#"{"status":"awake","tags":null}"#));
const ANSWER: (&str, Reply) = ("POST /v1/completions", Ok200(TOKYO));
/// As vLLM 0.32.0 answers.
const TOKYO: &str = r#"{"id":"cmpl-a10848fea3e0bfe2","object":"text_completion","created":1795231981,"model":"m","choices":[{"index":0,"text":" Tokyo.","logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":27,"total_tokens":35,"completion_tokens":8}}"#;
/// What vLLM answers when its engine process is gone.
const DEAD: &str = r#"{"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","type":"InternalServerError","param":null,"code":500}}"#;
/// In this order and no other.
const WAKE_2: [(&str, Reply); 6] = [
    ("POST /wake_up?tags=weights", Ok200(r#"{"status":"sleeping","tags":["weights"]}"#)),
    ("POST /collective_rpc {\"method\":\"reload_weights\"}", Ok200(r#"{"results":[null]}"#)),
    ("POST /wake_up?tags=kv_cache", Ok200(r#"{"status":"awake","tags":["kv_cache"]}"#)),
    ("POST /reset_prefix_cache", Ok200(r#"{"success":true}"#)),
    AWAKE,
    ANSWER,
];

use Reply::*;

#[derive(Debug, Clone, Copy)]
enum Reply {
    Ok200(&'static str),
    /// To this call and all that follow.
    Always(&'static str),
    Status(u16, &'static str),
    Broken(&'static str),
    Hangs,
}

/// Answers the calls that it expects, in their order, and fails the test at any other one.
struct Scripted {
    steps: Vec<(&'static str, Reply)>,
    made: Mutex<Vec<(String, String)>>,
}

fn scripted(steps: &[(&'static str, Reply)]) -> Scripted {
    Scripted { steps: steps.to_vec(), made: Mutex::default() }
}

impl Scripted {
    fn count(&self) -> usize {
        self.made.lock().unwrap().len()
    }

    fn all_made(&self) -> bool {
        self.count() == self.steps.len()
    }
}

impl Calls for Scripted {
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), String> {
        let call = format!("{method} {path}");
        let (expected, reply) = {
            let mut made = self.made.lock().unwrap();
            let step = self.steps.get(made.len()).or(self.steps.last()).copied().unwrap();
            assert!(
                made.len() < self.steps.len() || matches!(step.1, Always(_)),
                "{call} is one too many"
            );
            made.push((call.clone(), body.unwrap_or("").to_owned()));
            step
        };
        let (path, rest) = expected.split_once(" {").unwrap_or((expected, ""));
        assert_eq!(call, path);
        assert!(rest.is_empty() || body == Some(&*format!("{{{rest}")), "{body:?}");
        assert!(limit <= LIMIT || limit > LIMIT * 100);
        match reply {
            Ok200(said) | Always(said) => Ok((StatusCode::OK, said.into())),
            Status(status, said) => Ok((StatusCode::from_u16(status).unwrap(), said.into())),
            Broken(cause) => Err(cause.to_owned()),
            Hangs => std::future::pending().await,
        }
    }
}

/// Free bytes from a time on, in milliseconds from its making.
struct Pool(Instant, Vec<(u64, Option<u64>)>);

impl Gauge for Pool {
    fn free(&self) -> Option<u64> {
        let now = self.0.elapsed().as_millis() as u64;
        self.1.iter().rev().find(|(at, _)| *at <= now).and_then(|(_, free)| *free)
    }
}

fn pool(values: &[(u64, Option<u64>)]) -> Pool {
    Pool(Instant::now(), values.to_vec())
}

fn unmeasured() -> Pool {
    pool(&[])
}

fn tokyo() -> Canary {
    Canary { text: " Tokyo.".into() }
}

/// Wake at a level with that script; the error and the milliseconds until it came.
async fn failing_wake(level: Level, steps: &[(&'static str, Reply)]) -> (SleepError, u128) {
    let (calls, from) = (scripted(steps), Instant::now());
    let error = wake(&calls, level, "m", &tokyo(), LIMIT).await.unwrap_err();
    assert!(calls.count() >= steps.len(), "it gave up early: {error}");
    (error, from.elapsed().as_millis())
}

/// Sleep at level 2 with that script; the error and the milliseconds until it came.
async fn failing_sleep(gauge: Pool, steps: &[(&'static str, Reply)]) -> (SleepError, u128) {
    let (calls, from) = (scripted(steps), Instant::now());
    let error = sleep(&calls, &gauge, Level::Two, 10 * GIB, LIMIT).await.unwrap_err();
    assert!(calls.count() >= steps.len(), "it gave up early: {error}");
    (error, from.elapsed().as_millis())
}

#[tokio::test]
async fn the_canary_is_asked_so_that_its_answer_is_the_same_each_time() {
    let calls = scripted(&[ANSWER]);
    assert_eq!(canary(&calls, "the \"model\"", LIMIT).await.unwrap(), tokyo());
    let body: Value = serde_json::from_str(&calls.made.lock().unwrap()[0].1).unwrap();
    assert_eq!(body["model"], "the \"model\"");
    assert_eq!(
        (&body["temperature"], &body["seed"], &body["max_tokens"]),
        (&json!(0), &json!(0), &json!(8))
    );
    assert!(body["prompt"].as_str().is_some_and(|prompt| prompt.split(' ').count() > 16), "{body}");
}

#[tokio::test]
async fn an_answer_that_proves_nothing_is_no_canary() {
    for said in [
        "",
        "null",
        "[]",
        r#"{"choices":[]}"#,
        r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#,
        r#"{"choices":[{"text":7,"finish_reason":"stop"}]}"#,
        r#"{"choices":[{"text":" Tok","finish_reason":"abort"}]}"#,
        r#"{"choices":[{"text":" Tok","finish_reason":"error"}]}"#,
    ] {
        let error = canary(&scripted(&[("POST /v1/completions", Ok200(said))]), "m", LIMIT).await;
        assert!(matches!(error, Err(SleepError::Contradicted { .. })), "{said}: {error:?}");
    }
    let unknown = scripted(&[("POST /v1/completions", Status(404, "no such model"))]);
    let error = canary(&unknown, "m", LIMIT).await.unwrap_err().to_string();
    assert!(error.contains("404") && error.contains("does not know the model"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn sleep_waits_until_the_memory_is_free() {
    let calls =
        scripted(&[SLEEP_2, ("GET /is_sleeping", Ok200(r#"{"is_sleeping":false}"#)), ASLEEP]);
    // The driver gives it back late, and in pieces.
    let gauge =
        pool(&[(0, Some(3 * GIB)), (1000, Some(9 * GIB)), (3000, Some(11 * GIB)), (9000, None)]);
    let from = Instant::now();
    let freed = sleep(&calls, &gauge, Level::Two, 10 * GIB, LIMIT).await.unwrap();
    assert_eq!(freed, Some(8 * GIB));
    assert!(calls.all_made());
    assert!((3000..3500).contains(&from.elapsed().as_millis()), "{:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn seven_tenths_of_the_expected_are_enough_and_one_byte_less_is_not() {
    for (freed, enough) in [(70, true), (69, false), (71, true)] {
        let gauge = pool(&[(0, Some(1000)), (1, Some(1000 + freed))]);
        let got = sleep(&scripted(&[SLEEP_1, ASLEEP]), &gauge, Level::One, 100, LIMIT).await;
        assert_eq!(got.is_ok(), enough, "{freed}: {got:?}");
    }
    let gauge = pool(&[(0, Some(1000))]);
    let got = sleep(&scripted(&[SLEEP_1, ASLEEP]), &gauge, Level::One, u64::MAX, LIMIT).await;
    assert!(
        matches!(got, Err(SleepError::NotFreed { freed: Some(0), expected: u64::MAX, .. })),
        "{got:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn where_memory_cannot_be_measured_the_engines_word_has_to_do() {
    for level in [Level::One, Level::Two] {
        let calls = scripted(&[if level == Level::One { SLEEP_1 } else { SLEEP_2 }, ASLEEP]);
        assert_eq!(sleep(&calls, &unmeasured(), level, 10 * GIB, LIMIT).await.unwrap(), None);
        assert!(calls.all_made());
    }
    // Versions whose answers are empty.
    let calls = scripted(&[("POST /sleep?level=2&mode=wait", Ok200("")), ASLEEP]);
    assert_eq!(sleep(&calls, &unmeasured(), Level::Two, 10 * GIB, LIMIT).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn memory_that_does_not_become_free_is_found_out() {
    for (values, freed) in [
        (&[(0, Some(3 * GIB))][..], Some(0)),
        (&[(0, Some(3 * GIB)), (500, Some(4 * GIB))], Some(GIB)),
        // Level 1 on unified memory: the copy takes more than the original gave back.
        (&[(0, Some(3 * GIB)), (1, Some(GIB))], Some(0)),
        // What cannot be measured any more is not taken for free.
        (&[(0, Some(3 * GIB)), (1, None)], None),
    ] {
        let (error, after) = failing_sleep(pool(values), &[SLEEP_2, ASLEEP]).await;
        assert!(matches!(error, SleepError::NotFreed { freed: f, .. } if f == freed), "{error:?}");
        assert_eq!(after, LIMIT.as_millis());
        let sentence = error.to_string();
        assert!(
            sentence.contains("of the 10737418240 bytes") && sentence.contains("10 s"),
            "{sentence}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_sleep_that_hangs_is_given_up() {
    // As it does with `mode=wait` when a request in the engine never ends.
    let hangs = [("POST /sleep?level=2&mode=wait", Hangs)];
    let (error, after) = failing_sleep(unmeasured(), &hangs).await;
    assert!(
        matches!(error, SleepError::TimedOut { .. }) && after == LIMIT.as_millis(),
        "{error:?}"
    );
    let sentence = error.to_string();
    assert!(
        sentence.contains("`POST /sleep?level=2&mode=wait`") && sentence.contains("10 s"),
        "{sentence}"
    );

    let (error, after) = failing_sleep(unmeasured(), &[SLEEP_2, ("GET /is_sleeping", Hangs)]).await;
    assert!(
        matches!(error, SleepError::TimedOut { .. }) && after == LIMIT.as_millis(),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_does_not_fall_asleep_is_looked_at_less_and_less_often() {
    let calls = scripted(&[SLEEP_2, ("GET /is_sleeping", Always(r#"{"is_sleeping":false}"#))]);
    let from = Instant::now();
    let error = sleep(&calls, &unmeasured(), Level::Two, GIB, LIMIT).await.unwrap_err();
    assert!(matches!(error, SleepError::StateUnchanged { wanted: true, .. }), "{error:?}");
    assert_eq!(from.elapsed(), LIMIT);
    // After 0, 20, 60, 140, 300, 620 ms, and from then on every 500 ms.
    assert_eq!(calls.count(), 1 + 6 + 18);
    let sentence = error.to_string();
    assert!(
        sentence.contains("answered false") && sentence.contains("that it sleeps"),
        "{sentence}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_died_while_it_said_200_is_found_out() {
    for reply in [Status(500, DEAD), Status(503, ""), Broken("connection refused")] {
        let (error, after) =
            failing_sleep(unmeasured(), &[SLEEP_2, ("GET /is_sleeping", reply)]).await;
        let sentence = error.to_string();
        assert!(sentence.starts_with("`GET /is_sleeping` ") && after == 0, "{sentence}");
        assert!(sentence.contains("broken") || sentence.contains("died"), "{sentence}");
    }
    for said in ["", "{}", "true", r#"{"is_sleeping":"yes"}"#, "<html>"] {
        let (error, _) =
            failing_sleep(unmeasured(), &[SLEEP_2, ("GET /is_sleeping", Ok200(said))]).await;
        assert!(matches!(error, SleepError::Contradicted { .. }), "{said}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_cannot_sleep_is_found_out() {
    let call = "POST /sleep?level=2&mode=wait";
    for (reply, part) in [
        (Status(404, r#"{"error":{"message":"Not Found"}}"#), "VLLM_SERVER_DEV_MODE"),
        (Status(400, "what"), "does not understand"),
        (Status(500, DEAD), "broken"),
        (Status(202, ""), "without a word"),
        (Broken("connection refused"), "connection refused"),
        // It did not read the query: the weights are in the host's memory now.
        (Ok200(r#"{"status":"sleeping","level":1}"#), "another level"),
    ] {
        let (error, _) = failing_sleep(unmeasured(), &[(call, reply)]).await;
        let sentence = error.to_string();
        assert!(sentence.contains(call) && sentence.contains(part), "{sentence}");
    }
}

#[tokio::test(start_paused = true)]
async fn waking_takes_these_calls_in_this_order() {
    let calls = scripted(&[WAKE, AWAKE, ANSWER]);
    wake(&calls, Level::One, "m", &tokyo(), LIMIT).await.unwrap();
    assert!(calls.all_made());

    let calls = scripted(&WAKE_2);
    wake(&calls, Level::Two, "m", &tokyo(), LIMIT).await.unwrap();
    assert!(calls.all_made());

    let calls = scripted(&[("POST /wake_up", Ok200("")), ASLEEP, ASLEEP, AWAKE, ANSWER]);
    wake(&calls, Level::One, "m", &tokyo(), LIMIT).await.unwrap();
    assert!(calls.all_made());
}

#[tokio::test(start_paused = true)]
async fn no_step_of_waking_is_tried_twice_and_none_follows_one_that_failed() {
    for broken in 0..WAKE_2.len() {
        for reply in [Status(500, DEAD), Broken("connection closed"), Hangs] {
            let mut steps = WAKE_2[..=broken].to_vec();
            steps[broken].1 = reply;
            let (error, after) = failing_wake(Level::Two, &steps).await;
            let sentence = error.to_string();
            let call = steps[broken].0.split(" {").next().unwrap();
            assert!(sentence.starts_with(&format!("`{call}` ")), "{sentence}");
            assert_eq!(after, if matches!(reply, Hangs) { LIMIT.as_millis() } else { 0 });
        }
    }
    // 500, then the process is gone: nobody asks it again.
    let (error, _) = failing_wake(Level::One, &[("POST /wake_up", Status(500, DEAD))]).await;
    let sentence = error.to_string();
    assert!(sentence.contains("500") && sentence.contains("EngineCore encountered"), "{sentence}");
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_wakes_up_only_in_part_is_found_out() {
    let half = Ok200(r#"{"status":"sleeping","tags":null}"#);
    let (error, _) = failing_wake(Level::One, &[("POST /wake_up", half)]).await;
    assert!(error.to_string().contains("still sleeps"), "{error}");

    let asleep = ("GET /is_sleeping", Always(r#"{"is_sleeping":true}"#));
    let (error, after) = failing_wake(Level::One, &[WAKE, asleep]).await;
    assert!(matches!(error, SleepError::StateUnchanged { wanted: false, .. }), "{error:?}");
    assert_eq!(after, LIMIT.as_millis());
    assert!(
        error.to_string().contains("answered true") && error.to_string().contains("is awake"),
        "{error}"
    );

    let mut steps = WAKE_2[..4].to_vec();
    steps[3].1 = Ok200(r#"{"success":false}"#);
    let (error, _) = failing_wake(Level::Two, &steps).await;
    assert!(error.to_string().contains("KV cache"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn garbage_after_waking_is_found_out() {
    for (said, level) in [
        (r#"{"choices":[{"text":"!!!!!!!!","finish_reason":"length"}]}"#, Level::One),
        (r#"{"choices":[{"text":" Tokyo","finish_reason":"length"}]}"#, Level::Two),
        (r#"{"choices":[{"text":" tokyo.","finish_reason":"length"}]}"#, Level::Two),
    ] {
        let mut steps = if level == Level::One { vec![WAKE, AWAKE] } else { WAKE_2[..5].to_vec() };
        steps.push(("POST /v1/completions", Ok200(said)));
        let (error, _) = failing_wake(level, &steps).await;
        let got = &parse(said.as_bytes())["choices"][0]["text"];
        let SleepError::Changed { expected, got: saw } = &error else { panic!("{error:?}") };
        assert!(expected == " Tokyo." && got == saw, "{error:?}");
        assert!(error.to_string().contains("damaged"), "{error}");
    }
    // Cut off, although nobody else may have asked for anything.
    let cut = Ok200(r#"{"choices":[{"text":" Tokyo.","finish_reason":"abort"}]}"#);
    let (error, _) = failing_wake(Level::One, &[WAKE, AWAKE, ("POST /v1/completions", cut)]).await;
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn all_steps_together_have_one_limit() {
    struct Slow(Scripted);
    impl Calls for Slow {
        async fn call(
            &self,
            method: Method,
            path: &str,
            body: Option<&str>,
            limit: Duration,
        ) -> Result<(StatusCode, Bytes), String> {
            if limit < Duration::from_secs(4) {
                tokio::time::sleep(limit).await;
                return Err("too slow".into());
            }
            tokio::time::sleep(Duration::from_secs(4)).await;
            self.0.call(method, path, body, limit).await
        }
    }
    let (calls, from) = (Slow(scripted(&WAKE_2)), Instant::now());
    let error = wake(&calls, Level::Two, "m", &tokyo(), LIMIT).await.unwrap_err();
    assert!(
        matches!(&error, SleepError::TimedOut { call, .. } if call.ends_with("kv_cache")),
        "{error:?}"
    );
    assert_eq!((from.elapsed(), calls.0.count()), (LIMIT, 2));
}

#[tokio::test]
async fn no_limit_is_too_long() {
    wake(&scripted(&[WAKE, AWAKE, ANSWER]), Level::One, "m", &tokyo(), Duration::MAX)
        .await
        .unwrap();
}

#[test]
fn what_an_engine_says_is_quoted_on_one_line_and_not_at_length() {
    assert_eq!(quote(b" a\r\nb\x1b[31m\t"), "\"a  b [31m\"");
    assert_eq!(quote(b"\n"), "without a word");
    assert_eq!(quote(&[0xff; 1000]).chars().count(), LONGEST_QUOTE + 2);
    assert_eq!(quote("é".repeat(1000).as_bytes()).chars().count(), LONGEST_QUOTE / 2 + 2);
}

#[test]
fn the_futures_can_move_between_threads() {
    fn check<T: Send>(_: T) {}
    // Making a deadline looks at the clock only when the future runs.
    let calls = scripted(&[]);
    check(canary(&calls, "m", LIMIT));
    check(sleep(&calls, &unmeasured(), Level::One, 0, LIMIT));
    check(wake(&calls, Level::Two, "m", &tokyo(), LIMIT));
}
