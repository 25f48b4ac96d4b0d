//! What a policy can do beside deciding: choose the next try, learn, wish, remember, and read the request.

use pointsman_tests::client::{chat, post, stream};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{Host, fake_lane, kill};
use pointsman_tests::site::{Site, chain, folder};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// One policy before `a` and `b`, which serve `auto`, and `c`, which does not.
fn site(guest: Guest) -> Site {
    let lanes =
        [lane("a", &["auto"], &[]), lane("b", &["auto"], &[]), lane("c", &["c"], &[])].concat();
    let config = format!(
        "[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{}{lanes}",
        chain(&["p"], "")
    );
    Site::start(FAKE_ENGINE, folder(&[guest]), &config)
}

/// Tries of a lane, by its name.
fn tries(host: &Host, lane: &str) -> f64 {
    host.metric("pointsman_attempts_total", &format!("lane=\"{lane}\""))
}

/// After a failed try, the lane with this number, or the one that failed.
fn retries(lane: Option<u32>) -> Guest {
    let lane = lane.map_or("(i32.load offset=72 (local.get $asked))".to_owned(), |lane| {
        format!("(i32.const {lane})")
    });
    Guest::new("p").why("retries").lane(0).code(&format!(
        "(RECOVER
           (i32.store8 (i32.const 3076) (i32.const 1))
           (i32.store (i32.const 3080) {lane})
           (i32.const 3072))"
    ))
}

/// After a failed try it gives up, in words of its own.
fn gives_up() -> Guest {
    Guest::new("p").why("gives up").lane(0).code(
        r#"(RECOVER
             (i32.store8 (i32.const 3076) (i32.const 2))
             (i32.store16 (i32.const 3080) (i32.const 429))
             (call $pair (i32.const 3084) (TEXT "come_later"))
             (call $pair (i32.const 3092) (TEXT "Not now."))
             (i32.store8 (i32.const 3100) (i32.const 1))
             (i32.store (i32.const 3104) (i32.const 9))
             (i32.const 3072))"#,
    )
}

#[test]
fn a_policy_chooses_the_next_try() {
    let site = site(retries(Some(2)));
    assert_eq!(site.policy("p")["hooks"], json!(["on-failure"]));
    site.host.script("a", json!({ "status": 500 }));
    let reply = site.ask("auto");
    assert_eq!(
        (reply.status, reply.header("x-pointsman-lane")),
        (200, Some("c")),
        "{}",
        reply.text()
    );
    assert_eq!(reply.header("x-pointsman-attempts"), Some("2"));
    // The same before a stream has begun.
    let streamed = stream(site.host.port, CHAT, &chat("auto", json!({ "stream": true })));
    assert!(
        streamed.headers.contains(&("x-pointsman-lane".into(), "c".into())),
        "{:?}",
        streamed.headers
    );
    let (reply, complete) = streamed.finish();
    assert!(complete && reply.text().contains("data: [DONE]"));
    assert_eq!(
        (tries(&site.host, "a"), tries(&site.host, "c"), tries(&site.host, "b")),
        (2.0, 2.0, 0.0)
    );
    assert_eq!(
        site.host.metric("pointsman_policy_calls_total", "hook=\"on-failure\",result=\"ok\""),
        2.0
    );
    site.host.assert_nothing_lost();
}

#[test]
fn a_policy_has_the_same_lane_tried_again_or_gives_up() {
    let site = site(retries(None));
    site.host.script("a", json!({ "status": 503 }));
    let reply = site.ask("auto");
    let attempts: f64 = tries(&site.host, "a");
    assert!(attempts >= 2.0 && tries(&site.host, "b") == 0.0, "{attempts}: {}", reply.text());
    assert_ne!(reply.status, 200);
    site.take_up(&gives_up());
    let given_up = |reply: &pointsman_tests::client::Reply| {
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("9")), "{error}");
        assert_eq!((&error["code"], &error["message"]), (&json!("come_later"), &json!("Not now.")));
    };
    given_up(&site.ask("auto"));
    given_up(&post(site.host.port, CHAT, &chat("auto", json!({ "stream": true }))));
    assert_eq!((tries(&site.host, "a"), tries(&site.host, "b")), (attempts + 2.0, 0.0));
    site.host.assert_nothing_lost();
}

/// A hook that traps is no worse than none: the plan goes on, and the policy still decides.
#[test]
fn a_hook_that_fails_is_taken_out_of_service_by_itself() {
    let site = site(Guest::new("p").why("decides").lane(0).code("(RECOVER unreachable)"));
    site.host.script("a", json!({ "status": 500 }));
    for _ in 0..4 {
        let reply = site.ask("auto");
        assert_eq!((reply.status, reply.header("x-pointsman-reason")), (200, Some("decides")));
    }
    let out = |hook: &str| {
        site.host.metric("pointsman_policy_out_of_service", &format!("hook=\"{hook}\""))
    };
    assert_eq!((out("on-failure"), out("on-request")), (1.0, 0.0));
    let version = site.policy("p")["version"].as_str().unwrap().to_owned();
    assert_eq!(site.host.metric("pointsman_policy_out_of_service", &version), 1.0, "of {version}");
    assert_eq!(site.host.metric("pointsman_policy_faults_total", "kind=\"trap\""), 3.0);
    site.host.assert_nothing_lost();
}

