//! `pointsman replay`: replays recorded decisions.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pointsman_domain::ChainInfo;
use pointsman_files::open_regular;
use pointsman_policy::ChainSpec;
use pointsman_record::{Record, files, records};
use pointsman_replay::{ChainSource, Replay, ReplayReport};

use crate::chains;
use crate::cli::replay::Replay as Options;
use crate::in_service::in_service;
use crate::output::print;
use crate::simulate::{stage, write_file};
use pointsman_config::Config;

/// Exit code after Ctrl-C: 128 plus the number of SIGINT, as in shells.
const INTERRUPTED: u8 = 130;

/// An error in the records or policies, as opposed to one of the program.
#[derive(Debug)]
pub(crate) struct ReplayFailure(anyhow::Error);

impl fmt::Display for ReplayFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for ReplayFailure {}

/// Runs the command.
pub(crate) fn replay(options: &Options) -> Result<ExitCode> {
    let report = run(options).map_err(ReplayFailure)?;
    if options.json.as_deref() == Some(Path::new("-")) {
        print(&format!("{:#}\n", report.json()))?;
    } else {
        if let Some(file) = &options.json {
            write_file(file, &format!("{:#}\n", report.json()))?;
        }
        print(&report.text())?;
    }
    Ok(match report {
        report if report.interrupted => ExitCode::from(INTERRUPTED),
        report if report.decisions.all() == 0 => ExitCode::from(crate::BAD_CONFIG),
        report if report.agrees() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn run(options: &Options) -> Result<ReplayReport> {
    let files = record_files(&options.records)?;
    let config = options.config.as_ref().map(|file| Config::load_without_secrets(file, &[]));
    let config = config.transpose()?;
    let chain = config.map(|config| config.policies.chain);
    // Owns temporary folders, which must exist until the policies have been loaded.
    let policies =
        chains::policies(&options.policy, chain.as_ref().unwrap_or(&ChainSpec::default()))?;
    let source = match chain {
        Some(chain) => {
            let chain = in_service(chain);
            ChainSource::Configured(with_overrides(chain, &policies, options)?)
        }
        None if policies.list.is_empty() => bail!(missing_policies(&files)),
        None => ChainSource::Recorded { overrides: policies.list.clone() },
    };
    let env = stage()?;
    let mut replay = Replay::new(env.runtime(), source, options.max_differences)?;
    let bar = progress_bar(options.quiet, &files);
    let interrupted = watch_for_interrupt()?;
    for path in &files {
        replay.start_file(&path.display().to_string());
        let file = match open_regular(path) {
            Ok(file) => file,
            Err(error) => {
                replay.skip_line(&error.to_string());
                continue;
            }
        };
        for record in records(BufReader::new(ProgressReader { file, bar: &bar })) {
            if interrupted.load(Ordering::Relaxed) {
                replay.interrupt();
                return Ok(replay.finish());
            }
            match record {
                Ok(record) => replay.push(record)?,
                Err(error) => replay.skip_line(&error.to_string()),
            }
            bar.set_message(format!("{} decisions", replay.decisions()));
            if options.limit.is_some_and(|limit| replay.decisions() >= limit) {
                return Ok(replay.finish());
            }
        }
    }
    bar.finish_and_clear();
    Ok(replay.finish())
}

/// Returns the files of records; those of a folder are sorted from the oldest to the newest.
pub(crate) fn record_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let failed = || format!("failed to read {}", path.display());
        if !std::fs::metadata(path).with_context(failed)?.is_dir() {
            found.push(path.clone());
            continue;
        }
        let of_folder = files(path).with_context(failed)?;
        if of_folder.is_empty() {
            bail!("no decision records in {}; expected decisions.jsonl", path.display());
        }
        found.extend(of_folder);
    }
    Ok(found)
}

/// Returns the chain of a configuration, with the folders of the given policies in place of those
/// of the policies with the same names.
fn with_overrides(
    mut chain: ChainSpec,
    policies: &chains::Policies,
    options: &Options,
) -> Result<ChainSpec> {
    for policy in &policies.list {
        match chain.policies.iter_mut().find(|link| link.name == policy.name) {
            Some(link) => link.dir.clone_from(&policy.dir),
            None => bail!(
                "no policy `{}` in the chain of {}; add the policy there, or omit --config",
                policy.name,
                options.config.as_deref().unwrap_or(Path::new("")).display()
            ),
        }
    }
    Ok(chain)
}

/// Returns the error message if neither a configuration nor a policy is given. It names the
/// recorded policies, if the files begin with them.
fn missing_policies(files: &[PathBuf]) -> String {
    let chain = |path: &PathBuf| -> Option<ChainInfo> {
        let of_chain = |record| match record {
            Ok(Record::Policies(chain)) => Some(chain),
            _ => None,
        };
        // The chain is recorded before the first decision, so there is no need to read whole files.
        records(BufReader::new(open_regular(path).ok()?)).take(1000).find_map(of_chain)
    };
    let names = |chain: ChainInfo| {
        let names: Vec<String> =
            chain.policies.iter().map(|link| link.policy.to_string()).collect();
        format!(" (recorded: {})", names.join(", "))
    };
    let recorded = files.iter().find_map(chain).map(names).unwrap_or_default();
    format!(
        "no policies to replay{recorded}; pass the host's configuration with --config, or a \
         policy's folder with --policy"
    )
}

fn progress_bar(quiet: bool, files: &[PathBuf]) -> ProgressBar {
    // A file that cannot be read is reported when it is opened; until then, it counts as empty.
    let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
    let bar = ProgressBar::with_draw_target(Some(files.iter().map(size).sum()), target);
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %, {msg}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

/// A file that advances the progress bar while it is read.
struct ProgressReader<'a> {
    file: File,
    bar: &'a ProgressBar,
}

impl Read for ProgressReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bar.inc(read as u64);
        Ok(read)
    }
}

/// Returns a flag that is set by the first Ctrl-C, so that a partial report can be shown. The
/// second one ends the program.
fn watch_for_interrupt() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.context("failed to install signal handlers")?;
    let flag = Arc::clone(&interrupted);
    let watch = move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                flag.store(true, Ordering::Relaxed);
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                #[expect(clippy::disallowed_methods, reason = "this command starts no engines")]
                std::process::exit(INTERRUPTED.into());
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch)?;
    Ok(interrupted)
}
