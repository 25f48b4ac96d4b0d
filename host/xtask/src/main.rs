//! `cargo xtask`: development tasks of the project.

mod attacks;
mod bench;
mod clients;
mod console;
mod demo;
mod deny;
mod dist;
mod fuzz;
mod packages;
mod plots;
mod real_vllm;
mod release;
mod scale;
mod streams;
mod test;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::{self, cargo, root};

const USAGE: &str = "\
Development tasks of Pointsman:

  cargo xtask demo [--port PORT]   Serve a small model on three lanes and send a request
  cargo xtask scale-demo           Start three hosts with Envoy and Redis (examples/scale)
  cargo xtask test                 Run everything that CI runs: format, lints, documentation, tests
  cargo xtask test --attacks       Run the attacks on a host that take minutes, and a short soak
  cargo xtask test --clients       Run client libraries of all kinds in front of a host, write the
                                   table of results, and send random requests to all routes
  cargo xtask test --console       Use every page and action of the console in headless Chromium,
                                   and take the pictures of its documentation
  cargo xtask test --packages      Build all packages, and walk the ways to install them
  cargo xtask test --scale         Run several hosts with Envoy, Redis and a registry
  cargo xtask test --streams [--release]
                                   Serve a thousand streams at a time for five minutes, and print
                                   figures
  cargo xtask soak [--release] [--minutes N]
                                   Serve honest traffic beside attackers for N minutes (30), and
                                   print figures
  cargo xtask guests               Build all policies from source and write them to policies/
  cargo xtask guests --out DIR     Build all policies, the examples in four languages and the
                                   templates into DIR, without changing the source tree
  cargo xtask contract             Regenerate what follows from the contract, and list what is left;
                                   with `--check`, only compare
  cargo xtask deny                 Check licences, sources, duplicates and advisories
  cargo xtask dist                 Build the release binary, with debug information in its own file
  cargo xtask fuzz [TARGET..] [--seconds N]
                                   Fuzz all targets, or some, for N seconds each (60), guided by
                                   the code that inputs reach
  cargo xtask plots                Regenerate the plots of the documentation
  cargo xtask bench [PART..]       Run benchmarks and print tables: all parts, or some of `parts`,
                                   `turns`, `cached`, `policies`, `request` (the cost of one
                                   request), `whole`, `switch` (conversations over switches), `keys`
                                   (limits and usage), `telemetry` (access log, traces), `reload`,
                                   `handover`, `truth` (simulator against host) and `simulation`
                                   (speed of the simulator)
  cargo xtask bench request --short
                                   Measure the cost of one request in about a minute
  cargo xtask bench guard [--write]
                                   Count the instructions of the hottest paths, and fail if there
                                   are more than 5 % above the committed ones, or replace these
  cargo xtask release [--out DIR] [--binary PATH]
                                   Build the release binary, or take a built one, and pack it: an
                                   archive, a Debian package, a bill of materials and checksums
  cargo xtask real-vllm [WORD..]   Install vLLM for CPUs (6 GB) and run tests with it: all tests, or
                                   those whose name contains a word

Each task prints what it installs and runs, and can be repeated at any time.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the program that builds policies. It is a package of its own, because it needs the WIT
/// toolchain, which would triple the build time of this one.
fn guests(root: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = cargo(root)?;
    command.args(["run", "--quiet", "--package", "pointsman-xtask-guests", "--"]).args(arguments);
    command::run(&mut command)
}

fn run(arguments: &[&str]) -> Result<()> {
    let root = root()?;
    match arguments {
        ["demo"] => demo::demo(&root, None),
        ["demo", "--port", port] => {
            demo::demo(&root, Some(port.parse().context("--port: not a port")?))
        }
        ["test"] => test::test(&root),
        ["test", "--attacks"] => attacks::attacks(&root),
        ["test", "--clients"] => clients::clients(&root),
        ["test", "--console"] => console::console(&root),
        ["test", "--packages"] => packages::packages(&root),
        ["test", "--scale"] => scale::scale(&root),
        ["scale-demo"] => scale::demo(&root),
        ["test", "--streams"] => streams::streams(&root, false),
        ["test", "--streams", "--release"] => streams::streams(&root, true),
        ["soak"] => attacks::soak(&root, None, false),
        ["soak", "--minutes", minutes] => attacks::soak(&root, Some(minutes), false),
        ["soak", "--release"] => attacks::soak(&root, None, true),
        ["soak", "--release", "--minutes", minutes] => attacks::soak(&root, Some(minutes), true),
        ["guests"] => guests(&root, &[]),
        ["guests", "--out", dir] => guests(&root, &["--out", dir]),
        ["contract"] => guests(&root, &["contract"]),
        ["contract", "--check"] => guests(&root, &["contract", "--check"]),
        ["deny"] => deny::deny(&root),
        ["dist"] => dist::dist(&root),
        ["fuzz", arguments @ ..] => fuzz::fuzz(&root, arguments),
        ["plots"] => plots::plots(&root),
        ["bench", "guard"] => bench::guard(&root, false),
        ["bench", "guard", "--write"] => bench::guard(&root, true),
        ["bench", "request", "--short"] => bench::short_request(&root),
        ["bench", parts @ ..] => bench::bench(&root, parts),
        ["release", arguments @ ..] => release::release(&root, arguments),
        ["real-vllm", only @ ..] => real_vllm::real_vllm(&root, only),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("unknown task `{}`\n\n{USAGE}", other.join(" ")),
    }
}
