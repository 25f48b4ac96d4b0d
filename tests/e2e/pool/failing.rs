//! Loads that fail: everybody is told why, or goes where a lane serves.

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{alive, kill};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    AT_ONCE, CHAT, ask, asking, comes_back, engine, last_words, llama, one_at_a_time, queued,
    start, streaming, vllm,
};

#[test]
fn a_failed_load_tells_all_its_waiters_why() {
    for (lane, cause, last) in [
        (
            vllm("a", "", "", "--load-ms 800 --oom"),
            "Free memory on device cuda:0",
            "Engine core initialization failed",
        ),
        (vllm("a", "", "", "--load-ms 800 --fail-load 3"), "exit code 3", "Failed core proc(s)"),
        (
            llama("a", "load = \"on-demand\"", "--load-ms 800 --oom"),
            "out of memory",
            "exiting due to model loading error",
        ),
        (
            llama("a", "load = \"on-demand\"", "--load-ms 800 --fail-load 1"),
            "exit code 1",
            "tensor data is not within the file bounds",
        ),
    ] {
        let host = start(&one_at_a_time("", &[lane]));
        let waiters: Vec<_> = (0..4).map(|_| asking(&host, "a", json!({}))).collect();
        for waiter in waiters {
            let reply = waiter.join().unwrap();
            assert_eq!(
                (reply.status, &reply.json()["error"]["code"]),
                (503, &json!("no_lane_available"))
            );
            let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(message.contains(cause) && message.contains(last), "{message}");
            assert!(reply.header("retry-after").is_some());
        }
        wait_until("it is shown", || {
            host.lane("a")["problem"].as_str().is_some_and(|it| it.contains(cause))
        });
        wait_until("it is logged", || host.log().contains("not loaded: the engine ended: "));
        host.assert_nothing_lost();
        host.stop();
    }
}

#[test]
fn a_binary_for_another_cpu_is_told_as_such() {
    for lane in [
        vllm("a", "", "", "--exit-code 132"),
        llama("a", "load = \"on-demand\"", "--exit-code 132"),
    ] {
        let host = start(&one_at_a_time("", &[lane]));
        let reply = ask(&host, "a");
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (503, &json!("no_lane_available"))
        );
        let sentence = "illegal instruction: the binary was built for another CPU";
        assert!(reply.text().contains(sentence), "{}", reply.text());
        wait_until("it is shown", || {
            host.lane("a")["problem"].as_str().is_some_and(|it| it.contains(sentence))
        });
        wait_until("it is counted", || {
            host.metric("pointsman_engine_exits_total", "reason=\"SIGILL\"") == 1.0
        });
        host.assert_nothing_lost();
    }
}

#[test]
fn a_failed_load_sends_its_waiters_to_another_lane() {
    let lanes = [
        vllm("a", "models = [\"a\", \"m\"]", "", "--load-ms 500 --oom"),
        llama(
            "b",
            "models = [\"b\", \"m\"]\nload = \"on-demand\"\nexpected-load-time = \"20s\"",
            "--load-ms 100",
        ),
    ];
    let host = start(&one_at_a_time("", &lanes));
    let waiters: Vec<_> = (0..3).map(|_| asking(&host, "m", json!({}))).collect();
    wait_until("they wait for the first", || queued(&host, "a") == 3);
    let stuck = asking(&host, "a", json!({}));
    for waiter in waiters {
        let reply = waiter.join().unwrap();
        assert_eq!(
            (reply.status, reply.header("x-pointsman-lane")),
            (200, Some("b")),
            "{}",
            reply.text()
        );
        assert_eq!(reply.header("x-pointsman-attempts"), Some("2"));
    }
    assert_eq!(stuck.join().unwrap().status, 503);
    assert_eq!(host.metric("pointsman_fell_back_total", ""), 3.0);
    host.assert_nothing_lost();
}

