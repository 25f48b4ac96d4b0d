//! When lanes are loaded and unloaded by themselves, and what is shown of it.

use pointsman_tests::host::alive;
use pointsman_tests::wait_until;
use serde_json::json;

use super::{AT_ONCE, ask, asking, is_engine, llama, loads, one_at_a_time, start, streaming, vllm};

#[test]
fn progress_is_shown_while_a_lane_is_loaded() {
    let lanes =
        [vllm("a", "", "", "--load-ms 1500"), llama("b", "load = \"on-demand\"", "--load-ms 1500")];
    let host = start(&one_at_a_time("", &lanes));
    for (lane, phase) in [("a", "loading weights"), ("b", "loading weights")] {
        assert_eq!(
            (&host.lane(lane)["state"], &host.lane(lane)["engine"]),
            (&json!("unloaded"), &json!("cold"))
        );
        let waits = asking(&host, lane, json!({}));
        let mut seen = Vec::new();
        wait_until("it serves", || {
            let status = host.lane(lane);
            if status["engine"] == "starting" {
                assert_eq!(status["state"], "starting");
                seen.push((
                    status["progress"].as_str().unwrap_or("").to_owned(),
                    status["ready_in_ms"].as_u64().unwrap(),
                ));
            }
            status["engine"] == "ready"
        });
        assert!(seen.iter().any(|(progress, _)| progress.starts_with(phase)), "{seen:?}");
        let bar =
            |(progress, _): &&(String, u64)| progress.contains(" % (") && progress.contains("/26)");
        assert!(lane == "b" || seen.iter().filter(bar).count() >= 2, "{seen:?}");
        let times: Vec<u64> = seen.iter().map(|(_, left)| *left).collect();
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
    let of_vllm = host.lane("a");
    assert_eq!(of_vllm["kv_tokens"], 123_456, "{of_vllm}");
    assert!(of_vllm["weights_bytes"].as_u64() > Some(1 << 30), "{of_vllm}");
    host.assert_nothing_lost();
}

#[test]
fn what_is_to_be_loaded_at_the_start_is() {
    let lanes = [
        vllm("a", "", "", "--load-ms 100"),
        vllm("b", "load = \"at-start\"", "", "--load-ms 100"),
        vllm("c", "load = \"at-start\"", "", "--load-ms 100"),
    ];
    let host = start(&one_at_a_time(AT_ONCE, &lanes));
    host.wait_for("b", "ready");
    assert_eq!((&host.lane("a")["starts"], &host.lane("c")["starts"]), (&json!(0), &json!(0)));
    assert_eq!(ask(&host, "a").status, 200);
    assert_eq!(host.lane("b")["engine"], "cold");
    assert_eq!(loads(&host), 2.0);
    host.assert_nothing_lost();
}

#[test]
fn a_lane_that_is_always_loaded_never_goes() {
    let lanes = [
        vllm("a", "load = \"always\"", "", "--load-ms 100").replace("8GiB", "2GiB"),
        vllm("b", "", "", "--load-ms 100"),
        vllm("c", "", "", "--load-ms 100"),
    ];
    let host = start(&one_at_a_time(AT_ONCE, &lanes));
    host.wait_for("a", "ready");
    for model in ["b", "c", "b", "a"] {
        assert_eq!(ask(&host, model).status, 200);
    }
    assert_eq!(host.lane("a")["starts"], 1);
    host.assert_nothing_lost();
}

#[test]
fn a_lane_that_nobody_uses_is_unloaded() {
    let flags = r#"--load-ms 100 --fork-core --script '{"token-ms": 100, "tokens": 10}'"#;
    let host = start(&one_at_a_time("", &[vllm("a", "unload-after = \"400ms\"", "", flags)]));
    // Not while it works, however long that takes.
    let (reply, complete) = streaming(&host, "a").finish();
    assert!(complete && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());
    let family = host.engine_family("a");
    wait_until("it is unloaded", || is_engine(&host, "a", "cold"));
    assert!(family.iter().all(|pid| !alive(*pid)));
    assert_eq!(
        (&host.lane("a")["state"], &host.lane("a")["pid"]),
        (&json!("unloaded"), &json!(null))
    );
    assert_eq!(ask(&host, "a").status, 200);
    assert_eq!(host.lane("a")["starts"], 2);
    host.assert_nothing_lost();
}

/// What a switch did is in the log and in the figures.
#[test]
fn switches_are_counted_and_timed() {
    let flags = "--load-ms 200 --slow-exit-ms 200";
    let host =
        start(&one_at_a_time(AT_ONCE, &[vllm("a", "", "", flags), vllm("b", "", "", flags)]));
    assert_eq!((ask(&host, "a").status, ask(&host, "b").status), (200, 200));
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
    assert!(host.log().contains("ms of draining,"));
    host.assert_nothing_lost();
}
