//! What `/proc` knows of processes. Formats: proc_pid_stat(5), proc_pid_environ(5), proc_pid_fd(5).

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use super::marker::{Marker, in_environ};

/// Start times are in ticks of this many per second: `USER_HZ`, 100 on every architecture that Rust has a Linux target for.
const TICKS_PER_SECOND: u64 = 100;

/// A process that stays the same one when its number is given to another: no two of them have both in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    /// Its number.
    pub(super) pid: u32,
    /// When it was started, in ticks since the machine was.
    pub(super) start: u64,
}

/// A process at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: Id,
    /// The first 15 bytes of its name.
    pub(super) name: String,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    /// Ended, and only waiting for its parent to take notice: it holds no memory any more.
    pub(super) dead: bool,
}

impl Seen {
    /// One line of `/proc/<pid>/stat`. The name is in parentheses and may contain anything, parentheses too.
    pub(super) fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        // The state is field 3 of the manual.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |at: usize| field(at)?.parse().ok();
        // The first thread of a process can be a zombie while others run on: then the process is alive.
        let threads: u64 = field(20)?.parse().ok()?;
        Some(Self {
            id: Id { pid: pid.parse().ok()?, start: field(22)?.parse().ok()? },
            name: name.to_owned(),
            parent: number(4)?,
            group: number(5)?,
            session: number(6)?,
            dead: matches!(field(3)?, "Z" | "X") && threads <= 1,
        })
    }
}

/// The process with this number.
pub(super) fn seen(pid: u32) -> Option<Seen> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    Seen::parse(&String::from_utf8_lossy(&stat))
}

/// All processes. They come and go while this looks, so one that was there all the time is in it, one that was born
/// meanwhile may be.
pub(super) fn all() -> Vec<Seen> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| seen(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// What a process shows of its environment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Environ {
    /// Nothing: it is another user's, or about to become another program.
    Hidden,
    /// It bears no marker, or has written over it.
    Plain,
    /// It is part of an engine.
    Marked(Marker),
}

/// The marker of a process.
pub(super) fn environ(pid: u32) -> Environ {
    match std::fs::read(format!("/proc/{pid}/environ")) {
        Ok(environ) if !environ.is_empty() => {
            in_environ(&environ).map_or(Environ::Plain, Environ::Marked)
        }
        Ok(_) | Err(_) => Environ::Hidden,
    }
}

/// Inodes of the pipes that a process writes its output to.
pub(super) fn outputs(pid: u32) -> Vec<u64> {
    [1, 2]
        .into_iter()
        .filter_map(|fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("pipe:[")?.strip_suffix(']')?.parse().ok())
        .collect()
}

/// Send a signal to this very process and to no later one of its number. Nothing happens when it is gone.
pub(super) fn signal(id: Id, signal: Signal) {
    let Some(pid) = raw(id.pid) else { return };
    let same = || seen(id.pid).is_some_and(|seen| seen.id == id);
    let sent = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        // The descriptor stays with the process it was opened for: if that is the right one now, it is when the signal goes.
        Ok(fd) if same() => rustix::process::pidfd_send_signal(fd, signal),
        // A sandbox without this call (Linux has it since 5.3): as near as one can get.
        Err(rustix::io::Errno::NOSYS) if same() => rustix::process::kill_process(pid, signal),
        Ok(_) | Err(_) => Ok(()),
    };
    if let Err(error) = sent
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(pid = id.pid, "cannot signal a process of an engine: {error}");
    }
}

/// Take notice of the end of a child of ours.
pub(super) fn reap(pid: u32) {
    if let Some(pid) = raw(pid) {
        // Somebody else may have been quicker.
        let _reaped = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Wait a moment, on a thread that may: the kernel has no way to wait for the end of processes that are not ours, and no
/// runtime's clock is there in the keeper.
#[expect(
    clippy::disallowed_methods,
    reason = "a pause between two looks at a condition, on a thread of its own"
)]
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A number as the kernel's calls want it; `None` for 0, which means other things there.
pub(super) fn raw(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// What tells one run of the machine from another: start times are only good within one.
pub(super) fn boot_id() -> String {
    random("boot_id")
}

/// A word that was never there before.
pub(super) fn nonce() -> String {
    let uuid = random("uuid");
    if !uuid.is_empty() {
        return uuid;
    }
    // A sandbox that hides the file.
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), now.as_nanos())
}

/// A file of random(4).
fn random(file: &str) -> String {
    let text =
        std::fs::read_to_string(format!("/proc/sys/kernel/random/{file}")).unwrap_or_default();
    text.trim().to_owned()
}

/// How long a process has been running.
pub(super) fn age(id: Id) -> Option<Duration> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let now = Duration::try_from_secs_f64(uptime.split(' ').next()?.parse().ok()?).ok()?;
    now.checked_sub(Duration::from_millis(id.start * (1000 / TICKS_PER_SECOND)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_are_read() {
        let tail = "7 8 9 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 3 0 1316959 3133440 412";
        let seen = Seen::parse(&format!("42 (a) S (b)) R {tail}")).unwrap();
        assert_eq!((seen.id, seen.name.as_str()), (Id { pid: 42, start: 1_316_959 }, "a) S (b)"));
        assert_eq!((seen.parent, seen.group, seen.session, seen.dead), (7, 8, 9, false));
        // Threads of it are still running.
        assert!(!Seen::parse(&format!("42 (a) Z {tail}")).unwrap().dead);
        assert!(
            Seen::parse(&format!("42 (a) Z {}", tail.replace(" 3 0 13", " 1 0 13"))).unwrap().dead
        );
        assert_eq!(Seen::parse("42 (a) R 1 2"), None);
        assert_eq!(Seen::parse(""), None);
    }

    #[test]
    fn we_see_ourselves() {
        let me = seen(std::process::id()).unwrap();
        assert!(!me.dead && all().contains(&me));
        assert!(age(me.id).unwrap() < Duration::from_secs(3600));
    }
}
