//! The host ends, one way or the other, and nothing of vLLM is left.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use pointsman_tests::client::stream;
use pointsman_tests::host::{Host, alive};
use rustix::process::Signal;
use serde_json::json;

use crate::litter::Litter;
use crate::processes::{name, named, of_session};
use crate::talk::{CHAT, asking, asking_for_stream, exchange, hear};
use crate::wait_long;
use crate::world::{VLLM, World};

/// A keeper has to notice that its host is gone, ask the engines to end, and then make them.
const LONGEST_REMAINS: Duration = Duration::from_secs(15);

pub(crate) fn nothing_was_lost(world: &mut World) {
    let running = world.ready();
    running.host.assert_nothing_lost();
    let host = &running.host;
    let count =
        |end: &str| format!("{} {}", end, host.metric(&format!("pointsman_{end}_total"), ""));
    let ends = ["accepted", "answered", "fell_back", "errors", "client_gone"].map(count);
    world.report.row("the host's books", &format!("{}: they balance", ends.join(", ")), None);
}

pub(crate) fn the_host_ends_in_the_middle_of_a_stream(world: &mut World) {
    let mut host = world.take();
    let session = host.engine_pid(VLLM);
    let (family, litter) = (everything(&host), Litter::now());
    let begun = Instant::now();
    let mut answer = stream(host.port, CHAT, &asking_for_stream(VLLM, 200));
    assert!(answer.until("\"content\":"));
    host.signal(Signal::TERM);
    let asked = Instant::now();
    let told = hear(answer, begun);
    let finished = asked.elapsed();
    let status = host.ended();
    let ended = asked.elapsed();
    let seen =
        format!("the stream goes on to its [DONE]: {}; the host ends with {status}", told.done());
    world.report.row("SIGTERM of the host in mid-stream", &seen, Some(ended));
    world.report.row("the stream meanwhile", "", Some(finished));
    let left = wait_long("nothing is left", || remains(&family, session).is_empty());
    world.report.row("processes left after that", "none", Some(left));
    world.report.row("what they leave behind", &Litter::now().since(&litter), None);
    assert!(told.done(), "{told:?}");
    assert!(status.success(), "{}", host.log());
    // The keeper, which has nothing to do any more, ends a moment after the host.
    assert!(left < Duration::from_secs(2), "{left:?}");
}

pub(crate) fn the_host_is_killed_before_vllm_has_processes_of_its_own(world: &mut World) {
    killed_while(world, "SIGKILL of the host, vLLM is starting", |family| {
        family.len() == 1 && family.iter().all(|pid| name(*pid).contains("vllm"))
    });
}

pub(crate) fn the_host_is_killed_while_vllm_loads(world: &mut World) {
    killed_while(world, "SIGKILL of the host, vLLM loads in three processes", |family| {
        named(family, "VLLM::EngineCore").is_some() && named(family, "VLLM::Worker").is_some()
    });
}

fn killed_while(world: &mut World, what: &str, condition: fn(&[u32]) -> bool) {
    let mut host = world.fresh();
    let port = host.port;
    let body = asking(VLLM, 1, &json!({})).to_string();
    let request = std::thread::spawn(move || exchange(port, "POST", CHAT, &body));
    wait_long("the engine has a process", || host.lane(VLLM)["pid"].is_u64());
    let session = host.engine_pid(VLLM);
    wait_long("it is as far as that", || condition(&of_session(session)));
    assert_eq!(host.lane(VLLM)["engine"], "starting");
    let (family, litter) = (everything(&host), Litter::now());
    host.signal(Signal::KILL);
    let killed = Instant::now();
    host.ended();
    drop(request.join());
    let left = || remains(&family, session);
    while !left().is_empty() && killed.elapsed() < LONGEST_REMAINS {
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let (took, left) = (killed.elapsed(), left());
    let names: Vec<String> = left.iter().map(|pid| format!("{} {pid}", name(*pid))).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    world.report.row(
        what,
        &format!("{} processes before, left: {names}", family.len()),
        Some(took),
    );
    world.report.row("what they leave behind", &Litter::now().since(&litter), None);
    assert!(left.is_empty(), "{names}");
}

/// All processes of a host and of its engines, and the keeper.
fn everything(host: &Host) -> HashSet<u32> {
    let mut family = host.children();
    family.extend(of_session(host.engine_pid(VLLM)));
    family
}

/// Which of them live, and who else is in the engine's session.
fn remains(family: &HashSet<u32>, session: u32) -> Vec<u32> {
    let mut left = of_session(session);
    left.extend(family.iter().filter(|pid| alive(**pid)));
    left.sort_unstable();
    left.dedup();
    left
}
