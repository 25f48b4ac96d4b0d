//! Many clients for few lanes: no thrashing, nobody starves, nothing is lost.

use std::sync::atomic::{AtomicBool, Ordering};

use pointsman_tests::client::{chat, post, stream};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    AT_ONCE, CHAT, Random, ask, asking, failed_tries, loads, one_at_a_time, seed, start, vllm,
};

#[test]
fn agents_that_alternate_cause_no_thrash_and_nobody_starves() {
    let seed = seed();
    let work = r#"--load-ms 300 --script '{"token-ms": 10}'"#;
    let lanes = [vllm("a", "", "", work), vllm("b", "", "", work)];
    let host = start(&one_at_a_time("switching = { starvation-timeout = \"10s\" }\n", &lanes));
    // What a switch costs is learned, not known.
    for lane in ["a", "b", "a"] {
        assert_eq!(ask(&host, lane).status, 200);
    }
    let before = loads(&host);
    let (agents, each) = (8, 10);
    std::thread::scope(|scope| {
        for agent in 0..agents {
            let port = host.port;
            scope.spawn(move || {
                let mut random = Random::of(seed, agent);
                for _ in 0..each {
                    let lane = ["a", "b"][usize::try_from(random.below(2)).unwrap()];
                    let reply = post(port, CHAT, &chat(lane, json!({})));
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    assert_eq!(reply.header("x-pointsman-lane"), Some(lane));
                }
            });
        }
    });
    let switches = loads(&host) - before;
    println!("{switches} switches for {} requests", agents * each);
    assert!((1.0..=20.0).contains(&switches), "{switches} switches");
    assert_eq!(host.metric("pointsman_switches_total", "overdue=\"yes\""), 0.0);
    host.assert_nothing_lost();
}

/// One lane never runs out of work; whoever wants the other one gets it all the same.
#[test]
fn a_lane_that_never_runs_out_of_work_does_not_starve_the_other() {
    let head = "switching = { min-residency = 100.0, starvation-timeout = \"1s\" }\nqueue = { aging = \"0s\" }\n";
    let work = r#"--load-ms 200 --script '{"token-ms": 20}'"#;
    let host = start(&one_at_a_time(head, &[vllm("a", "", "", work), vllm("b", "", "", work)]));
    // What a switch costs is learned, not known.
    for lane in ["a", "b", "a"] {
        assert_eq!(ask(&host, lane).status, 200);
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
        let reply = asking(&host, "b", json!({})).join().unwrap();
        done.store(true, Ordering::Relaxed);
        assert_eq!(reply.status, 200, "{}", reply.text());
    });
    assert!(host.metric("pointsman_switches_total", "overdue=\"yes\"") >= 1.0);
    host.assert_nothing_lost();
}

#[test]
fn no_request_hits_an_engine_that_is_being_stopped() {
    let seed = seed();
    let head =
        "switching = { min-residency = 0.0, linger = \"0s\", starvation-timeout = \"200ms\" }\n";
    let flags = "--load-ms 50 --fork-core";
    let lanes = [vllm("a", "", "", flags), vllm("b", "", "", flags), vllm("c", "", "", flags)];
    let host = start(&one_at_a_time(head, &lanes));
    let (clients, each) = (6, 10);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let port = host.port;
            scope.spawn(move || {
                let mut random = Random::of(seed, client);
                for _ in 0..each {
                    let lane = ["a", "b", "c"][usize::try_from(random.below(3)).unwrap()];
                    let streams = random.below(2) == 0;
                    let (reply, complete) =
                        stream(port, CHAT, &chat(lane, json!({ "stream": streams }))).finish();
                    assert!(reply.status == 200 && complete, "{}", reply.text());
                    assert_eq!(reply.text().contains("[DONE]"), streams, "{}", reply.text());
                }
            });
        }
    });
    println!("{} loads", loads(&host));
    assert_eq!(failed_tries(&host), 0.0);
    assert_eq!(host.metric("pointsman_attempts_total", ""), (clients * each) as f64);
    assert_eq!(host.metric("pointsman_engine_exits_total", ""), 0.0);
    host.assert_nothing_lost();
    host.stop();
}

#[test]
fn nothing_is_lost_while_lanes_take_turns_and_die() {
    let seed = seed();
    let head = format!(
        "{AT_ONCE}queue = {{ per-lane = 8, total = 20, max-wait = \"3s\" }}\nserver = {{ keep-alive = \"100ms\" }}\n"
    );
    let flags =
        r#"--load-ms 100 --fork-core --core-death-ms 50 --script '{"token-ms": 2, "tokens": 20}'"#;
    let lanes = ["a", "b", "c"].map(|name| {
        let models =
            if name == "c" { "models = [\"c\"]" } else { &format!("models = [{name:?}, \"m\"]") };
        vllm(name, models, "", flags)
    });
    let host = start(&one_at_a_time(&head, &lanes));
    let done = AtomicBool::new(false);
    let (clients, each) = (8u64, 10);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..clients)
            .map(|client| {
                let port = host.port;
                scope.spawn(move || {
                    let mut random = Random::of(seed, client);
                    for _ in 0..each {
                        let model = ["a", "b", "c", "m"][usize::try_from(random.below(4)).unwrap()];
                        let (kind, streams) = (random.below(3), json!({ "stream": true }));
                        match kind {
                            0 => drop(post(port, CHAT, &chat(model, json!({})))),
                            1 => drop(stream(port, CHAT, &chat(model, streams)).finish()),
                            // Leaves in the middle.
                            _ => drop(stream(port, CHAT, &chat(model, streams)).until("data: ")),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut random = Random::of(seed, clients);
            while !done.load(Ordering::Relaxed) {
                let lane = ["a", "b", "c"][usize::try_from(random.below(3)).unwrap()];
                if let Some(pid) = host.lane(lane)["pid"].as_u64() {
                    // It may be gone already.
                    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                    let _gone = rustix::process::kill_process(pid, Signal::KILL);
                }
                std::thread::park_timeout(std::time::Duration::from_millis(
                    200 + random.below(600),
                ));
            }
        });
        all.into_iter().for_each(|client| client.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    host.assert_nothing_lost();
    assert_eq!(host.metric("pointsman_accepted_total", ""), (clients * each) as f64);
    for lane in ["a", "b", "c"] {
        wait_until("the lane serves again", || ask(&host, lane).status == 200);
    }
    host.assert_nothing_lost();
    host.stop();
}
