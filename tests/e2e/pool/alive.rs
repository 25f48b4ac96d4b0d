//! Engines that lie or break off: found out, and never taken for well.

use pointsman_tests::client::post;
use pointsman_tests::host::{alive, kill};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    ask, asking, comes_back, engine, last_words, llama, one_at_a_time, start, streaming, vllm,
};

#[test]
fn cut_streams_never_look_complete() {
    let flags = "--fork-core --core-death-ms 100";
    let lane = vllm("a", "timeouts = { idle = \"500ms\" }", "", flags);
    let host = start(&one_at_a_time("", &[comes_back(&lane)]));
    assert_eq!(ask(&host, "a").status, 200);
    type Row = (Value, Option<&'static str>, bool);
    let rows: [Row; 9] = [
        // What the engine does in mid-stream, what is done to it then, and whether it has to be started anew.
        (json!({ "error-after": 2 }), None, false),
        (json!({ "error-after": 2, "cut": 3 }), None, false),
        (json!({ "end-after": 2 }), None, false),
        (json!({ "end-after": 2, "cut": 7 }), None, false),
        (json!({ "stall-after": 2 }), None, false),
        (json!({ "die-after": 2 }), None, true),
        (json!({ "oom-after": 2 }), None, true),
        (json!({ "token-ms": 50, "tokens": 500 }), Some("/fake/kill-core"), true),
        (json!({ "token-ms": 50, "tokens": 500 }), Some("/fake/stall"), false),
    ];
    let count = rows.len();
    for (script, harm, dies) in rows {
        let starts = host.lane("a")["starts"].as_u64().unwrap();
        host.script("a", script.clone());
        let mut answer = streaming(&host, "a");
        assert!(answer.until("data: "));
        if let Some(path) = harm {
            assert_eq!(post(host.engine_port("a"), path, &json!({})).status, 200);
        }
        let (reply, complete) = answer.finish();
        assert!(complete, "{script}: {}", reply.text());
        let error = last_words(&reply.text());
        assert!(error["code"] == "engine_error" || error["code"] == 500, "{script}: {error}");
        if dies {
            wait_until("the engine is gone", || host.lane("a")["engine"] != "ready");
            assert_eq!(ask(&host, "a").status, 200);
        }
        assert_eq!(host.lane("a")["starts"].as_u64(), Some(starts + u64::from(dies)), "{script}");
        host.script("a", json!({}));
        let (reply, complete) = streaming(&host, "a").finish();
        assert!(
            complete && reply.text().ends_with("data: [DONE]\n\n"),
            "after {script}: {}",
            reply.text()
        );
    }
    assert_eq!(host.metric("pointsman_errors_total", ""), count as f64);
    host.assert_nothing_lost();
    host.stop();
}

/// `/health` says 200 all the time; what counts is that nothing moves.
#[test]
fn an_engine_whose_health_lies_is_found_out() {
    let liveness = "liveness = { stall-timeout = \"1s\", probe-interval = \"0s\" }";
    let flags = r#"--fork-core --script '{"token-ms": 20, "tokens": 5000}'"#;
    let host =
        start(&one_at_a_time("", &[vllm("a", &format!("slots = 2\n{liveness}"), "", flags)]));
    let mut answer = streaming(&host, "a");
    assert!(answer.until("data: "));
    let family = host.engine_family("a");
    assert!(family.len() >= 2, "{family:?}");
    let whole = asking(&host, "a", json!({}));
    wait_until("both are under way", || host.lane("a")["running"] == 2);
    // One more waits for a slot, and is served by the engine that comes after this one.
    let waits = asking(&host, "a", json!({ "max_tokens": 2 }));
    wait_until("it waits", || host.lane("a")["queued"] == 1);
    host.script("a", json!({ "health-lies": true }));
    let (reply, complete) = answer.finish();
    assert!(complete, "{}", reply.text());
    assert_eq!(last_words(&reply.text())["code"], "engine_error");
    let whole = whole.join().unwrap();
    assert_eq!(
        (whole.status, &whole.json()["error"]["code"]),
        (502, &json!("engine_error")),
        "{}",
        whole.text()
    );
    let waits = waits.join().unwrap();
    assert_eq!(waits.status, 200, "{}", waits.text());
    assert!(family.iter().all(|pid| !alive(*pid)));
    assert!(
        host.log().contains("the engine hangs: 2 requests under way, and nothing has moved for")
    );
    assert_eq!(host.metric("pointsman_engine_exits_total", "reason=\"hang\""), 1.0);
    assert_eq!(host.lane("a")["starts"], 2);
    host.assert_nothing_lost();
}

#[test]
fn a_slow_engine_is_not_taken_for_a_dead_one() {
    let liveness = "liveness = { stall-timeout = \"1s\", probe-interval = \"200ms\", probe-timeout = \"500ms\" }";
    let flags = r#"--script '{"token-ms": 400, "tokens": 8}'"#;
    let host = start(&one_at_a_time("", &[vllm("a", liveness, "", flags)]));
    let (reply, complete) = streaming(&host, "a").finish();
    assert!(complete && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());
    assert_eq!(host.lane("a")["starts"], 1);
    host.assert_nothing_lost();
}

#[test]
fn an_idle_engine_that_gives_no_token_is_found_out() {
    let liveness = "liveness = { probe-interval = \"200ms\", probe-timeout = \"200ms\" }";
    let lanes = [vllm("a", liveness, "", "--fork-core"), llama("b", liveness, "")];
    let host = start(&one_at_a_time("", &lanes));
    assert_eq!(ask(&host, "a").status, 200);
    host.wait_for("b", "ready");
    for (lane, script) in [("a", json!({ "health-lies": true })), ("b", json!({ "hang": true }))] {
        wait_until("a well one is left alone", || engine(&host, lane)["seen"].as_u64() >= Some(2));
        assert_eq!(host.lane(lane)["starts"], 1);
        let family = host.engine_family(lane);
        host.script(lane, script);
        wait_until("it is found out", || {
            host.lane(lane)["starts"] == 2 || !family.iter().any(|pid| alive(*pid))
        });
        // An idle lane of a group is loaded again when somebody wants it.
        assert_eq!(ask(&host, lane).status, 200, "{lane}");
        assert_eq!(host.lane(lane)["starts"], 2);
        assert!(family.iter().all(|pid| !alive(*pid)));
    }
    assert!(host.log().contains("the engine hangs: idle, and gives no token when asked for one"));
    assert_eq!(host.metric("pointsman_engine_exits_total", "reason=\"hang\""), 2.0);
    host.assert_nothing_lost();
}

/// The server of a vLLM dies and leaves its core, or the core and leaves its server: both are ended, and both come back.
#[test]
fn half_an_engine_is_no_engine() {
    let lane = vllm("a", "", "", "--load-ms 100 --fork-core --core-death-ms 3600000");
    let host = start(&one_at_a_time("", &[comes_back(&lane)]));
    for (round, leader) in [(1, true), (2, false)] {
        assert_eq!(ask(&host, "a").status, 200);
        assert_eq!(host.lane("a")["starts"], round);
        let core = u32::try_from(engine(&host, "a")["core"].as_u64().unwrap()).unwrap();
        let family = host.engine_family("a");
        assert!(family.contains(&core), "{family:?}");
        kill(if leader { host.engine_pid("a") } else { core }, Signal::KILL);
        wait_until("all of it is gone", || family.iter().all(|pid| !alive(*pid)));
        wait_until("that is known", || host.lane("a")["engine"] != "ready");
    }
    assert_eq!(ask(&host, "a").status, 200);
    host.assert_nothing_lost();
    host.stop();
}
