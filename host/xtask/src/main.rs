//! `cargo xtask`: the project's chores.

mod bench;
mod command;
mod demo;
mod guests;
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
  cargo xtask guests --out DIR     build all policies from source into DIR, and leave the tree alone
  cargo xtask bench                measure, and print tables

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
        ["demo", "--port", port] => demo::demo(&root, Some(port.parse().context("--port: not a port")?)),
        ["test"] => test::test(&root),
        ["guests"] => guests::rebuild(&root),
        ["guests", "--out", dir] => guests::build_all(&root, &PathBuf::from(dir)).map(|_| ()),
        ["bench"] => bench::bench(&root),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no `cargo xtask {}`\n\n{USAGE}", other.join(" ")),
    }
}

/// The project's folder: the one with the workspace in it.
fn root() -> Result<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map(PathBuf::from).context("the project's folder cannot be found")
}
