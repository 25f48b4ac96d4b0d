//! The keeper: a small process of ours that ends the engines when the host is gone, however that came about.
//!
//! Its input is a pipe that only the host holds open, so that its end is the host's end, SIGKILL included. Each line is
//! `+ <record as JSON>` for an engine that is started or got to know better, or `- <marker>` for one that is gone.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::SignalKind;

use super::hunt::{Hunt, Knows, names};
use super::marker::{Marker, VARIABLE};
use super::proc;
use super::record::Record;

/// How long the keeper tries to end the engines.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// The body of the keeper's process. Returns when the host has gone and nothing of its engines is left, or after 10 s.
pub fn keeper_main(input: impl Read) -> ExitCode {
    let runtime = outlive_signals();
    let wards = listen(input);
    let left = end_all(wards);
    if let Ok(runtime) = runtime {
        // Not dropped here, which would panic within another runtime.
        runtime.shutdown_background();
    }
    if left.is_empty() {
        return ExitCode::SUCCESS;
    }
    // Nobody may be left to read it.
    let _unread = writeln!(
        io::stderr(),
        "keeper: still there after {} s: {}",
        LIMIT.as_secs(),
        left.join(", ")
    );
    ExitCode::FAILURE
}

/// Take no notice of the signals that tell the host to stop: it may need a while to stop its engines, and the keeper is there
/// until then. A handler stays for good once it is there, even when nobody listens to it.
fn outlive_signals() -> io::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let within = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        drop(tokio::signal::unix::signal(kind));
    }
    drop(within);
    Ok(runtime)
}

/// What the host tells, until it is gone.
fn listen(input: impl Read) -> Vec<Record> {
    let mut wards: BTreeMap<Marker, Record> = BTreeMap::new();
    for line in BufReader::new(input).split(b'\n') {
        let Ok(line) = line else { break };
        if let Some(record) = line.strip_prefix(b"+ ").and_then(Record::parse) {
            wards.insert(record.marker.clone(), record);
        } else if let Some(marker) = line.strip_prefix(b"- ")
            && let Some(marker) = str::from_utf8(marker).ok().and_then(Marker::parse)
        {
            wards.remove(&marker);
        }
    }
    wards.into_values().collect()
}

/// End these engines, all at once. Returns what is left.
fn end_all(wards: Vec<Record>) -> Vec<String> {
    let mut hunts: Vec<Hunt> =
        wards.into_iter().map(|record| Hunt::new(record, Knows::Told)).collect();
    let until = Instant::now() + LIMIT;
    loop {
        let mut left = Vec::new();
        hunts.retain_mut(|hunt| {
            let Some(alive) = hunt.alive() else {
                // Nothing is alive: this only cleans up after it.
                return hunt.end(Duration::ZERO, Duration::ZERO).is_err();
            };
            hunt.strike(&alive, Signal::KILL);
            left.push(names(&alive));
            true
        });
        if hunts.is_empty() || Instant::now() >= until {
            return left;
        }
        proc::pause(PAUSE);
    }
}

/// The host's side.
#[derive(Debug)]
pub(super) struct Watchdog {
    program: PathBuf,
    running: Option<(Child, ChildStdin)>,
}

impl Watchdog {
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, running: None }
    }

    /// An engine is started, or better known. `all` are all there are, this one too: a new keeper has to be told of them.
    pub(super) fn add<'a>(&mut self, record: &Record, all: impl Iterator<Item = &'a Record>) {
        let told = match self.ensure() {
            Ok(true) => all.into_iter().try_for_each(|record| self.say(&plus(record))),
            Ok(false) => self.say(&plus(record)),
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::error!(
                "the keeper `{}` cannot be used: {error}; should the host be killed, only the first process of each engine \
                 goes with it",
                self.program.display()
            );
        }
    }

    /// An engine is gone.
    pub(super) fn remove(&mut self, marker: &Marker) {
        // A keeper that is not there needs not to be told.
        let _told = self.say(&format!("- {marker}\n"));
    }

    /// See to it that it runs. Returns whether it is a new one.
    pub(super) fn ensure(&mut self) -> io::Result<bool> {
        if let Some((child, _)) = &mut self.running {
            match child.try_wait() {
                Ok(None) => return Ok(false),
                Ok(Some(status)) => {
                    tracing::warn!("the keeper has ended ({status}) and is started again")
                }
                Err(error) => tracing::warn!("the keeper is lost ({error}) and is started again"),
            }
        }
        self.running = None;
        let mut child = own_session(&mut Command::new(&self.program))
            .arg("keeper")
            .env_remove(VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let pipe = child.stdin.take().ok_or_else(|| io::Error::other("it has no input"))?;
        // A keeper that is stopped must not stop the host.
        let flags = rustix::fs::fcntl_getfl(&pipe)?;
        rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK)?;
        self.running = Some((child, pipe));
        Ok(true)
    }

    /// Its process, if it is running.
    #[cfg(test)]
    pub(super) fn id(&self) -> Option<u32> {
        self.running.as_ref().map(|(child, _)| child.id())
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        match &mut self.running {
            Some((_, pipe)) => pipe.write_all(line.as_bytes()),
            None => Err(io::Error::from(io::ErrorKind::NotConnected)),
        }
    }
}

impl Drop for Watchdog {
    /// Let it do its work, and wait until it has: whoever restarts the host wants to find nothing of the old one.
    fn drop(&mut self) {
        let Some((mut child, pipe)) = self.running.take() else { return };
        drop(pipe);
        let until = Instant::now() + LIMIT + Duration::from_secs(1);
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
            proc::pause(PAUSE);
        }
    }
}

fn plus(record: &Record) -> String {
    format!("+ {}\n", record.to_json())
}

/// Away from the terminal, whose Ctrl-C is for the host.
#[expect(
    unsafe_code,
    reason = "code between fork and exec is unsafe by nature; there is no other way to say this"
)]
fn own_session(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only functions that are async-signal-safe may run. This makes one setsid system call,
    // takes no lock and allocates nothing.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) }
}
