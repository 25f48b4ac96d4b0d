//! Processes of vLLM are killed in the middle of a stream.

use std::time::{Duration, Instant};

use pointsman_tests::client::{post, stream};
use pointsman_tests::host::{Host, alive, kill};
use rustix::process::Signal;
use serde_json::json;

use crate::litter::Litter;
use crate::processes::{named, of_session};
use crate::talk::{CHAT, asking, asking_for_stream, hear};
use crate::world::{VLLM, World};
use crate::{report, wait_long};

pub(crate) fn the_server_is_killed_in_the_middle_of_a_stream(world: &mut World) {
    kill_one(world, "SIGKILL of the API server in mid-stream", |engine, _| engine);
}

pub(crate) fn its_core_is_killed_in_the_middle_of_a_stream(world: &mut World) {
    kill_one(world, "SIGKILL of VLLM::EngineCore in mid-stream", |_, family| {
        named(family, "VLLM::EngineCore").unwrap()
    });
}

fn kill_one(world: &mut World, what: &str, victim: fn(u32, &[u32]) -> u32) {
    let running = world.ready();
    let host = &running.host;
    let engine = host.engine_pid(VLLM);
    let family = of_session(engine);
    assert!(family.len() >= 3, "{family:?}");
    let litter = Litter::now();
    let starts = host.lane(VLLM)["starts"].as_u64().unwrap();
    let begun = Instant::now();
    let mut answer = stream(host.port, CHAT, &asking_for_stream(VLLM, 800));
    assert!(answer.until("\"content\":"));
    kill(victim(engine, &family), Signal::KILL);
    let killed = Instant::now();
    let told = hear(answer, begun);
    let heard = killed.elapsed();
    let gone = || of_session(engine).is_empty() && !family.iter().any(|pid| alive(*pid));
    wait_long("nothing of it is left", gone);
    let cleared = killed.elapsed();
    let litter = Litter::now().since(&litter);
    let (refused, back) = (come_back(host), killed.elapsed());

    let seen =
        format!("explicit error and no [DONE]: {}; last event {}", told.broken(), told.last());
    world.report.row(what, &seen, Some(heard));
    world.report.row(
        "all its processes are gone",
        &format!("{} of them", family.len()),
        Some(cleared),
    );
    world.report.row("what they leave behind", &litter, None);
    let refused = if refused.is_empty() { "none".to_owned() } else { refused.join(", ") };
    let seen =
        format!("starts {starts} > {}; refused before: {refused}", host.lane(VLLM)["starts"]);
    world.report.row("the lane answers again", &seen, Some(back));
    let changes = running.watch.since(killed, VLLM);
    let problem = changes.iter().find_map(|change| change.problem.as_deref()).unwrap_or("none");
    world.report.row("the problem it showed", problem.get(..300).unwrap_or(problem), None);
    assert!(told.broken(), "{told:?}");
    assert_eq!(host.lane(VLLM)["starts"], starts + 1);
    assert!(cleared < Duration::from_secs(20), "{}", report::seconds(cleared));
    assert!(problem != "none");
}

/// Ask until there is an answer; what was said instead before that.
fn come_back(host: &Host) -> Vec<String> {
    let mut refused = Vec::new();
    wait_long("the lane answers", || {
        // As a stream, which is held for longer than this client waits for a first byte.
        let reply = post(host.port, CHAT, &asking(VLLM, 2, &json!({ "stream": true })));
        let answered = reply.status == 200 && reply.text().ends_with("data: [DONE]\n\n");
        if !answered {
            let wait = reply.header("retry-after").unwrap_or("none");
            refused.push(format!("{} (retry-after {wait})", reply.status));
            println!("{}", reply.text());
            std::thread::park_timeout(Duration::from_millis(500));
        }
        answered
    });
    refused
}
