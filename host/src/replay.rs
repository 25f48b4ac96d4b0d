//! `pointsman replay`: recorded decisions, asked again.

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
use pointsman_policy::ChainSpec;
use pointsman_record::{Record, files, records};
use pointsman_simulate::replay::{Replay, Report, Who};

use crate::chains;
use crate::cli::replay::Replay as Options;
use crate::config::Config;
use crate::simulate::{print, stage, write_file};

/// What shells say of a program that was interrupted.
const INTERRUPTED: u8 = 130;

/// Records or policies that cannot be used.
#[derive(Debug)]
pub(crate) struct CannotReplay(anyhow::Error);

impl fmt::Display for CannotReplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for CannotReplay {}

/// Ask again what is in records.
pub(crate) fn replay(options: &Options) -> Result<ExitCode> {
    let report = replayed(options).map_err(CannotReplay)?;
    if options.json.as_deref() == Some(Path::new("-")) {
        print(&format!("{:#}\n", report.json()))?;
    } else {
        if let Some(file) = &options.json {
            write_file(file, &format!("{:#}\n", report.json()))?;
        }
        print(&report.text())?;
    }
    Ok(match report {
        report if report.stopped => ExitCode::from(INTERRUPTED),
        report if report.decisions.all() == 0 => ExitCode::from(crate::BAD_CONFIG),
        report if report.agrees() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn replayed(options: &Options) -> Result<Report> {
    let found = found(&options.records)?;
    let config = options.config.as_ref().map(|file| Config::load(file)).transpose()?;
    let chain = config.map(|config| config.policies.chain);
    // Its folders are read when the policies are asked for the first time.
    let policies =
        chains::policies(&options.policy, chain.as_ref().unwrap_or(&ChainSpec::default()))?;
    let who = match chain {
        Some(chain) => Who::Chain(instead(chain, &policies, options)?),
        None if policies.list.is_empty() => bail!(nobody(&found)),
        None => Who::Instead(policies.list.clone()),
    };
    let stage = stage()?;
    let mut replay = Replay::new(&stage, who, options.differences)?;
    let bar = bar(options.quiet, &found);
    let stop = until_interrupted()?;
    for path in &found {
        replay.file(&path.display().to_string());
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) => {
                replay.skipped(&format!("cannot be read: {error}"));
                continue;
            }
        };
        for record in records(BufReader::new(Watched { file, bar: &bar })) {
            if stop.load(Ordering::Relaxed) {
                replay.stops();
                return Ok(replay.finish());
            }
            match record {
                Ok(record) => replay.take(record)?,
                Err(error) => replay.skipped(&error.to_string()),
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

/// The files, oldest first in each folder.
fn found(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in paths {
        let cannot = || format!("{} cannot be read", path.display());
        if !std::fs::metadata(path).with_context(cannot)?.is_dir() {
            found.push(path.clone());
            continue;
        }
        let of_folder = files(path).with_context(cannot)?;
        if of_folder.is_empty() {
            bail!(
                "{} has no decision records: no decisions.jsonl, and no older ones",
                path.display()
            );
        }
        found.extend(of_folder);
    }
    Ok(found)
}

/// The chain of a configuration, with these policies in the places of those of their names.
fn instead(
    mut chain: ChainSpec,
    policies: &chains::Policies,
    options: &Options,
) -> Result<ChainSpec> {
    for policy in &policies.list {
        match chain.policies.iter_mut().find(|link| link.name == policy.name) {
            Some(link) => link.dir.clone_from(&policy.dir),
            None => bail!(
                "the chain of {} has no policy `{}`; add it there, or leave --config out",
                options.config.as_deref().unwrap_or(Path::new("")).display(),
                policy.name
            ),
        }
    }
    Ok(chain)
}

/// What to do where nobody is named to be asked.
fn nobody(found: &[PathBuf]) -> String {
    let chain = |path: &PathBuf| -> Option<ChainInfo> {
        let of_chain = |record| match record {
            Ok(Record::Policies(chain)) => Some(chain),
            _ => None,
        };
        records(BufReader::new(File::open(path).ok()?)).take(1000).find_map(of_chain)
    };
    let names = |chain: ChainInfo| {
        let names: Vec<String> =
            chain.policies.iter().map(|link| link.policy.to_string()).collect();
        format!("these records were written by {}; ", names.join(", "))
    };
    let by = found.iter().find_map(chain).map(names).unwrap_or_default();
    format!("{by}name the host's configuration with --config, or a policy's folder with --policy")
}

fn bar(quiet: bool, found: &[PathBuf]) -> ProgressBar {
    let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
    let bar = ProgressBar::with_draw_target(Some(found.iter().map(size).sum()), target);
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %, {msg}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

/// A file whose reading is watched.
struct Watched<'a> {
    file: File,
    bar: &'a ProgressBar,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bar.inc(read as u64);
        Ok(read)
    }
}

/// Becomes true at the first interruption, so that what is known is shown. The second one ends the program.
fn until_interrupted() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.context("signals cannot be listened for")?;
    let told = Arc::clone(&stop);
    let listen = move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                told.store(true, Ordering::Relaxed);
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                #[expect(clippy::disallowed_methods, reason = "this command starts no engines")]
                std::process::exit(INTERRUPTED.into());
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
    Ok(stop)
}
