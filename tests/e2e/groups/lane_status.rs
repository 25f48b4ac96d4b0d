//! Automatic loading and unloading of lanes, and the status and metrics about it.

use pointsman_tests::host::is_alive;
use pointsman_tests::wait_until;
use serde_json::json;

use super::{
    SWITCH_IMMEDIATELY, engine_is, llama_lane, send_chat, single_lane_group, spawn_chat, start,
    start_stream, switch_count, vllm_lane,
};

#[test]
fn status_shows_load_progress() {
    let lanes = [
        vllm_lane("a", "", "", "--load-ms 1500"),
        llama_lane("b", "load = \"on-demand\"", "--load-ms 1500"),
    ];
    let host = start(&single_lane_group("", &lanes));
    for (lane, phase) in [("a", "loading weights"), ("b", "loading weights")] {
        assert_eq!(
            (&host.lane(lane)["state"], &host.lane(lane)["engine"]),
            (&json!("unloaded"), &json!("cold"))
        );
        let waits = spawn_chat(&host, lane, json!({}));
        let mut samples = Vec::new();
        wait_until("the lane is ready", || {
            let status = host.lane(lane);
            if status["engine"] == "starting" {
                assert_eq!(status["state"], "starting");
                samples.push((
                    status["progress"].as_str().unwrap_or("").to_owned(),
                    status["ready_in_ms"].as_u64().unwrap(),
                ));
            }
            status["engine"] == "ready"
        });
        assert!(samples.iter().any(|(progress, _)| progress.starts_with(phase)), "{samples:?}");
        let has_shards =
            |(progress, _): &&(String, u64)| progress.contains(" % (") && progress.contains("/26)");
        assert!(lane == "b" || samples.iter().filter(has_shards).count() >= 2, "{samples:?}");
        let times: Vec<u64> = samples.iter().map(|(_, left)| *left).collect();
        assert!(
            times.iter().all(|left| *left > 0) && times.is_sorted_by(|a, b| a >= b),
            "{times:?}"
        );
        assert_eq!(
            (&host.lane(lane)["ready_in_ms"], &host.lane(lane)["progress"]),
            (&json!(0), &json!(null))
        );
        assert_eq!(waits.join().unwrap().status, 200);
    }
    let status = host.lane("a");
    assert_eq!(status["kv_tokens"], 123_456, "{status}");
    assert!(status["weights_bytes"].as_u64() > Some(1 << 30), "{status}");
    host.assert_no_request_lost();
}

#[test]
fn at_start_lanes_are_loaded_first() {
    let lanes = [
        vllm_lane("a", "", "", "--load-ms 100"),
        vllm_lane("b", "load = \"at-start\"", "", "--load-ms 100"),
        vllm_lane("c", "load = \"at-start\"", "", "--load-ms 100"),
    ];
    let host = start(&single_lane_group(SWITCH_IMMEDIATELY, &lanes));
    host.wait_for_lane("b", "ready");
    assert_eq!((&host.lane("a")["starts"], &host.lane("c")["starts"]), (&json!(0), &json!(0)));
    assert_eq!(send_chat(&host, "a").status, 200);
    assert_eq!(host.lane("b")["engine"], "cold");
    assert_eq!(switch_count(&host), 2.0);
    host.assert_no_request_lost();
}

#[test]
fn always_loaded_lane_is_never_evicted() {
    let lanes = [
        vllm_lane("a", "load = \"always\"", "", "--load-ms 100").replace("8GiB", "2GiB"),
        vllm_lane("b", "", "", "--load-ms 100"),
        vllm_lane("c", "", "", "--load-ms 100"),
    ];
    let host = start(&single_lane_group(SWITCH_IMMEDIATELY, &lanes));
    host.wait_for_lane("a", "ready");
    for model in ["b", "c", "b", "a"] {
        assert_eq!(send_chat(&host, model).status, 200);
    }
    assert_eq!(host.lane("a")["starts"], 1);
    host.assert_no_request_lost();
}

#[test]
fn idle_lane_is_unloaded() {
    let flags = r#"--load-ms 100 --fork-core --script '{"token-ms": 100, "tokens": 10}'"#;
    let host =
        start(&single_lane_group("", &[vllm_lane("a", "unload-after = \"400ms\"", "", flags)]));
    // Not while a request is in flight, however long it takes.
    let (response, complete) = start_stream(&host, "a").finish();
    assert!(complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    let processes = host.engine_processes("a");
    wait_until("the lane is unloaded", || engine_is(&host, "a", "cold"));
    assert!(processes.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(
        (&host.lane("a")["state"], &host.lane("a")["pid"]),
        (&json!("unloaded"), &json!(null))
    );
    assert_eq!(send_chat(&host, "a").status, 200);
    assert_eq!(host.lane("a")["starts"], 2);
    host.assert_no_request_lost();
}

/// A switch is in the log and in the metrics.
#[test]
fn switches_are_logged_and_timed() {
    let flags = "--load-ms 200 --slow-exit-ms 200";
    let host = start(&single_lane_group(
        SWITCH_IMMEDIATELY,
        &[vllm_lane("a", "", "", flags), vllm_lane("b", "", "", flags)],
    ));
    assert_eq!((send_chat(&host, "a").status, send_chat(&host, "b").status), (200, 200));
    let seconds = |lane: &str, part: &str| {
        let metric = "pointsman_switch_seconds_sum";
        host.metric(metric, &format!("lane={lane:?},part={part:?}"))
            + host.metric(metric, &format!("part={part:?},lane={lane:?}"))
    };
    assert!(
        seconds("b", "load") >= 0.2 && seconds("b", "stop") >= 0.2,
        "{} {}",
        seconds("b", "load"),
        seconds("b", "stop")
    );
    let switch = host.wait_for_event("lane_loaded", &[("lane", "b"), ("evicted", "a")]);
    assert!(switch.number("stop_ms") >= 200.0 && switch.number("load_ms") >= 200.0, "{switch:?}");
    assert!(switch.number("drain_ms") >= 0.0, "{switch:?}");
    host.assert_no_request_lost();
}