#[test]
fn whoever_decided_is_asked_after_a_failure_though_it_was_replaced() {
    let site = site(retries(Some(2)));
    site.host.script("a", json!({ "hang": true }));
    let port = site.host.port;
    let asking = std::thread::spawn(move || post(port, CHAT, &chat("auto", json!({}))));
    wait_until("it waits for its lane", || {
        site.host.metric("pointsman_lane_running", "lane=\"a\"") == 1.0
    });
    let new = site.take_up(&gives_up());
    assert_eq!(new["error"], Value::Null);
    kill(site.host.engine_pid("a"), Signal::KILL);
    let reply = asking.join().unwrap();
    assert_eq!(
        (reply.status, reply.header("x-pointsman-lane")),
        (200, Some("c")),
        "{}",
        reply.text()
    );
    assert_eq!(reply.header("x-pointsman-reason"), Some("retries"));
    site.host.assert_nothing_lost();
}

/// Counts outcomes in its state, and says how many there were and, of those, how many good ones, as one number.
const LEARNS: &str = r#"
(USE state.increment $increment)
(USE metrics.add $add)
(OBSERVE
  (call $increment (TEXT "done") (i64.extend_i32_u (i32.mul (local.get $count) (i32.const 1000))) (i32.const 0) (i32.const 3000))
  (block $end (loop $next
    (br_if $end (i32.eqz (local.get $count)))
    (call $add (TEXT "outcomes") (i64.const 1))
    (call $add (TEXT "secret") (i64.const 1))
    (if (i32.eqz (i32.load8_u offset=40 (local.get $done)))
      (then (call $increment (TEXT "done") (i64.const 1) (i32.const 0) (i32.const 3000))))
    (local.set $done (i32.add (local.get $done) (i32.const 72)))
    (local.set $count (i32.sub (local.get $count) (i32.const 1)))
    (br $next))))
(ADVISE
  (call $increment (TEXT "done") (i64.const 0) (i32.const 0) (i32.const 3000))
  (call $why_number (i64.load (i32.const 3008)))
  (i32.const 2048))"#;

#[test]
fn a_policy_learns_from_outcomes_and_keeps_it_over_a_reload() {
    let learner = Guest::new("p").code(LEARNS).manifest("[allow]\nmetrics = [\"outcomes\"]\n");
    let site = site(learner.clone());
    let learnt = |outcomes: f64| {
        wait_until("it has learnt", || {
            site.host.metric("pointsman_policy_counter_total", "name=\"outcomes\"") >= outcomes
        });
    };
    assert_eq!(site.why("auto"), "0");
    for _ in 0..2 {
        assert_eq!(site.ask("auto").status, 200);
    }
    learnt(3.0);
    assert_eq!(site.why("auto"), "3003");
    for lane in ["a", "b"] {
        site.host.script(lane, json!({ "status": 400 }));
    }
    let refused = site.ask("auto").status;
    assert_eq!(refused, 400);
    learnt(5.0);
    for lane in ["a", "b"] {
        site.host.script(lane, json!({}));
    }
    // Five outcomes, of which four were good.
    assert_eq!(site.why("auto"), "5004");
    learnt(6.0);
    let first = site.policy("p")["version"].clone();
    let again = site.take_up(&learner.why("another one"));
    assert_ne!(again["version"], first);
    let after: u64 = site.why("auto").parse().unwrap();
    assert_eq!(after / 1000, 6, "what was learnt is kept");
    // Names that the manifest does not declare are dropped and counted, and are no metric.
    learnt(7.0);
    assert_eq!(site.host.metric("pointsman_policy_counter_total", "name=\"secret\""), 0.0);
    assert_eq!(site.host.metric("pointsman_policy_advice_dropped_total", "what=\"metric\""), 7.0);
    site.host.assert_nothing_lost();
}

/// Wishes that the second lane be loaded, for ten minutes.
const WISHES: &str = r#"
(data (i32.const 3008) "\01\00\00\00\00\00\00\00\c0\27\09\00")
(TICK (call $pair (i32.const 3000) (i32.const 3008) (i32.const 1)) (i32.const 3000))"#;

