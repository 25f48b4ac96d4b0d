//! Loads that fail: every waiting request gets the cause, or falls back to another lane.

use std::thread::JoinHandle;

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{is_alive, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    CHAT, SWITCH_IMMEDIATELY, engine_state, final_error, llama_lane, queue_length,
    restarts_immediately, send_chat, single_lane_group, spawn_chat, start, start_stream, vllm_lane,
};

#[test]
fn failed_load_rejects_all_waiting_requests_with_cause() {
    // The engine's exit reason, and words of the engine's own output.
    for (lane, reason, cause, last) in [
        (
            vllm_lane("a", "", "", "--load-ms 800 --oom"),
            "exit-1",
            "Free memory on device cuda:0",
            "Engine core initialization failed",
        ),
        (
            vllm_lane("a", "", "", "--load-ms 800 --fail-load 3"),
            "exit-3",
            "exit code 3",
            "Failed core proc(s)",
        ),
        (
            llama_lane("a", "load = \"on-demand\"", "--load-ms 800 --oom"),
            "exit-1",
            "out of memory",
            "exiting due to model loading error",
        ),
        (
            llama_lane("a", "load = \"on-demand\"", "--load-ms 800 --fail-load 1"),
            "exit-1",
            "exit code 1",
            "tensor data is not within the file bounds",
        ),
    ] {
        let host = start(&single_lane_group("", &[lane]));
        let waiters: Vec<_> = (0..4).map(|_| spawn_chat(&host, "a", json!({}))).collect();
        for waiter in waiters {
            let response = waiter.join().unwrap();
            assert_eq!(
                (response.status, &response.json()["error"]["code"]),
                (503, &json!("no_lane_available"))
            );
            let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(message.contains(cause) && message.contains(last), "{message}");
            assert_eq!(message.matches(last).count(), 1, "quoted once: {message}");
            assert!(message.len() < 1200, "{message}");
            assert!(response.header("retry-after").is_some());
        }
        wait_until("the status has the problem", || {
            host.lane("a")["problem"].as_str().is_some_and(|problem| problem.contains(cause))
        });
        host.wait_for_event("engine_load_failed", &[("lane", "a"), ("reason", reason)]);
        host.assert_no_request_lost();
        host.stop();
    }
}

#[test]
fn illegal_instruction_is_reported() {
    for lane in [
        vllm_lane("a", "", "", "--exit-code 132"),
        llama_lane("a", "load = \"on-demand\"", "--exit-code 132"),
    ] {
        let host = start(&single_lane_group("", &[lane]));
        let response = send_chat(&host, "a");
        assert_eq!(
            (response.status, &response.json()["error"]["code"]),
            (503, &json!("no_lane_available"))
        );
        // The message names the cause of the signal.
        let hint = "illegal instruction";
        assert!(response.text().contains(hint), "{}", response.text());
        wait_until("the status has the problem", || {
            host.lane("a")["problem"].as_str().is_some_and(|problem| problem.contains(hint))
        });
        wait_until("the exit is counted", || {
            host.metric("pointsman_engine_exits_total", "reason=\"SIGILL\"") == 1.0
        });
        host.assert_no_request_lost();
    }
}

#[test]
fn failed_load_sends_waiting_requests_to_fallback() {
    let lanes = [
        vllm_lane("a", "models = [\"a\", \"m\"]", "", "--load-ms 500 --oom"),
        llama_lane(
            "b",
            "models = [\"b\", \"m\"]\nload = \"on-demand\"\nexpected-load-time = \"20s\"",
            "--load-ms 100",
        ),
    ];
    let host = start(&single_lane_group("", &lanes));
    let waiters: Vec<_> = (0..3).map(|_| spawn_chat(&host, "m", json!({}))).collect();
    wait_until("the requests are queued for lane a", || queue_length(&host, "a") == 3);
    let stuck = spawn_chat(&host, "a", json!({}));
    for waiter in waiters {
        let response = waiter.join().unwrap();
        assert_eq!(
            (response.status, response.header("x-pointsman-lane")),
            (200, Some("b")),
            "{}",
            response.text()
        );
        assert_eq!(response.header("x-pointsman-attempts"), Some("2"));
    }
    assert_eq!(stuck.join().unwrap().status, 503);
    assert_eq!(host.metric("pointsman_fell_back_total", ""), 3.0);
    host.assert_no_request_lost();
}

