//! Tests of the host with a real vLLM on the CPU; `cargo xtask real-vllm` prepares and runs them.
//!
//! A start of vLLM takes almost a minute, so one host is used for all cases that leave it healthy,
//! in the order of [`CASES`]. A failed case does not prevent the others from running.
#![expect(clippy::unwrap_used, reason = "tests")]

mod client;
mod engine_crash;
mod environment;
mod host_exit;
mod leftovers;
mod loading;
mod processes;
mod report;
mod requests;
mod status_monitor;
mod switching;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pointsman_tests::wait_at_most;

use crate::environment::TestEnvironment;

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");

/// The maximum time for a start of vLLM, and for requests that wait for one.
const LOAD_TIMEOUT: Duration = Duration::from_secs(300);

/// A test case. It loads the engines that it needs.
type Case = fn(&mut TestEnvironment);

/// All cases, by name and in order.
const CASES: [(&str, Case); 16] = [
    ("first-load", loading::first_request_loads_engine),
    ("processes", loading::processes_and_arguments),
    ("plain", requests::plain_chat),
    ("streaming", requests::stream_and_metrics),
    ("request-id", requests::request_id_is_forwarded),
    ("parameters", requests::parameters_are_forwarded),
    ("client-leaves", requests::client_disconnect_frees_slot),
    ("switch-away", switching::switch_during_stream),
    ("switch-back", switching::switch_back),
    ("server-killed", engine_crash::api_server_killed_during_stream),
    ("core-killed", engine_crash::core_killed_during_stream),
    ("accounting", host_exit::no_request_was_lost),
    ("host-upgraded", host_exit::host_upgraded_during_stream),
    ("host-stopped", host_exit::host_stopped_during_stream),
    ("host-killed-early", host_exit::host_killed_while_vllm_starts),
    ("host-killed-late", host_exit::host_killed_while_vllm_loads),
];

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let selected =
        |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    let mut environment = TestEnvironment::find();
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in CASES.into_iter().filter(|(name, _)| selected(name)) {
        println!("-- {name}");
        let start = Instant::now();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(&mut environment))) {
            failed += 1;
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("");
            environment.report.row(name, &format!("FAILED: {message}"), Some(start.elapsed()));
            environment.show_log();
        } else {
            passed += 1;
        }
    }
    println!("{passed} passed, {failed} failed");
    environment.stop();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits for a condition, for as long as a start of vLLM may take; returns how long it took.
fn wait_long(what: &str, condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    wait_at_most(LOAD_TIMEOUT, what, condition);
    start.elapsed()
}
