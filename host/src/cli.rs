//! The command line.

pub(crate) mod policy;
pub(crate) mod replay;
pub(crate) mod simulate;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Routes requests for language models to engines, as WebAssembly policies advise.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the engines of a configuration and serve the OpenAI API.
    Serve(Serve),
    /// Check a configuration, and load its policies, without starting anything.
    Check(Check),
    /// Write policies, and look after those of a running host.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Run traffic through policies in virtual time: no engines, no GPUs, no waiting.
    Simulate(simulate::Simulate),
    /// Ask policies again about decisions that were recorded: what they would decide now, and what would come of it.
    Replay(replay::Replay),
    /// Make a lane for vLLM of an env file, a Dockerfile or a compose file, and print it.
    ImportEnv(ImportEnv),
    /// What `serve` runs beside itself, to end the engines when it is killed.
    #[command(hide = true)]
    Watchdog,
    /// What loading a policy runs beside itself, to compile a component from standard input to standard output.
    #[command(hide = true)]
    CompilePolicy(CompilePolicy),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Serve {
    /// The configuration (TOML).
    pub(crate) config: PathBuf,
    /// Listen here instead of at `server.listen`; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// Write the port here, once it is listened on.
    #[arg(long, value_name = "FILE")]
    pub(crate) port_file: Option<PathBuf>,
    /// What to log, instead of `log.level`: a level, or directives such as `info,engine=off`.
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Where `/sys` and `/proc` are looked for when memory is measured: for tests with a made-up machine.
    #[arg(long, value_name = "DIR", hide = true, default_value = "/")]
    pub(crate) machine: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Check {
    /// The configuration (TOML).
    pub(crate) config: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ImportEnv {
    /// The file; `-` reads standard input.
    pub(crate) file: PathBuf,
    /// Name of the lane.
    #[arg(long, value_name = "NAME", default_value = "vllm")]
    pub(crate) lane: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CompilePolicy {
    /// Bytes of address space.
    #[arg(long)]
    pub(crate) memory: u64,
    /// Seconds of CPU time.
    #[arg(long)]
    pub(crate) cpu: u64,
    /// Process id of who asks.
    #[arg(long)]
    pub(crate) parent: i32,
    /// For calls that run on fuel, and not by the clock.
    #[arg(long)]
    pub(crate) fuel: bool,
}
