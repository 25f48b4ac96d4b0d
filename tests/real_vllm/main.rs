//! The real vLLM below the real host, on the CPU. `cargo xtask real-vllm` prepares this and runs it.
//!
//! A start of vLLM takes most of a minute, so one host serves all situations that leave it well, in the
//! order of [`SITUATIONS`]. A situation that fails does not keep the others from being seen.
#![expect(clippy::unwrap_used, reason = "tests")]

mod answering;
mod dying;
mod ending;
mod litter;
mod loading;
mod processes;
mod report;
mod talk;
mod turns;
mod watch;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::world::World;

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");

/// Longest that a start of vLLM, and what waits for one, may take.
const LOAD_LIMIT: Duration = Duration::from_secs(300);

/// Something to be seen. Loads what it needs.
type Situation = fn(&mut World);

/// All of them, by name and in order.
const SITUATIONS: [(&str, Situation); 15] = [
    ("first-load", loading::the_first_request_loads_it),
    ("processes", loading::its_processes_and_arguments),
    ("plain", answering::plain),
    ("streaming", answering::streaming),
    ("request-id", answering::the_request_id_is_passed_on),
    ("parameters", answering::parameters_pass),
    ("client-leaves", answering::a_client_leaves),
    ("turn-away", turns::another_lane_is_wanted_in_the_middle_of_a_stream),
    ("turn-back", turns::and_back_again),
    ("server-killed", dying::the_server_is_killed_in_the_middle_of_a_stream),
    ("core-killed", dying::its_core_is_killed_in_the_middle_of_a_stream),
    ("books", ending::nothing_was_lost),
    ("host-ends", ending::the_host_ends_in_the_middle_of_a_stream),
    ("host-killed-early", ending::the_host_is_killed_before_vllm_has_processes_of_its_own),
    ("host-killed-late", ending::the_host_is_killed_while_vllm_loads),
];

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted =
        |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let mut world = World::find();
    let (mut passed, mut failed) = (0, 0);
    for (name, situation) in SITUATIONS.into_iter().filter(|(name, _)| wanted(name)) {
        println!("-- {name}");
        let begun = Instant::now();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| situation(&mut world))) {
            failed += 1;
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("");
            world.report.row(name, &format!("FAILED: {said}"), Some(begun.elapsed()));
            world.show_log();
        } else {
            passed += 1;
        }
    }
    println!("{passed} passed, {failed} failed");
    world.end();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Wait for a condition, for as long as a start of vLLM may take.
fn wait_long(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LOAD_LIMIT, "waited too long: {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    begun.elapsed()
}
