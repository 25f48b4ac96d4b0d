//! The command line.

pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod health;
pub(crate) mod import;
pub(crate) mod key;
pub(crate) mod lane;
pub(crate) mod policy;
pub(crate) mod reload;
pub(crate) mod replay;
pub(crate) mod request;
pub(crate) mod simulate;
pub(crate) mod state;
pub(crate) mod top;
pub(crate) mod upgrade;
pub(crate) mod usage;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::version;

/// A router for language models with WebAssembly policies.
#[derive(Debug, Parser)]
#[command(version, long_version = version::long(), about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the engines of a configuration and serve the OpenAI API.
    Serve(Serve),
    /// Choose the engines for the requests of Envoy, which sends them there: an endpoint picker.
    Pick(Serve),
    /// Check a configuration and load its policies, without starting anything.
    Check(Check),
    /// Check whether this system can run engines, and say what to do if it cannot.
    Doctor(doctor::Doctor),
    /// Ask a running host whether it can serve requests: a health check for containers.
    Health(health::Health),
    /// Reload the configuration of a running host, or show what that would change.
    Reload(reload::Reload),
    /// Replace a running host by a new process that takes over its engines and connections.
    Upgrade(upgrade::Upgrade),
    /// Create policies and manage those of a running host.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Show and clear the states of policies in a running host.
    #[command(subcommand)]
    State(state::State),
    /// Show, load, unload, drain and restart lanes of a running host.
    #[command(subcommand)]
    Lane(lane::Lane),
    /// Show and cancel requests in flight of a running host.
    #[command(subcommand)]
    Request(request::Request),
    /// Show why a request was decided as it was, and what became of it.
    Explain(explain::Explain),
    /// Show what would be decided about a request now, without sending it.
    Decide(explain::Decide),
    /// Show lanes, requests, decisions, policies and the log of a running host in the terminal.
    Top(top::Top),
    /// Print what tenants and keys have used of models and lanes.
    Usage(usage::Usage),
    /// Create, list, revoke and rotate the API keys of a keys file.
    #[command(subcommand)]
    Key(key::Key),
    /// Simulate traffic with policies in virtual time, without engines or GPUs.
    Simulate(simulate::Simulate),
    /// Replay recorded decisions: compare what policies decide now with what was decided.
    Replay(replay::Replay),
    /// Write a configuration from that of llama-swap, llama-server, LiteLLM or compose.
    Import(import::Import),
    /// Print the JSON Schema of a kind of file, for editors.
    Schema {
        /// The kind of file.
        kind: SchemaKind,
    },
    /// Print the completions of a shell, for example into
    /// `/usr/share/bash-completion/completions/pointsman`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a folder, for example `/usr/local/share/man/man1`.
    Man {
        /// The folder; created if it does not exist.
        dir: PathBuf,
    },
    /// Start the engines, and keep them if the host is killed; started by `serve`.
    #[command(hide = true)]
    Keeper {
        /// State directory, to tell keepers apart in lists of processes.
        dir: Option<PathBuf>,
    },
    /// Compile a component from standard input to standard output; started to load a policy.
    #[command(hide = true)]
    CompilePolicy(CompilePolicy),
}

/// A kind of file with a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaKind {
    /// A configuration of the host.
    Config,
    /// The manifest of a policy, `policy.toml`.
    Policy,
    /// A scenario of `simulate`.
    Scenario,
    /// A golden case, one line of `cases.jsonl`.
    Case,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Serve {
    /// Configuration file (TOML).
    pub(crate) config: PathBuf,
    /// Listen on this address instead of `server.listen`, or `pick.listen` for `pick`; port 0 picks
    /// a free port.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// Write the bound ports of all TCP listeners to this file, one per line.
    #[arg(long, value_name = "FILE")]
    pub(crate) port_file: Option<PathBuf>,
    /// Log filter, overriding `log.level`: a level, or directives such as `info,engine=off`.
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Root of `/sys` and `/proc` for measuring memory; for tests.
    #[arg(long, value_name = "DIR", hide = true, default_value = "/")]
    pub(crate) machine: PathBuf,
    /// Take over from the host on standard input; used by `upgrade`.
    #[arg(long, hide = true)]
    pub(crate) take_over: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Check {
    /// Configuration file (TOML).
    pub(crate) config: PathBuf,
    /// Also show what the configuration would change in a running host: its admin socket or URL,
    /// or the configuration that it runs with. Default: the host that runs with CONFIG.
    #[arg(long, value_name = "RUNNING", num_args = 0..=1, default_missing_value = "")]
    pub(crate) against: Option<String>,
    /// Environment variable with the token for a URL.
    #[arg(long, value_name = "NAME", requires = "against")]
    pub(crate) token_env: Option<String>,
    /// Print what would change as JSON, and nothing else.
    #[arg(long, requires = "against")]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CompilePolicy {
    /// Limit of the address space in bytes.
    #[arg(long)]
    pub(crate) memory: u64,
    /// Limit of the CPU time in seconds.
    #[arg(long)]
    pub(crate) cpu: u64,
    /// Parent process id.
    #[arg(long)]
    pub(crate) parent: i32,
    /// Compile for metering by fuel instead of time.
    #[arg(long)]
    pub(crate) fuel: bool,
    /// Compile for a process whose address space is limited.
    #[arg(long)]
    pub(crate) limited_address_space: bool,
}