/// The lane that had to go for it comes back: there is no need to repair anything by hand.
#[test]
fn after_a_failed_load_the_other_lanes_still_serve() {
    let lanes =
        [vllm("a", "", "", "--load-ms 100"), vllm("b", "", "", "--load-ms 200 --fail-load 3")];
    let host = start(&one_at_a_time(AT_ONCE, &lanes));
    for _ in 0..2 {
        assert_eq!(ask(&host, "a").status, 200);
        let reply = ask(&host, "b");
        assert_eq!(reply.status, 503, "{}", reply.text());
    }
    assert_eq!(ask(&host, "a").status, 200);
    host.assert_nothing_lost();
    host.stop();
}

#[test]
fn a_load_that_never_ends_is_killed_and_told() {
    let lanes = [
        vllm(
            "a",
            "",
            "start-timeout = \"500ms\"",
            "--load-ms 3600000 --fork-core --ignore-sigterm",
        ),
        vllm("b", "", "", "--load-ms 100"),
    ];
    let host = start(&one_at_a_time(AT_ONCE, &lanes));
    let waiters: Vec<_> = (0..2).map(|_| asking(&host, "a", json!({}))).collect();
    wait_until("it is loading", || host.lane("a")["pid"].is_u64());
    let family = host.engine_family("a");
    for waiter in waiters {
        let reply = waiter.join().unwrap();
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (503, &json!("no_lane_available"))
        );
        assert!(
            reply.text().contains("did not answer within 0.5 s of its start; it was at: "),
            "{}",
            reply.text()
        );
    }
    assert!(family.iter().all(|pid| !alive(*pid)));
    assert_eq!(host.metric("pointsman_engine_exits_total", "reason=\"start-timeout\""), 1.0);
    assert_eq!(ask(&host, "b").status, 200);
    host.assert_nothing_lost();
    host.stop();
}

/// The engine knows its model by other names than its path. Nobody waits for a name that never comes.
#[test]
fn a_lane_is_ready_whatever_its_model_is_called() {
    let lanes = [
        vllm("a", "models = [\"one\", \"org/two\"]", "", "--load-ms 100"),
        vllm("b", "models = [\"three\"]", "served-names = [\"inner\", \"other\"]", "--load-ms 100"),
        vllm(
            "c",
            "models = [\"four\"]\nengine-model = \"other\"",
            "served-names = [\"inner\", \"other\"]",
            "",
        ),
        llama("d", "models = [\"five\"]", ""),
    ];
    let host = start(&one_at_a_time(AT_ONCE, &lanes));
    for (asked, lane, name) in [
        ("one", "a", "a"),
        ("org/two", "a", "a"),
        ("three", "b", "inner"),
        ("four", "c", "inner"),
        ("five", "d", "d"),
    ] {
        let reply = post(host.port, CHAT, &chat(asked, json!({})));
        assert_eq!(
            (reply.status, reply.header("x-pointsman-lane")),
            (200, Some(lane)),
            "{}",
            reply.text()
        );
        assert_eq!(reply.json()["model"], name, "{asked}");
        let model = engine(&host, lane)["model"].as_str().unwrap().to_owned();
        assert!(model.starts_with(&format!("/m/{lane}")), "{model}");
    }
    host.assert_nothing_lost();
}

/// Those who wait for an engine that died go on waiting when it comes back by itself. None of them is sent to the dead one.
#[test]
fn a_crash_in_service_is_survived_by_those_who_wait() {
    let flags = r#"--load-ms 100 --fork-core --script '{"stall-after": 2}'"#;
    let host = start(&one_at_a_time("", &[comes_back(&vllm("a", "slots = 1", "", flags))]));
    for crashes in 1..=4 {
        let mut held = streaming(&host, "a");
        assert!(held.until("data: "));
        let waiters: Vec<_> = (0..4).map(|_| asking(&host, "a", json!({}))).collect();
        wait_until("they wait", || queued(&host, "a") == 4);
        kill(host.engine_pid("a"), Signal::KILL);
        last_words(&held.finish().0.text());
        for waiter in waiters {
            let reply = waiter.join().unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        assert_eq!(host.lane("a")["starts"], crashes + 1);
    }
    host.assert_nothing_lost();
}
