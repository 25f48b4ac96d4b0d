//! `pointsman policy …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use pointsman_build::Language;

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Make the folder of a new policy: source, manifest, golden cases and what its language needs.
    New {
        /// Its name; the folder gets it too.
        name: String,
        /// What it is written in: rust, javascript, python or c.
        #[arg(long, value_name = "LANGUAGE")]
        lang: Language,
        /// Where the folder is made.
        #[arg(long, value_name = "FOLDER", default_value = "policies")]
        dir: PathBuf,
    },
    /// Build a policy's component from its source, as `[build]` in its manifest says.
    Build {
        /// The policy's folder.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// Say what is run, and what it prints.
        #[arg(long, short)]
        verbose: bool,
    },
    /// Run a policy's golden cases as a host would before it takes the policy, and show what differs; then the scenarios in its
    /// folder `scenarios`, if there are any.
    Test(Test),
    /// Measure how long a policy takes to decide, and what it needs.
    Bench(Bench),
    /// Sign a policy, for hosts that take none without: writes `policy.sig` into its folder.
    Sign {
        /// Its folder.
        dir: PathBuf,
        /// The private key, as `openssl genpkey -algorithm ed25519 -out private.pem` makes it.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// List the policies of the running host.
    List(Asked),
    /// Show all there is to know of one.
    Show(OfOne),
    /// Go back to an earlier version.
    Rollback {
        #[command(flatten)]
        of: OfOne,
        /// To this one, instead of the one before.
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
    },
    /// Let the version that is on trial decide from now on.
    Promote {
        #[command(flatten)]
        of: OfOne,
        /// Which version it has to be.
        version: Option<String>,
    },
    /// Leave a policy out until it is enabled again.
    Disable(OfOne),
    /// Ask a policy again that was disabled.
    Enable(OfOne),
    /// Have the host look for changed files now.
    Reload(Asked),
}

/// Which golden cases are run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Test {
    /// The policy's folder.
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Only cases that have this in their name, and no scenarios.
    #[arg(long, value_name = "NAME-PART")]
    pub(crate) case: Option<String>,
    /// Say how long the policy took for each.
    #[arg(long)]
    pub(crate) times: bool,
}

/// What is measured.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Calls are spread over the policy's golden cases, each with its configuration and state; a policy without any is asked about a
short chat and two lanes. Times are those that the policy adds to a request; calls without advice are counted, not timed.")]
pub(crate) struct Bench {
    /// The policy's folder.
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Measure with so many lanes, for each number: the first of those of a case, or copies of them.
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = lanes)]
    pub(crate) lanes: Vec<usize>,
    /// Calls of each measurement.
    #[arg(long, value_name = "N", default_value = "5000", value_parser = calls)]
    pub(crate) calls: usize,
    /// Ask about this chat request (JSON, the body) instead of those of the golden cases.
    #[arg(long, value_name = "FILE")]
    pub(crate) body: Option<PathBuf>,
    /// With these lanes instead of those of the golden cases: JSON as a case's `fleet`.
    #[arg(long, value_name = "FILE")]
    pub(crate) fleet: Option<PathBuf>,
    /// Measure calls that need a new instance, too: what a request pays when all instances are busy.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

fn lanes(text: &str) -> Result<usize, String> {
    within(text, 1..=1024)
}

fn calls(text: &str) -> Result<usize, String> {
    within(text, 1..=10_000_000)
}

fn within(text: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("a number from {} to {} is wanted", range.start(), range.end()))
}

/// A policy of a host.
#[derive(Debug, Clone, Args)]
pub(crate) struct OfOne {
    /// Its name.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) asked: Asked,
}

/// Which host is asked, and how its answer is shown.
#[derive(Debug, Clone, Args)]
pub(crate) struct Asked {
    #[command(flatten)]
    pub(crate) at: At,
    /// The environment variable that holds the token for `--url`.
    #[arg(long, value_name = "NAME", requires = "url")]
    pub(crate) token_env: Option<String>,
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the host is.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct At {
    /// The host that serves this configuration.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The host at this socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The host at this address, such as http://127.0.0.1:9101.
    #[arg(long, value_name = "URL", requires = "token_env")]
    pub(crate) url: Option<http::Uri>,
}
