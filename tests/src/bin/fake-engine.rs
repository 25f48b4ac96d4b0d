//! A scriptable stand-in for vLLM and llama.cpp. See `pointsman_tests::fake_engine`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    pointsman_tests::fake_engine::main(&arguments)
}
