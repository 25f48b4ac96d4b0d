//! vLLM and llama.cpp take turns in memory for one of them.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pointsman_tests::client::stream;
use pointsman_tests::host::Host;
use serde_json::json;

use crate::processes::of_session;
use crate::talk::{CHAT, asking, asking_for_stream, exchange, hear};
use crate::watch::Watch;
use crate::world::{LLAMA, Running, VLLM, World};

pub(crate) fn another_lane_is_wanted_in_the_middle_of_a_stream(world: &mut World) {
    let running = world.ready();
    let Running { host, watch } = &*running;
    let session = host.engine_pid(VLLM);
    let begun = Instant::now();
    let mut long = stream(host.port, CHAT, &asking_for_stream(VLLM, 200));
    assert!(long.until("\"content\":"));
    let wanted = Instant::now();
    let reader = plain(host, LLAMA, 4);
    let told = hear(long, begun);
    let finished = wanted.elapsed();
    let (answer, took) = reader.join().unwrap();
    let left = of_session(session);

    let states = shown(watch, wanted, VLLM);
    world.report.row(
        "another lane is wanted in mid-stream",
        &format!("vLLM: {states}"),
        Some(took),
    );
    let whole = told.done() && told.last().contains("\"completion_tokens\":200");
    let seen = format!("goes on to its end, all 200 tokens and [DONE]: {whole}");
    world.report.row("the stream meanwhile", &seen, Some(finished));
    world.report.row(
        "the other lane",
        &shown(watch, wanted, LLAMA),
        watch.spent(wanted, LLAMA, "starting"),
    );
    let overlaps = watch.overlaps();
    world.report.row("two engines at once", &format!("seen {} times", overlaps.len()), None);
    assert!(whole, "{told:?}");
    assert!(answered(&answer), "{answer}");
    assert!(watch.spent(wanted, VLLM, "draining").is_some(), "{states}");
    assert!(left.is_empty() && overlaps.is_empty(), "{left:?} {overlaps:?}");
}

pub(crate) fn and_back_again(world: &mut World) {
    let running = world.host();
    let Running { host, watch } = &*running;
    let (answer, _) = plain(host, LLAMA, 1).join().unwrap();
    assert!(answered(&answer) && host.lane(LLAMA)["engine"] == "ready", "{answer}");
    let wanted = Instant::now();
    let (answer, took) = plain(host, VLLM, 8).join().unwrap();
    let seen = format!(
        "a plain request is held and answered: {}; llama.cpp: {}; vLLM: {}",
        answered(&answer),
        shown(watch, wanted, LLAMA),
        shown(watch, wanted, VLLM)
    );
    world.report.row("back to vLLM", &seen, Some(took));
    let overlaps = watch.overlaps();
    assert!(answered(&answer), "{answer}");
    assert!(overlaps.is_empty(), "{overlaps:?}");
}

/// A request that is not streamed, in a thread of its own: the whole answer, and how long it took.
fn plain(host: &Host, lane: &'static str, tokens: u32) -> JoinHandle<(String, Duration)> {
    let port = host.port;
    std::thread::spawn(move || {
        let begun = Instant::now();
        let answer = exchange(port, "POST", CHAT, &asking(lane, tokens, &json!({})).to_string());
        (answer.unwrap_or_else(|error| error.to_string()), begun.elapsed())
    })
}

fn answered(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\"")
}

/// The states of an engine with their lengths, but for that of the last, which goes on.
fn shown(watch: &Watch, since: Instant, lane: &str) -> String {
    let states = watch.states(since, lane);
    let last = states.len().saturating_sub(1);
    let one = |(place, (state, length)): (usize, &(String, Duration))| {
        if place == last { state.clone() } else { format!("{state} {:.1} s", length.as_secs_f64()) }
    };
    states.iter().enumerate().map(one).collect::<Vec<_>>().join(" > ")
}
