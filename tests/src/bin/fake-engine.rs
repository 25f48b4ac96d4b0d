//! A scriptable fake of vLLM and llama.cpp; see `pointsman_tests::fake_engine`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    pointsman_tests::fake_engine::main(&arguments)
}
