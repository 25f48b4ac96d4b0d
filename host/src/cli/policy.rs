//! Arguments of `pointsman policy …`.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use pointsman_build::Template;
use pointsman_policy::OciReference;

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Create the folder of a new policy: source, manifest, golden cases and build files.
    New {
        /// Name of the policy and of its folder.
        name: String,
        /// Source language: rust, javascript, typescript, python or c.
        #[arg(long, value_name = "LANGUAGE")]
        lang: Template,
        /// Folder in which the policy's folder is created.
        #[arg(long, value_name = "FOLDER", default_value = "policies")]
        dir: PathBuf,
    },
    /// Build a policy's component from its source, according to `[build]` in its manifest.
    Build {
        /// Folder of the policy.
        #[arg(default_value = ".")]
        dir: PathBuf,
        /// Print the commands that are run and their output.
        #[arg(long, short)]
        verbose: bool,
        /// Build even if nothing has changed since the last build, for example after an update of a
        /// tool: in JavaScript and Python, each build is a new version.
        #[arg(long)]
        force: bool,
        /// Replace the SDK and the contract in the folder by those of this program first.
        #[arg(long)]
        update_sdk: bool,
    },
    /// Run a policy's golden cases as a host does before it activates the policy, and show
    /// differences; then run the scenarios in its folder `scenarios`.
    Test(Test),
    /// Build and test a policy each time one of its files changes, and show what that changes about
    /// recorded decisions.
    Dev(Dev),
    /// Print what a policy read, logged and returned, what was dropped of it and what was decided:
    /// for a golden case, or for a recorded request.
    Trace(Trace),
    /// Append a golden case that is made from a decision record.
    Case(Case),
    /// Measure the decision time and memory use of a policy.
    Bench(Bench),
    /// Sign a policy for hosts that require signatures: writes `policy.sig` into its folder.
    Sign {
        /// Folder of the policy.
        dir: PathBuf,
        /// Private key, as created by `openssl genpkey -algorithm ed25519 -out private.pem`.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Verify a version of a policy as the host does, put it into the folder from which the host
    /// loads it, and have the host load it.
    Install(Install),
    /// Push a policy to an OCI registry.
    Push {
        /// Folder of the policy.
        dir: PathBuf,
        /// Where to push it, for example oci://registry.example.org/team/policy:1.2.0.
        #[arg(value_name = "oci://HOST/REPOSITORY:TAG")]
        reference: OciReference,
        #[command(flatten)]
        options: RegistryOptions,
    },
    /// Pull a policy from an OCI registry into a new folder.
    Pull {
        /// The policy.
        #[arg(value_name = "oci://HOST/REPOSITORY:TAG")]
        reference: OciReference,
        /// Folder of the policy, which must not exist.
        dir: PathBuf,
        #[command(flatten)]
        options: RegistryOptions,
    },
    /// Verify a policy in an OCI registry as a host does before it activates one: digests,
    /// signature, limits and golden cases.
    Verify {
        /// The policy.
        #[arg(value_name = "oci://HOST/REPOSITORY:TAG")]
        reference: OciReference,
        #[command(flatten)]
        options: RegistryOptions,
    },
    /// List the policies of a running host.
    List(HostOptions),
    /// Show details of a policy.
    Show(PolicyTarget),
    /// Show what happened to the versions of a policy, when, and on whose behalf.
    History(PolicyTarget),
    /// Roll back to an earlier version.
    Rollback {
        #[command(flatten)]
        target: PolicyTarget,
        /// Version to roll back to, instead of the previous one.
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
    },
    /// Promote the candidate version.
    Promote {
        #[command(flatten)]
        target: PolicyTarget,
        /// Version to promote, instead of the candidate.
        version: Option<String>,
    },
    /// Disable a policy.
    Disable(PolicyTarget),
    /// Re-enable a policy.
    Enable(PolicyTarget),
    /// Reload policies now.
    Reload(HostOptions),
}

/// How a registry is reached, and how results are printed.
#[derive(Debug, Clone, Args)]
pub(crate) struct RegistryOptions {
    /// Configuration with the registries and the signers, if they are needed.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Selects the golden cases to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Test {
    /// Folder of the policy.
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Run only golden cases whose name contains this text, and no scenarios.
    #[arg(long, value_name = "NAME-PART")]
    pub(crate) case: Option<String>,
    /// Print the duration of each case.
    #[arg(long)]
    pub(crate) times: bool,
    /// Also measure which branches and functions of the source the golden cases and scenarios take:
    /// JavaScript and TypeScript, with the npm package istanbul-lib-instrument.
    #[arg(long)]
    pub(crate) coverage: bool,
    /// Minimum coverage in per cent; implies --coverage.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub(crate) coverage_min: Option<f64>,
    /// Format of the results: text for people, or json, junit or github (annotations) for programs.
    #[arg(long, value_enum, default_value_t = TestFormat::Text)]
    pub(crate) format: TestFormat,
    /// Write the results to this file instead of standard output.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| "expected a number from 0 to 100".to_owned())
}

/// The format of the results of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TestFormat {
    /// Text for people.
    Text,
    /// One JSON object.
    Json,
    /// JUnit XML.
    Junit,
    /// Annotations of GitHub Actions.
    Github,
}

/// Selects what is done after each change.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Each run builds the component, runs type checkers that are installed in the folder, and runs the
golden cases. Replays and simulations have states of their own, so that they have no effect on a
running host.