#[test]
fn a_wish_loads_a_lane_and_is_taken_back_with_its_policy() {
    let sleeper = "group = \"gpu\"\nmemory = \"8GiB\"\nunload-after = \"400ms\"";
    let lanes =
        [lane("a", &["auto"], &[]), fake_lane(FAKE_ENGINE, "b", &["b"], sleeper, &[])].concat();
    let config = |links: &str| {
        format!(
            "[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{links}[[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n{lanes}"
        )
    };
    let guest = Guest::new("p").code(WISHES).manifest("[hooks]\ntick = \"50ms\"\n");
    let site = Site::start(FAKE_ENGINE, folder(&[guest]), &config(""));
    assert_eq!(site.host.lane("b")["state"], "unloaded");
    site.configure(&config(&chain(&["p"], "")));
    site.reload();
    site.host.wait_for("b", "ready");
    // It stays loaded for longer than it would unused.
    let pid = site.host.engine_pid("b");
    let ticks = || site.host.metric("pointsman_policy_calls_total", "hook=\"on-tick\"");
    let now = ticks();
    wait_until("a second has passed", || ticks() >= now + 10.0);
    assert_eq!(
        (site.host.lane("b")["state"].as_str(), site.host.engine_pid("b")),
        (Some("ready"), pid)
    );
    site.configure(&config(""));
    site.reload();
    site.host.wait_for("b", "unloaded");
    assert_eq!(site.ask("auto").status, 200);
    site.host.assert_nothing_lost();
}

#[test]
fn what_a_policy_logs_is_in_the_log_of_the_host() {
    let code = r#"
    (USE log.write $write)
    (ADVISE
      (call $write (i32.const 3) (TEXT "two
lines of mine"))
      (i32.const 2048))"#;
    let site = site(Guest::new("p").code(code));
    assert_eq!(site.ask("auto").status, 200);
    let log = site.host.log();
    let line = log.lines().find(|line| line.contains("two lines of mine"));
    let line = line.unwrap_or_else(|| panic!("no such line\n{log}"));
    assert!(
        line.contains("WARN policy: ")
            && line.contains("policy=\"p\"")
            && line.contains("request="),
        "{line}"
    );
}

/// Functions over the request, and what they are to say of this one.
const QUESTIONS: [(&str, &str, &str); 9] = [
    // From the middle of a character on, and up to that of another: shortened inwards.
    ("text", "(call $ask (i32.const 0) (i64.const 3) (i32.const 3) (i32.const 3000))", "lf"),
    ("text", "(call $ask (i32.const 0) (i64.const 0) (i32.const 3) (i32.const 3000))", "zw"),
    ("text", "(call $ask (i32.const 1) (i64.const 0) (i32.const 99) (i32.const 3000))", "second"),
    ("text", "(call $ask (i32.const 2) (i64.const 0) (i32.const 99) (i32.const 3000))", ""),
    ("field", "(call $ask (TEXT \"/metadata/team\") (i32.const 99) (i32.const 2992))", "\"x y\""),
    (
        "field-too-large",
        "(call $ask (TEXT \"/metadata/team\") (i32.const 2) (i32.const 3000))",
        "5",
    ),
    ("contains", "(call $ask (TEXT \"BOXER\") (i32.const 1))", "1"),
    ("contains", "(call $ask (TEXT \"BOXER\") (i32.const 0))", "0"),
    ("prefix-hashes", "(call $ask (i32.const 4) (i32.const 2) (i32.const 3000))", ""),
];

#[test]
fn a_policy_reads_the_request_without_having_it() {
    let site = site(Guest::new("p").why("not asked"));
    let body = json!({
        "model": "auto", "max_tokens": 1, "metadata": { "team": "x y" },
        "messages": [{ "role": "user", "content": "zwölf boxer" }, { "role": "user", "content": "second" }],
    });
    // FNV-1a of the first four bytes.
    let hash = "zwö".bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for (function, call, expected) in QUESTIONS {
        let import = function.trim_end_matches("-too-large");
        // A text is a pair of words; a field has its kind eight bytes before it.
        let shown = match function {
            "text" | "field" => {
                format!(
                    "{call} (call $why_text (i32.load (i32.const 3000)) (i32.load (i32.const 3004)))"
                )
            }
            "field-too-large" => format!("{call} (call $why_number (i64.load (i32.const 3008)))"),
            "contains" => format!("(call $why_number (i64.extend_i32_u {call}))"),
            _ => format!("{call} (call $why_number (i64.load (i32.load (i32.const 3000))))"),
        };
        let code = format!("(USE request.{import} $ask) (ADVISE {shown} (i32.const 2048))");
        let taken = site.take_up(&Guest::new("p").code(&code));
        assert_eq!(taken["error"], Value::Null, "{code}");
        let reply = post(site.host.port, CHAT, &body);
        let why = reply.header("x-pointsman-reason").unwrap_or_default();
        let expected = if function == "prefix-hashes" {
            hash.cast_signed().to_string()
        } else {
            expected.into()
        };
        assert_eq!((reply.status, why), (200, expected.as_str()), "{function}: {call}");
    }
    site.host.assert_nothing_lost();
}
