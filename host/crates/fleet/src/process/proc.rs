//! Process information from `/proc`. Formats: proc_pid_stat(5), proc_pid_environ(5),
//! proc_pid_fd(5).
//!
//! The parsers are those of `procfs-core`, with one exception: the environment, of which its map
//! keeps the last entry of a name, where `getenv` takes the first.

use std::time::Duration;

use procfs_core::process::FDTarget;
use procfs_core::{FromRead as _, Uptime};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use super::marker::{Marker, in_environ};
use crate::proc_stat;

/// Ticks per second of start times: `USER_HZ`, which is 100 on every architecture that Rust has a
/// Linux target for.
pub(super) const TICKS_PER_SECOND: u64 = 100;

/// The identity of a process. Unlike a process id alone, it is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    /// The process id.
    pub(super) pid: u32,
    /// The start time, in ticks since boot.
    pub(super) start: u64,
}

/// A snapshot of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProcessSnapshot {
    pub(super) id: Id,
    /// The first 15 bytes of the name.
    pub(super) name: String,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    /// The process is a zombie: it has ended, but its parent has not reaped it. It holds no memory.
    pub(super) dead: bool,
    /// Processor time that the process has used, in ticks of [`TICKS_PER_SECOND`].
    pub(super) used: u64,
}

impl ProcessSnapshot {
    /// Parses `/proc/<pid>/stat`.
    pub(super) fn parse(stat: &[u8]) -> Option<Self> {
        let stat = proc_stat::parse(stat)?;
        let id = |number: i32| u32::try_from(number).ok();
        Some(Self {
            id: Id { pid: id(stat.pid)?, start: stat.starttime },
            name: stat.comm,
            parent: id(stat.ppid)?,
            group: id(stat.pgrp)?,
            session: id(stat.session)?,
            // The main thread of a process can be a zombie while other threads run; the process is
            // alive then.
            dead: matches!(stat.state, 'Z' | 'X') && stat.num_threads <= 1,
            used: stat.utime.saturating_add(stat.stime),
        })
    }
}

/// Returns a snapshot of the process with this id.
pub(super) fn snapshot(pid: u32) -> Option<ProcessSnapshot> {
    ProcessSnapshot::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Returns snapshots of all processes. A process that exists during the whole call is included; one
/// that is started or ends meanwhile may be.
pub(super) fn all() -> Vec<ProcessSnapshot> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| snapshot(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// Returns true if the process exists and has not ended.
pub(super) fn is_running(id: Id) -> bool {
    snapshot(id.pid).is_some_and(|process| process.id == id && !process.dead)
}

/// What the environment of a process shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Environ {
    /// Nothing: the process belongs to another user, or is about to exec.
    Hidden,
    /// Variables without a marker: the process is not part of an engine, or was started with an
    /// environment of its own.
    Plain,
    /// No variables: the process has overwritten them, as `setproctitle` does.
    Overwritten,
    /// The process is part of an engine.
    Marked(Marker),
}

/// Reads the marker from the environment of a process.
pub(super) fn environ(pid: u32) -> Environ {
    match std::fs::read(format!("/proc/{pid}/environ")) {
        Ok(environ) if !environ.is_empty() => match in_environ(&environ) {
            Some(marker) => Environ::Marked(marker),
            None if environ.contains(&b'=') => Environ::Plain,
            None => Environ::Overwritten,
        },
        Ok(_) | Err(_) => Environ::Hidden,
    }
}

/// Returns the inodes of the pipes that a process has as its standard output and standard error.
pub(super) fn output_pipes(pid: u32) -> Vec<u64> {
    [1, 2]
        .into_iter()
        .filter_map(|fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok())
        .filter_map(|link| match link.to_str()?.parse() {
            Ok(FDTarget::Pipe(inode)) => Some(inode),
            Ok(_) | Err(_) => None,
        })
        .collect()
}

/// Sends a signal to exactly this process, and not to a later one with the same id. Does nothing if
/// the process has ended.
pub(super) fn signal(id: Id, signal: Signal) {
    let Some(pid) = to_raw(id.pid) else { return };
    let same = || snapshot(id.pid).is_some_and(|process| process.id == id);
    let sent = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        // The descriptor refers to the process for which it was opened. If that is the right
        // process now, it is also the one that gets the signal.
        Ok(fd) if same() => rustix::process::pidfd_send_signal(fd, signal),
        // A sandbox without this call (Linux has it since 5.3). Checking the id before the signal
        // leaves a small race, but there is no better way.
        Err(rustix::io::Errno::NOSYS) if same() => rustix::process::kill_process(pid, signal),
        Ok(_) | Err(_) => Ok(()),
    };
    if let Err(error) = sent
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(pid = id.pid, error = %error, "failed to signal a process of an engine");
    }
}

/// Reaps a child of this process.
pub(super) fn reap(pid: u32) {
    if let Some(pid) = to_raw(pid) {
        // Fails if another task has reaped the child first.
        let _reaped = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Sleeps on the current thread, which must not be a worker of the runtime. The kernel cannot wait
/// for the end of processes that are not children of the caller, and the keeper has no timer of a
/// runtime.
#[expect(clippy::disallowed_methods, reason = "polls a condition on a dedicated thread")]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Converts a process id for system calls; `None` for 0, which has a special meaning there.
pub(super) fn to_raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Returns the id of the current boot; start times are only comparable within one.
pub(super) fn boot_id() -> String {
    random("boot_id")
}

/// Returns a unique word.
pub(super) fn nonce() -> String {
    let uuid = random("uuid");
    if !uuid.is_empty() {
        return uuid;
    }
    // A sandbox may hide the file.
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), now.as_nanos())
}

/// Reads a file of random(4).
fn random(file: &str) -> String {
    let text =
        std::fs::read_to_string(format!("/proc/sys/kernel/random/{file}")).unwrap_or_default();
    text.trim().to_owned()
}

/// Returns how long a process has been running.
pub(super) fn age(id: Id) -> Option<Duration> {
    let now = Uptime::from_file("/proc/uptime").ok()?.uptime_duration();
    now.checked_sub(Duration::from_millis(id.start * (1000 / TICKS_PER_SECOND)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a line with this start, number of threads and 29 more fields.
    fn parse(start: &str, threads: u32) -> Option<ProcessSnapshot> {
        let rest = " 0".repeat(28);
        let middle = "7 8 9 0 -1 4194304 1 0 0 0 0 0 0 0 20 0";
        let line = format!("{start} {middle} {threads} 0 1316959 3133440{rest}\n");
        ProcessSnapshot::parse(line.as_bytes())
    }

    #[test]
    fn stat_with_parentheses_in_the_name_is_parsed() {
        let process = parse("42 (a) S (b)) R", 3).unwrap();
        assert_eq!(
            (process.id, process.name.as_str()),
            (Id { pid: 42, start: 1_316_959 }, "a) S (b)")
        );
        assert_eq!(
            (process.parent, process.group, process.session, process.dead),
            (7, 8, 9, false)
        );
        // The main thread is a zombie, but other threads are running.
        assert!(!parse("42 (a) Z", 3).unwrap().dead);
        assert!(parse("42 (a) Z", 1).unwrap().dead);
        assert_eq!(ProcessSnapshot::parse(b"42 (a) R 1 2"), None);
        assert_eq!(ProcessSnapshot::parse(b""), None);
    }

    #[test]
    fn the_own_process_is_found() {
        let me = snapshot(std::process::id()).unwrap();
        assert!(!me.dead && all().iter().any(|process| process.id == me.id));
        assert!(age(me.id).unwrap() < Duration::from_secs(3600));
    }
}