/// The evicted lane is loaded again without an operator's help.
#[test]
fn other_lanes_serve_after_failed_load() {
    let lanes = [
        vllm_lane("a", "", "", "--load-ms 100"),
        vllm_lane("b", "", "", "--load-ms 200 --fail-load 3"),
    ];
    let host = start(&single_lane_group(SWITCH_IMMEDIATELY, &lanes));
    for _ in 0..2 {
        assert_eq!(send_chat(&host, "a").status, 200);
        let response = send_chat(&host, "b");
        assert_eq!(response.status, 503, "{}", response.text());
    }
    assert_eq!(send_chat(&host, "a").status, 200);
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn load_beyond_start_timeout_is_killed_and_reported() {
    let lanes = [
        vllm_lane(
            "a",
            "",
            "start-timeout = \"500ms\"",
            "--load-ms 3600000 --fork-core --ignore-sigterm",
        ),
        vllm_lane("b", "", "", "--load-ms 100"),
    ];
    let host = start(&single_lane_group(SWITCH_IMMEDIATELY, &lanes));
    let waiters: Vec<_> = (0..2).map(|_| spawn_chat(&host, "a", json!({}))).collect();
    wait_until("the engine is loading", || host.lane("a")["pid"].is_u64());
    let processes = host.engine_processes("a");
    let mut progress = String::new();
    wait_until("the load has failed", || {
        if let Some(text) = host.lane("a")["progress"].as_str() {
            progress = text.to_owned();
        }
        waiters.iter().all(JoinHandle::is_finished)
    });
    for waiter in waiters {
        let response = waiter.join().unwrap();
        assert_eq!(
            (response.status, &response.json()["error"]["code"]),
            (503, &json!("no_lane_available"))
        );
        // The timeout, and the progress that the load had made.
        let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("0.5 s") && message.contains(&progress), "{progress}: {message}");
    }
    assert!(!progress.is_empty());
    host.wait_for_event("engine_load_failed", &[("lane", "a"), ("reason", "start-timeout")]);
    assert!(processes.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(host.metric("pointsman_engine_exits_total", "reason=\"start-timeout\""), 1.0);
    assert_eq!(send_chat(&host, "b").status, 200);
    host.assert_no_request_lost();
    host.stop();
}

/// The engine serves its model under names other than its path; the lane is ready regardless of the
/// name.
#[test]
fn lane_is_ready_under_any_model_name() {
    let lanes = [
        vllm_lane("a", "models = [\"one\", \"org/two\"]", "", "--load-ms 100"),
        vllm_lane(
            "b",
            "models = [\"three\"]",
            "served-names = [\"inner\", \"other\"]",
            "--load-ms 100",
        ),
        vllm_lane(
            "c",
            "models = [\"four\"]\nengine-model = \"other\"",
            "served-names = [\"inner\", \"other\"]",
            "",
        ),
        llama_lane("d", "models = [\"five\"]", ""),
    ];
    let host = start(&single_lane_group(SWITCH_IMMEDIATELY, &lanes));
    for (asked, lane) in
        [("one", "a"), ("org/two", "a"), ("three", "b"), ("four", "c"), ("five", "d")]
    {
        let response = post(host.port, CHAT, &chat(asked, json!({})));
        assert_eq!(
            (response.status, response.header("x-pointsman-lane")),
            (200, Some(lane)),
            "{}",
            response.text()
        );
        assert_eq!(response.json()["model"], asked);
        let model = engine_state(&host, lane)["model"].as_str().unwrap().to_owned();
        assert!(model.starts_with(&format!("/m/{lane}")), "{model}");
    }
    host.assert_no_request_lost();
}

/// Requests that wait for a crashed engine keep waiting until it has restarted. None of them is
/// sent to the crashed engine.
#[test]
fn queued_requests_survive_engine_crash() {
    let flags = r#"--load-ms 100 --fork-core --script '{"stall-after": 2}'"#;
    let host = start(&single_lane_group(
        "",
        &[restarts_immediately(&vllm_lane("a", "slots = 1", "", flags))],
    ));
    for crashes in 1..=4 {
        let mut held = start_stream(&host, "a");
        assert!(held.read_until("data: "));
        let waiters: Vec<_> = (0..4).map(|_| spawn_chat(&host, "a", json!({}))).collect();
        wait_until("the requests are queued", || queue_length(&host, "a") == 4);
        send_signal(host.engine_pid("a"), Signal::KILL);
        final_error(&held.finish().0.text());
        for waiter in waiters {
            let response = waiter.join().unwrap();
            assert_eq!(response.status, 200, "{}", response.text());
        }
        assert_eq!(host.lane("a")["starts"], crashes + 1);
    }
    host.assert_no_request_lost();
}
