//! A scriptable stand-in for vLLM and llama.cpp. See `pointsman_tests::fake_engine`.

use std::process::ExitCode;

use clap::Parser as _;
use pointsman_tests::fake_engine::{Options, run};

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(code) = options.exit_code {
        return ExitCode::from(code);
    }
    let workers = if options.bench { 1 } else { 2 };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    match runtime.map(|runtime| runtime.block_on(run(options))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
