//! The watchdog: a small process of the host's own program that ends the engines when the host has
//! ended for any reason.
//!
//! Its standard input is a pipe that only the host holds open, so its end of file means that the
//! host has ended, SIGKILL included. Each line is `+ <record as JSON>` for an engine that is
//! started or whose record has changed, or `- <marker>` for an engine that has ended.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::SignalKind;

use super::marker::Marker;
use super::proc;
use super::record::Record;
use super::tracker::{ProcessTracker, Provenance, describe};

/// The argument that makes the host's program the watchdog.
const SUBCOMMAND: &str = "watchdog";
/// The maximum time that the watchdog tries to end the engines.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval between attempts, and between checks whether the watchdog has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Runs the watchdog. Returns when the host is gone and none of its engines' processes is left, or
/// 10 s after the host's end.
pub fn watchdog_main(input: impl Read) -> ExitCode {
    let runtime = ignore_termination_signals();
    let engines = read_engines(input);
    let survivors = end_all(engines);
    if let Ok(runtime) = runtime {
        // Dropping a runtime within another one panics.
        runtime.shutdown_background();
    }
    if survivors.is_empty() {
        return ExitCode::SUCCESS;
    }
    // The terminal may be gone with the host, and there is no other place to report this.
    writeln!(
        io::stderr(),
        "watchdog: processes still alive {} s after SIGKILL: {}",
        KILL_TIMEOUT.as_secs(),
        survivors.join(", ")
    )
    .ok();
    ExitCode::FAILURE
}

/// Ignores the signals that tell the host to stop: stopping its engines may take a while, and the
/// watchdog has to be there until then. A handler of tokio stays installed when its listener is
/// dropped.
fn ignore_termination_signals() -> io::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        drop(tokio::signal::unix::signal(kind));
    }
    drop(entered);
    Ok(runtime)
}

/// Reads the host's messages until the host is gone, and returns the engines that are running then.
fn read_engines(input: impl Read) -> Vec<Record> {
    let mut engines: BTreeMap<Marker, Record> = BTreeMap::new();
    for line in BufReader::new(input).split(b'\n') {
        let Ok(line) = line else { break };
        if let Some(record) = line.strip_prefix(b"+ ").and_then(Record::parse) {
            engines.insert(record.marker.clone(), record);
        } else if let Some(marker) = line.strip_prefix(b"- ")
            && let Some(marker) = str::from_utf8(marker).ok().and_then(Marker::parse)
        {
            engines.remove(&marker);
        }
    }
    engines.into_values().collect()
}

/// Ends these engines concurrently, and returns the processes that survived.
fn end_all(engines: Vec<Record>) -> Vec<String> {
    let mut trackers: Vec<ProcessTracker> = engines
        .into_iter()
        .map(|record| ProcessTracker::new(record, Provenance::Reported))
        .collect();
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let mut survivors = Vec::new();
        trackers.retain_mut(|tracker| {
            let Some(alive) = tracker.alive() else {
                // No process is alive, so this only cleans up.
                return tracker.end(Duration::ZERO, Duration::ZERO).is_err();
            };
            tracker.signal_all(&alive, Signal::KILL);
            survivors.push(describe(&alive));
            true
        });
        if trackers.is_empty() || Instant::now() >= deadline {
            return survivors;
        }
        proc::pause(POLL_INTERVAL);
    }
}

/// The host's handle to the watchdog process.
#[derive(Debug)]
pub(super) struct Watchdog {
    program: PathBuf,
    running: Option<(Child, ChildStdin)>,
}

impl Watchdog {
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, running: None }
    }

    /// Reports an engine that is started or whose record has changed. `all` are the records of all
    /// engines, including this one, for a watchdog that had to be restarted.
    pub(super) fn add<'a>(&mut self, record: &Record, all: impl Iterator<Item = &'a Record>) {
        let sent = match self.ensure_running() {
            Ok(true) => all.into_iter().try_for_each(|record| self.send(&add_message(record))),
            Ok(false) => self.send(&add_message(record)),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            tracing::error!(
                program = %self.program.display(),
                error = %error,
                "failed to report an engine to the watchdog; if the host is killed, only the first \
                 process of each engine ends with it"
            );
        }
    }

    /// Reports that an engine has ended.
    pub(super) fn remove(&mut self, marker: &Marker) {
        // Fails only if the watchdog has ended; its successor gets only the running engines.
        self.send(&format!("- {marker}\n")).ok();
    }

    /// Starts the watchdog if it is not running, and returns true if it was started.
    pub(super) fn ensure_running(&mut self) -> io::Result<bool> {
        if let Some((child, _)) = &mut self.running {
            match child.try_wait() {
                Ok(None) => return Ok(false),
                Ok(Some(status)) => {
                    tracing::warn!(status = %status, "watchdog ended; restarting it");
                }
                Err(error) => {
                    tracing::warn!(error = %error, "failed to check the watchdog; restarting it");
                }
            }
        }
        self.running = None;
        let mut child = own_session(&mut Command::new(&self.program))
            .arg(SUBCOMMAND)
            // It needs nothing of the host's environment, which may hold secrets. And the watchdog
            // of a host that is itself an engine would be taken for one by the marker in it.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let pipe = child.stdin.take().ok_or_else(|| io::Error::other("missing standard input"))?;
        // A watchdog that does not read its input must not block the host.
        let flags = rustix::fs::fcntl_getfl(&pipe)?;
        rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK)?;
        self.running = Some((child, pipe));
        Ok(true)
    }

    /// Returns the process id, if the watchdog was started.
    pub(super) fn id(&self) -> Option<u32> {
        self.running.as_ref().map(|(child, _)| child.id())
    }

    fn send(&mut self, line: &str) -> io::Result<()> {
        match &mut self.running {
            Some((_, pipe)) => pipe.write_all(line.as_bytes()),
            None => Err(io::Error::from(io::ErrorKind::NotConnected)),
        }
    }
}

impl Drop for Watchdog {
    /// Closes the watchdog's input and waits until it has ended the engines, so that a host that is
    /// restarted immediately finds none of the old processes.
    fn drop(&mut self) {
        let Some((mut child, pipe)) = self.running.take() else { return };
        drop(pipe);
        // One second more than the watchdog allows itself.
        let deadline = Instant::now() + KILL_TIMEOUT + Duration::from_secs(1);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            proc::pause(POLL_INTERVAL);
        }
    }
}

fn add_message(record: &Record) -> String {
    format!("+ {}\n", record.to_json())
}

/// Detaches the watchdog from the terminal, whose Ctrl-C is meant for the host.
#[expect(
    unsafe_code,
    reason = "`pre_exec` is unsafe; the closure only calls async-signal-safe functions"
)]
fn own_session(command: &mut Command) -> &mut Command {
    // SAFETY: only async-signal-safe functions may run between fork and exec. The closure makes one
    // setsid system call, takes no lock and does not allocate.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) }
}
