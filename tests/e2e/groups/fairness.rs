//! Many clients for few lanes: no thrashing, no starvation, no lost requests.

use std::sync::atomic::{AtomicBool, Ordering};

use pointsman_tests::client::{chat, post, stream};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    CHAT, Random, SWITCH_IMMEDIATELY, failed_attempts, seed, send_chat, single_lane_group,
    spawn_chat, start, switch_count, vllm_lane,
};

#[test]
fn alternating_clients_neither_thrash_nor_starve() {
    let seed = seed();
    let work = r#"--load-ms 300 --script '{"token-ms": 10}'"#;
    let lanes = [vllm_lane("a", "", "", work), vllm_lane("b", "", "", work)];
    let host = start(&single_lane_group("switching = { starvation-timeout = \"10s\" }\n", &lanes));
    // The host learns the cost of a switch from these loads.
    for lane in ["a", "b", "a"] {
        assert_eq!(send_chat(&host, lane).status, 200);
    }
    let before = switch_count(&host);
    let (agents, each) = (8, 10);
    std::thread::scope(|scope| {
        for agent in 0..agents {
            let port = host.port;
            scope.spawn(move || {
                let mut random = Random::for_client(seed, agent);
                for _ in 0..each {
                    let lane = ["a", "b"][usize::try_from(random.below(2)).unwrap()];
                    let response = post(port, CHAT, &chat(lane, json!({})));
                    assert_eq!(response.status, 200, "{}", response.text());
                    assert_eq!(response.header("x-pointsman-lane"), Some(lane));
                }
            });
        }
    });
    let switches = switch_count(&host) - before;
    println!("{switches} switches for {} requests", agents * each);
    assert!((1.0..=20.0).contains(&switches), "{switches} switches");
    assert_eq!(host.metric("pointsman_switches_total", "overdue=\"yes\""), 0.0);
    host.assert_no_request_lost();
}

/// One lane never runs out of work, and requests for the other lane are served nevertheless.
#[test]
fn busy_lane_does_not_starve_other_lane() {
    let head = "switching = { min-residency = 100.0, starvation-timeout = \"1s\" }\n\
        queue = { aging = \"0s\" }\n";
    let work = r#"--load-ms 200 --script '{"token-ms": 20}'"#;
    let host = start(&single_lane_group(
        head,
        &[vllm_lane("a", "", "", work), vllm_lane("b", "", "", work)],
    ));
    // The host learns the cost of a switch from these loads.
    for lane in ["a", "b", "a"] {
        assert_eq!(send_chat(&host, lane).status, 200);
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let (port, done) = (host.port, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(post(port, CHAT, &chat("a", json!({}))).status, 200);
                }
            });
        }
        let response = spawn_chat(&host, "b", json!({})).join().unwrap();
        done.store(true, Ordering::Relaxed);
        assert_eq!(response.status, 200, "{}", response.text());
    });
    assert!(host.metric("pointsman_switches_total", "overdue=\"yes\"") >= 1.0);
    host.assert_no_request_lost();
}

#[test]
fn no_request_is_sent_to_stopping_engine() {
    let seed = seed();
    let head =
        "switching = { min-residency = 0.0, linger = \"0s\", starvation-timeout = \"200ms\" }\n";
    let flags = "--load-ms 50 --fork-core";
    let lanes = [
        vllm_lane("a", "", "", flags),
        vllm_lane("b", "", "", flags),
        vllm_lane("c", "", "", flags),
    ];
    let host = start(&single_lane_group(head, &lanes));
    let (clients, each) = (6, 10);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let port = host.port;
            scope.spawn(move || {
                let mut random = Random::for_client(seed, client);
                for _ in 0..each {
                    let lane = ["a", "b", "c"][usize::try_from(random.below(3)).unwrap()];
                    let streams = random.below(2) == 0;
                    let (response, complete) =
                        stream(port, CHAT, &chat(lane, json!({ "stream": streams }))).finish();
                    assert!(response.status == 200 && complete, "{}", response.text());
                    assert_eq!(response.text().contains("[DONE]"), streams, "{}", response.text());
                }
            });
        }
    });
    println!("{} loads", switch_count(&host));
    assert_eq!(failed_attempts(&host), 0.0);
    assert_eq!(host.metric("pointsman_attempts_total", ""), (clients * each) as f64);
    assert_eq!(host.metric("pointsman_engine_exits_total", ""), 0.0);
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn no_request_is_lost_while_lanes_switch_and_engines_crash() {
    let seed = seed();
    let head = format!(
        "{SWITCH_IMMEDIATELY}queue = {{ per-lane = 8, total = 20, max-wait = \"3s\" }}\n\
         server = {{ keep-alive = \"100ms\" }}\n"
    );
    let flags =
        r#"--load-ms 100 --fork-core --core-death-ms 50 --script '{"token-ms": 2, "tokens": 20}'"#;
    let lanes = ["a", "b", "c"].map(|name| {
        let models =
            if name == "c" { "models = [\"c\"]" } else { &format!("models = [{name:?}, \"m\"]") };
        vllm_lane(name, models, "", flags)
    });
    let host = start(&single_lane_group(&head, &lanes));
    let done = AtomicBool::new(false);
    let (clients, each) = (8u64, 10);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..clients)
            .map(|client| {
                let port = host.port;
                scope.spawn(move || {
                    let mut random = Random::for_client(seed, client);
                    for _ in 0..each {
                        let model = ["a", "b", "c", "m"][usize::try_from(random.below(4)).unwrap()];
                        let (kind, streams) = (random.below(3), json!({ "stream": true }));
                        match kind {
                            0 => drop(post(port, CHAT, &chat(model, json!({})))),
                            1 => drop(stream(port, CHAT, &chat(model, streams)).finish()),
                            // Disconnects in the middle of the stream.
                            _ => {
                                stream(port, CHAT, &chat(model, streams)).read_until("data: ");
                            }
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut random = Random::for_client(seed, clients);
            while !done.load(Ordering::Relaxed) {
                let lane = ["a", "b", "c"][usize::try_from(random.below(3)).unwrap()];
                if let Some(pid) = host.lane(lane)["pid"].as_u64() {
                    // The engine may have exited already.
                    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                    rustix::process::kill_process(pid, Signal::KILL).ok();
                }
                pointsman_tests::pause(std::time::Duration::from_millis(200 + random.below(600)));
            }
        });
        all.into_iter().for_each(|client| client.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    host.assert_no_request_lost();
    assert_eq!(host.metric("pointsman_accepted_total", ""), (clients * each) as f64);
    for lane in ["a", "b", "c"] {
        wait_until("the lane serves again", || send_chat(&host, lane).status == 200);
    }
    host.assert_no_request_lost();
    host.stop();
}