Examples:
  pointsman policy dev policies/mine
  pointsman policy dev policies/mine --scenario policies/mine/scenarios/day.toml
  pointsman policy dev policies/mine --config /etc/pointsman/pointsman.toml --install")]
pub(crate) struct Dev {
    /// Folder of the policy.
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Host configuration whose chain, with this policy replaced, and whose records are replayed.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Scenario to simulate after each change.
    #[arg(long, value_name = "FILE")]
    pub(crate) scenario: Option<PathBuf>,
    /// Files of decision records, or folders of them, to replay after each change.
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    pub(crate) records: Vec<PathBuf>,
    /// Maximum number of decisions to replay: the latest ones.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) last: usize,
    /// Copy the policy into the folder from which the host of --config loads it, after each run
    /// without a failure.
    #[arg(long, requires = "config")]
    pub(crate) install: bool,
    /// Run once, without waiting for changes.
    #[arg(long)]
    pub(crate) once: bool,
}

/// Selects what to trace.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  pointsman policy trace 'long prompt'
  pointsman policy trace 0198f2a1 --records /var/lib/pointsman/records --dir policies/mine")]
pub(crate) struct Trace {
    /// Part of the name of a golden case; with --records, the id of a request.
    #[arg(value_name = "CASE|RECORD")]
    pub(crate) what: String,
    /// Folder of the policy.
    #[arg(long, default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Files of decision records, or folders of them, that contain the request.
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    pub(crate) records: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Selects the record to make a golden case from.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The case expects what the policy decides now. What the record does not contain is reported.")]
pub(crate) struct Case {
    /// Folder of the policy.
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Id of the request.
    #[arg(long, value_name = "ID")]
    pub(crate) from_record: String,
    /// Files of decision records, or folders of them, that contain the request.
    #[arg(long, value_name = "FILE|DIR", num_args = 1.., required = true)]
    pub(crate) records: Vec<PathBuf>,
    /// Name of the case; by default, `request ID`.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Print the case instead of appending it to the file.
    #[arg(long)]
    pub(crate) print: bool,
}

/// Selects what to measure.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Calls are spread over the policy's golden cases, each with its configuration and state. A policy
without golden cases is measured with a short chat and two lanes. Times are what the policy adds
to a request; calls that return no advice are counted, but not timed.")]
pub(crate) struct Bench {
    /// Folder of the policy.
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Numbers of lanes to measure with: the first lanes of each golden case, or copies of them.
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = lanes)]
    pub(crate) lanes: Vec<usize>,
    /// Number of calls in each measurement.
    #[arg(long, value_name = "N", default_value = "5000", value_parser = calls)]
    pub(crate) calls: usize,
    /// Chat request to use instead of those of the golden cases (JSON, the body).
    #[arg(long, value_name = "FILE")]
    pub(crate) body: Option<PathBuf>,
    /// Lanes to use instead of those of the golden cases (JSON, as `fleet` of a golden case).
    #[arg(long, value_name = "FILE")]
    pub(crate) fleet: Option<PathBuf>,
    /// Also measure calls that need a new instance, as when all instances are busy.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Selects what to install, and where.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The folder of the earlier version is kept next to the new one, as .NAME.previous.

Exit codes: 0, the version is installed, and a running host has loaded it; 1, the host refused it,
or the files could not be written; 78, the version is invalid, and nothing was changed.

Examples:
  pointsman policy install policies/mine --config /etc/pointsman/pointsman.toml
  pointsman policy install mine-0.2.0.tar --config /etc/pointsman/pointsman.toml --no-wait")]
pub(crate) struct Install {
    /// Folder of the policy, a tar archive of it, or a reference to a registry, with the signature
    /// if it has one.
    #[arg(value_name = "DIR|FILE.tar|oci://…")]
    pub(crate) source: PathBuf,
    /// Configuration of the host, whose chain has the policy.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Leave it to a running host to find the version, and do not wait for its verdict.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// A number outside the range of an argument.
#[derive(Debug, thiserror::Error)]
#[error("expected a number from {} to {}", .0.start(), .0.end())]
struct OutOfRange(RangeInclusive<usize>);

fn lanes(text: &str) -> Result<usize, OutOfRange> {
    within(text, 1..=1024)
}

fn calls(text: &str) -> Result<usize, OutOfRange> {
    within(text, 1..=10_000_000)
}

fn within(text: &str, range: RangeInclusive<usize>) -> Result<usize, OutOfRange> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or(OutOfRange(range))
}

/// Names a policy of a running host.
#[derive(Debug, Clone, Args)]
pub(crate) struct PolicyTarget {
    /// Name of the policy.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) host: HostOptions,
}

/// Selects a running host and the output format.
#[derive(Debug, Clone, Args)]
pub(crate) struct HostOptions {
    #[command(flatten)]
    pub(crate) target: HostTarget,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A running host, and the token for it.
#[derive(Debug, Clone, Args)]
pub(crate) struct HostTarget {
    #[command(flatten)]
    pub(crate) address: HostAddress,
    /// Environment variable with the token for `--url`.
    #[arg(long, value_name = "NAME", requires = "url")]
    pub(crate) token_env: Option<String>,
}

/// The address of a running host. One of its three parts is required.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct HostAddress {
    /// Connect to the host that runs with this configuration.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Connect to the host at this socket.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Connect to the host at this URL, for example http://127.0.0.1:9101.
    #[arg(long, value_name = "URL", requires = "token_env")]
    pub(crate) url: Option<http::Uri>,
}
