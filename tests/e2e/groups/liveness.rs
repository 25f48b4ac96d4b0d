//! Engines that hang or crash while they report to be healthy: they are detected and restarted.

use pointsman_tests::client::post;
use pointsman_tests::host::{is_alive, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    engine_state, final_error, llama_lane, restarts_immediately, send_chat, single_lane_group,
    spawn_chat, start, start_stream, vllm_lane,
};

#[test]
fn broken_streams_never_look_complete() {
    let flags = "--fork-core --core-death-ms 100";
    let lane = vllm_lane("a", "timeouts = { idle = \"500ms\" }", "", flags);
    let host = start(&single_lane_group("", &[restarts_immediately(&lane)]));
    assert_eq!(send_chat(&host, "a").status, 200);
    type Row = (Value, Option<&'static str>, bool);
    let rows: [Row; 9] = [
        // The engine's script, the fault injected in mid-stream, and whether the engine must
        // restart.
        (json!({ "error-after": 2 }), None, false),
        (json!({ "error-after": 2, "chunk-size": 3 }), None, false),
        (json!({ "end-after": 2 }), None, false),
        (json!({ "end-after": 2, "chunk-size": 7 }), None, false),
        (json!({ "stall-after": 2 }), None, false),
        (json!({ "die-after": 2 }), None, true),
        (json!({ "oom-after": 2 }), None, true),
        (json!({ "token-ms": 50, "tokens": 500 }), Some("/fake/kill-core"), true),
        (json!({ "token-ms": 50, "tokens": 500 }), Some("/fake/stall"), false),
    ];
    let count = rows.len();
    for (script, fault, dies) in rows {
        let starts = host.lane("a")["starts"].as_u64().unwrap();
        host.set_script("a", script.clone());
        let mut event_stream = start_stream(&host, "a");
        assert!(event_stream.read_until("data: "));
        if let Some(path) = fault {
            assert_eq!(post(host.engine_port("a"), path, &json!({})).status, 200);
        }
        let (response, complete) = event_stream.finish();
        assert!(complete, "{script}: {}", response.text());
        let error = final_error(&response.text());
        let codes = [json!("engine_error"), json!("engine_timeout"), json!(500)];
        assert!(codes.contains(&error["code"]), "{script}: {error}");
        if dies {
            wait_until("the engine is no longer ready", || host.lane("a")["engine"] != "ready");
            assert_eq!(send_chat(&host, "a").status, 200);
        }
        assert_eq!(host.lane("a")["starts"].as_u64(), Some(starts + u64::from(dies)), "{script}");
        host.set_script("a", json!({}));
        let (response, complete) = start_stream(&host, "a").finish();
        assert!(
            complete && response.text().ends_with("data: [DONE]\n\n"),
            "after {script}: {}",
            response.text()
        );
    }
    assert_eq!(host.metric("pointsman_errors_total", ""), count as f64);
    host.assert_no_request_lost();
    host.stop();
}

/// `/health` responds 200 all the time; the missing progress of requests reveals the hang.
#[test]
fn hung_engine_with_healthy_probe_is_restarted() {
    let liveness = "liveness = { stall-timeout = \"1s\", probe-interval = \"0s\" }";
    let flags = r#"--fork-core --script '{"token-ms": 20, "tokens": 5000}'"#;
    let host = start(&single_lane_group(
        "",
        &[vllm_lane("a", &format!("slots = 2\n{liveness}"), "", flags)],
    ));
    let mut event_stream = start_stream(&host, "a");
    assert!(event_stream.read_until("data: "));
    let processes = host.engine_processes("a");
    assert!(processes.len() >= 2, "{processes:?}");
    let whole = spawn_chat(&host, "a", json!({}));
    wait_until("both requests are in flight", || host.lane("a")["running"] == 2);
    // A third request waits for a slot, and is served by the next engine.
    let waits = spawn_chat(&host, "a", json!({ "max_tokens": 2 }));
    wait_until("the third request is queued", || host.lane("a")["queued"] == 1);
    host.set_script("a", json!({ "health-lies": true }));
    let (response, complete) = event_stream.finish();
    assert!(complete, "{}", response.text());
    assert_eq!(final_error(&response.text())["code"], "engine_hung");
    let whole = whole.join().unwrap();
    assert_eq!(
        (whole.status, &whole.json()["error"]["code"]),
        (502, &json!("engine_hung")),
        "{}",
        whole.text()
    );
    let waits = waits.join().unwrap();
    assert_eq!(waits.status, 200, "{}", waits.text());
    assert!(processes.iter().all(|pid| !is_alive(*pid)));
    host.wait_for_event("engine_hung", &[("lane", "a"), ("in_flight", "2")]);
    assert_eq!(host.metric("pointsman_engine_exits_total", "reason=\"hang\""), 1.0);
    assert_eq!(host.lane("a")["starts"], 2);
    host.assert_no_request_lost();
}

/// llama.cpp counts no token before a response ends, and sends nothing before the first token. It
/// is alive as long as batches are counted, or its process computes.
#[test]
fn long_prompt_is_not_a_hang() {
    let liveness = "liveness = { stall-timeout = \"1500ms\" }";
    let host = start(&single_lane_group("", &[llama_lane("a", liveness, "")]));
    host.wait_for_lane("a", "ready");
    for script in [
        // Batches, while the process sleeps.
        json!({ "prompt-ms": 4000, "prompt-batches": 8, "tokens": 3, "ping-ms": 500 }),
        // One batch, for which the process computes.
        json!({ "prompt-ms": 4000, "computes": true, "tokens": 3 }),
        // A long response that is not streamed.
        json!({ "token-ms": 400, "tokens": 10 }),
    ] {
        host.set_script("a", script.clone());
        let whole = spawn_chat(&host, "a", json!({}));
        let (response, complete) = start_stream(&host, "a").finish();
        assert!(complete && response.text().ends_with("data: [DONE]\n\n"), "{script}");
        assert_eq!(whole.join().unwrap().status, 200, "{script}");
    }
    assert_eq!(host.lane("a")["starts"], 1);
    // An engine that neither counts nor computes hangs, whatever it sends to keep connections open.
    host.set_script("a", json!({ "prompt-ms": 3_600_000, "ping-ms": 200 }));
    let (response, _) = start_stream(&host, "a").finish();
    assert_eq!((response.status, response.error_code()), (502, json!("engine_hung")));
    host.assert_no_request_lost();
}

#[test]
fn slow_engine_is_not_restarted() {
    let liveness = "liveness = { stall-timeout = \"1s\", probe-interval = \"200ms\", probe-timeout \
        = \"500ms\" }";
    let flags = r#"--script '{"token-ms": 400, "tokens": 8}'"#;
    let host = start(&single_lane_group("", &[vllm_lane("a", liveness, "", flags)]));
    let (response, complete) = start_stream(&host, "a").finish();
    assert!(complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    assert_eq!(host.lane("a")["starts"], 1);
    host.assert_no_request_lost();
}

#[test]
fn idle_engine_that_fails_probe_is_restarted() {
    let liveness = "liveness = { probe-interval = \"200ms\", probe-timeout = \"200ms\" }";
    let lanes = [vllm_lane("a", liveness, "", "--fork-core"), llama_lane("b", liveness, "")];
    let host = start(&single_lane_group("", &lanes));
    assert_eq!(send_chat(&host, "a").status, 200);
    host.wait_for_lane("b", "ready");
    for (lane, script) in [("a", json!({ "health-lies": true })), ("b", json!({ "hang": true }))] {
        wait_until("the healthy engine has been probed", || {
            engine_state(&host, lane)["seen"].as_u64() >= Some(2)
        });
        assert_eq!(host.lane(lane)["starts"], 1);
        let processes = host.engine_processes(lane);
        host.set_script(lane, script);
        wait_until("the hang is detected", || {
            host.lane(lane)["starts"] == 2 || !processes.iter().any(|pid| is_alive(*pid))
        });
        // An idle lane of a group is loaded again for the next request.
        assert_eq!(send_chat(&host, lane).status, 200, "{lane}");
        assert_eq!(host.lane(lane)["starts"], 2);
        assert!(processes.iter().all(|pid| !is_alive(*pid)));
    }
    for lane in ["a", "b"] {
        host.wait_for_event("engine_hung", &[("lane", lane), ("in_flight", "0")]);
    }
    assert_eq!(host.metric("pointsman_engine_exits_total", "reason=\"hang\""), 2.0);
    host.assert_no_request_lost();
}

/// The API server of a vLLM crashes and leaves its core, or the core crashes and leaves its server:
/// both processes are ended and both are started again.
#[test]
fn engine_restarts_when_one_of_its_processes_crashes() {
    let lane = vllm_lane("a", "", "", "--load-ms 100 --fork-core --core-death-ms 3600000");
    let host = start(&single_lane_group("", &[restarts_immediately(&lane)]));
    for (round, leader) in [(1, true), (2, false)] {
        assert_eq!(send_chat(&host, "a").status, 200);
        assert_eq!(host.lane("a")["starts"], round);
        let core = u32::try_from(engine_state(&host, "a")["core"].as_u64().unwrap()).unwrap();
        let processes = host.engine_processes("a");
        assert!(processes.contains(&core), "{processes:?}");
        send_signal(if leader { host.engine_pid("a") } else { core }, Signal::KILL);
        wait_until("all processes of the engine have exited", || {
            processes.iter().all(|pid| !is_alive(*pid))
        });
        wait_until("the host has noticed", || host.lane("a")["engine"] != "ready");
    }
    assert_eq!(send_chat(&host, "a").status, 200);
    host.assert_no_request_lost();
    host.stop();
}
