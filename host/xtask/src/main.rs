//! `cargo xtask`: the project's chores.

mod bench;
mod command;
mod demo;
mod guests;
mod plots;
mod real_vllm;
mod setup;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "\
Chores of Pointsman:

  cargo xtask demo [--port PORT]   build everything, serve a small real model on three lanes, and ask it a question
  cargo xtask test                 everything that CI runs: format, lints, documentation, tests
  cargo xtask guests               build all policies from source and write them to policies/
  cargo xtask guests --out DIR     build all policies from source into DIR, the examples in four languages and the
                                   templates too, and leave the tree alone
  cargo xtask plots                draw the plots of the documentation anew, from examples/scenarios
  cargo xtask bench [PART..]       measure, and print tables: all parts, or some of `parts`, `turns`, `policies`, `whole`,
                                   `truth` (the simulator against a host) and `simulation` (its speed)
  cargo xtask real-vllm [WORD..]   install vLLM for CPUs (6 GB) and test with it: all situations, or those with a word

Each says what it installs and does, and can be run again at any time.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    let root = root()?;
    match words {
        ["demo"] => demo::demo(&root, None),
        ["demo", "--port", port] => {
            demo::demo(&root, Some(port.parse().context("--port: not a port")?))
        }
        ["test"] => test::test(&root),
        ["guests"] => guests::rebuild(&root),
        ["guests", "--out", dir] => guests::build_all(&root, &PathBuf::from(dir)),
        ["plots"] => plots::plots(&root),
        ["bench", parts @ ..] => bench::bench(&root, parts),
        ["real-vllm", only @ ..] => real_vllm::real_vllm(&root, only),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no `cargo xtask {}`\n\n{USAGE}", other.join(" ")),
    }
}

/// The project's folder: the one with the workspace in it.
fn root() -> Result<PathBuf> {
    // At run time: two clones may share a target directory, and so one binary of this.
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").context("not run by cargo; write: cargo xtask")?;
    let manifest = PathBuf::from(manifest);
    manifest.ancestors().nth(2).map(PathBuf::from).context("the project's folder cannot be found")
}
